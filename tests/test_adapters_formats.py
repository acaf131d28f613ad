"""Every format holds the same function, for every state that a method may leave an adapter in."""

from __future__ import annotations

import copy
import functools
import json
import math
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification

from peftprune import load_adapter
from peftprune.adapters.convert import convert
from peftprune.adapters.formats.loralib import parse_loralib
from peftprune.adapters.formats.peft import write_peft
from peftprune.adapters.formats.read import read_adapter
from peftprune.adapters.inspection import inspect
from peftprune.adapters.merge import write_merged
from peftprune.adapters.pruning import prune
from peftprune.errors import UsageError
from tests.adapters import CLASSIFIERS, STATES, answers, by_peft, finished, generator_model
from tests.helpers import tokenizer

pytestmark = [
    # Said by transformers when PEFT asks a model about activation checkpointing.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`:UserWarning"),
    # Models in memory have no name that PEFT could look up.
    pytest.mark.filterwarnings("ignore:Could not find a config file:UserWarning"),
]

CASES = [("bert", s) for s in STATES] + [
    pytest.param(a, s, marks=[] if s == "all of it" else pytest.mark.slow) for a in ("bart", "llama") for s in STATES
]


def loaded_by_peft(base: nn.Module, folder: Path) -> Tensor:
    return answers(PeftModel.from_pretrained(copy.deepcopy(base), folder))


