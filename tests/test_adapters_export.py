"""From a stored study to folders that serve: what they say is what was evaluated."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import huggingface_hub
import pytest
import torch
import yaml
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import peftprune
from peftprune import load_adapter
from peftprune.comparison import Comparison
from peftprune.errors import RunError, UsageError
from peftprune.report.export.choose import choose
from peftprune.report.export.hub_results import write_eval_results
from peftprune.stats import score_interval
from peftprune.tasks import TASKS
from tests.helpers import DEFAULTS, classification_task, make_arm, regression_task, save_model, stored_logits
from tests.stored import store
from tests.test_contract import SETTINGS, STRATEGIES
from tests.test_export import longest_first

pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:The following rank_pattern keys did not match:RuntimeWarning"),
]

QUICK = ("lora", "lora-drop", "bitfit", "vera", "rslora")


def study(methods: Any, folder: Path, model: Path, **settings: Any) -> Comparison:
    """Every method with the options under which its events happen within a few steps."""
    texts = [f"{m}({','.join(f'{k}={v!r}' for k, v in SETTINGS[m].items())})" if SETTINGS[m] else m for m in methods]
    given = DEFAULTS | {"budget": "rank=4,steps=12", "target_modules": "all-linear"} | settings
    found = peftprune.compare(texts, classification_task(), model=model, output_dir=folder, **given)
    assert not found.failures
    return found


@pytest.fixture(scope="module")
def small(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    return study(QUICK, tmp_path_factory.mktemp("study"), tiny_bert, seeds=2)


@pytest.fixture(scope="module")
def batch(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[int], dict[str, Tensor]]:
    """The evaluation examples as arms see them; the tiny models have one tokenizer."""
    return longest_first(make_arm("lora", tmp_path_factory.mktemp("batch"), tiny_bert))


def base_model(model: Path) -> Any:
    return AutoModelForSequenceClassification.from_pretrained(model, num_labels=2)


def said_by(model: Any, batch: tuple[list[int], dict[str, Tensor]]) -> Tensor:
    with torch.no_grad():
        return model.eval()(**batch[1]).logits


def evaluated(comparison: Comparison, method: str, batch: tuple[list[int], dict[str, Tensor]]) -> Tensor:
    return stored_logits(choose(comparison, method, "best").folder)[batch[0]]


def assert_round_trips(found: Comparison, method: str, model: Path, batch: Any, folder: Path) -> None:
    """Bit for bit in PEFT's and the native format, to 1e-6 when padded, to the stated tolerance when merged."""
    said = evaluated(found, method, batch)
    done = found.export(folder / "peft", method=method)
    assert torch.equal(said_by(PeftModel.from_pretrained(base_model(model), folder / "peft"), batch), said)
    sizes = done.sizes
    assert sizes["peft"] == (folder / "peft" / "adapter_model.safetensors").stat().st_size
    found.export(folder / "native", method=method, format="native")
    assert torch.equal(said_by(load_adapter(folder / "native", base_model(model)), batch), said)
    # The header of the file names method and scores, so it is read from what was really written.
    assert sizes["native"] == (folder / "native" / "adapter.safetensors").stat().st_size
    found.export(folder / "uniform", method=method, uniform=True)
    assert sizes["peft, uniform"] == (folder / "uniform" / "adapter_model.safetensors").stat().st_size
    config = json.loads((folder / "uniform" / "adapter_config.json").read_text())
    assert not config["rank_pattern"]
    assert not config["alpha_pattern"]
    padded = said_by(PeftModel.from_pretrained(base_model(model), folder / "uniform"), batch)
    assert torch.allclose(padded, said, atol=1e-6, rtol=1e-6)
    merged = found.export(folder / "merged", method=method, format="merged")
    assert merged.difference is not None
    assert merged.difference <= 1e-4 * max(1.0, float(said.abs().max()))
    plain = AutoModelForSequenceClassification.from_pretrained(folder / "merged")
    assert torch.allclose(said_by(plain, batch), said, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("method", ["lora", "lora-drop", "rslora"])
def test_round_trips(method: str, small: Comparison, tiny_bert: Path, batch: Any, tmp_path: Path) -> None:
    assert_round_trips(small, method, tiny_bert, batch, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["bert", "bart", "llama"])
def test_round_trips_of_every_method(
    architecture: str, tiny_models: dict[str, Path], batch: Any, tmp_path: Path
) -> None:
    found = study(STRATEGIES, tmp_path / "study", tiny_models[architecture], budget="rank=4,steps=24")
    for method in STRATEGIES:
        assert_round_trips(found, method, tiny_models[architecture], batch, tmp_path / method)


WITHOUT_US = """
import sys
sys.modules["peftprune"] = None
import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification
torch.set_num_threads(1)
base, batch, *folders = sys.argv[1:]
batch = torch.load(batch)
load = AutoModelForSequenceClassification.from_pretrained
for folder in folders:
    model = load(folder) if folder.endswith("merged") else PeftModel.from_pretrained(load(base, num_labels=2), folder)
    with torch.no_grad():
        torch.save(model.eval()(**batch).logits, folder + "/logits.pt")
"""


def test_a_process_without_peftprune_loads_them(small: Comparison, tiny_bert: Path, batch: Any, tmp_path: Path) -> None:
    options: dict[str, dict[str, Any]] = {"peft": {}, "uniform": {"uniform": True}, "merged": {"format": "merged"}}
    for name, given in options.items():
        small.export(tmp_path / name, method="lora-drop", **given)
    torch.save(batch[1], tmp_path / "batch.pt")
    paths = [tiny_bert, tmp_path / "batch.pt", *(tmp_path / name for name in options)]
    command = [sys.executable, "-I", "-c", WITHOUT_US, *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    said = evaluated(small, "lora-drop", batch)
    found = {name: torch.load(tmp_path / name / "logits.pt") for name in options}
    assert torch.equal(found["peft"], said)
    assert torch.allclose(found["uniform"], said, atol=1e-6)
    assert torch.allclose(found["merged"], said, atol=1e-4)


# --- baselines --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["bitfit", "vera"])
def test_a_baseline_is_merged(method: str, small: Comparison, batch: Any, tmp_path: Path) -> None:
    done = small.export(tmp_path / "merged", method=method, format="merged")
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged")
    assert torch.allclose(said_by(plain, batch), evaluated(small, method, batch), atol=1e-5)
    assert set(done.sizes) == {"merged"}


def test_a_format_that_a_baseline_cannot_have_is_refused(small: Comparison, tmp_path: Path) -> None:
    for method, form, cure in (
        ("bitfit", "peft", "merged"),
        ("bitfit", "native", "merged"),
        ("vera", "native", "peft"),
    ):
        with pytest.raises(UsageError, match=f"is not possible for {method}.* Use {cure}"):
            small.export(tmp_path / "out", method=method, format=form)
    with pytest.raises(UsageError, match="uniform: True is for LoRA, and vera is VERA"):
        small.export(tmp_path / "out", method="vera", uniform=True)
    assert list(tmp_path.iterdir()) == []


def test_another_peft_method_is_copied(small: Comparison, tiny_bert: Path, batch: Any, tmp_path: Path) -> None:
    small.export(tmp_path / "vera", method="vera")
    model = PeftModel.from_pretrained(base_model(tiny_bert), tmp_path / "vera")
    assert torch.equal(said_by(model, batch), evaluated(small, "vera", batch))


# --- choosing ---------------------------------------------------------------------------------------------------------


def test_the_best_seed_is_the_one_with_the_best_score(small: Comparison, tmp_path: Path) -> None:
    scores = small.runs().set_index(["method", "seed"])["accuracy"]
    for method in QUICK:
        chosen = choose(small, method, "best")
        best = scores[method].max()
        assert chosen.result["metrics"]["accuracy"] == best
        assert chosen.key["seed"] == min(s for s in (0, 1) if scores[method, s] == best)
        assert chosen.words.endswith(f"best accuracy ({best:.4f}) of 2 finished seed(s)")
    done = small.export(tmp_path / "out", method="lora", seed=1)
    assert done.arm["seed"] == 1
    assert "best" not in done.chosen


def test_the_best_method_has_the_best_mean_of_its_seeds(tmp_path: Path) -> None:
    study = store(tmp_path / "study", methods=("plain", "cut", "top"), layers=1, failed=[("top", 0), ("top", 1)])
    scores = study.runs().groupby("method")["accuracy"].mean().drop("top")
    chosen = choose(study, "best", 1)
    assert (chosen.key["method"], chosen.key["seed"]) == (scores.idxmax(), 1)
    assert chosen.words.endswith(f": best mean accuracy ({scores.max():.4f}) of 2 method(s)")
    both = store(tmp_path / "both", tasks=("rte", "cola"), layers=1)
    with pytest.raises(UsageError, match=r"task: None must be named.* It has: rte, cola"):
        both.export(tmp_path / "out", method="best")
    assert choose(both, "best", "best", task="cola").cell.tasks == ["cola"]


def test_what_is_not_there_is_named(small: Comparison, tmp_path: Path) -> None:
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"method": "lorpa"}, "method: 'lorpa' is not in the study"),
        ({"method": "lora", "seed": 7}, "seed: 7 has no finished arm. Finished seeds: 0, 1"),
        ({"method": "lora", "seed": "first"}, "is neither a seed nor best"),
        ({"method": "lora", "format": "gguf"}, "format: 'gguf' is unknown"),
        ({"method": "lora", "format": "merged", "head": False}, "head: False has no meaning"),
        ({"method": "lora", "format": "native", "uniform": True}, "uniform: True has no meaning"),
        ({"method": "lora", "budget": "rank=9"}, "budget: 'rank=9' is not in the study"),
    ]
    for options, message in wrong:
        with pytest.raises(UsageError) as caught:
            small.export(tmp_path / "out", **options)
        assert message in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_an_unfinished_method_and_several_budgets_are_named(small: Comparison, tmp_path: Path) -> None:
    request = dict(small.request) | {"arms": [a | {"hash": "x"} for a in small.request["arms"]]}
    with pytest.raises(UsageError, match="has no finished arm: it has not run"):
        Comparison(small.path, request).export(tmp_path / "out", method="lora")
    budgets = [*small.request["budgets"], small.request["budgets"][0] | {"label": "rank=2"}]
    with pytest.raises(UsageError, match=r"budget: None must be named.* It has: rank=4,steps=12, rank=2"):
        Comparison(small.path, dict(small.request) | {"budgets": budgets}).export(tmp_path / "out", method="lora")


