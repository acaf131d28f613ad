"""The tasks of the tournament, with the size that a pilot of LoRA and `head-only` showed to tell methods apart."""

TASKS = {
    "sst2": "--task=sst2 --max-train-samples=2000 --epochs=2 --batch-size=16 --margin=0.01",
}
"""Task to the options of `compare` that are its own."""

PILOT = "--methods=lora,head-only --budget=rank=8 --target-modules=all-linear --seeds=3"
"""Options of a task's pilot: never a rival, and the default rate, so that its outcome favours no method."""
