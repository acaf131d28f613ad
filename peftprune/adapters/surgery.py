"""The only code that changes adapter tensors: it applies plans, adds gates, ties, resizes and folds.

Parameters keep their identity: a cut slices `param.data`, its gradient and the optimizer's state in place, so that
optimizers, hooks and compiled graphs that hold the Parameter stay valid. PEFT's own book-keeping (`r`, `lora_alpha`,
`scaling`, feature counts, `rank_pattern`, `alpha_pattern`) is true after every call.

Call these functions only where no graph is alive (after `zero_grad`): shapes may change.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from peftprune.adapters.initial import init_lora_A
from peftprune.adapters.plan_check import Change, resolve_plan
from peftprune.errors import RunError, UsageError
from peftprune.strategy import PruningPlan, Site, SiteSet

SCHEDULE_FREE = ("trains other weights than it evaluates, and a cut reaches one of them", "Use AdamW or SGD")
"""Problem and cure of a schedule-free optimizer."""
_SQUARES = ("exp_avg_sq", "max_exp_avg_sq", "square_avg", "sum")
"""The states of optimizers that average or sum squares of gradients."""


def apply_plan(
    sites: SiteSet, plan: PruningPlan, *, optimizer: Optimizer | None = None, rng: torch.Generator | None = None
) -> list[Change]:
    """Applies one plan, and returns the changes that were made, in order.

    The state of an `optimizer` is cut with the parameters. `rng` draws the new rows of A for `grow` and `reinit`.
    Raises RunError when the plan names an unknown or dropped site, or does not fit the tensors; nothing was changed.
    """
    changes = resolve_plan(sites, plan)
    if rng is None and (plan.grow or plan.reinit):
        what = "grow" if plan.grow else "reinit"
        raise RunError(f"plan.{what} draws new rows of A and needs a generator. Pass rng to apply_plan")
    for change in changes:
        group = [sites[name] for name in change.sites]
        match change.kind:
            case "drop":
                _drop(sites, group[0], optimizer)
            case "rotate":
                _rotate(group[0], change.value, optimizer)
            case "keep":
                _keep(group, change.value, optimizer)
            case "reinit":
                _reinit(sites, group, change.value, optimizer, rng)
            case "share":
                _share(sites, group, optimizer)
            case "grow":
                _grow(group, change.value, optimizer, rng)
            case "assign":
                _assign(group[0], change.value)
            case "zero":
                _zero(group[0], change.value, optimizer if plan.moments == "zero" else None)
    if plan.reset_optimizer and optimizer is not None:
        optimizer.state.clear()
    sync_config(sites)
    return changes


def add_gates(sites: SiteSet, kind: str, value: float) -> None:
    """Puts a trainable gate between A and B of every site: (rank,) for `kind="rank"`, (1,) for `kind="site"`."""
    for site in sites.values():
        if not site.is_dropped:
            size = site.rank if kind == "rank" else 1
            site._lora_A.rank_gate = nn.Parameter(torch.full((size,), float(value), device=site.A.device))
            site._lora_A.gate_per_rank = kind == "rank"
            _hook_ranks(site._lora_A)


def freeze(sites: SiteSet, tensors: Sequence[str]) -> None:
    for group in sites.groups():
        for name in tensors:
            getattr(group[0].live(), name).requires_grad_(False)


def set_scaling(sites: SiteSet, factors: Mapping[str, float]) -> None:
    for name, factor in factors.items():
        site = sites[name]
        site._layer.scaling[site._adapter] = factor
        if not site.is_dropped:
            _sync_layer(site, site.rank)
    sync_config(sites)


def set_multipliers(sites: SiteSet, multipliers: Mapping[str, Tensor] | None) -> None:
    """Fixes a (rank,) multiplier on each named site's components until the next call; None removes them all."""
    for name, site in sites.items():
        value = None if multipliers is None else multipliers.get(name)
        if not site.is_dropped and (value is not None or hasattr(site._lora_A, "rank_multiplier")):
            site._lora_A.rank_multiplier = value
            _hook_ranks(site._lora_A)