# --- what lies beside -------------------------------------------------------------------------------------------------


def test_the_card_says_what_it_is(small: Comparison, tmp_path: Path) -> None:
    small.export(tmp_path / "out", method="lora-drop")
    chosen = choose(small, "lora-drop", "best")
    card = huggingface_hub.ModelCard.load(tmp_path / "out" / "README.md")
    (result, _) = card.data.eval_results
    assert (result.metric_type, result.metric_value) == ("accuracy", chosen.result["metrics"]["accuracy"])
    assert card.data.library_name == "peft"
    frame = chosen.folder.read_predictions()
    low, high = score_interval(frame["prediction"].tolist(), frame["label"].tolist(), "accuracy")
    for expected in (
        str(small.request["model"]),
        "| Budget | rank=4,steps=12: 3,584 adapter parameters allowed |",
        f"| accuracy | test | {result.metric_value:.4f} | {low:.4f} to {high:.4f} |",
        "its score is optimistic",
        f"| peft | {small.request['versions']['peft']} |",
        "![Rank of each adapted layer](allocation.png)",
    ):
        assert expected in card.content
    assert (tmp_path / "out" / "allocation.png").read_bytes().startswith(b"\x89PNG")
    facts = json.loads((tmp_path / "out" / "peftprune.json").read_text())
    assert (facts["method"], facts["task"], facts["format"]) == ("lora-drop", "tiny", "peft")