@pytest.mark.parametrize(("architecture", "state"), CASES)
def test_round_trips(architecture: str, state: str, tmp_path: Path) -> None:
    base, said = finished(architecture, state, tmp_path / "adapter")
    assert not torch.allclose(said, answers(base), atol=1e-3)
    native = convert(tmp_path / "adapter", tmp_path / "native", format="native")
    assert torch.equal(answers(load_adapter(native, copy.deepcopy(base))), said)
    back = convert(native, tmp_path / "back")
    assert torch.equal(loaded_by_peft(base, back), said)
    assert json.loads((back / "adapter_config.json").read_text()) == json.loads(
        (tmp_path / "adapter" / "adapter_config.json").read_text()
    )
    uniform = convert(native, tmp_path / "uniform", uniform=True)
    config = json.loads((uniform / "adapter_config.json").read_text())
    assert (config["rank_pattern"], config["alpha_pattern"]) == ({}, {})
    assert {t.shape[0] for n, t in load_file(uniform / "adapter_model.safetensors").items() if "lora_A" in n} == {
        config["r"]
    }
    assert torch.allclose(loaded_by_peft(base, uniform), said, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("architecture", CLASSIFIERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_merged_is_a_plain_model_within_the_tolerance(architecture: str, dtype: torch.dtype, tmp_path: Path) -> None:
    base, said = finished(architecture, "all of it", tmp_path / "adapter")

    def reload(folder: Path) -> nn.Module:
        return AutoModelForSequenceClassification.from_pretrained(folder, dtype="auto").eval()

    adapted = load_adapter(tmp_path / "adapter", copy.deepcopy(base))
    done = write_merged(adapted, tokenizer(), tmp_path / "merged", dtype, reload)
    model = reload(tmp_path / "merged")
    assert {p.dtype for p in model.parameters()} == {dtype}
    assert not any("lora" in name for name in model.state_dict())
    difference = float((answers(model) - said).abs().max())
    assert difference == pytest.approx(done.difference)
    # bfloat16 has 8 bits: each of the layers rounds by up to 0.4 %.
    assert difference <= (1e-4 if dtype == torch.float32 else 0.1) * max(1.0, float(said.abs().max()))
    assert (difference > 0) or dtype == torch.float32


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "patterns": {"rank_pattern": {"v_proj": 2}, "alpha_pattern": {"v_proj": 5}},
    "rslora": {"use_rslora": True, "rank_pattern": {"q_proj": 3}},
    "embedding": {"target_modules": ["q_proj", "embed_tokens"], "rank_pattern": {"embed_tokens": 2}},
    "biases": {"bias": "all"},
    "some layers": {"layers_to_transform": [1], "layers_pattern": "layers"},
    "a target left out": {"target_modules": ["q_proj", "k_proj"], "exclude_modules": ["k_proj"]},
    "targets of several architectures": {"target_modules": ["q_proj", "c_attn", "query_key_value"]},
    "biases of a saved module": {"bias": "all", "modules_to_save": ["fc2", "norm"]},
}


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize(("kind", "task_type"), [("llama", "CAUSAL_LM"), ("bart", "SEQ_2_SEQ_LM")])
def test_adapters_of_generating_models_that_peft_made(kind: str, task_type: str, options: str, tmp_path: Path) -> None:
    if (kind, options) == ("bart", "embedding"):
        pytest.skip("BART's embeddings are one tensor under several names, which PEFT saves as one of them")
    base = generator_model(kind)
    said = by_peft(base, tmp_path / "adapter", task_type=task_type, **OPTIONS[options])
    native = convert(tmp_path / "adapter", tmp_path / "native", format="native")
    assert torch.equal(answers(load_adapter(native, copy.deepcopy(base))), said)
    assert torch.equal(answers(load_adapter(tmp_path / "adapter", copy.deepcopy(base))), said)
    assert torch.equal(loaded_by_peft(base, convert(native, tmp_path / "back")), said)
    uniform = convert(tmp_path / "adapter", tmp_path / "uniform", uniform=True)
    assert torch.allclose(loaded_by_peft(base, uniform), said, atol=1e-5, rtol=1e-5)


def test_shared_factors_are_stored_once_and_tied_again(tmp_path: Path) -> None:
    base, _ = finished("bert", "shared", tmp_path / "adapter")
    native = convert(tmp_path / "adapter", tmp_path / "native", format="native")
    expanded = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    once = load_file(native / "adapter.safetensors")
    factors = sum(t.numel() for n, t in expanded.items() if "lora_" in n)
    assert sum(t.numel() for n, t in once.items() if n[0].isdigit()) == factors / 2
    model = load_adapter(native, base)
    found = {name: m.lora_A["default"].weight for name, m in model.named_modules() if hasattr(m, "lora_A")}
    assert len({id(w) for w in found.values()}) == len(found) / 2


def test_without_its_head_an_adapter_leaves_the_base_models_own(tmp_path: Path) -> None:
    base, said = finished("bert", "uniform", tmp_path / "adapter")
    for form in ("peft", "native"):
        folder = convert(tmp_path / "adapter", tmp_path / form, format=form, head=False)
        model = load_adapter(folder, copy.deepcopy(base))
        assert not any("classifier" in name for name in read_adapter(folder).others)
        assert torch.equal(model.get_base_model().classifier.weight, base.classifier.weight)
        assert not torch.equal(answers(model), said)


def test_loralib_becomes_peft(tmp_path: Path) -> None:
    base = CLASSIFIERS["bert"]()
    rng = torch.Generator().manual_seed(0)
    site = "bert.encoder.layer.1.attention.self.value"
    A, B = torch.randn(4, 32, generator=rng), torch.randn(32, 4, generator=rng)
    head = {"classifier.weight": torch.randn(2, 32, generator=rng), "classifier.bias": torch.zeros(2)}
    file = tmp_path / "lora.safetensors"
    save_file({f"{site}.lora_A": A, f"{site}.lora_B": B, **head}, file)
    merged = copy.deepcopy(base)
    merged.load_state_dict(head, strict=False)
    merged.get_submodule(site).weight.data += 12 / 4 * B @ A
    adapted = load_adapter(file, copy.deepcopy(base), alpha=12)
    assert torch.allclose(answers(adapted), answers(merged), atol=1e-5)
    assert torch.equal(loaded_by_peft(base, convert(tmp_path, tmp_path / "peft", alpha=12)), answers(adapted))
    assert "alpha" in read_adapter(file).notes[0]


def test_peft_stores_the_biases_of_a_saved_module_three_times(tmp_path: Path) -> None:
    base = CLASSIFIERS["bert"]()
    said = by_peft(base, tmp_path, target_modules=["query"], bias="all", task_type="SEQ_CLS")
    assert "base_model.model.classifier.modules_to_save.bias" in load_file(tmp_path / "adapter_model.safetensors")
    assert [n for n in read_adapter(tmp_path).others if "classifier" in n] == ["classifier.bias", "classifier.weight"]
    assert torch.equal(answers(load_adapter(tmp_path, base)), said)


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    finished("bert", "ranks", tmp_path / "adapter")
    return tmp_path / "adapter"


def rewritten(folder: Path, change: Any) -> None:
    file = folder / "adapter_model.safetensors"
    tensors = dict(load_file(file))
    change(tensors)
    save_file(tensors, file)


def reconfigured(folder: Path, **values: Any) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


KEY = "base_model.model.bert.encoder.layer.0.attention.self.key.lora_{}.weight"
DAMAGES: dict[str, tuple[Any, str]] = {
    "truncated": (lambda f: cut_off(f / "adapter_model.safetensors", 0.5), "truncated, damaged"),
    "cut in its header": (lambda f: cut_off(f / "adapter_model.safetensors", 0.01), "truncated, damaged"),
    "empty": (lambda f: (f / "adapter_model.safetensors").write_bytes(b""), "truncated, damaged"),
    "noise": (lambda f: (f / "adapter_model.safetensors").write_bytes(b"\xff" * 99), "truncated, damaged"),
    "pickle under another name": (lambda f: torch.save({}, f / "adapter_model.safetensors"), "is a pickle"),
    "pickle alone": (lambda f: (f / "adapter_model.safetensors").rename(f / "adapter_model.bin"), "is a pickle"),
    "no weights": (lambda f: (f / "adapter_model.safetensors").unlink(), "has no adapter_model.safetensors"),
    "no configuration": (lambda f: (f / "adapter_config.json").unlink(), "adapter_config.json is not beside it"),
    "half a configuration": (lambda f: cut_off(f / "adapter_config.json", 0.5), "cannot be read"),
    "no B": (lambda f: rewritten(f, lambda t: t.pop(KEY.format("B"))), "has no lora_B for bert.encoder.layer.0"),
    "no site": (
        lambda f: rewritten(f, lambda t: [t.pop(KEY.format(x)) for x in "AB"]),
        "no tensors for the target module bert.encoder.layer.0.attention.self.key",
    ),
    "another rank": (
        lambda f: rewritten(f, lambda t: t.update({KEY.format("A"): torch.zeros(9, 32)})),
        "A (9, 32) and B",
    ),
    "no head": (
        lambda f: rewritten(f, lambda t: [t.pop(n) for n in list(t) if "classifier" in n]),
        "no tensors for classifier",
    ),
    "another method": (lambda f: reconfigured(f, peft_type="VERA"), "'VERA' of"),
    "another method, as a pickle": (
        lambda f: (reconfigured(f, peft_type="IA3"), (f / "adapter_model.safetensors").rename(f / "adapter_model.bin")),
        "'IA3' of",
    ),
    "no weights beside the Trainer's arguments": (
        lambda f: (f / "adapter_model.safetensors").rename(f / "training_args.bin"),
        "has no adapter_model.safetensors",
    ),
    "no number": (lambda f: reconfigured(f, lora_alpha="much", alpha_pattern={}), "lora_alpha"),
}


def cut_off(file: Path, share: float) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * share)])


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_adapter_is_named_and_nothing_is_touched(damage: str, adapter: Path, tmp_path: Path) -> None:
    break_, message = DAMAGES[damage]
    break_(adapter)
    base = CLASSIFIERS["bert"]()
    before = {n: t.clone() for n, t in base.state_dict().items()}
    with pytest.raises(UsageError) as caught:
        load_adapter(adapter, base)
    assert message in str(caught.value)
    after = base.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[n], after[n]) for n in before)
    with pytest.raises(UsageError):
        convert(adapter, tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["adapter"]


@pytest.fixture(scope="module")
def from_peft(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Path]:
    """A base model and an adapter that plain PEFT made of it."""
    base, folder = generator_model("llama"), tmp_path_factory.mktemp("peft") / "adapter"
    by_peft(base, folder, task_type="CAUSAL_LM", modules_to_save=["lm_head"])
    return base, folder


FACTOR = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
FIELDS: dict[str, list[Any]] = {
    "r": ["4", -4, 0, 4.0, None],
    "lora_alpha": [None, "8", [8], math.inf],
    "rank_pattern": [[1], {"q_proj": "4"}, {"(": 4}],
    "alpha_pattern": [{"q_proj": None}],
    "use_rslora": ["yes"],
    "target_modules": [None, 3, [3], [], "(", {"q_proj": 1}],
    "exclude_modules": [3, "("],
    "modules_to_save": ["lm_head", 3, ["lm_head", "("]],
    "layers_to_transform": ["1", [0.5]],
    "layers_pattern": ["("],
    "bias": ["some"],
}
STRANGE: dict[str, tuple[Any, str]] = {
    f"{field}={value}": (functools.partial(reconfigured, **{field: value}), f"{field}: {value!r} in ")
    for field, values in FIELDS.items()
    for value in values
} | {
    "a list": (lambda f: (f / "adapter_config.json").write_text("[1]"), "adapter_config.json' does not hold"),
    "deep": (lambda f: (f / "adapter_config.json").write_text("[" * 10**5), "adapter_config.json' cannot be read"),
    "cut": (lambda f: cut_off(f / "adapter_model.safetensors", 0.9), "adapter_model.safetensors' is truncated"),
    "other keys": (
        lambda f: rewritten(f, lambda t: [t.update({n.replace("lora", "x"): t.pop(n)}) for n in list(t)]),
        "holds no LoRA factors",
    ),
    "NaN": (lambda f: rewritten(f, lambda t: t[FACTOR].fill_(math.nan)), "is not finite at model.layers.0.self_attn.q"),
    "NaN in the head": (
        lambda f: rewritten(f, lambda t: t["base_model.model.lm_head.weight"].fill_(math.nan)),
        "is not finite at lm_head.weight",
    ),
    "integers": (
        lambda f: rewritten(f, lambda t: t.update({FACTOR: t[FACTOR].to(torch.int8)})),
        "has factors in torch.int8 and torch.float32 at model.layers.0.self_attn.q_proj",
    ),
    "8 bits": (
        lambda f: rewritten(f, lambda t: t.update({FACTOR: t[FACTOR].to(torch.float8_e4m3fn)})),
        "has factors in torch.float8_e4m3fn",
    ),
}  # fmt: skip


@pytest.mark.parametrize("damage", STRANGE)
def test_every_command_names_file_and_field(damage: str, from_peft: tuple[nn.Module, Path], tmp_path: Path) -> None:
    base, folder = from_peft[0], tmp_path / "adapter"
    shutil.copytree(from_peft[1], folder)
    break_, message = STRANGE[damage]
    break_(folder)
    for call in (
        lambda: inspect(folder),
        lambda: prune(folder, tmp_path / "out", budget="rank=1"),
        lambda: convert(folder, tmp_path / "out"),
        lambda: load_adapter(folder, base),
    ):
        with pytest.raises(UsageError) as caught:
            call()
        assert message in str(caught.value)
        assert str(folder) in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("fields", [{"lora_dropout": "x"}, {"task_type": "NOPE"}, {"layers_pattern": "layers"}])
def test_what_peft_trips_over_is_named(
    fields: dict[str, Any], from_peft: tuple[nn.Module, Path], tmp_path: Path
) -> None:
    shutil.copytree(from_peft[1], tmp_path / "adapter")
    reconfigured(tmp_path / "adapter", **fields)
    with pytest.raises(UsageError, match=r"adapter' cannot be loaded by PEFT \(\w+Error: .*Correct its adapter_config"):
        load_adapter(tmp_path / "adapter", copy.deepcopy(from_peft[0]))


def test_the_way_to_convert_a_pickle_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    A, B = torch.ones(2, 4), torch.ones(4, 2)
    torch.save({"layer.0.q.lora_A": A, "layer.0.q.lora_B": B}, tmp_path / "lora.bin")
    with pytest.raises(UsageError) as caught:
        read_adapter(tmp_path / "lora.bin")
    command = shlex.split(str(caught.value).partition("trust its source: ")[2])
    assert command[:2] == ["python", "-c"]
    monkeypatch.setattr(sys, "argv", ["-c", *command[3:]])
    exec(command[2], {})
    assert torch.equal(read_adapter(tmp_path / "lora.safetensors").sites["layer.0.q"].A, A)


def native_of(adapter: Path, change: Any) -> Path:
    from safetensors import safe_open

    folder = convert(adapter, adapter.parent / "native", format="native")
    file = folder / "adapter.safetensors"
    with safe_open(file, "pt") as opened:
        header = json.loads(opened.metadata()["peftprune"])
    tensors = dict(load_file(file))
    change(header, tensors)
    save_file(tensors, file, metadata={"peftprune": json.dumps(header)})
    return folder


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h, t: h.update(version=2), "version 2"),
        (lambda h, t: h.pop("config"), "damaged header"),
        (lambda h, t: h.update(config=[1]), "damaged header"),
        (lambda h, t: h.update(sites=[1]), "damaged header"),
        (lambda h, t: t.pop("0.B"), "no factor B"),
        (lambda h, t: t.pop("other.classifier.weight") is t.pop("other.classifier.bias"), "no tensors for classifier"),
    ],
)
def test_a_damaged_native_file_is_named(change: Any, message: str, adapter: Path) -> None:
    with pytest.raises(UsageError, match=message):
        read_adapter(native_of(adapter, change))


