"""Injects plain PEFT LoRA into a model at the ranks of a spec."""

import copy
import warnings
from collections.abc import Sequence
from typing import Any, cast

import torch
from peft import LoraConfig, PeftConfig, PeftModel, TaskType, get_peft_model
from torch import nn

from peftprune.adapters import surgery
from peftprune.adapters.initial import initial_values
from peftprune.models.head import initialise_head
from peftprune.models.layers import language_model_head
from peftprune.strategy import AdapterSpec, ParameterGroup, Preparation, PruningPlan, Site, SiteSet
from peftprune.strategy.rng import generator

ADAPTER = "default"


def task_type_of(model: nn.Module) -> TaskType:
    """Returns PEFT's task type of the model: generating text, or classification and regression."""
    if language_model_head(model) is None:
        return TaskType.SEQ_CLS
    return TaskType.SEQ_2_SEQ_LM if cast(Any, model).config.is_encoder_decoder else TaskType.CAUSAL_LM


def share_weights(model: nn.Module) -> nn.Module:
    """Returns a copy of the modules that holds the same frozen tensors: all arms share one backbone in memory."""
    model.requires_grad_(False)
    return copy.deepcopy(model, {id(t): t for t in [*model.parameters(), *model.buffers()]})


def wrap(model: nn.Module, config: PeftConfig, head: Sequence[str]) -> PeftModel:
    """Returns PEFT's model of a configuration, in which exactly the head's modules are trained in full."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
        # PEFT sets this itself for GPT-2's Conv1D.
        warnings.filterwarnings("ignore", "fan_in_fan_out is set to False", UserWarning)
        adapted = get_peft_model(cast(Any, model), config, adapter_name=ADAPTER)
    # PEFT adds the usual names of heads, whether or not the model has them.
    cast(Any, adapted.peft_config[ADAPTER]).modules_to_save = list(head) or None
    return cast(PeftModel, adapted)


def inject(base: nn.Module, given: Preparation, **options: Any) -> tuple[PeftModel, SiteSet]:
    """Returns the PEFT model of a base, whose weights are frozen and shared, not copied, and its sites.

    The head and every A are initialised from random streams of the seed alone, so that arms of one seed start alike
    whatever their ranks. The head is trained in full. `options` are further fields of PEFT's `LoraConfig`.
    """
    shapes, spec, head = given.sites, given.spec, list(given.head)
    model = share_weights(base)
    for name in head:
        # The head is trained, so each arm needs tensors of its own.
        model.set_submodule(name, copy.deepcopy(model.get_submodule(name)))
    initialise_head(model, head, generator(given.seed, "head"))
    factor = spec.scaling if spec.scaling is not None else given.scaling
    # PEFT knows no rank 0: such sites get one rank and are dropped before training.
    ranks = {s.name: max(1, spec.ranks[s.name]) for s in shapes}
    factors = {n: factor * spec.relative_scaling.get(n, 1.0) for n in ranks}
    first, largest = next(iter(ranks)), max(ranks.values())
    config = LoraConfig(
        task_type=task_type_of(base),
        r=largest,
        lora_alpha=surgery.alpha(factors[first], largest),
        rank_pattern={surgery.anchored(n): r for n, r in ranks.items()},
        alpha_pattern={surgery.anchored(n): surgery.alpha(factors[n], r) for n, r in ranks.items()},
        target_modules=list(ranks),
        modules_to_save=head or None,
        lora_dropout=given.lora_dropout,
        **options,
    )
    # PEFT draws its own initial values, replaced below; the global stream belongs to dropout.
    with torch.random.fork_rng(devices=[]):
        adapted = wrap(model, config, head)
    inner = adapted.get_base_model()
    layers: dict[str, Any] = {s.name: inner.get_submodule(s.name) for s in shapes}
    sites = SiteSet({s.name: Site(s, layers[s.name], ADAPTER) for s in shapes}, adapted.peft_config[ADAPTER])
    surgery.apply_plan(sites, PruningPlan(drop=frozenset(n for n, r in spec.ranks.items() if r == 0)))
    # PEFT's other initialisations start from the base weights.
    if options.get("init_lora_weights", True) is True:
        initialise(sites, spec, given.seed)
    return adapted, sites


def initialise(sites: SiteSet, spec: AdapterSpec, seed: int, *, draw_A: bool = True) -> None:
    """Gives the sites, at their starting ranks, the gates, initial values and frozen tensors that a spec defines.

    `draw_A=False` keeps every A for which the spec defines no values.
    """
    if spec.gate != "none":
        surgery.add_gates(sites, spec.gate, spec.gate_init)
    ranks = {name: rank for name, rank in sites.ranks.items() if rank}
    shapes = [shape for shape in sites.shapes if shape.name in ranks]
    surgery.apply_plan(sites, PruningPlan(assign=initial_values(shapes, ranks, spec, seed, draw_A=draw_A)))
    surgery.freeze(sites, [kind for kind in ("A", "B") if not spec.groups.get(kind, ParameterGroup()).trained])
