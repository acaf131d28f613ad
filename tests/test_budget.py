"""Budgets: how they are read, solved into integer ranks, and verified."""

from __future__ import annotations

import math
import re
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peftprune.errors import RunError, UsageError
from peftprune.methods.published_settings import published_runs
from peftprune.methods.registry import load, names
from peftprune.methods.request import parse
from peftprune.models.layers import discover_sites
from peftprune.models.load import describe
from peftprune.strategy.budget import ArmBudget, Budget, Outcome, solve_ranks, verify
from peftprune.strategy.interface import RankPruningStrategy
from peftprune.strategy.sites import SiteShape
from peftprune.strategy.spec import AdapterSpec
from peftprune.study.planning import plan_arm, plan_methods
from peftprune.study.published import check_published
from peftprune.tasks import task_info
from peftprune.training.settings import resolve_settings
from tests.reference import budget as slow
from tests.tiny import tiny_llama_gqa


def square(n, width=64):
    """Equal sites, one a layer."""
    return [SiteShape(f"layer{i}", i, "query", width, width) for i in range(n)]


def refused(call, *parts):
    """The error of a call that must fail; its message holds all parts and ends with a cure."""
    with pytest.raises(UsageError) as caught:
        call()
    message = str(caught.value)
    for part in parts:
        assert part in message, message
    assert len(message.partition(". ")[2]) > 5, f"no cure in {message!r}"


# --- reading -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("rank=8", Budget(rank=8)),
        (" rank = 8 , epochs = 3 ", Budget(rank=8, epochs=3.0)),
        ("params=300_000,count=nonzero", Budget(params=300_000, count="nonzero")),
        ("fraction=0.003,steps=100", Budget(fraction=0.003, steps=100)),
        ("fraction=3e-3", Budget(fraction=0.003)),
        ("fraction=.5,samples=64", Budget(fraction=0.5, samples=64)),
    ],
)
def test_parse(text, expected):
    assert Budget.parse(text) == expected


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", ("budget: ''", "rank=8")),
        ("epochs=3", ("budget: ", "one of rank, params and fraction")),
        ("rank=8,params=100", ("budget: {'rank': 8, 'params': 100}", "one of rank")),
        ("rank=8,epochs=3,steps=5", ("budget: {'epochs': 3.0, 'steps': 5}", "one length")),
        ("rank", ("budget: 'rank'", "NAME=VALUE", "e.g. rank=8")),
        ("size=8", ("budget: 'size=8'", "Names: rank, params")),
        ("8", ("budget: '8'", "NAME=VALUE")),
        ("rank=8,rank=9", ("budget: 'rank=8,rank=9'", "names rank twice")),
        ("rank=", ("budget.rank: ''", "not a whole number", "rank=8")),
        ("rank=eight", ("budget.rank: 'eight'", "not a whole number")),
        ("rank=8.0", ("budget.rank: '8.0'", "not a whole number")),
        ("rank=0", ("budget.rank: 0", "not a number above 0", "above 0")),
        ("rank=-8", ("budget.rank: -8", "not a number above 0")),
        ("params=1e6", ("budget.params: '1e6'", "not a whole number")),
        ("params=0", ("budget.params: 0", "not a number above 0")),
        ("fraction=x", ("budget.fraction: 'x'", "not a number")),
        ("fraction=nan", ("budget.fraction: 'nan'", "not a number")),
        ("fraction=0.0", ("budget.fraction: 0.0", "not a number above 0")),
        ("fraction=1", ("budget.fraction: 1.0", "not below 1", "0.003 for 0.3 percent")),
        ("rank=8,epochs=0", ("budget.epochs: 0.0", "not a number above 0")),
        ("rank=8,epochs=-1", ("budget.epochs: -1.0", "not a number above 0")),
        ("rank=8,epochs=1e999", ("budget.epochs: inf",)),
        ("rank=8,steps=1.5", ("budget.steps: '1.5'", "not a whole number")),
        ("rank=8,samples=0", ("budget.samples: 0", "not a number above 0")),
        ("rank=8,count=all", ("budget.count: 'all'", '"stored" or "nonzero"')),
    ],
)
def test_malformed_text_is_refused_with_field_value_and_cure(text, parts):
    refused(lambda: Budget.parse(text), *parts)