@pytest.mark.parametrize(
    ("base", "message"),
    [
        (lambda: CLASSIFIERS["llama"](), "which the model does not have"),
        (lambda: CLASSIFIERS["bert"](width=64), "where the model has 64"),
        (lambda: CLASSIFIERS["bert"](layers=1), "which the model does not have"),
        (lambda: CLASSIFIERS["bert"](num_labels=3), "holds classifier.bias as"),
        (lambda: CLASSIFIERS["bert"](seed=1), "trained on another base model: the weights of"),
        (lambda: generator_model("llama"), "which the model does not have"),
    ],
    ids=["another kind", "wider", "shallower", "more labels", "other weights", "another task"],
)
def test_an_adapter_of_another_base_model_is_refused(base: Any, message: str, adapter: Path) -> None:
    model = base()
    before = {n: t.clone() for n, t in model.state_dict().items()}
    with pytest.raises(UsageError, match=message):
        load_adapter(adapter, model)
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())
    assert before.keys() == model.state_dict().keys()


def test_the_same_base_in_bfloat16_is_the_same_base(adapter: Path) -> None:
    load_adapter(adapter, CLASSIFIERS["bert"]().to(torch.bfloat16))


def test_layers_that_the_configuration_names_need_factors(tmp_path: Path) -> None:
    base = generator_model("llama")
    by_peft(base, tmp_path, task_type="CAUSAL_LM")
    site = "base_model.model.model.layers.1.self_attn.q_proj.lora_{}.weight"
    rewritten(tmp_path, lambda t: [t.pop(site.format(x)) for x in "AB"])
    with pytest.raises(UsageError, match=r"no factors for model\.layers\.1\.self_attn\.q_proj"):
        load_adapter(tmp_path, base)


