"""One trainer for every method: transformers' `Trainer` with one order of events.

Per optimizer step, with the hook that calls each event:

    on_step_begin           strategy.before_step, strategy.penalty; collectors start
      per micro-batch:      forward (collectors sum) → loss → backward
                            (in a forward-only phase: forward in eval mode, no gradients; in a gradient phase:
                            gradients that are discarded after observe)
      clip gradients
    on_pre_optimizer_step   strategy.observe          clipped gradients, this step's signals
      optimizer.step
    on_optimizer_step       strategy.decide → plan    new weights, the gradients that led to them
      scheduler.step, zero_grad
    on_step_end             apply_plan                no gradient and no graph is alive: shapes may change
                            at the end of a phase: strategy.end_phase → apply_plan; optimizer reset
      log, evaluate, save

Phases are step ranges of the one `train()` call. No method is named here.
"""

import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from transformers import Trainer

from peftprune.errors import RunError
from peftprune.strategy.phases import phase_at
from peftprune.strategy.rng import stream_seed
from peftprune.strategy.spec import ParameterGroup
from peftprune.training import checkpoints
from peftprune.training.events import PruningEvents, inner_optimizer
from peftprune.training.sampler import PhaseBatchSampler
from peftprune.training.schedule import learning_rate_factors
from peftprune.training.selection import Selection
from peftprune.training.tracking import Tracking