@pytest.mark.parametrize(
    ("values", "part"),
    [
        ({"rank": True}, "budget.rank: True"),
        ({"rank": 8.0}, "budget.rank: 8.0"),
        ({"rank": "8"}, "budget.rank: '8'"),
        ({"rank": 8, "epochs": math.nan}, "budget.epochs: nan"),
        ({"rank": 8, "epochs": math.inf}, "budget.epochs: inf"),
        ({"fraction": "0.1"}, "budget.fraction: '0.1'"),
    ],
)
def test_values_of_the_wrong_type_are_refused(values, part):
    refused(lambda: Budget(**values), part)


@pytest.mark.parametrize(
    ("budget", "steps"),
    [
        (Budget(rank=1, epochs=3), 3 * 4),
        (Budget(rank=1, epochs=0.5), 2),
        (Budget(rank=1, epochs=0.01), 1),
        (Budget(rank=1, steps=7), 7),
        (Budget(rank=1, samples=64), 2),
        (Budget(rank=1, samples=3), 1),
    ],
)
def test_total_steps_of_100_examples_in_batches_of_32(budget, steps):
    assert budget.has_length
    assert budget.total_steps(100, 32) == steps


def test_a_budget_may_leave_the_length_to_the_settings():
    assert not Budget(rank=8).has_length


def test_parameters():
    sites = [*square(2, 64), SiteShape("wide", 0, "up", 64, 256)]
    assert Budget(rank=3).parameters(sites, 10**6) == 3 * (128 + 128 + 320)
    assert Budget(params=600).parameters(sites, 10**6) == 600
    assert Budget(fraction=0.01).parameters(sites, 10**6) == 10_000


@pytest.mark.parametrize(
    ("budget", "parts"),
    [
        (Budget(rank=65), ("budget.rank: 65", "layer0", "64 × 64", "1 to 64")),
        (Budget(params=255), ("budget.params: 255", "2 sites", "at least 256")),
        (Budget(fraction=0.0001), ("budget.fraction: 0.0001", "allows 100", "at least 256")),
    ],
)
def test_budgets_that_no_adapter_meets_are_refused(budget, parts):
    refused(lambda: budget.parameters(square(2), 10**6), *parts)


# --- solving -------------------------------------------------------------------------------------------------------


@st.composite
def problems(draw):
    """Sites with weights, and parameters between one rank at each and more than all can hold."""
    shapes = draw(st.lists(st.tuples(st.integers(1, 12), st.integers(1, 12)), min_size=1, max_size=8))
    sites = [SiteShape(f"s{i}", i, "k", a, b) for i, (a, b) in enumerate(shapes)]
    weights = draw(st.lists(st.integers(1, 12), min_size=len(sites), max_size=len(sites)))
    least = sum(s.unit_cost for s in sites)
    most = sum(s.unit_cost * s.max_rank for s in sites)
    return sites, weights, draw(st.integers(least, most + 30))


@given(problem=problems())
@settings(deadline=None, max_examples=400)
def test_solver(problem):
    sites, weights, params = problem
    ranks = solve_ranks(sites, params, {s.name: w for s, w in zip(sites, weights, strict=True)})
    assert list(ranks) == [s.name for s in sites]
    assert all(1 <= ranks[s.name] <= s.max_rank for s in sites)
    left = params - sum(ranks[s.name] * s.unit_cost for s in sites)
    assert left >= 0
    # Nothing that is left could still be spent.
    assert all(ranks[s.name] == s.max_rank or s.unit_cost > left for s in sites)
    expected = slow.solve_ranks([s.unit_cost for s in sites], [s.max_rank for s in sites], weights, params)
    assert list(ranks.values()) == expected


@given(rank=st.integers(1, 12), widths=st.lists(st.integers(12, 40), min_size=2, max_size=12))
@settings(deadline=None)
def test_a_budget_of_rank_r_gives_exactly_r_everywhere(rank, widths):
    sites = [SiteShape(f"s{i}", i, "k", a, b) for i, (a, b) in enumerate(pairwise(widths))]
    params = Budget(rank=rank).parameters(sites, 0)
    assert set(ArmBudget(params, 1, 1, 1).solve(sites).values()) == {rank}


def test_ties_go_in_site_order():
    assert list(solve_ranks(square(4), 128 * 6).values()) == [2, 2, 1, 1]


def test_ties_go_in_site_order_in_spite_of_rounding():
    """Targets 7/3 and 28/3 have equal remainders, which differ in their last bits."""
    ranks = solve_ranks(square(3), 128 * 14, {"layer0": 1, "layer1": 1, "layer2": 4})
    assert list(ranks.values()) == [3, 2, 9]


