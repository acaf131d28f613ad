"""The studies of the tournament, with the size that a pilot of LoRA and `head-only` showed to tell methods apart."""

from pathlib import Path

import yaml

_SST2 = "--task=sst2 --max-train-samples=2000 --epochs=2 --batch-size=16 --margin=0.01"
_ALL = ",".join(yaml.safe_load((Path(__file__).parents[1] / "tournament.yaml").read_text())["methods"])
_PARTS = ",".join(
    f"{control}:{of}(of='{of}')" for of in ("eva", "prilora", "lora-drop") for control in ("shuffled", "transplant")
)
"""The controls that split the gains of further methods."""

TASKS = {
    "sst2": _SST2,
    "sst2-rank2": f"{_SST2} --budget=rank=2 --methods=lora,lorpa,prilora,lora-drop",
    "stsb": "--task=stsb --max-train-samples=1000 --epochs=2 --batch-size=16 --margin=0.02"
    " --methods=lora,lorpa,prilora,lora-drop,lora-drop:half(refill=False),adalora,increlora,random-rank",
}
"""Study to the options of `compare` that are its own. Its name begins with that of its task."""

_EACH = "--epochs=3 --batch-size=32 --dtype=float32"
_MRPC = f"--task=mrpc --margin=0.01 {_EACH}"
ON_GPU = {
    "mrpc": f"{_MRPC} --methods={_ALL},{_PARTS}",
    "mrpc-rank2": f"{_MRPC} --budget=rank=2 --methods=lora,lorpa,prilora,lora-drop,adalora",
}
"""Studies whose stored arms come from a GPU: another kind of device would train them all again."""

PILOTED = {
    "qnli": f"--task=qnli --max-train-samples=3000 --margin=0.01 {_EACH}",
    "cola": f"--task=cola --max-train-samples=4000 --margin=0.02 {_EACH}",
    "rte": f"--task=rte --margin=0.01 {_EACH}",
}
"""Tasks of which there is a pilot alone, also from a GPU."""

PILOT = "--methods=lora,head-only --budget=rank=8 --target-modules=all-linear --seeds=3"
"""Options of a task's pilot: never a rival, and the default rate, so that its outcome favours no method."""


def place(results: Path, name: str) -> Path:
    """Returns the folder of a study's packed results, or of a pilot's. `results` is that of the studies on a CPU."""
    return (results.with_name("tournament-gpu") if name.removeprefix("pilot-") in ON_GPU | PILOTED else results) / name
