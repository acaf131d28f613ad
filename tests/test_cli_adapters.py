"""The commands that deal with adapters, as a user meets them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

import peftprune as package
from peftprune.cli.app import app
from tests.adapters import finished
from tests.helpers import DEFAULTS, classification_task

runner = CliRunner()
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


def peftprune(*args: object) -> Result:
    return runner.invoke(app, [str(a) for a in args])


@pytest.fixture(scope="module")
def study(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    given = DEFAULTS | {"budget": "rank=2,steps=4", "target_modules": "attention"}
    folder = tmp_path_factory.mktemp("study")
    return package.compare("lora", classification_task(), model=tiny_bert, output_dir=folder, **given).path


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    finished("bert", "all of it", tmp_path / "adapter")
    return tmp_path / "adapter"


def test_export_says_what_it_chose_and_every_size(study: Path, tmp_path: Path) -> None:
    for form in ("peft", "native", "merged"):
        result = peftprune("export", study, "--method", "lora", "--format", form, "--out", tmp_path / form)
        assert result.exit_code == 0, result.output
        assert "Chosen: lora, seed 0 (tiny, rank=2,steps=4): best accuracy" in result.output
        assert "Bytes of weights by format: peft " in result.output
        assert result.output.strip().endswith(str(tmp_path / form))
        assert (tmp_path / form / "README.md").exists()
    assert "Merged in float32 and stored as float32" in result.output
    assert "best mean accuracy" in peftprune("export", study, "--best", "--out", tmp_path / "best").output
    for wrong in ([], ["--best", "--method", "lora"]):
        assert "Give --method LABEL or --best" in peftprune("export", study, *wrong, "--out", tmp_path / "no").output
    again = peftprune("export", study, "--method", "lora", "--out", tmp_path / "peft")
    assert again.exit_code == 2
    assert "is not empty" in again.output
    over = peftprune("export", study, "--method", "lora", "--out", tmp_path / "peft", "--overwrite", "--no-head")
    assert "mean nothing until a head is supplied" in over.output


def test_inspect_prints_tables_or_json(adapter: Path) -> None:
    table = peftprune("inspect", adapter)
    assert table.exit_code == 0, table.output
    for expected in ("bert.encoder.layer.1.output.dense", "effective", "shares with", "Pruning it further", "rank=2"):
        assert expected in table.output
    found = json.loads(peftprune("inspect", adapter, "--format", "json").output)
    assert found["totals"]["sites"] == len(found["sites"])
    assert peftprune("inspect", adapter, "--format", "xml").exit_code == 2


def test_prune_says_what_is_left(adapter: Path, tmp_path: Path) -> None:
    result = peftprune("prune", adapter, "--method", "svd", "--budget", "energy=0.8", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "adapter parameters are left; they keep" in result.output
    again = peftprune("inspect", tmp_path / "out")
    assert "'budget': 'energy=0.8'" in again.output
    wrong = peftprune("prune", adapter, "--budget", "rank=0", "--out", tmp_path / "none")
    assert wrong.exit_code == 2
    assert "budget.rank" in wrong.output
    assert not (tmp_path / "none").exists()


def test_convert_writes_either_format(adapter: Path, tmp_path: Path) -> None:
    assert peftprune("convert", adapter, "--format", "native", "--out", tmp_path / "native").exit_code == 0
    result = peftprune("convert", tmp_path / "native", "--uniform", "--out", tmp_path / "peft")
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "peft" / "adapter_config.json").read_text())["rank_pattern"] == {}


def test_a_pickle_is_refused_with_the_way_to_convert_it(tmp_path: Path) -> None:
    (tmp_path / "adapter_model.bin").write_bytes(b"PK\x03\x04")
    result = peftprune("inspect", tmp_path)
    assert result.exit_code == 2
    assert "weights_only=True" in result.output
    assert "save_file" in result.output