def test_what_a_full_site_cannot_take_goes_to_the_others():
    sites = [SiteShape("narrow", 0, "k", 2, 20), SiteShape("wide", 0, "k", 11, 11)]
    assert solve_ranks(sites, 22 * 8, {"narrow": 10, "wide": 1}) == {"narrow": 2, "wide": 6}


def test_sparse_costs_buy_more_rank():
    sites = square(3)
    dense = solve_ranks(sites, 128 * 24)
    sparse = solve_ranks(sites, 128 * 24, unit_costs={s.name: 96 for s in sites})
    assert set(dense.values()) == {8}
    assert sum(sparse.values()) == 128 * 24 // 96


def test_too_small_a_budget_is_refused():
    refused(lambda: solve_ranks(square(3), 383), "budget: 383", "3 sites", "at least 384")
    refused(lambda: solve_ranks([], 383), "sites: []", "are empty")


# --- published counts ----------------------------------------------------------------------------------------------


def planned(method, shapes, budget=None, model="deberta-v3-base", task="rte", **given):
    (request,) = parse(method)
    budget = budget or Budget(rank=8, steps=100)
    sizes = {"num_examples": 3200, "base_parameters": 10**8}
    return plan_arm(request, shapes, budget, given, **sizes, task=task, model=model)


def test_prilora_over_twelve_equal_layers():
    plan = planned("prilora", square(12))
    assert list(plan.ranks.values()) == [4, 5, 5, 6, 7, 8, 8, 9, 10, 11, 11, 12]
    assert plan.final_params == 12 * 8 * 128


@pytest.mark.parametrize("method", ["lora", "prilora"])
def test_deberta_v3_base_all_linear_at_rank_8(method):
    shapes = discover_sites(describe("deberta-v3-base"), "all-linear")
    plan = planned(method, shapes)
    assert len(shapes) == 72
    assert plan.final_params == 1_327_104
    assert plan.peak_params == 1_327_104


@pytest.mark.parametrize(
    ("model", "initial_rank", "peak", "final"),
    [
        ("roberta-base", 256, 9_437_184, 294_912),
        ("roberta-base", 128, 4_718_592, 294_912),
        ("roberta-large", 256, 25_165_824, 786_432),
    ],
)
def test_lorpa_on_roberta_query_and_value(model, initial_rank, peak, final):
    plan = planned(f"lorpa(initial_rank={initial_rank})", discover_sites(describe(model), "attention"))
    assert plan.peak_params == peak
    assert plan.final_params == final
    assert [(r.name, r.steps) for r in plan.phases] == [("dense", 20), ("pruned", 80)]


def test_lora_drop_with_ten_kept_sites_of_roberta_base():
    """10 kept sites, one shared adapter for the queries and one for the values."""
    shapes = discover_sites(describe("roberta-base"), "attention")
    assert len(shapes) == 24
    assert 8 * sum(s.unit_cost for s in shapes[:12]) == 147_456


def test_an_error_in_planning_names_the_arm():
    refused(lambda: planned("lorpa:short", square(2), Budget(rank=8, steps=1)), "lorpa:short: phases", "1 steps")


class Ranks(RankPruningStrategy):
    """Starts and ends with the ranks that it is told, in multiples of the budget's."""

    name = "ranks"

    def __init__(self, start=1, end=None, **spec):
        super().__init__()
        self.start_at, self.end_at, self.more = start, end, spec

    def spec(self, sites, budget):
        even = budget.solve(sites)
        final = None if self.end_at is None else {n: self.end_at * r for n, r in even.items()}
        return AdapterSpec(ranks={n: self.start_at * r for n, r in even.items()}, final_ranks=final, **self.more)


def plan_of(strategy, budget):
    class Request:
        label = "ranks:mine"

        def build(self):
            return strategy

    return plan_arm(Request(), square(3), budget, {}, num_examples=3200, base_parameters=10**8, task="rte", model="")


@pytest.mark.parametrize(
    ("strategy", "field", "over"),
    [
        (Ranks(2), "ranks:mine: spec.ranks: '6,144 stored parameters'", "by 3,072 of 3,072"),
        (Ranks(1, 2), "ranks:mine: spec.final_ranks: '6,144 stored parameters'", "by 3,072 of 3,072"),
        (Ranks(1, fixed_params=1), "spec.ranks: '3,073 stored parameters'", "by 1 of 3,072"),
    ],
    ids=["at the start", "at the end", "beside the ranks"],
)
def test_a_plan_that_is_known_to_overspend_is_refused_before_training(strategy, field, over):
    refused(lambda: plan_of(strategy, Budget(rank=8, steps=9)), field, f"overspend the budget {over}")


