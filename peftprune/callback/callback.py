"""`PruningCallback`: one line that brings a rank-pruning method into somebody else's training script."""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Iterator, Mapping, Sized
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from peftprune.adapters import surgery
from peftprune.callback.attach import attach, base_cost, base_parameters
from peftprune.callback.compatibility import check_trainer
from peftprune.callback.data_order import Layout, Order, serve
from peftprune.callback.param_groups import StepGroups
from peftprune.callback.prepare import MARK, Start, begin, checked_budget, provisional, starting_ranks, strategy_of
from peftprune.callback.token_counter import StepMeter
from peftprune.errors import RunError, UsageError
from peftprune.strategy.budget import ArmBudget, Budget, verify
from peftprune.strategy.phases import phase_at, resolve_phases
from peftprune.strategy.rng import stream_seed
from peftprune.strategy.sites import SiteSet
from peftprune.strategy.spec import AdapterSpec, check_spec
from peftprune.training.checkpoints import STATE_FILE, checkpoint_path, read_state, write_state
from peftprune.training.distributed import GradientAverage, check_agreement, leave_to_us, same_start, sum_over_processes
from peftprune.training.events import PruningEvents, inner_optimizer
from peftprune.training.ledger import Ledger, count_adapter, headroom, stored_parameters
from peftprune.training.schedule import learning_rate_factors, rewarm_factors
from peftprune.training.trace import Trace