@pytest.mark.parametrize(
    ("field", "value"),
    [("use_dora", True), ("lora_bias", True), ("layer_replication", [[0, 1]]), ("init_lora_weights", "pissa")],
)
def test_what_is_more_than_two_factors_is_refused_by_name(
    field: str, value: Any, adapter: Path, tmp_path: Path
) -> None:
    reconfigured(adapter, **{field: value})
    with pytest.raises(UsageError, match=field):
        convert(adapter, tmp_path / "out", format="native")
    assert not (tmp_path / "out").exists()


def test_what_loralib_writes_and_peft_cannot_hold_is_refused() -> None:
    A, B = torch.ones(4, 8), torch.ones(8, 2)
    with pytest.raises(UsageError, match="MergedLinear"):
        parse_loralib(Path("x"), {"a.lora_A": A, "a.lora_B": B}, None)
    with pytest.raises(UsageError, match="no lora_B for a"):
        parse_loralib(Path("x"), {"a.lora_A": A}, None)
    with pytest.raises(UsageError, match=r"h\.a\.bias, a trained tensor of an adapted layer"):
        parse_loralib(Path("x"), {"h.a.lora_A": A, "h.a.lora_B": B.new_ones(8, 4), "h.a.bias": B}, None)


def test_paths_that_lead_nowhere_are_named(adapter: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        read_adapter(tmp_path / "none")
    with pytest.raises(UsageError, match=r"Name .*adapter"):
        read_adapter(tmp_path)
    with pytest.raises(UsageError, match="alpha: 16 is given for an adapter that stores its own"):
        read_adapter(adapter, alpha=16)
    save_file({"x": torch.zeros(1)}, tmp_path / "trained.safetensors")
    with pytest.raises(UsageError, match="the tensors of a method without adapters"):
        read_adapter(tmp_path / "trained.safetensors")


# --- folders appear whole or not at all -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], "is empty. Name a folder with an adapter"),
        (["config.json", "model.safetensors"], "holds a full model"),
        (["config.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"], "holds a full model"),
        (["config.json", "pytorch_model.bin"], "holds a full model"),
        (
            ["study.json", "arms/lora-s0/adapter/adapter_config.json"],
            r"is a study's folder. .* \S+/arms/lora-s0/adapter$",
        ),
        (["study.json", "arms/bitfit-s0/adapter/trained.safetensors"], "is a study's folder without an adapter"),
        (["adapter/adapter_config.json", "config.json"], r"holds no adapter itself. .* \S+/adapter$"),
        (["config.json", "model.safetensors", "mine/adapter_config.json"], r"holds no adapter itself. .* \S+/mine$"),
        (["snapshots/1/adapter_config.json"], r"holds no adapter itself. .* \S+/snapshots/1$"),
        (["a.safetensors", "b.safetensors"], r"holds several files \(a.safetensors, b.safetensors\)"),
        (["training_args.bin", "tokenizer.json"], "holds no adapter. Name a folder with an adapter"),
    ],
)
def test_a_folder_without_an_adapter_is_named(files: list[str], message: str, tmp_path: Path) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}")
    with pytest.raises(UsageError, match=message):
        read_adapter(tmp_path)