def test_only_what_is_known_is_refused():
    assert plan_of(Ranks(4, 1), Budget(rank=8, steps=9)).peak_params == 4 * 3072
    assert plan_of(Ranks(2, decided_in_training=True), Budget(rank=8, steps=9)).final_params == 2 * 3072
    # With A all zero, half of the entries count.
    sparse = Ranks(2, density={"A": 0.0})
    assert plan_of(sparse, Budget(rank=8, steps=9, count="nonzero")).final_params == 2 * 3072
    refused(lambda: plan_of(sparse, Budget(rank=8, steps=9)), "stored")
    refused(lambda: plan_of(Ranks(3, density={"A": 0.0}), Budget(rank=8, steps=9, count="nonzero")), "nonzero")


def test_ranks_that_another_arm_leads_to_are_checked_too():
    class Copy(Ranks):
        def spec(self, sites, budget):
            if budget.outcome is None:
                return AdapterSpec(ranks=budget.solve(sites), decided_in_training=True)
            return AdapterSpec(ranks=budget.outcome.ranks)

    plan = plan_of(Copy(), Budget(rank=8, steps=9))
    assert plan.after(Outcome("other", {"layer0": 8, "layer1": 8, "layer2": 8}, 0)).final_params == 3072
    refused(lambda: plan.after(Outcome("other", {"layer0": 9, "layer1": 8, "layer2": 8}, 0)), "by 128 of 3,072")


@pytest.mark.parametrize(
    ("method", "model", "task", "rank", "settings"),
    [
        ("adalora", "deberta-v3-base", "rte", 8, {"learning_rate": 1.2e-3, "warmup_ratio": 0.0513}),
        ("increlora", "deberta-v3-base", "rte", 8, {"epochs": 50, "warmup_ratio": 0.0256, "max_length": 320}),
        ("increlora", "deberta-v3-base", "stsb", 2, {"learning_rate": 2.2e-3, "epochs": 25}),
        ("elalora", "deberta-v3-base", "rte", 10, {"batch_size": 64, "warmup_ratio": 0.5128, "scaling": 1.6}),
        ("sora", "deberta-v3-base", "stsb", 8, {"learning_rate": 8e-4, "batch_size": 8, "max_grad_norm": 0.1}),
        ("weightlora", "deberta-v3-base", "rte", 8, {"learning_rate": 8e-4, "scaling": 4.0, "epochs": 39.3846}),
        ("lora", "roberta-large", "qnli", 8, {"learning_rate": 2e-4, "batch_size": 32, "scaling": 2.0}),
        ("dylora", "roberta-base", "sst2", 8, {"learning_rate": 5e-4, "batch_size": 128, "epochs": 60}),
        ("l1ra", "roberta-base", "rte", 16, {"scaling": 1.0, "weight_decay": 0.1, "warmup_ratio": 0.05}),
        ("lorpa", "roberta-base", "mrpc", 8, {"learning_rate": 4e-4, "batch_size": 16, "epochs": 30}),
        ("lorpa", "roberta-base", "rte", 8, {"batch_size": 32, "epochs": 80, "weight_decay": 0.1}),
        ("lorpa", "roberta-large", "mrpc", 8, {"learning_rate": 1e-4, "batch_size": 4, "epochs": 20, "scaling": 1.0}),
        ("lorpa", "roberta-large", "cola", 8, {"learning_rate": 2e-4, "max_length": 128, "scaling": 2.0}),
        ("lorpa", "bart-base", "xsum", 16, {"learning_rate": 2e-4, "batch_size": 256, "epochs": 25}),
    ],
)  # fmt: skip
def test_published_settings_hold_under_the_papers_budget(method, model, task, rank, settings):
    shapes = square(12, 512)
    plan = planned(method, shapes, "paper", model, task)
    assert plan.budget.params == rank * 12 * 1024
    assert {name: getattr(plan.settings, name) for name in settings} == settings
    mine = planned(method, shapes, "paper", model, task, learning_rate=5e-5, scaling=3.0)
    assert (mine.settings.learning_rate, mine.settings.scaling) == (5e-5, 3.0), "what the user names wins"
    assert ("learning_rate", 5e-5, "given") in {(v.setting, v.value, v.source) for v in mine.published}
    assert planned(method, shapes, None, model, task).settings == resolve_settings({})


