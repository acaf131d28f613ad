"""The bundled shapes, and the layers found in them and in small models of other types."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from peftprune.errors import UsageError
from peftprune.models.bundled import HUB_NAMES, bundled_config, bundled_names
from peftprune.models.layers import base_linear_cost, discover_sites, head_modules, left_out
from peftprune.models.load import describe

_BERT = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "vocab_size": 50,
}
# GPT-2's default token ids lie outside so small a vocabulary.
_GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 50, "bos_token_id": 1, "eos_token_id": 2}
_BART = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "vocab_size": 50,
}
TINY = {
    "bert": _BERT,
    "roberta": _BERT,
    "electra": _BERT | {"embedding_size": 16},
    "deberta-v2": _BERT | {"pooler_hidden_size": 32},
    "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64, "vocab_size": 50},
    "llama": _BERT | {"num_key_value_heads": 2},
    "bart": _BART,
    "t5": {"d_model": 32, "num_layers": 2, "num_decoder_layers": 3, "num_heads": 4, "d_kv": 8, "d_ff": 64},
    "opt": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 64}
    | {"vocab_size": 50, "word_embed_proj_dim": 16},
    "gpt2": _GPT2,
}


def tiny(model_type: str, device: str = "meta"):
    from transformers import AutoConfig, AutoModelForSequenceClassification

    with torch.device(device):
        return AutoModelForSequenceClassification.from_config(AutoConfig.for_model(model_type, **TINY[model_type]))


# Parameters of the published base models; RoBERTa without its pooler, which no classifier uses.
PUBLISHED = {
    "roberta-base": 124_645_632 - 590_592,
    "roberta-large": 355_359_744 - 1_049_600,
    "deberta-v3-base": 183_831_552,
    "bart-base": 139_420_416,
    "llama-2-7b": 6_738_415_616 - 32_000 * 4096,  # without the language-model head
    "minilm": 22_713_216,
    "smollm2": 134_515_008,
}


def test_only_a_mixture_has_matrices_that_all_linear_leaves_out():
    assert {name: left_out(tiny(name), "all-linear") for name in TINY} == dict.fromkeys(TINY)
    from transformers import AutoModelForCausalLM, Qwen3MoeConfig

    config = Qwen3MoeConfig(**_BERT, num_key_value_heads=2, num_experts=4, moe_intermediate_size=8)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert "mlp.experts.gate_up_proj, mlp.experts.down_proj" in left_out(model, "all-linear")
    assert left_out(model, "attention") is left_out(model, ["q_proj"]) is None


def test_every_bundled_shape_has_its_published_size():
    assert set(bundled_names()) == set(PUBLISHED) == {*HUB_NAMES, "smollm2"}
    for name, count in PUBLISHED.items():
        assert sum(p.numel() for p in describe(name).base_model.parameters()) == count, name


def test_bundled_config_is_a_fresh_copy():
    bundled_config("minilm")["hidden_size"] = 1
    assert bundled_config("minilm")["hidden_size"] == 384
    with pytest.raises(KeyError):
        bundled_config("../secret")


@pytest.mark.parametrize(
    ("name", "target", "sites", "unit_cost"),
    [
        ("roberta-base", "attention", 24, 294_912 // 8),
        ("roberta-large", "attention", 48, 786_432 // 8),
        ("roberta-large", "attention", 48, 25_165_824 // 256),
        ("deberta-v3-base", "all-linear", 72, 165_888),
        ("minilm", "attention", 12, 12 * 768),
        ("minilm", "all-linear", 36, 6 * (4 * 768 + 2 * 1920)),
        ("bart-base", "attention", 36, 36 * 1536),
        ("bart-base", "all-linear", 6 * 6 + 6 * 10, 72 * 1536 + 24 * 3840),
        ("llama-2-7b", "attention", 64, 64 * 8192),
        ("llama-2-7b", "all-linear", 224, 32 * (4 * 8192 + 3 * 15_104)),
    ],
)
def test_number_and_cost_of_sites(name, target, sites, unit_cost):
    found = discover_sites(describe(name), target)
    assert len(found) == sites
    assert sum(site.unit_cost for site in found) == unit_cost


@pytest.mark.parametrize("model_type", TINY)
def test_all_linear_sites_agree_with_the_live_modules(model_type):
    model = tiny(model_type, "cpu")
    sites = discover_sites(model, "all-linear")
    names = [name for name, _ in model.named_modules()]
    assert [site.name for site in sites] == sorted((site.name for site in sites), key=names.index)
    for site in sites:
        module = model.get_submodule(site.name)
        weight = module.weight if isinstance(module, torch.nn.Linear) else module.weight.T
        assert weight.shape == (site.d_out, site.d_in)
        assert not site.name.startswith(head_modules(model))
    assert len({(site.kind, site.layer) for site in sites}) == len(sites)
    # A role has one kind: as many sites of a kind as blocks in its stack.
    blocks = {"self": {2}, "encoder": {2}, "decoder": {3}, "cross": {3}}
    for kind in {site.kind for site in sites}:
        same = [site for site in sites if site.kind == kind]
        assert len(same) in blocks[same[0].stream]
        assert len({site.stream for site in same}) == 1


def test_kinds_of_bert():
    kinds = [site.kind for site in discover_sites(tiny("bert"), "all-linear")][:6]
    assert kinds == ["query", "key", "value", "attention.output.dense", "intermediate.dense", "output.dense"]


@pytest.mark.parametrize(
    ("model_type", "cross", "q", "encoder_q"),
    [
        ("bart", "decoder.encoder_attn.{}_proj", "decoder.self_attn.q_proj", "encoder.q_proj"),
        ("t5", "decoder.EncDecAttention.{}", "decoder.SelfAttention.q", "encoder.q"),
    ],
)
def test_streams_of_encoder_decoder_models(model_type, cross, q, encoder_q):
    sites = discover_sites(tiny(model_type), "all-linear")
    streams = {site.kind: site.stream for site in sites}
    assert streams[cross.format("k")] == streams[cross.format("v")] == "cross"
    assert streams[cross.format("q")] == streams[q] == "decoder"
    assert streams[encoder_q] == "encoder"
    assert {site.layer for site in sites if site.stream == "encoder"} == {0, 1}
    assert {site.layer for site in sites if site.stream == "decoder"} == {0, 1, 2}
    assert {site.kind.partition(".")[0] for site in sites} == {"encoder", "decoder"}
    assert {site.kind for site in discover_sites(tiny(model_type)) if site.stream == "cross"} == {cross.format("v")}


def test_grouped_query_attention_has_narrow_values():
    query, value = discover_sites(tiny("llama"))[:2]
    assert (query.kind, query.d_in, query.d_out, value.kind, value.d_in, value.d_out) == (
        *("q_proj", 32, 32),
        *("v_proj", 32, 16),
    )


# PEFT reads an attribute that transformers has deprecated.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_a_list_means_what_it_means_in_peft():
    from peft import LoraConfig, get_peft_model

    for model_type, items in (("bert", ["query", "dense"]), ("opt", ["fc1", "project_in"]), ("roberta", ["dense"])):
        model = tiny(model_type)
        config = LoraConfig(r=2, target_modules=items, modules_to_save=list(head_modules(model)))
        sites = {site.name for site in discover_sites(model, items)}
        adapted = get_peft_model(model, config).base_model.model
        assert sites == {name for name, module in adapted.named_modules() if hasattr(module, "lora_A")}


def test_a_list_may_name_conv1d_and_layers_outside_the_blocks():
    fused = discover_sites(tiny("gpt2"), ["c_attn"])
    assert [(site.layer, site.kind, site.d_in, site.d_out) for site in fused] == [
        (0, "c_attn", 32, 96),
        (1, "c_attn", 32, 96),
    ]
    pooler = discover_sites(tiny("bert"), ["pooler.dense"])
    assert [(site.layer, site.kind) for site in pooler] == [(1, "pooler.dense")]
    projection = discover_sites(tiny("electra"), ["embeddings_project"])
    assert [(site.layer, site.kind, site.d_in) for site in projection] == [(0, "embeddings_project", 16)]


@pytest.mark.parametrize(
    ("model_type", "target", "message"),
    [
        ("gpt2", "attention", r"'attention'.*attn\.c_proj.*for example \['c_attn'\]"),
        ("bert", ["query", "valeu"], r"'valeu'.*query, key, value.*\['value'\]"),
        ("roberta", ["classifier.dense"], "task head"),
        ("bert", "query", r"\['query'\]"),
        ("bert", [], "empty"),
    ],
)
def test_wrong_targets_are_explained(model_type, target, message):
    with pytest.raises(UsageError, match=message):
        discover_sites(tiny(model_type), target)


@pytest.mark.parametrize(
    ("model_type", "heads"),
    {
        "bert": ("classifier",),
        "roberta": ("classifier",),
        "electra": ("classifier",),
        "deberta-v2": ("pooler", "classifier"),
        "distilbert": ("pre_classifier", "classifier"),
        "llama": ("score",),
        "gpt2": ("score",),
        "bart": ("classification_head",),
        "t5": ("classification_head",),
    }.items(),
)
def test_heads(model_type, heads):
    assert head_modules(tiny(model_type)) == heads


def test_base_cost_counts_the_weights_of_the_blocks():
    cost = base_linear_cost(describe("llama-2-7b"))
    assert cost["linear_params_per_layer"] == {("self", i): 4 * 4096**2 + 3 * 4096 * 11_008 for i in range(32)}
    assert (cost["hidden_size"], cost["attention_layers"]) == (4096, 32)


def test_base_cost_keeps_streams_apart():
    cost = base_linear_cost(describe("bart-base"))
    attention, feed_forward = 768**2, 2 * 768 * 3072
    assert cost["linear_params_per_layer"]["encoder", 0] == 4 * attention + feed_forward
    assert cost["linear_params_per_layer"]["decoder", 5] == 6 * attention + feed_forward
    assert cost["linear_params_per_layer"]["cross", 5] == 2 * attention
    assert cost["attention_layers"] == 6 + 2 * 6


def test_imports_are_light():
    code = (
        "import sys, peftprune.models.load, peftprune.models.layers;"
        "print({'torch', 'transformers', 'matplotlib', 'pandas', 'numpy'} & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"
