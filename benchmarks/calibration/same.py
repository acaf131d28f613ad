"""Does LoRA differ from itself? Studies from stored arms of LoRA on real data, five seeds against five others.

    python -m benchmarks.calibration.same --data-dir path/to/glue    # trains what is missing, then measures
    python -m benchmarks.calibration.same                            # measures the stored arms

Writes `benchmarks/results/calibration-same.json`. The arms, with their predictions, are in `results/calibration-same`;
those on MRPC are LoRA's in `results/mrpc-rounds`.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from peftprune import Comparison
from peftprune.files import write_json
from peftprune.study.packed import readable
from peftprune.study.store import ArmFolder

RESULTS = Path(__file__).parent.parent / "results"
PACKED = RESULTS / "calibration-same"
STUDIED = {"sst2": PACKED, "mrpc": RESULTS / "mrpc-rounds"}
STUDY = "--methods=lora --task=sst2 --seeds=20 --max-train-samples=1000 --epochs=2 --batch-size=16 --threads=1"
STUDIES, SEEDS, MARGIN = 200, 5, 0.02
SHOWN = 10
"""Studies, the first ones, whose numbers are stored; of the others the verdicts are counted."""


def train(data_dir: Path, output_dir: Path) -> None:
    """Trains the arms that the packed study lacks, and packs it."""
    reuse = ["--reuse", str(PACKED)] if PACKED.is_dir() else []
    where = ["--data-dir", str(data_dir), "--output-dir", str(output_dir)]
    for command in (["compare", *STUDY.split(), *where, *reuse], ["pack", str(output_dir), "--out", str(PACKED)]):
        subprocess.run([sys.executable, "-m", "peftprune", *command], check=True)


def drawn(study: Comparison, rng: np.random.Generator) -> Comparison:
    """Returns a study of two methods, which are LoRA with one and with the other half of the seeds that are drawn."""
    arms = {arm["seed"]: arm for arm in study.request["arms"]}
    chosen = rng.choice(sorted(arms), 2 * SEEDS, replace=False).tolist()
    labels = [("lora", seed) for seed in range(SEEDS)] + [("again", seed) for seed in range(SEEDS)]
    folders = {place: study.arm("lora", seed).path for place, seed in zip(labels, chosen, strict=True)}
    (method,) = study.request["methods"]
    request = {
        **study.request,
        "methods": [method, {**method, "label": "again"}],
        "seeds": list(range(SEEDS)),
        "arms": [{**arms[chosen[0]], "label": label, "seed": seed} for label, seed in labels],
    }
    return Comparison(study.path, request, lambda label, seed, _: ArmFolder(folders[label, seed]))


def opened(packed: Path, folder: Path) -> Comparison:
    """Returns LoRA's arms of a packed study."""
    study = Comparison.load(readable(packed, folder)).between("lora")
    return Comparison(study.path, {name: value for name, value in study.request.items() if name != "rounds"})


def measure(study: Comparison) -> dict[str, Any]:
    """Returns what each of the studies finds."""
    rng = np.random.default_rng(0)
    rows = [drawn(study, rng).against("lora", margin=MARGIN).iloc[0] for _ in range(STUDIES)]
    names = ("difference", "low", "high", "p", "verdict")
    scores = study.runs()["accuracy"]
    about = {"arms": len(scores), "mean": scores.mean(), "deviation": scores.std(), "seeds": SEEDS, "margin": MARGIN}
    verdicts = Counter(row["verdict"] for row in rows)
    return about | {"studies": STUDIES, "verdicts": verdicts, "first": [{n: r[n] for n in names} for r in rows[:SHOWN]]}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, help="train with the data in this folder")
    parser.add_argument("--output-dir", type=Path, default=Path("runs/calibration-same"))
    given = parser.parse_args()
    if given.data_dir:
        train(given.data_dir, given.output_dir)
    with TemporaryDirectory() as folder:
        found = {task: measure(opened(packed, Path(folder) / task)) for task, packed in STUDIED.items()}
    write_json(RESULTS / "calibration-same.json", found)
    print({task: part["verdicts"] for task, part in found.items()})
