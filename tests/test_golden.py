"""Ours against what the authors' released code decides on the same inputs; `docs/fidelity.md` says what is compared."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.golden import cases
from peftprune.methods.adalora import AdaLoRA
from peftprune.methods.dora_dynamic import DoRADynamic
from peftprune.methods.dylora import DyLoRA
from peftprune.methods.elalora import ElaLoRA
from peftprune.methods.eva import EVA
from peftprune.methods.flexlora import FlexLoRA
from peftprune.methods.gora import GoRA
from peftprune.methods.increlora import IncreLoRA
from peftprune.methods.l1ra import L1RA
from peftprune.methods.lorpa import LoRPA
from peftprune.methods.registry import load
from peftprune.methods.sora import SoRA
from peftprune.methods.weightlora import WeightLoRA
from peftprune.strategy import PruningPlan
from peftprune.strategy.budget import ArmBudget
from peftprune.strategy.phases import PhaseRange, resolve_phases
from peftprune.strategy.signal import Signal
from peftprune.strategy.sites import LiveTensors, SiteShape
from peftprune.strategy.view import StepView

DATA = Path(__file__).parent / "data" / "golden"
METHODS = sorted(file.stem for file in DATA.glob("*.json"))


def golden(method: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((DATA / f"{method}.json").read_text())
    return found


def compared(method: str, made: Any) -> Iterator[tuple[Any, Any]]:
    """Yield each case's inputs and the authors' result, and print how many there were."""
    found = golden(method)["cases"]
    yield from ((made(i), result) for i, result in enumerate(found))
    print(f"{method}: {len(found)} cases agree with the released code")


# --- what a strategy is shown -----------------------------------------------------------------------------------------


def site(name: str, A: Tensor, B: Tensor, gate: Tensor | None = None, found: Any = None) -> Any:
    shape = SiteShape(name, 0, "query", A.shape[1], B.shape[0])
    grads = {f"grad_{kind}": getattr(found, f"grad_{kind}", None) for kind in ("A", "B", "gate")}
    sizes = {n: getattr(shape, n) for n in ("name", "layer", "kind", "d_in", "d_out", "unit_cost", "max_rank")}
    return SimpleNamespace(
        shape=shape, A=A, B=B, gate=gate, rank=len(A), scaling=1.0, is_dropped=False, **grads, **sizes
    )


def triplet_sites(method: str, run: cases.Run, step: int, ranks: Mapping[str, int]) -> dict[str, Any]:
    shown = {}
    for index, (name, rank) in enumerate(ranks.items()):
        found = cases.components(method, run.case, step, index, rank, run.width)
        shown[name] = site(name, found.A, found.B, found.gate, found)
    return shown


def view(sites: Mapping[str, Any], step: int, phase: PhaseRange, budget: ArmBudget, signals: Any = None) -> StepView:
    return StepView(step, budget.total_steps, phase, budget, sites, signals or {}, torch.Generator().manual_seed(0))


def budget_of(params: int, steps: int = 10) -> ArmBudget:
    return ArmBudget(params=params, total_steps=steps, num_examples=steps, batch_size=1)


def phases_of(method: Any, budget: ArmBudget) -> tuple[PhaseRange, ...]:
    return resolve_phases(method.phases(budget), total_steps=budget.total_steps, num_examples=10, batch_size=1)


def run_of(method: type, run: cases.Run, **options: Any) -> tuple[Any, ArmBudget, tuple[PhaseRange, ...]]:
    strategy = method(warmup=run.warmup / run.steps, final=run.final / run.steps, **options)
    budget = budget_of(run.target * run.sites * 2 * run.width, run.steps)
    found = phases_of(strategy, budget)
    assert [phase.steps for phase in found] == [run.warmup, run.steps - run.warmup - run.final, run.final]
    return strategy, budget, found


def kept(plan: Any, sites: Mapping[str, Any]) -> list[list[int]]:
    return [list(plan.keep.get(name, range(s.rank))) for name, s in sites.items()]


# --- the methods ------------------------------------------------------------------------------------------------------


def test_lorpa() -> None:
    for case, events in compared("lorpa", cases.lorpa):
        now = case.sites
        for removed, expected in zip(case.removed, events, strict=True):
            sites = {f"s{i}": site(f"s{i}", A, B) for i, (A, B) in enumerate(now)}
            left = len(now[0][0]) - removed
            strategy, budget = LoRPA(), budget_of(sum(left * s.unit_cost for s in sites.values()))
            plan = strategy.end_phase(view(sites, 2, phases_of(strategy, budget)[0], budget))
            assert kept(plan, sites) == expected
            assert not plan.assign, "survivors keep their values"
            now = [(A[index], B[:, index]) for (A, B), index in zip(now, expected, strict=True)]


def test_adalora() -> None:
    for run, expected in compared("adalora", cases.adalora):
        strategy, budget, phases = run_of(AdaLoRA, run, every=run.every)
        ranks = {f"s{i}": run.rank for i in range(run.sites)}
        events: list[list[Any]] = []
        for step in range(1, run.steps - run.final + 1):
            phase = next(p for p in phases if step <= p.stop)
            sites = triplet_sites("adalora", run, step, ranks)
            shown = view(sites, step, phase, budget)
            plan = strategy.decide(shown)
            if plan.zero:
                masks = [plan.zero.get(n, {"gate": torch.zeros(run.rank, dtype=torch.bool)})["gate"] for n in sites]
                events.append([step, [(~mask).nonzero().flatten().tolist() for mask in masks]])
            if step == phase.stop and phase.name == "pruning":
                scores = strategy.scores(shown)
                events.append([step, kept(strategy.end_phase(shown), sites)])
        # The released code masks to the final ranks at a multiple of the interval, and from the step after on always.
        theirs = [event for event in expected["events"] if event[0] < run.steps - run.final]
        theirs.append([run.steps - run.final, expected["events"][-1][1]])
        assert events == theirs
        for name, values in zip(ranks, expected["scores"], strict=True):
            torch.testing.assert_close(scores[name], torch.tensor(values), rtol=1e-6, atol=0)


def rounds(method: type[ElaLoRA], run: cases.Run) -> Iterator[tuple[int, PruningPlan, list[list[int]], dict[str, int]]]:
    """Yields the step, the plan, the components that stay and the ranks after each round."""
    strategy, budget, phases = run_of(method, run, every=run.every, exchanged=run.amount)
    ranks = {f"s{i}": run.rank for i in range(run.sites)}
    for step in range(1, run.steps + 1):
        phase = next(p for p in phases if step <= p.stop)
        sites = triplet_sites(method.name, run, step, ranks)
        plan = strategy.decide(view(sites, step, phase, budget))
        if not plan.is_empty:
            stay = kept(plan, sites)
            ranks = {n: len(k) + plan.grow.get(n, 0) for n, k in zip(sites, stay, strict=True)}
            yield step, plan, stay, ranks


def test_elalora() -> None:
    for run, expected in compared("elalora", cases.elalora):
        events = [[step, stay, list(ranks.values())] for step, _, stay, ranks in rounds(ElaLoRA, run)]
        assert events == expected["events"]


def test_dora_dynamic() -> None:
    """Where a decision is due to prune none, the released code prunes one and ours does not."""
    for run, expected in compared("dora-dynamic", cases.dora_dynamic):
        strategy, budget, phases = run_of(DoRADynamic, run, every=run.every, initial_ratio=run.rank / run.target)
        ranks, events = {f"s{i}": run.rank for i in range(run.sites)}, []
        for step in range(1, run.steps - run.final + 1):
            phase = next(p for p in phases if step <= p.stop)
            sites = triplet_sites("dora-dynamic", run, step, ranks)
            shown = view(sites, step, phase, budget)
            penalty = strategy.penalty({n: LiveTensors(s.A, s.B, s.gate) for n, s in sites.items()})
            plan = strategy.decide(shown)
            if plan.zero:
                masks = [plan.zero.get(n, {"gate": torch.zeros(run.rank, dtype=torch.bool)})["gate"] for n in sites]
                events.append([step, [(~mask).nonzero().flatten().tolist() for mask in masks]])
        assert penalty is not None
        assert float(penalty) == pytest.approx(0.1 * expected["penalty"], rel=1e-5)
        for values, theirs in zip(strategy.scores(shown).values(), expected["scores"], strict=True):
            torch.testing.assert_close(values.float(), torch.tensor(theirs), rtol=1e-5, atol=0)
        events.append([step, kept(strategy.end_phase(shown), sites)])
        whole, spare = run.sites * run.rank, run.sites * (run.rank - run.target)

        def due(step: int, run: cases.Run = run, spare: int = spare) -> bool:
            progress = (step - run.warmup) / (run.steps - run.warmup - run.final)
            return int(spare * progress**3) > 0

        theirs = [event for event in expected["events"] if due(event[0])]
        assert all(sum(map(len, row)) == whole - 1 for step, row in expected["events"] if not due(step))
        assert events == theirs


def test_flexlora() -> None:
    """With positive gates: of gates of both signs the released code removes the smallest signed value."""
    for run, expected in compared("flexlora", cases.flexlora):
        events = []
        for step, plan, stay, ranks in rounds(FlexLoRA, run):
            entropies = pytest.approx([plan.scores[n] for n in ranks], rel=1e-5)
            events.append([step, entropies, stay, list(ranks.values())])
        assert expected == events


def test_increlora() -> None:
    """The dense score from ΔW and its gradient, smoothing and selection, under the released scaling alpha / rank."""
    for run, expected in compared("increlora", cases.increlora):
        strategy, budget, phases = run_of(IncreLoRA, run, top_h=run.amount, units=1, advance=False, score="dense")
        ranks, events = {f"s{i}": 1 for i in range(run.sites)}, []
        strategy.start(view(triplet_sites("increlora", run, 0, ranks), 0, phases[0], budget))
        for step, values in enumerate(expected["sensitivities"], 1):
            phase = next(p for p in phases if step <= p.stop)
            sites, gradients = {}, {}
            for index, (name, rank) in enumerate(ranks.items()):
                inputs, outputs, found = cases.products(run.case, step, index, rank, run.width)
                sites[name] = site(name, found.A, found.B, found.gate, found)
                sites[name].scaling = 1 / (rank + 1e-5)
                gradients[name] = outputs.T @ inputs
                delta = sites[name].scaling * (found.B * found.gate) @ found.A
                dense = float((delta * gradients[name]).abs().sum() / run.width)
                assert dense == pytest.approx(values[index], rel=1e-5)
            shown = view(sites, step, phase, budget, {Signal.DELTA_GRADIENT: gradients})
            strategy.observe(shown)
            plan = strategy.decide(shown)
            if step == phase.stop and phase.name == "growth":
                plan = strategy.end_phase(shown)
            if plan.grow:
                ranks = {n: rank + plan.grow.get(n, 0) for n, rank in ranks.items()}
                events.append([step, list(ranks.values())])
        assert events == expected["events"]


def test_weightlora() -> None:
    """Only weights that stay positive: the released code compares signed values, ours magnitudes (paper)."""
    for case, steps in compared("weightlora", cases.weightlora):
        strategy, weights = WeightLoRA(kept=case.kept / len(case.start), weight_lr=case.rate), case.start
        budget = budget_of(100)
        for gradients, expected in zip(case.gradients, steps, strict=True):
            sites = {}
            for i, (weight, gradient) in enumerate(zip(weights, gradients, strict=True)):
                found = SimpleNamespace(grad_gate=gradient[None])
                sites[f"s{i}"] = site(f"s{i}", torch.zeros(1, 2), torch.zeros(2, 1), weight[None], found)
            plan = strategy.decide(view(sites, 1, phases_of(strategy, budget)[0], budget))
            weights = torch.cat([plan.assign[name]["gate"] for name in sites])
            torch.testing.assert_close(weights, torch.tensor(expected), rtol=1e-6, atol=0)


def test_sora() -> None:
    for case, events in compared("sora", cases.sora):
        strategy, budget = SoRA(threshold=case.threshold, script_steps=1), budget_of(100)
        for (gate,), expected in zip(case.events, events, strict=True):
            sites = {"s": site("s", torch.zeros(8, 9), torch.zeros(9, 8), gate)}
            plan = strategy.decide(view(sites, 1, phases_of(strategy, budget)[0], budget))
            torch.testing.assert_close(plan.assign["s"]["gate"], torch.tensor(expected), rtol=1e-6, atol=0)


def test_l1ra() -> None:
    """One reassignment, without the step that shrinks the gates before it."""
    for case, expected in compared("l1ra", cases.l1ra):
        (gates,) = case.events
        sites = {
            f"s{i}": site(f"s{i}", torch.zeros(len(g), 100), torch.zeros(100, len(g)), g) for i, g in enumerate(gates)
        }
        budget = budget_of(sum(s.rank * s.unit_cost for s in sites.values()), 100)
        strategy = L1RA(l1=0.0, update_share=0.1, threshold=case.threshold)
        plan = strategy.decide(view(sites, 10, phases_of(strategy, budget)[0], budget))
        after = [[k, len(k) + plan.grow.get(n, 0)] for n, k in zip(sites, kept(plan, sites), strict=True)]
        assert after == expected
        assert plan.reset_optimizer


def test_dylora() -> None:
    """Outputs and gradients of each truncation, with all of its components trained and with the last one alone."""
    for case, expected in compared("dylora", cases.dylora):
        rank, seen = len(case.A), set()
        strategy, budget = DyLoRA(frozen=True), budget_of(rank * (case.A.shape[1] + case.B.shape[0]))
        sites = {"s": site("s", case.A, case.B)}
        shown = view(sites, 1, phases_of(strategy, budget)[0], budget)
        while len(seen) < rank:
            multipliers = strategy.before_step(shown)["s"]
            used = int((multipliers > 0).sum())
            if used in seen:
                continue
            seen.add(used)
            A, B = case.A.clone().requires_grad_(), case.B.clone().requires_grad_()
            outputs = case.inputs @ A.T * multipliers @ B.T
            (outputs * case.outputs).sum().backward()
            trained = ~strategy.frozen_components(shown)["s"]
            for factor, results in zip((torch.ones(rank), trained.float()), expected[used - 1], strict=True):
                ours = (outputs, A.grad * factor[:, None], B.grad * factor)
                for value, theirs in zip(ours, results, strict=True):
                    torch.testing.assert_close(value, torch.tensor(theirs), rtol=1e-5, atol=1e-6)


def test_eva() -> None:
    """Ranks, and directions up to their sign. PEFT's decomposition is incremental and randomised, ours is exact."""
    for case, expected in compared("eva", cases.eva):
        moments, sites = {}, {}
        for i, inputs in enumerate(case.inputs):
            width = inputs.shape[1]
            extended = torch.cat([inputs, torch.ones(len(inputs), 1)], 1).double()
            moments[f"s{i}"] = extended.T @ extended
            sites[f"s{i}"] = site(f"s{i}", torch.zeros(case.rank, width), torch.zeros(width, case.rank))
        strategy = EVA(rho=case.rho)
        budget = budget_of(case.rank * sum(s.unit_cost for s in sites.values()), 100)
        shown = view(sites, 1, phases_of(strategy, budget)[0], budget, {Signal.INPUT_MOMENTS: moments})
        strategy.observe(shown)
        plan = strategy.end_phase(shown)
        assert [plan.reinit.get(name, 0) for name in sites] == [len(rows) for rows in expected]
        for name, rows in zip(sites, expected, strict=True):
            if rows:
                cosines = (plan.assign[name]["A"] * torch.tensor(rows)).sum(1).abs()
                assert float(cosines.min()) > 0.99