class PruningCallback(TrainerCallback):
    """Prunes the ranks of a PEFT LoRA model in any `transformers.Trainer`, `Seq2SeqTrainer` or TRL `SFTTrainer`.

        Trainer(model=peft_model, ..., callbacks=[PruningCallback(method, budget="rank=8")])

    **Starting ranks.** A method that starts above the budget and comes down to it starts from the adapter as the user
    made it (r=64, say, under `rank=8`); the user's ranks must then be above the budget. If its options name another
    start than its defaults do (`initial_rank=32`), that holds. Every other method sets its starting ranks itself, and
    the sites are resized to them before training; scaling stays what the adapter was made with.

    **Schedule.** Phases are step ranges of the one training run. The optimizer's state is cleared where a phase asks
    for a fresh optimizer. The learning-rate schedule stays the user's; where a phase restarts the schedule, a warm-up
    over `warmup_ratio` of what follows is multiplied onto it ("user"), or a whole warm-up and linear decay over each
    segment is ("restart"; with lr_scheduler_type="constant" that is the schedule of `compare`). What is logged is the
    rate in use. Steps of a forward-only phase run in eval mode, and their gradients are thrown away.

    **Data.** Phases that ask for a sample of the data are served one: stratified by the labels where these are whole
    numbers, at random else. `peftprune.sampler` serves the order of `compare` instead.

    **Several processes** (torchrun, accelerate launch) take the same decisions. The adapters' gradients are averaged
    here, so ranks change in the tensors themselves as in one process. FSDP, DeepSpeed, and optimizers whose state is
    not shaped like the parameter are refused before training.

    **Checkpoints** hold the callback's state in `peftprune_state.pt`. Resuming takes a callback made the same way. With
    `load_best_model_at_end` only states within the budget count.

    When training ends, gates and scaling are folded into B and the budget is verified: `trainer.save_model()` then
    writes a plain PEFT adapter within it.

    Args:
        method: a name, `"name(option=value)"` as on the command line, a strategy object or class.
        budget: a `Budget` or its text, such as `"rank=8"`. A length of training in it must be the trainer's.
        seed: of the method's own draws; None takes the one that the model was prepared with, else the trainer's.
        schedule: "user" or "restart", see above.
        warmup_ratio: share of a restarted segment that warms up, in [0, 1).
        options: the method's options, where `method` is a name or class.

    Attributes:
        ledger: what the run held and spent.
        trace: what every decision left at the sites.

    Raises:
        UsageError: for a request that cannot be run. What depends on the model or the trainer is raised when the
            trainer is made, or before the first step.
        RunError: when training ends outside of the budget.
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
        self.strategy = strategy_of(method, options)
        self.budget = checked_budget(budget)
        if schedule not in ("user", "restart"):
            raise UsageError.of("schedule", schedule, "is unknown", 'Use "user" or "restart"')
        if not 0 <= warmup_ratio < 1:
            raise UsageError.of("warmup_ratio", warmup_ratio, "is outside [0, 1)", "Give 0.06, for example")
        self.seed = seed
        self.schedule = schedule
        self.warmup_ratio = warmup_ratio
        self.events: PruningEvents | None = None
        self._sites: SiteSet | None = None
        self._spec = AdapterSpec(ranks={})
        self._start: Start | None = None
        self._base_parameters = 0
        self._order: Order | None = None
        self._factors: list[float] = []
        self._average = GradientAverage()
        self._loaded: dict[str, Any] | None = None
        self._training = self._done = False
        self._held: tuple[Any] | None = None

    @property
    def ledger(self) -> Ledger:
        """What the run held and spent; empty before training."""
        return self.events.ledger if self.events is not None else Ledger()

    @property
    def trace(self) -> Trace:
        """What every decision left at the sites; empty before training."""
        return self.events.trace if self.events is not None else Trace()

    def summary(self) -> dict[str, Any]:
        """Method, budget, ranks by site and the ledger, as plain values."""
        return {
            "method": self.strategy.name,
            "options": dict(vars(self.strategy.config)),
            "budget": self.budget.label,
            "done": self._done,
            "params_allowed": None if self.events is None else self.events.budget.params,
            "ranks": {} if self._sites is None else self._sites.ranks,
            "shared_with": {} if self._sites is None else {n: o for n, o in self._sites.shared_with().items() if o},
            "ledger": self.ledger.as_dict(),
        }

    # --- before training ----------------------------------------------------------------------------------------------

    def on_init_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        check_trainer(args)
        if self._sites is not None:
            raise UsageError.of("callback", self.strategy.name, "belongs to another trainer", "Make a new one for each")
        model, optimizer = kwargs["model"], kwargs.get("optimizer")
        sites, ranks = self._solve(model, args)
        if optimizer is not None:
            surgery.check_optimizer(optimizer)
            if self._spec.gate != "none":
                raise UsageError.of(
                    "optimizers",
                    type(optimizer).__name__,
                    f"was made before the gates that {self.strategy.name} trains",
                    "Let the trainer make its optimizer (optim=..., learning_rate=...)",
                )
        seed = self._take(model, sites, args)
        if self._start is None:
            begin(sites, self._spec, ranks, seed, optimizer=optimizer)
        leave_to_us(model, _parameters(sites))

    def _take(self, model: Any, sites: SiteSet, args: TrainingArguments) -> int:
        """Make the model ours; returns the seed."""
        model.load_adapter = functools.partial(self._load_adapter, model.load_adapter)
        self._sites = sites
        if self.seed is None:
            self.seed = args.seed if self._start is None else self._start.seed
        return self.seed

    def _solve(self, model: Any, args: TrainingArguments) -> tuple[SiteSet, Mapping[str, int]]:
        """The model's sites and the ranks at which they start."""
        sites = attach(model)
        self._base_parameters = base_parameters(model)
        self._start = getattr(model, MARK, None)
        budget = provisional(self.budget, sites, self._base_parameters, max(0, args.max_steps))
        if self._start is not None:
            self._check_prepared(self._start)
            self._spec = self._start.spec
            return sites, sites.ranks
        self._spec = self.strategy.spec(sites.shapes, budget)
        check_spec(self._spec, sites.shapes)
        return sites, starting_ranks(self.strategy, self._spec, sites, budget)

    def _check_prepared(self, start: Start) -> None:
        for name, prepared, own in (
            ("method", start.method, self.strategy.name),
            ("options", start.config, self.strategy.config),
            ("budget", start.budget, self.budget),
            ("seed", start.seed, start.seed if self.seed is None else self.seed),
        ):
            if prepared != own:
                raise UsageError.of(name, own, f"is not what the model was prepared for ({prepared})", "Give the same")

    def _attach_late(self, args: TrainingArguments, model: Any) -> None:
        """For a callback that was added to a trainer that exists: fine where nothing must be resized."""
        check_trainer(args)
        sites, ranks = self._solve(model, args)
        new = self._start is None and (dict(ranks) != sites.ranks or self._needs_values())
        if new or args.world_size > 1:
            raise UsageError.of(
                "callback",
                self.strategy.name,
                "was added to a trainer that exists, whose optimizer holds the sites as they were",
                "Give it when the trainer is made: callbacks=[PruningCallback(...)]",
            )
        self._take(model, sites, args)

    def _needs_values(self) -> bool:
        spec = self._spec
        frozen = any(not group.trained for group in spec.groups.values())
        scaled = spec.scaling is not None or bool(spec.relative_scaling)
        return bool(spec.gate != "none" or spec.initial or spec.initial_std or frozen or scaled)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        model, loader = kwargs["model"], kwargs["train_dataloader"]
        if self._done or self._training:
            raise UsageError.of(
                "callback", self.strategy.name, "has run already", "Make a new trainer and a new callback"
            )
        if state.is_hyper_param_search:
            raise UsageError.of("hyperparameter_search", True, "is not supported", "Train once per setting")
        if self._sites is None:
            self._attach_late(args, model)
        assert self._sites is not None
        sites = self._sites
        if state.global_step > 0 and self._loaded is None:
            raise UsageError.of(
                "resume_from_checkpoint",
                state.global_step,
                f"steps were made without this callback: the checkpoint has no {STATE_FILE}",
                "Resume from an older checkpoint, with the callback in callbacks=[...]",
            )
        surgery.check_optimizer(kwargs["optimizer"])
        budget = self._arm_budget(args, state, loader)
        phases = resolve_phases(
            self.strategy.phases(budget),
            total_steps=budget.total_steps,
            num_examples=budget.num_examples,
            batch_size=budget.batch_size,
        )
        if args.fp16 and not args.max_grad_norm and any(r.phase.kind == "forward" for r in phases):
            raise UsageError.of(
                "max_grad_norm", 0, "lets float16 scaling meet steps without gradients", "Set it to 1.0, or use bf16"
            )
        assert self.seed is not None
        layout = Layout(budget.batch_size, args.gradient_accumulation_steps, args.process_index, args.world_size)
        self._order = serve(loader, phases, layout, self.seed)
        factors = learning_rate_factors if self.schedule == "restart" else rewarm_factors
        self._factors = factors(phases, self.warmup_ratio)
        self._groups = StepGroups(self._spec.groups, args.learning_rate, args.weight_decay)
        self._meter = StepMeter(model)
        self.events = PruningEvents(
            self.strategy,
            sites,
            budget,
            phases,
            seed=self.seed,
            step_cost=self._meter.cost,
            base_cost=base_cost(model),
            full_steps=True,
        )
        if self._loaded is not None:
            self.events.resume(self._loaded)
            if state.best_metric is not None and math.isinf(state.best_metric):
                state.best_metric = self._loaded["best_metric"]
        check_agreement(lambda: surgery.structure(sites), "the ranks at the start")
        same_start(_parameters(sites))
        self._average.follow(_parameters(sites))
        self._steps_per_epoch = -(-len(loader) // args.gradient_accumulation_steps) if self._order is not None else 0
        self._training = True
        self.events.on_train_begin(args, state, control, **kwargs)
        if self._start is not None and state.global_step == 0:
            torch.manual_seed(stream_seed(self.seed, "dropout"))

    def _arm_budget(self, args: TrainingArguments, state: TrainerState, loader: Any) -> ArmBudget:
        """The budget in integers, now that the length of training is known."""
        assert self._sites is not None
        sites, total = self._sites, int(state.max_steps)
        batch = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        dataset = getattr(loader, "dataset", None)
        examples = len(dataset) if isinstance(dataset, Sized) else total * batch
        if self.budget.has_length and self.budget.total_steps(examples, batch) != total:
            raise UsageError.of(
                "budget",
                self.budget.label,
                f"means {self.budget.total_steps(examples, batch)} steps, and the trainer makes {total}",
                "Leave the length of training to the trainer",
            )
        budget = ArmBudget(
            self.budget.parameters(sites.shapes, self._base_parameters), total, examples, batch, self.budget.count
        )
        if self.strategy.spec(sites.shapes, budget).ranks != self._spec.ranks:
            raise UsageError.of(
                "method",
                self.strategy.name,
                "starts at ranks that depend on the length of training",
                f"Say it when the trainer is made: max_steps={total}",
            )
        return budget

    # --- training -----------------------------------------------------------------------------------------------------

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._release_best(state)
        if self._order is not None:
            self._order.start_epoch(state.global_step // self._steps_per_epoch)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        assert self.events is not None
        self._release_best(state)
        self._meter.start()
        if self._forward_only(state.global_step):
            model = kwargs["model"]
            # The trainer asks for training mode before every micro-batch.
            model.train = lambda mode=True: nn.Module.train(model, False)
        self.events.on_step_begin(args, state, control, **kwargs)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        assert self.events is not None
        assert self._sites is not None
        self._meter.stop()
        if self._forward_only(state.global_step):
            model = kwargs["model"]
            del model.train
            for param in model.parameters():
                param.grad = None
        self.events.on_pre_optimizer_step(args, state, control, **kwargs)
        optimizer = inner_optimizer(kwargs["optimizer"])
        self._groups.lend(optimizer, self._sites, self._factors[min(state.global_step, len(self._factors) - 1)])

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        assert self.events is not None
        self._groups.take_back(inner_optimizer(kwargs["optimizer"]))
        self.events.on_optimizer_step(args, state, control, **kwargs)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        assert self.events is not None
        assert self._sites is not None
        self.events.on_step_end(args, state, control, **kwargs)
        self._average.follow(_parameters(self._sites))

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if not self._training or self.events is None or not logs:
            return
        if "learning_rate" in logs and 0 < state.global_step <= len(self._factors):
            logs["learning_rate"] *= self._factors[state.global_step - 1]
            if state.log_history:
                state.log_history[-1]["learning_rate"] = logs["learning_rate"]
        self.events.on_log(args, state, control, logs=logs, **kwargs)

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if not self._training or self.events is None:
            return
        self.events.on_evaluate(args, state, control, **kwargs)
        if args.metric_for_best_model is not None and self._held is None and not self._within():
            # The trainer compares with the best so far next: nothing beats this.
            self._held = (state.best_metric,)
            state.best_metric = math.inf if args.greater_is_better else -math.inf

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._release_best(state)
        if not self._training or self.events is None or not args.should_save:
            return
        assert args.output_dir is not None
        folder = checkpoint_path(Path(args.output_dir), state.global_step)
        self.ledger.tokens += self._meter.tokens()
        saved = self.events.state_dict() | {"identity": self._identity(), "best_metric": state.best_metric}
        write_state(folder, saved)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.events is None or not self._training:
            return
        assert self._sites is not None
        model, sites, budget = kwargs["model"], self._sites, self.events.budget
        self.events.on_train_end(args, state, control, **kwargs)
        self._training = False
        self._meter.remove()
        self._average.remove(model)
        for name in ("load_adapter", MARK):
            model.__dict__.pop(name, None)
        surgery.fold(sites)
        sites.peft_config.target_modules = sorted(sites.peft_config.target_modules or ())
        check_agreement(lambda: surgery.structure(sites), "the ranks at the end")
        self._finish_ledger(model, sites, args.device)
        nonzero = budget.count == "nonzero"
        spent = self.ledger.nonzero_params if nonzero else self.ledger.final_params
        if state.global_step < self.events.phases[-1].stop and spent > budget.params:
            raise RunError(
                f"budget: training stopped at step {state.global_step} of {self.events.phases[-1].stop}, before "
                f"{self.strategy.name} had come down to {budget.params:,} parameters ({spent:,}). Train to the end"
            )
        verify(spent, budget, headroom(sites, dict(self._spec.density) if nonzero else {}))
        self._done = True

    def _forward_only(self, step: int) -> bool:
        assert self.events is not None
        return phase_at(self.events.phases, step).phase.kind == "forward"

    def _within(self) -> bool:
        assert self.events is not None
        assert self._sites is not None
        budget = self.events.budget
        if budget.count == "nonzero":
            return count_adapter(self._sites).nonzero <= budget.params
        return stored_parameters(self._sites) <= budget.params

    def _release_best(self, state: TrainerState) -> None:
        if self._held is not None:
            (state.best_metric,), self._held = self._held, None

    def _finish_ledger(self, model: Any, sites: SiteSet, device: torch.device) -> None:
        ledger = self.ledger
        ledger.tokens += self._meter.tokens()
        spent = ("samples", "tokens", "forward_only_samples", "base_flops", "adapter_flops")
        sums = {n: torch.tensor(float(getattr(ledger, n)), dtype=torch.float64, device=device) for n in spent}
        sum_over_processes(sums)
        for name, value in sums.items():
            setattr(ledger, name, type(getattr(ledger, name))(value.item()))
        ledger.add_final(sites, model)

    # --- checkpoints --------------------------------------------------------------------------------------------------

    def _identity(self) -> dict[str, str]:
        options = {name: repr(value) for name, value in vars(self.strategy.config).items()}
        return {"method": self.strategy.name, "options": repr(options), "budget": self.budget.label}

    def _load_adapter(self, load: Any, model_id: Any, *args: Any, **kwargs: Any) -> Any:
        """The model's own `load_adapter`, for checkpoints: the sites take on the saved ranks and ties first."""
        if self._sites is None or not Path(model_id).is_dir():
            return load(model_id, *args, **kwargs)
        saved = read_state(Path(model_id), ("identity", "structure", "strategy"))
        for name, own in self._identity().items():
            if saved["identity"][name] != own:
                raise UsageError.of(
                    "resume_from_checkpoint",
                    str(model_id),
                    f"was trained with {name} {saved['identity'][name]}, and the callback has {own}",
                    "Resume with the same callback",
                )
        surgery.restore_structure(self._sites, saved["structure"])
        if not self._training:
            self._loaded = saved
        with warnings.catch_warnings():
            # PEFT knows no gates; they are loaded all the same.
            warnings.filterwarnings("ignore", message="(?s).*rank_gate")
            return load(model_id, *args, **kwargs)


def _parameters(sites: SiteSet) -> Iterator[nn.Parameter]:
    """Every parameter of every site, tied ones once."""
    return (p for group in sites.groups() for p in vars(group[0].live()).values() if p is not None)
