"""Refuses trainers and runs in which ranks cannot change, before anything is trained."""

from collections.abc import Sequence
from typing import Any

from accelerate.state import AcceleratorState

from peftprune.adapters import surgery
from peftprune.errors import UsageError
from peftprune.strategy import AdapterSpec, PhaseRange
from peftprune.training.checkpoints import STATE_FILE

_SHARDED = {
    "FSDP": "Use DDP (torchrun without fsdp)",
    "DEEPSPEED": "Use DDP (torchrun without a DeepSpeed configuration)",
    "MEGATRON_LM": "Use DDP (torchrun)",
    "XLA": "Use CPUs or GPUs",
}
_NOT_SHAPED = ("adafactor", "8bit", "galore", "apollo", "lomo", "muon", "anyprecision")


def check_trainer(args: Any) -> None:
    """Raises UsageError for TrainingArguments under which ranks cannot change. The trainer's accelerator must exist."""
    if getattr(args, "fsdp", None):
        raise UsageError.of("fsdp", args.fsdp, "shards tensors whose ranks would change", _SHARDED["FSDP"])
    if getattr(args, "deepspeed", None):
        problem = "holds the optimizer's state in flat pieces"
        raise UsageError.of("deepspeed", args.deepspeed, problem, _SHARDED["DEEPSPEED"])
    # Empty before an accelerator was made: then nothing is distributed.
    kind = str(getattr(AcceleratorState._shared_state.get("distributed_type"), "value", "NO"))
    if kind in _SHARDED:
        problem = "holds tensors in pieces whose ranks cannot change"
        raise UsageError.of("distributed_type", kind, problem, _SHARDED[kind])
    if getattr(args, "n_gpu", 1) > 1:
        raise UsageError.of("n_gpu", args.n_gpu, "copies the model in every step", "Use one process per GPU: torchrun")
    optim = str(getattr(args.optim, "value", args.optim))
    if "schedule_free" in optim:
        raise UsageError.of("optim", optim, *surgery.SCHEDULE_FREE)
    if any(name in optim for name in _NOT_SHAPED):
        problem = "keeps state that is not shaped like the parameter"
        raise UsageError.of("optim", optim, problem, 'Use "adamw_torch" or "sgd"')
    if getattr(args, "auto_find_batch_size", False):
        problem = "restarts training after ranks have changed"
        raise UsageError.of("auto_find_batch_size", True, problem, "Set the batch size")


def check_optimizer_before_gates(optimizer: Any, method: str, spec: AdapterSpec) -> None:
    """Refuses gates where the optimizer was made before them. Raises UsageError."""
    if spec.gate != "none":
        cure = "Let the trainer make its optimizer (optim=..., learning_rate=...)"
        problem = f"was made before the gates that {method} trains"
        raise UsageError.of("optimizers", type(optimizer).__name__, problem, cure)


def check_run(args: Any, state: Any, phases: Sequence[PhaseRange], *, resumed: bool) -> None:
    """Raises UsageError for a run whose state or precision the callback cannot handle.

    `resumed` tells whether a checkpoint with the callback's state was loaded.
    """
    if state.is_hyper_param_search:
        raise UsageError.of("hyperparameter_search", True, "is not supported", "Train once per setting")
    if state.global_step > 0 and not resumed:
        problem = f"steps were made without this callback: the checkpoint has no {STATE_FILE}"
        cure = "Resume from an older checkpoint, with the callback in callbacks=[...]"
        raise UsageError.of("resume_from_checkpoint", state.global_step, problem, cure)
    if args.fp16 and any(r.phase.kind == "gradient" for r in phases):
        problem = "scales the gradients that the method reads"
        raise UsageError.of("fp16", True, problem, "Use bf16, or float32")
    if args.fp16 and not args.max_grad_norm and any(r.phase.kind == "forward" for r in phases):
        problem, cure = "lets float16 scaling meet steps without gradients", "Set it to 1.0, or use bf16"
        raise UsageError.of("max_grad_norm", 0, problem, cure)
