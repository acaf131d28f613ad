"""The studies of the tournament, with the size that a pilot of LoRA and `head-only` showed to tell methods apart."""

from pathlib import Path

_SST2 = "--task=sst2 --max-train-samples=2000 --epochs=2 --batch-size=16 --margin=0.01"
_MORE = (
    "--methods=lora,lorpa,prilora,lora-drop,lora-drop:half(refill=False),adalora,increlora,sora,eva,gora,squeeze,"
    "lora-restart,random-rank,delete,shuffled(of='adalora'),transplant(of='adalora'),lora:r256(rank=256),head-only,full"
)
"""The methods of tournament.yaml, further allocators, and the two ends of the scale."""
_PARTS = ",".join(
    f"{control}:{of}(of='{of}')" for of in ("eva", "prilora", "lora-drop") for control in ("shuffled", "transplant")
)
"""The controls that split the gains of further methods."""

TASKS = {
    "sst2": _SST2,
    "sst2-rank2": f"{_SST2} --budget=rank=2 --methods=lora,lorpa,prilora,lora-drop",
}
"""Study to the options of `compare` that are its own. Its name begins with that of its task."""

ON_GPU = {
    "mrpc": f"--task=mrpc --epochs=3 --batch-size=32 --margin=0.01 --dtype=float32 {_MORE},{_PARTS}",
}
"""Studies whose stored arms come from a GPU: another kind of device would train them all again."""

PILOT = "--methods=lora,head-only --budget=rank=8 --target-modules=all-linear --seeds=3"
"""Options of a task's pilot: never a rival, and the default rate, so that its outcome favours no method."""


def place(results: Path, name: str) -> Path:
    """Returns the folder of a study's packed results, or of a pilot's. `results` is that of the studies on a CPU."""
    return (results.with_name("tournament-gpu") if name.removeprefix("pilot-") in ON_GPU else results) / name