def test_a_task_of_the_hub_is_reported_as_the_hub_reads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = Comparison.load(Path(__file__).parent / "data" / "stored_study" / "study")
    task = stored.request["tasks"][0]
    given = dict(stored.request) | {"tasks": [task | {"name": "rte", "named": True}]}
    arms = [arm | {"task": "rte"} for arm in stored.request["arms"]]
    study = Comparison(stored.path, given | {"arms": arms})
    sizes = {"evaluation_sizes": {"test": 20}, "hub_splits": {"test": "validation"}}
    monkeypatch.setitem(TASKS, "rte", replace(TASKS["rte"], **sizes))
    study.export(tmp_path / "out", method="lorpa")
    metrics = choose(study, "lorpa", "best").result["metrics"]
    (file,) = (tmp_path / "out" / ".eval_results").iterdir()
    (entry,) = huggingface_hub.parse_eval_result_entries(yaml.safe_load(file.read_text()))
    assert (file.name, entry.dataset_id, entry.task_id) == ("rte.yaml", "nyu-mll/glue", "rte")
    assert entry.value == metrics["accuracy"]
    assert entry.notes is not None
    assert entry.notes.startswith("accuracy, from 0 to 1, on official dev (20 examples). lorpa, seed ")
    results = huggingface_hub.ModelCard.load(tmp_path / "out" / "README.md").data.eval_results
    assert {r.metric_type: r.metric_value for r in results} == metrics
    for result in results:
        assert (result.dataset_type, result.dataset_config) == ("nyu-mll/glue", "rte")
        assert (result.dataset_name, result.dataset_split) == ("rte", "validation")


