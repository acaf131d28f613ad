"""Run one arm: one method, one task, one budget, one seed."""

import copy
import json
import math
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback, TrainingArguments

from peftprune.adapters import surgery
from peftprune.adapters.inject import inject
from peftprune.adapters.save import save_baseline, save_peft
from peftprune.files import write_atomically, write_json, write_jsonl
from peftprune.models.head import initialise_head
from peftprune.models.precision import frozen_bytes
from peftprune.models.quiet import quiet_transformers
from peftprune.strategy.budget import verify
from peftprune.strategy.rng import generator
from peftprune.strategy.sites import SiteSet
from peftprune.study.disk import require_space
from peftprune.study.planning import ArmPlan
from peftprune.study.seal import digests
from peftprune.study.store import PAUSED, SCHEMA, ArmFolder
from peftprune.training.cpu import make_fast
from peftprune.training.drift import drift
from peftprune.training.evaluation import Scored
from peftprune.training.events import Progress, PruningEvents
from peftprune.training.ledger import Ledger, release_memory
from peftprune.training.objectives import ArmInputs
from peftprune.training.sampler import PhaseBatchSampler
from peftprune.training.selection import Selection
from peftprune.training.trace import density
from peftprune.training.tracking import Tracking
from peftprune.training.trainer import PruningTrainer

_LOGS_PER_RUN = 50


def run_arm(
    plan: ArmPlan,
    inputs: ArmInputs,
    seed: int,
    folder: ArmFolder,
    config: Mapping[str, Any],
    progress: Progress | None = None,
    trackers: Sequence[str] = (),
    until: int | None = None,
) -> dict[str, Any]:
    """Trains, verifies, evaluates, exports and records one arm, from its newest complete checkpoint if there is one.

    `config` is the content of the arm's hash, `progress` is called after every step, and `trackers` are named in
    `training.tracking`. Returns the contents of `result.json`, which is written last, or those of `paused.json` where
    the arm ends at the step `until`, to go on from its checkpoint. Raises RunError when training fails, the budget is
    missed, or the disk has no room for the arm.
    """
    release_memory()
    started = time.perf_counter()
    folder.path.mkdir(parents=True, exist_ok=True)
    write_json(folder.path / "config.json", config)
    model, sites = prepare_model(plan, inputs.model.model, inputs.head, seed)
    require_space(folder.path, model, plan.settings.checkpoints)
    tracking = Tracking(trackers, folder.path)
    trainer = make_trainer(plan, inputs, seed, folder, model, sites, progress, tracking, until)
    with quiet_transformers(), tracking:
        # A baseline may have nothing to train.
        if any(p.requires_grad for p in model.parameters()):
            trainer.run()
            if trainer.state.global_step < plan.budget.total_steps:
                return _pause(trainer, plan, inputs, folder)
        # Only now: a resumed run restores the ledger into a new object.
        ledger = trainer.pruning.ledger
        surgery.fold(sites)
        outputs = inputs.objective.finish(model, inputs.head)
        ledger.base_bytes = frozen_bytes(model)
        plan = finish_ledger(plan, inputs.head, sites, model, ledger)
        mark = time.perf_counter()
        scored = inputs.objective.evaluate(trainer, inputs.evaluation, plan.settings)
        ledger.evaluation_seconds += time.perf_counter() - mark
        tracking.log(trainer, {f"eval_{name}": value for name, value in scored.metrics.items()})
    write_atomically(folder.predictions, scored.predictions.to_parquet(index=False))
    scored = replace(scored, facts=scored.facts | outputs | trainer.selected())
    facts = {"schema": SCHEMA, "method": plan.method.name, "label": plan.label, "seed": seed, "metrics": scored.metrics}
    facts |= outputs
    if sites:
        ledger.adapter_bytes = save_peft(model, sites, folder.adapter, facts)
    else:
        ledger.adapter_bytes = save_baseline(model, folder.adapter, facts)
    # Last, because switching the adapter off and on marks all of it as trained.
    ledger.drift = drift(trainer, inputs.model)
    # The Trainer's summary at the end covers this process only, not the steps before an interruption.
    # Rows from a checkpoint come back with their names sorted.
    steps = [dict(sorted(row.items())) for row in trainer.state.log_history if "train_runtime" not in row]
    write_jsonl(folder.path / "history.jsonl", steps)
    write_jsonl(folder.path / "allocation.jsonl", trainer.pruning.trace.rows)
    result = _result(plan, inputs, seed, config, sites, model, ledger, scored, time.perf_counter() - started)
    write_json(folder.path / "result.json", result | {"digests": digests(folder, result)})
    folder.clear_error()
    shutil.rmtree(folder.checkpoints, ignore_errors=True)
    return result


