from math import inf
from numbers import Real
from typing import Any

from peft import PeftModel, TaskType

from peftprune.adapters import surgery
from peftprune.callback import start
from peftprune.callback.attach import attach, base_parameters
from peftprune.errors import UsageError
from peftprune.models.head import initialise_head
from peftprune.models.layers import head_modules
from peftprune.strategy.budget import Budget
from peftprune.strategy.rng import generator
from peftprune.strategy.spec import check_spec
from peftprune.training.cpu import make_fast


def prepare(
    model: PeftModel, method: Any, budget: Budget | str, *, seed: int = 0, scaling: float = 2.0, **options: Any
) -> PeftModel:
    """Makes a fresh PEFT LoRA model start as the arm of this seed starts in `compare`, and returns it.

    The sites get the method's own starting ranks; every A and the head are drawn from the seed, B is zero, and
    `scaling` is the factor on B A at every site. On a CPU, dropout masks are drawn as in `compare`. With `sampler` for
    the data and `PruningCallback(..., schedule="restart")` over a constant schedule, a plain Trainer then gives the
    adapter that `compare` gives: bit for bit if the rest is the same too (float32, optimizer, loss, batch size, one
    micro-batch per step), to float tolerance otherwise.

    Args:
        model: with a fresh LoRA adapter on the same sites, of any rank. It is changed in place.
        method, budget: as for `PruningCallback`.
        seed: the arm's seed; the callback takes it from the model.
        scaling: above 0; `compare` uses 2.0.
        options: the method's options.

    Raises:
        UsageError: if it is not a fresh PEFT LoRA model, or a module of its head is not trained.
    """
    strategy, parsed = start.build_strategy(method, options), start.parameter_budget(budget)
    start.check_seed(seed)
    if not isinstance(scaling, Real) or not 0 < scaling < inf:
        raise UsageError.of("scaling", scaling, "is not positive and finite", "Give 2.0, for example")
    sites = attach(model)
    start.require_fresh(sites, "prepare draws its values anew")
    spec = strategy.spec(sites.shapes, start.provisional_budget(parsed, sites, base_parameters(model)))
    check_spec(spec, sites.shapes)
    surgery.set_scaling(sites, dict.fromkeys(sites, scaling))
    start.begin(sites, spec, spec.ranks, seed, draw_A=True)
    _draw_head(model, seed)
    if next(model.parameters()).device.type == "cpu":
        make_fast(model, seed)
    request = {"method": strategy.name, "options": strategy.config, "budget": parsed, "seed": seed}
    setattr(model, start.PREPARED, start.Prepared(request, spec))
    return model


def _draw_head(model: PeftModel, seed: int) -> None:
    """Draws the trained head from the seed, as `compare` does. Language models keep theirs."""
    base = model.get_base_model()
    (adapter,) = model.active_adapters
    if model.peft_config[adapter].task_type != TaskType.SEQ_CLS:
        return
    names = []
    for name in head_modules(base):
        trained = getattr(base.get_submodule(name), "modules_to_save", None)
        if trained is None or adapter not in trained:
            raise UsageError.of("modules_to_save", name, "is part of the head and not trained", "Add it to LoraConfig")
        names.append(f"{name}.modules_to_save.{adapter}")
    initialise_head(base, names, generator(seed, "head"))
