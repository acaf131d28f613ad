"""What a callback cannot work with in somebody else's trainer, said before anything is trained."""

from __future__ import annotations

from typing import Any

from peftprune.errors import UsageError

_SHARDED = {
    "FSDP": "Use DDP (torchrun without fsdp)",
    "DEEPSPEED": "Use DDP (torchrun without a DeepSpeed configuration)",
    "MEGATRON_LM": "Use DDP (torchrun)",
    "XLA": "Use CPUs or GPUs",
}
_NOT_SHAPED = ("adafactor", "8bit", "galore", "apollo", "lomo", "muon", "anyprecision")


def check_trainer(args: Any) -> None:
    """Refuse ways of training in which ranks cannot change.

    Args:
        args: the trainer's TrainingArguments, after its accelerator was made.

    Raises:
        UsageError: naming the argument and what to use instead.
    """
    if getattr(args, "fsdp", None):
        raise UsageError.of("fsdp", args.fsdp, "shards tensors whose ranks would change", _SHARDED["FSDP"])
    if getattr(args, "deepspeed", None):
        raise UsageError.of(
            "deepspeed", args.deepspeed, "holds the optimizer's state in flat pieces", _SHARDED["DEEPSPEED"]
        )
    kind = _distributed_type()
    if kind in _SHARDED:
        raise UsageError.of(
            "distributed_type", kind, "holds tensors in pieces whose ranks cannot change", _SHARDED[kind]
        )
    if getattr(args, "n_gpu", 1) > 1:
        raise UsageError.of(
            "n_gpu", args.n_gpu, "copies the model in every step", "Start one process per GPU: torchrun"
        )
    optim = str(getattr(args.optim, "value", args.optim))
    if any(name in optim for name in _NOT_SHAPED):
        raise UsageError.of(
            "optim", optim, "keeps state that is not shaped like the parameter", 'Use "adamw_torch" or "sgd"'
        )
    if getattr(args, "auto_find_batch_size", False):
        raise UsageError.of(
            "auto_find_batch_size", True, "starts training anew with ranks already changed", "Set the batch size"
        )


def _distributed_type() -> str:
    from accelerate.state import AcceleratorState

    # Empty before an accelerator was made: then nothing is distributed.
    state = AcceleratorState._shared_state
    return str(getattr(state.get("distributed_type"), "value", "NO"))