def freeze_components(sites: SiteSet, frozen: Mapping[str, Tensor]) -> list[RemovableHandle]:
    """Makes the gradient of the (rank,) marked components of each named site zero until the handles are removed."""
    handles = []
    for name, mark in frozen.items():
        tensors = sites[name].live()
        for tensor, shown in ((tensors.A, mark[:, None]), (tensors.B, mark), (tensors.gate, mark)):
            if tensor is not None and tensor.requires_grad:
                handles.append(tensor.register_hook(partial(torch.masked_fill, mask=shown, value=0.0)))
    return handles


@torch.no_grad()
def fold(sites: SiteSet) -> None:
    """Folds gates and scaling into B once: the function stays, every scale becomes 1 and no gate is left."""
    for group in sites.groups():
        first = group[0]
        gate = first._gate_parameter
        first._lora_B.weight.mul_(first.scaling if gate is None else gate * first.scaling)
        for site in group:
            if gate is not None:
                site._lora_A.rank_gate = None
            site._layer.scaling[site._adapter] = 1.0
            _sync_layer(site, first.rank)
    sync_config(sites)


def structure(sites: SiteSet) -> dict[str, Any]:
    """Returns ranks and ties as plain values, enough for `restore_structure`."""
    return {"ranks": sites.ranks, "ties": [[s.name for s in g] for g in sites.groups() if len(g) > 1]}


def restore_structure(sites: SiteSet, saved: dict[str, Any]) -> None:
    """Resizes, ties and drops sites as saved. Values are not restored: load the weights afterwards."""
    for name, rank in saved["ranks"].items():
        site = sites[name]
        if rank == 0:
            if not site.is_dropped:
                _drop(sites, site, None)
            continue
        if site.is_dropped:
            _restore(sites, site, rank, None)
        for param, dim in _sized_by_rank(site):
            param.data = _zeros(param.data, dim, rank)
        _sync_layer(site, rank)
    for names in saved["ties"]:
        _share(sites, [sites[name] for name in names], None)
    sync_config(sites)


def check_optimizer(optimizer: Optimizer) -> None:
    """Refuses an optimizer whose state cannot be cut with its parameters, by taking one step on a small tensor.

    Raises RunError when a state tensor is neither a scalar nor shaped like the parameter (Adafactor, 8-bit optimizers),
    and UsageError for one that holds other weights in evaluation (schedule-free) or that cannot take such a step.
    """
    inner: Any = getattr(optimizer, "optimizer", optimizer)
    if hasattr(inner, "train") and hasattr(inner, "eval"):
        raise UsageError.of("optimizer", type(inner).__name__, *SCHEDULE_FREE)
    scrap = nn.Parameter(torch.ones(3, 5, device=inner.param_groups[0]["params"][0].device))
    scrap.grad = torch.ones_like(scrap)
    settings = {k: v for k, v in inner.param_groups[0].items() if k in inner.defaults}
    try:
        probe = type(inner)([{"params": [scrap], **settings}])
        probe.step()
    except Exception as error:
        problem = f"cannot be tried on a small tensor ({type(error).__name__}: {error})"
        raise UsageError.of("optimizer", type(inner).__name__, problem, "Use AdamW or SGD") from error
    for key, value in probe.state[scrap].items():
        if isinstance(value, Tensor) and value.numel() > 1 and value.shape != scrap.shape:
            raise RunError(
                f"optimizer: {type(inner).__name__} keeps {key!r} of shape {tuple(value.shape)} for a (3, 5) "
                "parameter, which cannot be cut when ranks change. Use AdamW or SGD"
            )


def _sized_by_rank(site: Site) -> list[tuple[nn.Parameter, int]]:
    """Returns the site's parameters with the dimension that counts ranks; a gate for the whole site has none."""
    found = [(site._lora_A.weight, 0), (site._lora_B.weight, 1)]
    if (gate := site._gate_parameter) is not None and site._lora_A.gate_per_rank:
        found.append((gate, 0))
    return found


def _zeros(tensor: Tensor, dim: int, size: int) -> Tensor:
    return tensor.new_zeros([size if i == dim else n for i, n in enumerate(tensor.shape)])


