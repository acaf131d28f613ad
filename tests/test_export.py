"""The stored adapter, loaded by plain PEFT, is the model that was evaluated."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from tests.helpers import Arm, make_arm, regression_task, stored_logits
from tests.strategies import Gated
from tests.test_contract import METHODS, STRATEGIES, built

# Said by transformers when PEFT asks a model about activation checkpointing.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

CASES = [*METHODS, "gated"]


@pytest.fixture(scope="module")
def exported(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """`exported(case)`: a finished arm and its result, once per case."""
    known: dict[str, tuple[Arm, dict[str, Any]]] = {}

    def run(case: str) -> tuple[Arm, dict[str, Any]]:
        if case not in known:
            method = Gated() if case == "gated" else built(case)
            arm = make_arm(method, tmp_path_factory.mktemp("arm"), tiny_bert, target_modules="all-linear")
            known[case] = arm, arm.run()
        return known[case]

    return run


def longest_first(arm: Arm) -> tuple[list[int], dict[str, Tensor]]:
    """All evaluation examples as one batch, in the order in which arms evaluate."""
    rows = arm.inputs.evaluation["test"]
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i]["input_ids"]))
    batch = arm.inputs.objective.collator([rows[i] for i in order])
    return order, {name: batch[name] for name in ("input_ids", "attention_mask")}


def reloaded(arm: Arm, base: Path, num_labels: int = 2) -> Any:
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=num_labels)
    trained = arm.folder.adapter / "trained.safetensors"
    if trained.exists():  # a baseline that PEFT has no format for
        assert json.loads((arm.folder.adapter / "peftprune.json").read_text())["format"] != "PEFT"
        _, unexpected = model.load_state_dict(load_file(trained), strict=False)
        assert not unexpected
        return model.eval()
    return PeftModel.from_pretrained(model, arm.folder.adapter).eval()


@pytest.mark.parametrize(("method", "architecture"), [("lora", "bert"), ("full", "bert"), ("lora", "llama")])
def test_a_regression_is_trained_on_standardised_labels_and_predicts_the_labels(
    method: str, architecture: str, tiny_models: dict[str, Path], tmp_path: Path
) -> None:
    """The scores of Llama have no bias that could hold the labels' mean."""
    task = regression_task(tmp_path, shift=100.0, factor=5.0)
    arm = make_arm(method, tmp_path / "arm", tiny_models[architecture], task=task, learning_rate=1e-3)
    result = arm.run()
    labels = torch.tensor(task.train["label"])
    targets, in_head = result["evaluation"]["targets"], architecture == "bert"
    assert targets["mean"] == pytest.approx(float(labels.mean()))
    assert targets["deviation"] == pytest.approx(float(labels.std(correction=0)))
    assert targets["in_head"] == in_head
    assert json.loads((arm.folder.adapter / "peftprune.json").read_text())["targets"] == targets
    stored = arm.folder.read_predictions()
    assert abs(stored["prediction"].mean() - labels.mean()) < labels.std()
    order, batch = longest_first(arm)
    with torch.no_grad():
        outputs = reloaded(arm, tiny_models[architecture], 1)(**batch).logits.squeeze(-1)
    found = outputs if in_head else outputs * targets["deviation"] + targets["mean"]
    torch.testing.assert_close(found, torch.tensor(stored["prediction"].tolist())[order])


def test_equal_labels_are_shifted_only(tiny_bert: Path, tmp_path: Path) -> None:
    arm = make_arm("lora", tmp_path / "arm", tiny_bert, task=regression_task(tmp_path))
    objective = arm.inputs.objective.fitted([{"labels": 3.0}] * 4)
    assert float(objective.loss(SimpleNamespace(logits=torch.zeros(2, 1)), torch.tensor([3.0, 4.0]))) == 0.5


# PEFT warns of the ranks that its own AdaLoRA writes, and applies them all the same.
@pytest.mark.filterwarnings("ignore:The following rank_pattern keys did not match:RuntimeWarning")
@pytest.mark.parametrize("case", CASES)
def test_peft_loads_the_evaluated_model_to_the_bit(case: str, exported: Any, tiny_bert: Path) -> None:
    arm, result = exported(case)
    order, batch = longest_first(arm)
    with torch.no_grad():
        logits = reloaded(arm, tiny_bert)(**batch).logits
    assert torch.equal(logits, stored_logits(arm.folder)[order])
    assert len(logits.unique()) > len(logits), "every example should differ"
    if case == "delete":
        assert any(row["rank"] == 0 for row in result["allocation"])
    if case == "lora-drop":
        assert any(row["shared_with"] for row in result["allocation"])


@pytest.mark.parametrize("case", [*STRATEGIES, "gated"])
def test_the_configuration_makes_every_scale_one(case: str, exported: Any, tiny_bert: Path) -> None:
    arm, result = exported(case)
    config = json.loads((arm.folder.adapter / "adapter_config.json").read_text())
    ranks = {row["site"]: row["rank"] for row in result["allocation"] if row["rank"]}
    assert config["r"] == config["lora_alpha"] == max(ranks.values())
    assert config["rank_pattern"] == config["alpha_pattern"]
    assert set(config["target_modules"]) == set(ranks)
    model = reloaded(arm, tiny_bert).get_base_model()
    for name, rank in ranks.items():
        layer = model.get_submodule(name)
        assert layer.r == {"default": rank}, name
        assert layer.scaling == {"default": 1.0}, name
    adapted = {name for name, module in model.named_modules() if hasattr(module, "lora_A")}
    assert adapted == set(ranks)


def test_our_own_facts_stand_beside_and_not_inside(exported: Any) -> None:
    arm, result = exported("lora-drop")
    facts = json.loads((arm.folder.adapter / "peftprune.json").read_text())
    assert (facts["method"], facts["seed"], facts["metrics"]) == ("lora-drop", 0, result["metrics"])
    assert facts["shared_with"] == {
        row["site"]: row["shared_with"] for row in result["allocation"] if row["shared_with"]
    }
    assert "peftprune" not in (arm.folder.adapter / "adapter_config.json").read_text()
    size = (arm.folder.adapter / "adapter_model.safetensors").stat().st_size
    assert result["ledger"]["adapter_bytes"] == size


WITHOUT_US = """
import sys
sys.modules["peftprune"] = None
import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification
base, adapter, batch, out = sys.argv[1:]
torch.set_num_threads(1)
model = PeftModel.from_pretrained(AutoModelForSequenceClassification.from_pretrained(base, num_labels=2), adapter)
with torch.no_grad():
    torch.save(model.eval()(**torch.load(batch)).logits, out)
"""


@pytest.mark.slow
def test_a_process_without_peftprune_gets_the_same_numbers(exported: Any, tiny_bert: Path, tmp_path: Path) -> None:
    arm, _ = exported("lora-drop")
    order, batch = longest_first(arm)
    torch.save(batch, tmp_path / "batch.pt")
    paths = [tiny_bert, arm.folder.adapter, tmp_path / "batch.pt", tmp_path / "logits.pt"]
    command = [sys.executable, "-I", "-c", WITHOUT_US, *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert torch.equal(torch.load(tmp_path / "logits.pt"), stored_logits(arm.folder)[order])