@pytest.mark.parametrize("named", [False, True])
def test_own_data_and_samples_are_not_reported_to_the_hub(named: bool, tmp_path: Path) -> None:
    stored = store(tmp_path / "study", methods=["plain"])
    task = stored.request["tasks"][0]
    examples = {"evaluation_examples": dict(TASKS["rte"].evaluation_sizes)} if not named else {}
    study = Comparison(stored.path, dict(stored.request) | {"tasks": [task | examples | {"named": named}]})
    write_eval_results(choose(study, "plain"), tmp_path)
    assert not (tmp_path / ".eval_results").exists()


def test_an_interval_of_one_model_holds_its_score() -> None:
    labels = [0, 1] * 50
    predictions = [0, 1] * 40 + [1, 0] * 10
    low, high = score_interval(predictions, labels, "accuracy")
    # The normal approximation: 0.8 ± 1.96 · √(0.8 · 0.2 / 100).
    assert low == pytest.approx(0.8 - 0.0784, abs=0.012)
    assert high == pytest.approx(0.8 + 0.0784, abs=0.012)
    with pytest.raises(UsageError):
        score_interval(predictions, labels[:3], "accuracy")


def test_without_the_head_it_says_what_that_means(small: Comparison, tiny_bert: Path, tmp_path: Path) -> None:
    done = small.export(tmp_path / "out", method="lora", head=False)
    assert "mean nothing until a head is supplied" in done.notes[0]
    assert done.notes[0] in (tmp_path / "out" / "README.md").read_text()
    tensors = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert all("lora_" in name for name in tensors)
    PeftModel.from_pretrained(base_model(tiny_bert), tmp_path / "out")


def test_the_merged_model_has_its_tokenizer_and_labels(small: Comparison, tmp_path: Path) -> None:
    done = small.export(tmp_path / "out", method="lora", format="merged")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert (
        tokenizer("good cat").input_ids == AutoTokenizer.from_pretrained(small.request["model"])("good cat").input_ids
    )
    facts = json.loads((tmp_path / "out" / "peftprune.json").read_text())
    assert facts["largest_output_difference"] == done.difference
    assert facts["dtype"] == "float32"
    names = small.request["tasks"][0]["label_names"]
    assert json.loads((tmp_path / "out" / "config.json").read_text())["id2label"] == {"0": names[0], "1": names[1]}
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"| Labels | {', '.join(names)} (in the order of the outputs) |" in card
    assert "from_pretrained(FOLDER)" in card
    small.export(tmp_path / "adapter", method="lora")
    assert f", id2label={dict(enumerate(names))})" in (tmp_path / "adapter" / "README.md").read_text()