class PruningTrainer(Trainer):
    """`transformers.Trainer` with a fixed batch order, schedule segments, forward-only phases and safe checkpoints.

    `sampler` yields the micro-batches, `groups` are the optimizer settings for "A", "B", "gate" and "head", and
    `warmup_ratio` is the share of each schedule segment. `selection` scores the checkpoints, of which `run` restores
    the best; None keeps the last state. `tracking` gets what is logged. With `until` the run pauses at that step: its
    last checkpoint is there, and a trainer without `until` goes on. `of_trainer` are `Trainer`'s own model, args
    (`max_steps` is the whole run), train_dataset and data_collator.
    """

    def __init__(
        self,
        *,
        sampler: PhaseBatchSampler,
        callback: PruningEvents,
        groups: dict[str, ParameterGroup],
        warmup_ratio: float,
        loss: Callable[..., Tensor],
        checkpoints: Path,
        selection: Selection | None = None,
        tracking: Tracking | None = None,
        until: int | None = None,
        **of_trainer: Any,
    ) -> None:
        super().__init__(callbacks=[callback], compute_loss_func=loss, **of_trainer)
        self.optimizer: torch.optim.Optimizer | None
        self.lr_scheduler: torch.optim.lr_scheduler.LRScheduler | None
        self.sampler = sampler
        self.pruning = callback
        self.groups = groups
        self.warmup_ratio = warmup_ratio
        self.checkpoints = checkpoints
        self.selection = selection
        self.tracking = tracking
        self.until = self.args.max_steps if until is None else until
        self.only_pauses = False
        """Whether the run writes its checkpoint at `until` for the pause alone."""

    def run(self) -> None:
        """Trains to the end or the pause, from the newest valid checkpoint if there is one."""
        if self.args.world_size > 1:
            raise RunError("world_size: a comparison runs in one process. Use PruningCallback to train with several")
        newest = checkpoints.usable_checkpoint(self.checkpoints)
        if newest is not None and checkpoints.step_of(newest) > self.until:
            shutil.rmtree(self.checkpoints)
            newest = None
        torch.manual_seed(stream_seed(self.args.seed, "dropout"))
        self.train(resume_from_checkpoint=None if newest is None else str(newest))
        if self.state.global_step < self.args.max_steps:
            return
        if self.selection is not None and self.selection.best != self.state.global_step:
            # The method has decided nothing since, so that only the weights differ.
            best = checkpoints.checkpoint_path(self.checkpoints, self.selection.best)
            if not checkpoints.is_complete(best):
                shutil.rmtree(self.checkpoints)
                raise RunError(f"select: {best.name} is damaged. Run the same command again, which trains the arm anew")
            super()._load_from_checkpoint(str(best))

    def selected(self) -> dict[str, Any]:
        """Returns the selected step and the scores, for the arm's record; nothing where none was selected."""
        if self.selection is None or not self.selection.rows:
            return {}
        scores = [{name: row[name] for name in ("step", "score")} for row in self.selection.rows]
        return {"selected_step": self.selection.best, "selection": scores}

    def get_train_dataloader(self) -> DataLoader[Any]:
        loader: DataLoader[Any] = DataLoader(
            self.train_dataset,
            batch_sampler=self.sampler,
            collate_fn=self.data_collator,
            pin_memory=self.args.dataloader_pin_memory,
        )
        return self.accelerator.prepare(loader)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            cls, kwargs = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            self.optimizer = cls(list(self._parameter_groups()), **kwargs)
        return self.optimizer

    def _parameter_groups(self) -> Iterator[dict[str, Any]]:
        found: dict[str, list[nn.Parameter]] = {}
        for name, param in self.model.named_parameters():
            if param.requires_grad:
                found.setdefault(_tensor_kind(name, param), []).append(param)
        for kind, params in found.items():
            group = self.groups["head" if kind == "head bias" else kind]
            decay = self.args.weight_decay if group.weight_decay is None else group.weight_decay
            yield {
                "params": params,
                "lr": self.args.learning_rate * group.lr_scale if group.lr is None else group.lr,
                "weight_decay": 0.0 if kind == "head bias" else decay,
                "constant": group.constant,
            }

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LRScheduler:
        if self.lr_scheduler is None:
            factors = learning_rate_factors(self.pruning.phases, self.warmup_ratio)

            def factor(step: int) -> float:
                return factors[min(step, len(factors) - 1)]

            optimizer = optimizer or self.create_optimizer()
            groups = inner_optimizer(optimizer).param_groups
            self.lr_scheduler = LambdaLR(optimizer, [(lambda _: 1.0) if g["constant"] else factor for g in groups])
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        if phase_at(self.pruning.phases, self.state.global_step).phase.kind != "forward":
            return super().training_step(model, inputs, num_items_in_batch)
        model.eval()
        with torch.no_grad(), self.compute_loss_context_manager():
            loss = self.compute_loss(model, self._prepare_inputs(inputs), num_items_in_batch=num_items_in_batch)
        return loss.detach()

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        self.pruning.note_labels(inputs.get("labels"))
        return super().compute_loss(model, inputs, *args, **kwargs)

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        # Resumed from the checkpoint of the last step, the Trainer would train one step too many.
        if self.state.global_step >= self.until:
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        if self.state.global_step == self.until and not self.control.should_training_stop:
            self.only_pauses = not self.control.should_save
            self.control.should_save = self.control.should_training_stop = True
        super()._maybe_log_save_evaluate(*args, **kwargs)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        super().log(logs, start_time)
        if self.tracking is not None:
            self.tracking.log(self, logs, self.pruning.sites)

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Returns 0: the ledger counts analytically, so the Trainer's estimate is not needed."""
        return 0

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        # Evaluation draws from the global stream, which would change later training steps.
        with torch.random.fork_rng():
            return super().evaluation_loop(*args, **kwargs)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        if not isinstance(self.model, PeftModel):
            super()._save(output_dir, state_dict)
            return
        target = output_dir or self.args.output_dir
        assert target is not None
        os.makedirs(target, exist_ok=True)
        self.model.save_pretrained(target, state_dict=state_dict, save_embedding_layers=False)

    def _get_output_dir(self, trial: Any) -> str:
        return str(self.checkpoints / checkpoints.INCOMPLETE)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        # A run that pauses selects from the same checkpoints as one that does not.
        if self.selection is not None and not self.only_pauses:
            self.selection.score(self)
        kept = None if self.selection is None or not self.selection.rows else self.selection.best
        with (
            checkpoints.new_checkpoint(self.checkpoints, self.state.global_step, kept) as checkpoint,
            warnings.catch_warnings(action="ignore"),
        ):
            super()._save_checkpoint(model, trial)
            scores = {} if self.selection is None else {"selection": self.selection.rows}
            checkpoints.write_state(checkpoint, self.pruning.state_dict() | scores)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        state = checkpoints.read_state(Path(resume_from_checkpoint))
        self.pruning.load_state_dict(state)
        if self.selection is not None:
            self.selection.rows = list(state["selection"])
        super()._load_from_checkpoint(resume_from_checkpoint, model)


def _tensor_kind(name: str, param: nn.Parameter) -> str:
    if ".lora_A." in name:
        return "gate" if name.endswith("rank_gate") else "A"
    if ".lora_B." in name:
        return "B"
    return "head bias" if param.dim() < 2 else "head"
