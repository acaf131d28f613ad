import warnings
from functools import partial, partialmethod
from numbers import Real
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import TrainerCallback

from peftprune.adapters import surgery
from peftprune.callback import start
from peftprune.callback.compatibility import check_optimizer_before_gates, check_run, check_trainer
from peftprune.callback.events import UserTrainerEvents
from peftprune.errors import RunError, UsageError
from peftprune.strategy.budget import Budget, verify
from peftprune.strategy.options import identity
from peftprune.strategy.phases import phase_ranges
from peftprune.strategy.rng import stream_seed
from peftprune.strategy.sites import SiteSet
from peftprune.training.checkpoints import checkpoint_path, read_state, write_state
from peftprune.training.distributed import check_agreement, exclude_from_ddp
from peftprune.training.ledger import Ledger
from peftprune.training.schedule import learning_rate_factors, rewarm_factors
from peftprune.training.trace import Trace


class PruningCallback(TrainerCallback):
    """Prunes the ranks of a PEFT LoRA model in any `transformers.Trainer`, `Seq2SeqTrainer` or TRL `SFTTrainer`.

        Trainer(model=peft_model, ..., callbacks=[PruningCallback(method, budget="rank=8")])

    **Starting ranks.** A method that starts above the budget and prunes down to it starts from the adapter as you made
    it (r=64, say, under `rank=8`), whose ranks must be above the budget. Options that set another start than the
    method's defaults (`initial_rank=32`) take precedence. Every other method sets its starting ranks itself: the sites
    are resized before training. Scaling stays as the adapter was made.

    **Schedule.** Phases are step ranges of the one training run. The optimizer's state is cleared where a phase asks
    for a fresh optimizer. The learning-rate schedule stays yours. Where a phase restarts it, the rate is multiplied by
    a warm-up over `warmup_ratio` of the remaining steps ("user"), or by a whole warm-up and linear decay over each
    segment ("restart"; with lr_scheduler_type="constant" that is the schedule of `compare`). The logged rate is the
    one in use. Steps of a forward-only phase run in eval mode, and their gradients are discarded.

    **Data.** A phase that trains on a sample of the data gets one: stratified by the labels if these are whole numbers,
    random otherwise. `peftprune.sampler` serves the data in the order of `compare` instead.

    **Several processes** (torchrun, accelerate launch) make the same decisions. The callback averages the adapters'
    gradients itself, so that ranks can change. FSDP, DeepSpeed, and optimizers that are schedule-free or whose state is
    not shaped like the parameter are refused before training.

    **Checkpoints** hold the callback's state in `peftprune_state.pt`. To resume, pass a callback made in the same way.
    With `load_best_model_at_end` only states after the method's last decision can be the best. Where none of them has a
    checkpoint, the final state is kept.

    When training ends, gates and scaling are folded into B and the budget is verified: `trainer.save_model()` then
    writes a plain PEFT adapter within it.

    Args:
        method: a name, `"name(option=value)"` as on the command line, a strategy object or class.
        budget: a `Budget` or its text, such as `"rank=8"`. A length of training in it must be the trainer's.
        seed: of the method's own random draws; None takes the seed of `prepare`, else the trainer's.
        schedule: "user" or "restart", see above.
        warmup_ratio: share of a restarted segment that warms up, in [0, 1).
        options: the method's options, where `method` is a name or class.

    Attributes:
        ledger: what the run held and spent.
        trace: the state of the sites after every decision.

    Raises:
        UsageError: for a request that cannot be run. Problems with the model or the trainer are raised when the trainer
            is made, or before the first step.
        RunError: if training ends above the budget.
    """

    def __init__(
        self,
        method: Any,
        budget: Budget | str,
        *,
        seed: int | None = None,
        schedule: Literal["user", "restart"] = "user",
        warmup_ratio: float = 0.06,
        **options: Any,
    ) -> None:
        self.strategy = start.build_strategy(method, options)
        self.budget = start.parameter_budget(budget)
        if schedule not in ("user", "restart"):
            raise UsageError.of("schedule", schedule, "is unknown", 'Use "user" or "restart"')
        if not isinstance(warmup_ratio, Real) or not 0 <= warmup_ratio < 1:
            raise UsageError.of("warmup_ratio", warmup_ratio, "is outside [0, 1)", "Give 0.06, for example")
        self.seed: int | None = None if seed is None else start.check_seed(seed)
        self.schedule: str = schedule
        self.warmup_ratio: float = warmup_ratio
        self.events: UserTrainerEvents | None = None
        self._start: start.Start | None = None
        self._loaded: dict[str, Any] | None = None
        self._control: Any = None
        self._training: bool = False
        self._done: bool = False

    @property
    def ledger(self) -> Ledger:
        return self.events.ledger if self.events is not None else Ledger()

    @property
    def trace(self) -> Trace:
        return self.events.trace if self.events is not None else Trace()

    def summary(self) -> dict[str, Any]:
        """Returns method, budget, ranks by site and the ledger as plain values."""
        sites = SiteSet({}, None) if self._start is None else self._start.sites
        return {
            "method": self.strategy.name,
            "options": dict(vars(self.strategy.config)),
            "budget": self.budget.label,
            "done": self._done,
            "params_allowed": None if self.events is None else self.events.budget.params,
            "ranks": sites.ranks,
            "shared_with": {name: others for name, others in sites.shared_with().items() if others},
            "ledger": self.ledger.as_dict(),
        }

    def _forward(self, event: str, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Passes an event of the trainer on while the callback's own run lasts."""
        if self._training:
            getattr(self.events, event)(args, state, control, **kwargs)

    on_epoch_begin = partialmethod(_forward, "on_epoch_begin")
    on_step_begin = partialmethod(_forward, "on_step_begin")
    on_pre_optimizer_step = partialmethod(_forward, "on_pre_optimizer_step")
    on_optimizer_step = partialmethod(_forward, "on_optimizer_step")
    on_step_end = partialmethod(_forward, "on_step_end")
    on_log = partialmethod(_forward, "on_log")
    on_evaluate = partialmethod(_forward, "on_evaluate")

    # --- before training ----------------------------------------------------------------------------------------------

    def on_init_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        check_trainer(args)
        if self._start is not None:
            raise UsageError.of("callback", self.strategy.name, "belongs to another trainer", "Make a new one for each")
        model, optimizer = kwargs["model"], kwargs.get("optimizer")
        self._check_alone(model, control)
        found = start.solve(model, self.strategy, self.budget, self.seed, max(0, args.max_steps))
        if optimizer is not None:
            surgery.check_optimizer(optimizer)
            check_optimizer_before_gates(optimizer, self.strategy.name, found.spec)
        seed = self._take(model, found, args.seed)
        if found.prepared is None:
            start.begin(found.sites, found.spec, found.ranks, seed, optimizer=optimizer)
        exclude_from_ddp(model, found.sites.parameters())

    def _take(self, model: Any, found: start.Start, seed: int) -> int:
        """Binds the callback to the model; returns the seed."""
        model.__dict__.pop("load_adapter", None)
        model.load_adapter = partial(self._load_adapter, model.load_adapter)
        self._start = found
        if self.seed is None:
            self.seed = seed if found.prepared is None else found.prepared.request["seed"]
        return self.seed

    def _check_alone(self, model: Any, control: Any) -> None:
        """Refuses a second callback in one trainer, which `control` identifies."""
        self._control = control
        other = _owner(model)
        if other is not None and other is not self and other._control is control:
            names = [other.strategy.name, self.strategy.name]
            raise UsageError.of("callbacks", names, "would prune one adapter", "Give the trainer one PruningCallback")

    def _attach_late(self, args: Any, model: Any) -> None:
        """Binds a callback that was added to an existing trainer; refuses it where the model would have to change."""
        check_trainer(args)
        found = start.solve(model, self.strategy, self.budget, self.seed, max(0, args.max_steps))
        if found.changes_model or args.world_size > 1:
            problem = "was added to a trainer that exists, whose optimizer holds the sites as they were"
            cure = "Give it when the trainer is made: callbacks=[PruningCallback(...)]"
            raise UsageError.of("callback", self.strategy.name, problem, cure)
        self._take(model, found, args.seed)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        model, loader = kwargs["model"], kwargs["train_dataloader"]
        if self._done or self._training:
            raise UsageError.of("callback", self.strategy.name, "has run already", "Make a new trainer and callback")
        self._check_alone(model, control)
        if self._start is None:
            self._attach_late(args, model)
        elif _owner(model) is not self:
            problem = "is not the model that this callback was made for, or belongs to a newer trainer"
            cure = "Make a new trainer and callback, with model=... and not model_init"
            raise UsageError.of("model", type(model).__name__, problem, cure)
        assert self._start is not None
        assert self.seed is not None
        surgery.check_optimizer(kwargs["optimizer"])
        data = getattr(loader, "dataset", None)
        budget = start.final_budget(self.budget, self.strategy, self._start, args, int(state.max_steps), data)
        phases = phase_ranges(self.strategy.phases(budget), budget)
        check_run(args, state, phases, resumed=self._loaded is not None)
        rule = learning_rate_factors if self.schedule == "restart" else rewarm_factors
        factors = rule(phases, self.warmup_ratio)
        own = (self.strategy, self._start, budget, phases)
        self.events = UserTrainerEvents(*own, seed=self.seed, model=model, args=args, loader=loader, factors=factors)
        if self._loaded is not None:
            self.events.resume(self._loaded)
        self._training = True
        self.events.on_train_begin(args, state, control, **kwargs)
        if self._start.prepared is not None and state.global_step == 0:
            torch.manual_seed(stream_seed(self.seed, "dropout"))

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.events is None or self._start is None or not self._training:
            return
        model, sites, budget, ledger = kwargs["model"], self._start.sites, self.events.budget, self.ledger
        self.events.on_train_end(args, state, control, **kwargs)
        self._training = False
        for name in ("load_adapter", start.PREPARED):
            model.__dict__.pop(name, None)
        surgery.fold(sites)
        check_agreement(lambda: surgery.structure(sites), "the ranks at the end")
        ledger.add_final(sites, model)
        spent, room = ledger.spent(sites, budget, self._start.spec)
        last = self.events.phases[-1].stop
        exempt = self.strategy.exempt(sites.shapes, budget)
        if exempt is None and state.global_step < last and spent > budget.params:
            raise RunError(
                f"budget: training stopped at step {state.global_step} of {last}, before {self.strategy.name} had come "
                f"down to {budget.params:,} parameters ({spent:,}). Train to the end"
            )
        if exempt is None:
            verify(spent, budget, room)
        self._done = True

    # --- checkpoints --------------------------------------------------------------------------------------------------

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.events is None or not self._training:
            return
        if args.should_save:
            saved = self.events.state_dict() | {"identity": self._identity()}
            write_state(checkpoint_path(Path(args.output_dir), state.global_step), saved)

    def _identity(self) -> dict[str, str]:
        options = {name: repr(value) for name, value in identity(self.strategy.config).items()}
        return {"method": self.strategy.name, "options": repr(options), "budget": self.budget.label}

    def _load_adapter(self, load: Any, model_id: Any, *args: Any, **kwargs: Any) -> Any:
        """The model's `load_adapter`; for a checkpoint, the sites take on the saved ranks and ties first."""
        if self._start is None or not Path(model_id).is_dir():
            return load(model_id, *args, **kwargs)
        saved = read_state(Path(model_id), ("identity", "structure", "strategy"))
        for name, own in self._identity().items():
            if saved["identity"][name] != own:
                problem = f"was trained with {name} {saved['identity'][name]}, and the callback has {own}"
                raise UsageError.of("resume_from_checkpoint", str(model_id), problem, "Resume with the same callback")
        surgery.restore_structure(self._start.sites, saved["structure"])
        if not self._training:
            self._loaded = saved
        with warnings.catch_warnings():
            # PEFT warns about gates, which it does not know; they are loaded all the same.
            warnings.filterwarnings("ignore", message="(?s).*rank_gate")
            return load(model_id, *args, **kwargs)


def _owner(model: Any) -> PruningCallback | None:
    """Returns the callback that was bound to the model last and has not ended training."""
    found = getattr(getattr(model.__dict__.get("load_adapter"), "func", None), "__self__", None)
    return found if isinstance(found, PruningCallback) else None
