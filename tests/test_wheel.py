"""The built wheel holds all that the commands need: it runs in an empty environment, far from the sources."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("hatchling") is None, reason="hatchling is not installed; it comes with the extra dev"
    ),
]


def run(*command: object, cwd: Path) -> str:
    """Returns what a command prints. The sources of the package are not on its path."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scripts of an environment with the wheel, and the packages of this one, so that nothing is downloaded."""
    folder = tmp_path_factory.mktemp("installed")
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder, cwd=ROOT)
    venv.create(folder / "venv")
    python = folder / "venv" / ("Scripts" if os.name == "nt" else "bin") / "python"
    (wheel,) = folder.glob("*.whl")
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel, cwd=folder)
    site = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip()
    # A .pth file adds these folders, but not the .pth of a development checkout in them.
    (Path(site) / "others.pth").write_text("\n".join(path for path in sys.path if path.endswith("-packages")))
    where = run(python, "-c", "import peftprune; print(peftprune.__file__)", cwd=folder).strip()
    assert Path(where).is_relative_to(site)
    return python.parent


def test_a_study_from_the_wheel_has_all_its_files(scripts: Path, tiny_bert: Path, tmp_path: Path) -> None:
    size = ["--max-train-samples", 64, "--max-eval-samples", 32, "--batch-size", 16, "--max-length", 32]
    settings = [*size, "--epochs", 1, "--dtype", "float32", "--workers", 1, "--threads", 1, "--model", tiny_bert]
    methods = ["--methods", "lora,lorpa(initial_rank=8)", "--budget", "rank=2"]
    shown = run(scripts / "peftprune", "compare", *methods, *settings, "--output-dir", "study", cwd=tmp_path)
    assert "lorpa" in shown
    run(scripts / "peftprune", "report", "study", cwd=tmp_path)
    assert {path.name for path in (tmp_path / "study").iterdir()} >= {"study.json", "arms", "ranks.png", "report.html"}
    assert len([*tmp_path.glob("study/arms/*/adapter/adapter_model.safetensors")]) == 2
    assert "</html>" in (tmp_path / "study" / "report.html").read_text()
    assert [*scripts.parent.rglob("peftprune/_published/*.csv")]
    run(scripts / "peftprune", "example", cwd=tmp_path)
    assert (tmp_path / "runs" / "example" / "study.json").exists()