def third(total_steps: int) -> int:
    """Returns the step after a third of a run, at which a trial pauses: the next one that is logged."""
    logs = max(1, total_steps // _LOGS_PER_RUN)
    return min(total_steps, math.ceil(total_steps / 3 / logs) * logs)


def _pause(trainer: PruningTrainer, plan: ArmPlan, inputs: ArmInputs, folder: ArmFolder) -> dict[str, Any]:
    """Writes the scores and the cost of an arm that pauses; returns the contents of `paused.json`."""
    # Another arm may have moved the mapping of its targets into its head.
    scored = inputs.objective.fitted(inputs.train).evaluate(trainer, inputs.evaluation, plan.settings)
    step, ledger = trainer.state.global_step, trainer.pruning.ledger.as_dict()
    found = {"schema": SCHEMA, "step": step, "metrics": scored.metrics, "ledger": ledger}
    write_json(folder.path / PAUSED, found)
    folder.clear_error()
    return found


def prepare_model(plan: ArmPlan, base: Any, head: Sequence[str], seed: int) -> tuple[Any, SiteSet]:
    """Returns the model that an arm trains, and its sites: empty where the method prepares the model itself.

    The pretrained `base` stays as it is; `head` names the modules of its head.
    """
    given = plan.preparation(head, seed)
    if not plan.method.prepares_model:
        return inject(base, given)
    # Such a method may train any weight, so it gets a copy of its own.
    model = copy.deepcopy(base).requires_grad_(False)
    initialise_head(model, head, generator(seed, "head"))
    # PEFT draws initial values from the global stream, which belongs to dropout.
    with torch.random.fork_rng(devices=[]):
        return plan.method.prepare(model, given), SiteSet({}, None)


def make_trainer(
    plan: ArmPlan,
    inputs: ArmInputs,
    seed: int,
    folder: ArmFolder,
    model: Any,
    sites: SiteSet,
    progress: Progress | None = None,
    tracking: Tracking | None = None,
    until: int | None = None,
) -> PruningTrainer:
    """Returns the trainer of an arm for the model and sites that `prepare_model` returned."""
    settings, method = plan.settings, plan.method
    entries, trained = method.multiplied(plan.shapes, plan.spec)
    sampler = PhaseBatchSampler(
        [row.get("length", len(row["input_ids"])) for row in inputs.train],
        inputs.objective.strata(inputs.train),
        plan.phases,
        settings.batch_size,
        seed,
        settings.gradient_accumulation_steps,
    )
    callback = PruningEvents(
        method,
        sites,
        plan.budget,
        plan.phases,
        seed=seed,
        step_cost=sampler.cost,
        base_cost=replace(inputs.base_cost, backward=method.backward, multiplied=entries, multiplied_trained=trained),
        progress=progress,
    )
    selection = None
    if inputs.held_out is not None:
        selection = Selection(*inputs.held_out, settings, last_only=not sites and plan.spec.decided_in_training)
    trainer = PruningTrainer(
        model=model,
        args=_arguments(plan, inputs, seed, folder.checkpoints, tracking.names if tracking else {}),
        sampler=sampler,
        callback=callback,
        groups=dict(plan.spec.groups),
        warmup_ratio=settings.warmup_ratio,
        loss=inputs.objective.loss,
        train_dataset=inputs.train,
        data_collator=inputs.objective.collator,
        checkpoints=folder.checkpoints,
        selection=selection,
        tracking=tracking,
        until=until,
    )
    trainer.remove_callback(PrinterCallback)
    if trainer.args.device.type == "cpu":
        make_fast(model, seed, torch.bfloat16 if inputs.dtype == "bfloat16" and not method.reads_weights else None)
    return trainer


def _arguments(
    plan: ArmPlan, inputs: ArmInputs, seed: int, output: Path, names: Mapping[str, str]
) -> TrainingArguments:
    settings, total = plan.settings, plan.budget.total_steps
    logs = max(1, total // _LOGS_PER_RUN)
    # A logged loss is the mean since the last log, so checkpoints lie at logging steps only.
    saves = math.ceil(total / max(1, settings.checkpoints) / logs) * logs
    return TrainingArguments(
        output_dir=str(output),
        max_steps=total,
        per_device_train_batch_size=-(-settings.batch_size // settings.gradient_accumulation_steps),
        per_device_eval_batch_size=max(64, settings.batch_size),
        gradient_accumulation_steps=settings.gradient_accumulation_steps,
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        bf16=inputs.dtype == "bfloat16",
        use_cpu=not torch.cuda.is_available(),
        optim="adamw_torch_fused",
        seed=seed,
        logging_steps=logs,
        logging_nan_inf_filter=False,
        save_strategy="steps" if settings.checkpoints else "no",
        save_steps=saves,
        eval_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        label_names=["labels"],
        dataloader_pin_memory=torch.cuda.is_available(),
        **names,
    )


def finish_ledger(plan: ArmPlan, head: Sequence[str], sites: SiteSet, model: Any, ledger: Ledger) -> ArmPlan:
    """Counts what is left after training and verifies the budget; raises RunError when it is missed.

    Returns the plan, with the ranks that a baseline decided on in training.
    """
    method = plan.method
    if sites:
        ledger.add_final(sites, model)
        spent, room = ledger.spent(sites, plan.budget, plan.spec)
    else:
        ledger.add_baseline(model, head)
        if (ranks := method.finish(model)) is not None:
            ledger.add_baseline(model, head)
            plan = replace(plan, spec=replace(plan.spec, final_ranks=dict(ranks)))
        spent, room = ledger.final_params, plan.unit_left
    if plan.exemption is None:
        verify(spent, plan.budget, room)
    return plan


def _result(
    plan: ArmPlan,
    inputs: ArmInputs,
    seed: int,
    config: Mapping[str, Any],
    sites: SiteSet,
    model: Any,
    ledger: Ledger,
    scored: Scored,
    seconds: float,
) -> dict[str, Any]:
    """Returns the contents of `result.json`; the names from `run_info` on are those of PEFT's `method_comparison`."""
    shared = sites.shared_with() if sites else {}
    ranks = sites.ranks if sites else plan.ranks
    allocation = [
        {
            "site": shape.name,
            "layer": shape.layer,
            "kind": shape.kind,
            "unit_cost": shape.unit_cost,
            "rank": ranks[shape.name],
            "density": density(sites[shape.name]) if sites else 1.0,
            "shared_with": shared.get(shape.name, []),
        }
        for shape in plan.shapes
        if shape.name in ranks
    ]
    config_of_peft = sites.peft_config if sites else next(iter(getattr(model, "peft_config", {}).values()), None)
    return {
        "schema": SCHEMA,
        "label": plan.label,
        "method": plan.method.name,
        "seed": seed,
        "status": "done",
        "exemption": plan.exemption,
        "metrics": scored.metrics,
        "budget": plan.budget.as_dict(),
        "settings": plan.settings.as_dict(),
        "phases": [{"name": r.name, "start": r.start, "stop": r.stop} for r in plan.phases],
        "ledger": ledger.as_dict(),
        "allocation": allocation,
        "run_info": {
            "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "total_time": seconds,
            "experiment_name": f"{plan.label}/seed-{seed}",
            "train_config": plan.settings.as_dict() | {"seed": seed},
            "peft_config": None if config_of_peft is None else _plain(config_of_peft),
            "error_msg": "",
        },
        "train_info": {
            "train_time": ledger.seconds,
            "file_size": ledger.adapter_bytes,
            "num_trainable_params": ledger.final_params + ledger.head_params,
            "num_total_params": sum(p.numel() for p in model.parameters()),
            "status": "success",
            "metrics": [scored.metrics],
        },
        "meta_info": {
            "model_info": {"name": inputs.model.name, "sha": inputs.model.fingerprint},
            "dataset_info": {"name": inputs.task.name, "sha": inputs.task.fingerprint, "source": inputs.task.source},
            "package_info": config["versions"],
        },
        "evaluation": scored.facts,
    }


def _plain(peft_config: Any) -> dict[str, Any]:
    """Returns the PEFT config as JSON holds it."""
    text = json.dumps(peft_config.to_dict(), default=lambda v: sorted(v) if isinstance(v, set) else str(v))
    return dict(json.loads(text))