@torch.no_grad()
def _resize(site: Site, change: Callable[[Tensor, int], Tensor], optimizer: Optimizer | None) -> None:
    """Runs `change(tensor, dim)` on the site's parameters, their gradients and their optimizer state."""
    for param, dim in _sized_by_rank(site):
        old = param.shape
        param.data = change(param.data, dim)
        if param.grad is not None:
            param.grad = change(param.grad, dim)
        state: dict[str, Any] = optimizer.state.get(param, {}) if optimizer is not None else {}
        for key, value in state.items():
            if isinstance(value, Tensor) and value.shape == old:
                state[key] = change(value, dim)


@torch.no_grad()
def _rotate(site: Site, matrices: tuple[Tensor, Tensor], optimizer: Optimizer | None) -> None:
    (T, S), A, B = matrices, site._lora_A.weight, site._lora_B.weight
    for param, turn, dual, dim in ((A, T, S.T, 0), (B, S.T, T, 1)):
        state: dict[str, Any] = optimizer.state.get(param, {}) if optimizer is not None else {}
        for key, tensor in {"": param, "grad": param.grad, **state}.items():
            if isinstance(tensor, Tensor) and tensor.shape == param.shape:
                matrix = dual if key else turn
                # The square of a sum, without the products of different components.
                matrix = matrix.square() if key in _SQUARES else matrix
                tensor.copy_(torch.tensordot(matrix, tensor.to(matrix), ([1], [dim])).movedim(0, dim))


def _keep(group: Sequence[Site], indices: Sequence[int], optimizer: Optimizer | None) -> None:
    index = torch.as_tensor(indices, dtype=torch.long, device=group[0].A.device)
    _resize(group[0], lambda tensor, dim: tensor.index_select(dim, index).contiguous(), optimizer)
    for site in group:
        _sync_layer(site, len(indices))


def _grow(group: Sequence[Site], extra: int, optimizer: Optimizer | None, rng: torch.Generator | None) -> None:
    first = group[0]
    rows = _draw_rows(first, extra, rng)
    _resize(first, lambda tensor, dim: torch.cat([tensor, _zeros(tensor, dim, extra)], dim), optimizer)
    first._lora_A.weight.data[-extra:] = rows.to(first._lora_A.weight)
    if (gate := first._gate_parameter) is not None and first._lora_A.gate_per_rank:
        gate.data[-extra:] = 1.0
    for site in group:
        _sync_layer(site, first.rank)


def _reinit(
    sites: SiteSet, group: Sequence[Site], rank: int, optimizer: Optimizer | None, rng: torch.Generator | None
) -> None:
    first = group[0]
    rows = _draw_rows(first, rank, rng)
    if first.is_dropped:
        _restore(sites, first, rank, optimizer)
    for param, dim in _sized_by_rank(first):
        if optimizer is not None:
            optimizer.state.pop(param, None)
        param.grad = None
        param.data = _zeros(param.data, dim, rank)
    first._lora_A.weight.data.copy_(rows)
    if (gate := first._gate_parameter) is not None:
        gate.data.fill_(1.0)
    for site in group:
        _sync_layer(site, rank)


def _draw_rows(site: Site, count: int, rng: torch.Generator | None) -> Tensor:
    assert rng is not None
    return init_lora_A(count, site.d_in, rng)


def _restore(sites: SiteSet, site: Site, rank: int, optimizer: Optimizer | None) -> None:
    like = next(iter(sites.groups()), [None])[0]
    if like is None or like._gate_parameter is not None:
        raise RunError(f"plan.reinit[{site.name!r}]: a dropped site cannot return where no site is left, or to gates")
    device, dtype = like._lora_A.weight.device, like._lora_A.weight.dtype
    layer, adapter = site._layer, site._adapter
    layer.lora_A[adapter] = nn.Linear(site.d_in, rank, bias=False, device=device, dtype=dtype)
    layer.lora_B[adapter] = nn.Linear(rank, site.d_out, bias=False, device=device, dtype=dtype)
    for new, known in ((site._lora_A, like._lora_A), (site._lora_B, like._lora_B)):
        new.weight.requires_grad_(known.weight.requires_grad)
        if optimizer is not None and known.weight.requires_grad:
            home = next(g for g in optimizer.param_groups if any(p is known.weight for p in g["params"]))
            home["params"].append(new.weight)