@pytest.mark.parametrize(
    ("method", "model", "task", "given", "message"),
    [
        ("lorpa", "roberta-base", "rte", {}, r"^learning_rate: \[3e-05, 5e-05, 7e-05, 9e-05\] are searched by JuHyng/"),
        ("lorpa", "roberta-base", "stsb", {}, r"^learning_rate: \[0\.0002, 0\.0003, 0\.0004\] .*--learning-rate\)$"),
        ("dora-dynamic", "roberta-base", "cola", {}, r"^learning_rate: \[0\.0001, 0\.000148, 0\.000219\] are searched"),
        ("lorpa", "deberta-v3-base", "rte", {}, "^learning_rate: None is not published for lorpa on deberta"),
        ("eva", "roberta-base", "rte", {"learning_rate": 1e-3}, r"^batch_size: None .* Give batch_size=… \(--batch"),
        ("lora", "roberta-base", "rte", {"learning_rate": 1e-3, "batch_size": 8}, "^epochs: None is not published for"),
    ],
)  # fmt: skip
def test_what_no_source_states_is_asked_for(method, model, task, given, message):
    with pytest.raises(UsageError, match=message):
        check_published(planned(method, square(12, 512), "paper", model, task, **given).published)
    whole = {"learning_rate": 5e-5, "batch_size": 8, "epochs": 2.0}
    check_published(planned(method, square(12, 512), "paper", model, task, **whole).published)


@pytest.mark.parametrize("method", [name for name in names() if load(name)().paper().runs])
def test_released_settings_can_be_set_and_name_their_file(method):
    for (model, task), run in load(method)().paper().runs.items():
        resolve_settings({n: v for n, v in run.values.items() if n != "rank" and not isinstance(v, tuple)})
        assert task_info(task).name == task
        assert re.match(r"[\w-]+/[\w-]+@[0-9a-f]{7} \S+\.(sh|json|py)", run.source), (model, task)


@pytest.mark.parametrize("method", ["adalora", "increlora", "elalora"])
def test_warm_ups_count_the_tasks_own_steps(method):
    for (_, task), run in published_runs(method).items():
        if "warmup_ratio" not in run.values:
            continue
        settings = resolve_settings({n: v for n, v in run.values.items() if n != "rank"})
        steps = settings.warmup_ratio * settings.epochs * -(-task_info(task).train_size // settings.batch_size)
        # The scripts name whole hundreds of steps, and AdaLoRA's for MRPC a tenth of the run; shares are rounded.
        assert steps == pytest.approx(345 if settings.warmup_ratio == 0.1 else 100 * round(steps / 100), rel=0.01), task


@pytest.mark.parametrize("model", ["minilm", "bart-base", "grouped queries"])
def test_every_method_has_a_plan_within_the_budget(model):
    """Shapes alone: an encoder, an encoder-decoder, and a decoder whose queries are wider than its values."""
    shapes = discover_sites(tiny_llama_gqa() if model == "grouped queries" else describe(model), "attention")
    assert (len({s.d_out for s in shapes}) == 2) == (model == "grouped queries")
    for name in names():
        if issubclass(load(name), RankPruningStrategy):
            plan = planned(name, shapes, Budget(rank=8, steps=300))
            allowed = 8 * sum(s.unit_cost for s in shapes)
            cheapest = min(s.unit_cost for s in shapes)
            assert plan.budget.params == allowed
            if not plan.spec.decided_in_training:
                assert 0 <= allowed - plan.final_params < cheapest, name


# --- verifying -----------------------------------------------------------------------------------------------------

BUDGET = ArmBudget(params=1000, total_steps=1, num_examples=1, batch_size=1)


@pytest.mark.parametrize(("spent", "headroom"), [(1000, 100), (901, 100), (500, None)])
def test_a_budget_that_is_met_passes(spent, headroom):
    verify(spent, BUDGET, headroom)


def test_overspending_is_an_error():
    with pytest.raises(RunError, match=r"^budget: .* 1,001 stored .* 1 above the 1,000 allowed\. .*must cut"):
        verify(1001, BUDGET, None)


def test_underspending_by_one_unit_is_an_error():
    with pytest.raises(RunError, match=r"^budget: .* 900 stored .* 1,000 are allowed; one more rank \(100 .*solve"):
        verify(900, BUDGET, 100)


def test_paper_budgets_are_not_verified():
    verify(5000, ArmBudget(1000, 1, 1, 1, paper=True), 1)


def test_another_spelling_of_a_task_has_its_published_settings():
    one, other = (plan_methods("lorpa", "roberta-large", "paper", "attention", name) for name in ("stsb", "sts-b"))
    assert one == other
    assert any(row["setting"] == "learning_rate" and row["value"] for row in one["lorpa"]["published"])