def test_a_base_model_that_has_changed_is_refused(small: Comparison, tmp_path: Path) -> None:
    changed = tmp_path / "changed"
    AutoTokenizer.from_pretrained(small.request["model"]).save_pretrained(changed)
    model = base_model(small.request["model"])
    with torch.no_grad():
        next(model.parameters()).add_(0.1)
    model.save_pretrained(changed)
    request = dict(small.request) | {"model": str(changed)}
    with pytest.raises(UsageError, match="is not the base model that the arm was trained on"):
        Comparison(small.path, request).export(tmp_path / "out", method="lora", format="merged")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["changed"]


def test_a_merged_model_that_is_wrong_is_not_kept(
    small: Comparison, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from peftprune.adapters import merge

    said = merge.outputs
    calls: list[int] = []

    def off(*given: Any) -> Tensor:
        calls.append(1)
        return said(*given) + 0.01 * (len(calls) % 2)

    monkeypatch.setattr(merge, "outputs", off)
    with pytest.raises(RunError, match="more than rounding"):
        small.export(tmp_path / "out", method="lora", format="merged")
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_arm_is_named_and_nothing_is_left(small: Comparison, tmp_path: Path) -> None:
    folder = choose(small, "rslora", 0).folder.adapter
    file = folder / "adapter_model.safetensors"
    whole = file.read_bytes()
    try:
        file.write_bytes(whole[:-100])
        for form in ("peft", "native", "merged"):
            with pytest.raises(UsageError, match="truncated"):
                small.export(tmp_path / "out", method="rslora", seed=0, format=form)
        tensors = {n: t * float("nan") if "lora_B" in n else t for n, t in load_of(whole, tmp_path).items()}
        save_file(tensors, file)
        with pytest.raises(RunError, match="not finite"):
            small.export(tmp_path / "out", method="rslora", seed=0, format="merged")
    finally:
        file.write_bytes(whole)
    assert not (tmp_path / "out").exists()


def load_of(content: bytes, folder: Path) -> dict[str, Tensor]:
    (folder / "whole.safetensors").write_bytes(content)
    return load_file(folder / "whole.safetensors")


# --- the hub ----------------------------------------------------------------------------------------------------------


class Hub:
    """Stands in for the hub's client."""

    calls: ClassVar[list[Any]] = []
    fails = False

    def create_repo(self, repo: str, **options: Any) -> str:
        if Hub.fails:
            raise OSError("no token")
        Hub.calls.append(("create", repo, options))
        return f"https://hub/{repo}"

    def upload_folder(self, *, repo_id: str, folder_path: Path, **_: Any) -> None:
        Hub.calls.append(("upload", repo_id, sorted(p.name for p in folder_path.iterdir())))


def test_a_push_uploads_what_was_written(small: Comparison, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    monkeypatch.setattr(Hub, "calls", [])
    done = small.export(tmp_path / "out", method="lora", push_to_hub="me/mine")
    assert done.url == "https://hub/me/mine"
    files = ["README.md", "adapter_config.json", "adapter_model.safetensors", "allocation.png", "peftprune.json"]
    assert Hub.calls == [("create", "me/mine", {"exist_ok": True}), ("upload", "me/mine", files)]
    monkeypatch.setattr(Hub, "fails", True)
    with pytest.raises(RunError, match="hf auth login"):
        small.export(tmp_path / "out", method="lora", push_to_hub="me/mine", overwrite=True)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == files


def test_the_study_itself_is_never_overwritten(small: Comparison) -> None:
    for out in (small.path, small.path.parent):
        with pytest.raises(UsageError, match="contains, the source"):
            small.export(out, method="lora", overwrite=True)


def test_the_card_maps_the_outputs_of_a_head_without_bias_back_to_labels(tmp_path: Path) -> None:
    settings = DEFAULTS | {"budget": "rank=2,steps=4", "target_modules": "attention"}
    task, model = regression_task(tmp_path, shift=3.0), save_model("llama", tmp_path / "llama")
    found = peftprune.compare("lora", task, model=model, output_dir=tmp_path / "study", **settings)
    done = found.export(tmp_path / "out", method="lora")
    targets = json.loads((tmp_path / "out" / "peftprune.json").read_text())["targets"]
    (note,) = (n for n in done.notes if "no bias" in n)
    assert f"times {targets['deviation']:.6g}, plus {targets['mean']:.6g}" in note
    assert note in (tmp_path / "out" / "README.md").read_text()