def test_gora(monkeypatch: pytest.MonkeyPatch) -> None:
    """Importances, ranks where rounding and limits leave nothing over, and the first B under the released scaling."""
    for case, expected in compared("gora", cases.gora):
        starts = iter(case.A)
        monkeypatch.setattr("peftprune.adapters.initial.init_lora_A", lambda *_, starts=starts: next(starts))
        sites = {}
        for i, (weight, rank) in enumerate(zip(case.weights, case.ranks, strict=True)):
            d_out, d_in = weight.shape
            sites[f"s{i}"] = site(f"s{i}", torch.zeros(case.uniform, d_in), torch.zeros(d_out, case.uniform))
            sites[f"s{i}"].base_weight, sites[f"s{i}"].scaling = weight, 16 / rank**0.5
        strategy, budget = GoRA(batches=2), budget_of(case.uniform * sum(s.unit_cost for s in sites.values()), 20)
        phase = phases_of(strategy, budget)[0]
        for step in (1, 2):
            gradients = {n: found[step - 1] for n, found in zip(sites, case.gradients, strict=True)}
            shown = view(sites, step, phase, budget, {Signal.DELTA_GRADIENT: gradients})
            strategy.observe(shown)
        plan = strategy.end_phase(shown)
        assert list(plan.reinit.values()) == expected["ranks"]
        weights = torch.tensor([v / s.unit_cost for v, s in zip(expected["importances"], sites.values(), strict=True)])
        torch.testing.assert_close(torch.tensor(list(plan.scores.values())), weights / weights.sum(), rtol=1e-5, atol=0)
        for name, B in zip(sites, expected["B"], strict=True):
            # The released code inverts A Aᵀ, which is worse conditioned than A.
            assert float((plan.assign[name]["B"] - torch.tensor(B)).norm()) < 1e-3 * float(torch.tensor(B).norm())


# --- the data ---------------------------------------------------------------------------------------------------------


def test_every_data_file_is_tested_and_names_its_source() -> None:
    for method in METHODS:
        found = golden(method)
        assert len(found["cases"]) == cases.COUNT >= 50
        assert f"test_{method.replace('-', '_')}" in globals()
        assert found["repository"].rpartition("/")[2] in load(method).source or method in ("eva", "dylora")


def test_the_document_names_every_data_file() -> None:
    text = (Path(__file__).parents[1] / "docs" / "fidelity.md").read_text()
    rows = dict(re.findall(r"^\| `([\w-]+)` \| (\d+ \| .+ \| \w[\w.]*) \|$", text, re.MULTILINE))
    expected = {}
    for method in METHODS:
        found = golden(method)
        place = f"{found['repository']}, {found['file']} | {found['commit'][:7]}"
        expected[method] = f"{len(found['cases'])} | {place}"
    assert rows == expected