def test_a_folder_is_replaced_only_where_peftprune_wrote_it(adapter: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    convert(adapter, out)
    with pytest.raises(UsageError, match="--overwrite"):
        convert(adapter, out)
    convert(adapter, out, format="native", overwrite=True)
    assert sorted(p.name for p in out.iterdir()) == ["adapter.safetensors", "peftprune.json"]
    (out / "peftprune.json").unlink()
    with pytest.raises(UsageError, match="did not write it"):
        convert(adapter, out, overwrite=True)
    with pytest.raises(UsageError, match="is a file"):
        convert(adapter, out / "adapter.safetensors")
    with pytest.raises(UsageError, match="contains, the source"):
        convert(adapter, adapter, overwrite=True)
    with pytest.raises(UsageError, match="contains, the source"):
        convert(adapter, tmp_path, overwrite=True)


def test_a_failure_while_writing_leaves_what_was_there(
    adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = convert(adapter, tmp_path / "out")
    before = {p.name: p.read_bytes() for p in out.iterdir()}

    def fail(*_: Any) -> int:
        raise OSError("no space left on device")

    monkeypatch.setattr("peftprune.adapters.convert.write_peft", fail)
    with pytest.raises(OSError, match="no space"):
        convert(adapter, out, overwrite=True)
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["adapter", "out"]


def test_files_can_be_read_by_others(adapter: Path, tmp_path: Path) -> None:
    out = convert(adapter, tmp_path / "out")
    modes = {p.stat().st_mode for p in out.iterdir()}
    probe = tmp_path / "probe"
    probe.touch()
    assert modes == {probe.stat().st_mode}


def test_writing_peft_gives_back_the_size(adapter: Path, tmp_path: Path) -> None:
    size = write_peft({}, {"a": torch.zeros(3)}, tmp_path)
    assert size == (tmp_path / "adapter_model.safetensors").stat().st_size