def _drop(sites: SiteSet, site: Site, optimizer: Optimizer | None) -> None:
    layer, adapter = site._layer, site._adapter
    params = site.parameters()
    # PEFT's forward skips a layer whose lora_A lacks the adapter, so a dropped site costs nothing.
    del layer.lora_A[adapter], layer.lora_B[adapter]
    layer.r[adapter] = 0
    _forget(sites, params, optimizer)


def _share(sites: SiteSet, group: Sequence[Site], optimizer: Optimizer | None) -> None:
    first, *others = group
    for site in others:
        old = site.parameters()
        site._lora_A.weight = first._lora_A.weight
        site._lora_B.weight = first._lora_B.weight
        if first._gate_parameter is not None:
            site._lora_A.rank_gate = first._gate_parameter
        site._layer.scaling[site._adapter] = first.scaling
        _sync_layer(site, first.rank)
        _forget(sites, old, optimizer)


def _forget(sites: SiteSet, params: list[nn.Parameter], optimizer: Optimizer | None) -> None:
    """Removes those of the parameters that no site holds any more from the optimizer."""
    if optimizer is None:
        return
    used = {id(p) for p in sites.parameters()}
    dead = {id(p): p for p in params if id(p) not in used}
    for group in optimizer.param_groups:
        group["params"] = [p for p in group["params"] if id(p) not in dead]
    for param in dead.values():
        optimizer.state.pop(param, None)


@torch.no_grad()
def _assign(site: Site, values: Mapping[str, Tensor]) -> None:
    for name, value in values.items():
        getattr(site.live(), name).copy_(value)


@torch.no_grad()
def _zero(site: Site, masks: Mapping[str, Tensor], optimizer: Optimizer | None) -> None:
    for name, mask in masks.items():
        param = getattr(site.live(), name)
        state = optimizer.state.get(param, {}) if optimizer is not None else {}
        for tensor in (param, *state.values()):
            if isinstance(tensor, Tensor) and tensor.shape == param.shape:
                tensor.masked_fill_(mask, 0.0)


def _scale_ranks(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
    for name in ("rank_gate", "rank_multiplier"):
        if (factor := getattr(module, name, None)) is not None:
            output = output * factor.to(output.dtype)
    return output


def _hook_ranks(lora_A: nn.Module) -> None:
    if not getattr(lora_A, "_ranks_hooked", False):
        lora_A.register_forward_hook(_scale_ranks)
        lora_A._ranks_hooked = True  # type: ignore[assignment]


def _sync_layer(site: Site, rank: int) -> None:
    layer, adapter = site._layer, site._adapter
    layer.r[adapter] = rank
    layer.lora_alpha[adapter] = alpha(layer.scaling[adapter], rank)
    if getattr(site._lora_A, "rank_multiplier", None) is not None:
        site._lora_A.rank_multiplier = None  # its length is the old rank
    site._lora_A.out_features = rank
    site._lora_B.in_features = rank


def sync_config(sites: SiteSet) -> None:
    """Writes ranks and alphas into the PEFT config by full, anchored names; dropped sites are left out."""
    if not (ranks := {name: rank for name, rank in sites.ranks.items() if rank}):
        return
    config = sites.peft_config
    # A list, since the order of PEFT's set changes from run to run.
    config.target_modules = sorted(ranks)
    alphas = {name: alpha(sites[name].scaling, rank) for name, rank in ranks.items()}
    config.r = max(ranks.values())
    config.lora_alpha = alpha(sites[next(iter(ranks))].scaling, config.r)
    config.rank_pattern = {anchored(n): r for n, r in ranks.items() if r != config.r}
    config.alpha_pattern = {anchored(n): a for n, a in alphas.items() if a != config.lora_alpha}


def alpha(scaling: float, rank: int) -> int | float:
    """Returns the lora_alpha that gives this scaling at this rank, as an integer where it is one, as PEFT expects."""
    value = scaling * rank
    return int(value) if float(value).is_integer() else value


def anchored(name: str) -> str:
    """Returns the `rank_pattern` key that matches this module and no other whose name ends alike."""
    return f"^{re.escape(name)}"
