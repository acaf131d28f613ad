"""What each method does to real weights during a real run, against a slow reference written out here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import TrainerCallback

from peftprune.adapters import surgery
from peftprune.errors import UsageError
from peftprune.methods.registry import load
from peftprune.strategy.signal import Signal
from peftprune.strategy.sites import SiteSet
from tests.helpers import Arm, CrashError, make_arm, stored_adapter
from tests.spies import Spy


class Inputs:
    """Stores what every site reads, real tokens only, micro-batch by micro-batch."""

    def __init__(self, model: Any, sites: SiteSet) -> None:
        self.seen: dict[str, list[Tensor]] = {name: [] for name in sites}
        self.mask: Tensor | None = None
        model.register_forward_pre_hook(self.enter, with_kwargs=True)
        for name in sites:
            model.get_submodule(f"base_model.model.{name}").register_forward_pre_hook(self.reading(name))

    def enter(self, model: Any, args: Any, kwargs: Any) -> None:
        self.mask = kwargs["attention_mask"].bool()

    def reading(self, name: str) -> Any:
        def hook(module: Any, args: Any) -> None:
            assert self.mask is not None
            self.seen[name].append(args[0].detach()[self.mask].double())

        return hook

    def take(self) -> dict[str, Tensor]:
        """Site to (tokens, d_in), all since the last call."""
        found = {name: torch.cat(parts) for name, parts in self.seen.items()}
        for parts in self.seen.values():
            parts.clear()
        return found


class AfterStep(TrainerCallback):
    """Calls `function(step)` when a step's plans have been applied."""

    def __init__(self, function: Any) -> None:
        self.function = function

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.function(state.global_step)


def run_watched(arm: Arm, before: dict[str, Any], after: Any = None) -> tuple[Any, SiteSet, Any]:
    """Train with `before[event](view)` called ahead of the strategy and `after(step)` once a step is over."""

    def around(name: str, call: Any, arguments: tuple[Any, ...]) -> Any:
        if name in before:
            before[name](arguments[0])
        return call(*arguments)

    model, sites, trainer = arm.with_method(Spy(arm.plan.method, around)).build()  # type: ignore[arg-type]
    before["built"](model, sites, trainer)
    if after is not None:
        trainer.add_callback(AfterStep(after))
    trainer.run()
    return model, sites, trainer


def snapshot(sites: Any) -> dict[str, tuple[Tensor, Tensor]]:
    return {n: (s.A.clone(), s.B.clone()) for n, s in sites.items() if s.rank}


# --- PRILoRA ----------------------------------------------------------------------------------------------------------


def lowest(row: list[float], n: int) -> set[int]:
    return set(sorted(range(len(row)), key=lambda j: (row[j], j))[:n])


def reference_zeros(scores: Tensor, pattern: str) -> Tensor:
    """Which entries of A go, entry by entry."""
    rows, columns = scores.shape
    mask = torch.zeros(rows, columns, dtype=torch.bool)
    if pattern == "matrix":
        for j in lowest(scores.flatten().tolist(), int(0.3 * rows * columns)):
            mask[j // columns, j % columns] = True
        return mask
    for k in range(rows):
        row = scores[k].tolist()
        if pattern == "row":
            gone = lowest(row, int(0.3 * columns))
        else:
            gone = {start + j for start in range(0, columns, 4) for j in lowest(row[start : start + 4], 2)}
        mask[k, sorted(gone)] = True
    return mask


@pytest.mark.parametrize("pattern", ["row", "matrix", "2:4"])
def test_prilora_zeroes_exactly_the_lowest_entries_at_every_event(
    pattern: str, tiny_bert: Path, tmp_path: Path
) -> None:
    spec = f"prilora(prune_every=5,sparsity=0.3,beta=0.8,pattern={pattern!r})"
    arm = make_arm(spec, tmp_path, tiny_bert, target_modules="all-linear", gradient_accumulation_steps=2)
    strategy: Any = arm.plan.method
    average: dict[str, Tensor] = {}
    current: dict[str, tuple[Tensor, Tensor]] = {}
    kept: dict[str, Any] = {}
    events = []

    def built(model: Any, sites: SiteSet, trainer: Any) -> None:
        kept.update(sites=sites, inputs=Inputs(model, sites))

    def decide(view: Any) -> None:
        for name, x in kept["inputs"].take().items():
            norm = x.square().sum(0).sqrt()
            average[name] = 0.8 * average.get(name, torch.zeros_like(norm)) + 0.2 * norm
            torch.testing.assert_close(strategy.input_norm[name].double(), average[name], rtol=1e-5, atol=1e-6)
        current.update(snapshot(view.sites))

    def after(step: int) -> None:
        if step % 5 and step != 24:
            return
        events.append(step)
        for name, site in kept["sites"].items():
            A, B = current[name]
            expected = reference_zeros(A.double().abs() * average[name], pattern)
            assert torch.equal(site.A == 0, expected), (step, name)
            assert torch.equal(site.A[~expected], A[~expected])
            assert torch.equal(site.B, B)

    run_watched(arm, {"built": built, "decide": decide}, after)
    assert events == [5, 10, 15, 20, 24]


@pytest.mark.parametrize("moments", ["keep", "zero"])
def test_prilora_treats_the_moments_of_zeroed_entries_as_told(moments: str, tiny_bert: Path, tmp_path: Path) -> None:
    arm = make_arm(f"prilora(prune_every=5,moments={moments!r})", tmp_path, tiny_bert)
    kept: dict[str, Any] = {}
    found = []

    def after(step: int) -> None:
        if step == 5:
            for name, parameter in kept["model"].named_parameters():
                if ".lora_A." in name:
                    state = kept["trainer"].optimizer.state[parameter]
                    found.append(state["exp_avg_sq"][parameter == 0].count_nonzero().item() > 0)

    run_watched(arm, {"built": lambda model, sites, trainer: kept.update(model=model, trainer=trainer)}, after)
    assert found == [moments == "keep"] * 4


def test_prilora_ranks_rise_with_depth(tiny_bert: Path, tmp_path: Path) -> None:
    arm = make_arm("prilora(start_rank=2,final_rank=6)", tmp_path, tiny_bert, budget="rank=8,steps=24")
    # The ratio counts under a matched budget: 4 and 12 cost what 8 and 8 cost.
    assert [arm.plan.spec.ranks[s.name] for s in arm.plan.shapes] == [4, 4, 12, 12]


# --- LoRPA ------------------------------------------------------------------------------------------------------------


def cut_of(arm: Arm) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """The tensors of every site at the start, right before the cut and right after it."""
    kept: dict[str, Any] = {}

    def start(view: Any) -> None:
        kept["start"] = snapshot(view.sites)

    def end_phase(view: Any) -> None:
        kept.setdefault("before", snapshot(view.sites))

    def after(step: int) -> None:
        if step == 5:
            kept["after"] = snapshot(kept["sites"])

    def built(model: Any, sites: SiteSet, trainer: Any) -> None:
        kept["sites"] = sites

    run_watched(arm, {"built": built, "start": start, "end_phase": end_phase}, after)
    return kept["start"], kept["before"], kept["after"]


def top_ranks(A: Tensor, B: Tensor, form: str, n: int) -> list[int]:
    """The n highest-scoring components, by loops."""
    scores = []
    for k in range(len(A)):
        a, b = A[k].double().abs(), B[:, k].double().abs()
        square = len(a) == len(b) and form == "hadamard"
        scores.append(float(sum(x * y for x, y in zip(a, b, strict=True)) if square else a.sum() * b.sum()))
    return sorted(sorted(range(len(A)), key=lambda k: (-scores[k], k))[:n])


@pytest.mark.parametrize("form", ["hadamard", "outer"])
@pytest.mark.parametrize(
    ("scaling", "rewind"), [("keep", False), ("rescale", False), ("keep", True), ("rescale", True)]
)
def test_lorpa_keeps_the_top_ranks_of_every_site(
    form: str, scaling: str, rewind: bool, tiny_bert: Path, tmp_path: Path
) -> None:
    spec = f"lorpa(initial_rank=16,form={form!r},scaling={scaling!r},rewind={rewind})"
    arm = make_arm(spec, tmp_path, tiny_bert, target_modules="all-linear")
    start, before, after = cut_of(arm)
    assert {A.shape[0] for A, _ in before.values()} == {16}
    assert {A.shape[0] for A, _ in after.values()} == {4}
    for name, (A, B) in before.items():
        top = top_ranks(A, B, form, 4)
        survivor_A, survivor_B = start[name] if rewind else (A, B)
        factor = 16 / 4 if scaling == "rescale" else 1.0
        assert torch.equal(after[name][0], survivor_A[top]), name
        assert torch.equal(after[name][1], survivor_B[:, top] * factor), name


@pytest.mark.parametrize("rewind", [False, True])
@pytest.mark.parametrize(("ratios", "ranks"), [("", [16, 12, 8, 4]), ("0.5_0.125", [16, 8, 6, 4])])
def test_lorpa_cuts_in_stages(ratios: str, ranks: list[int], rewind: bool, tiny_bert: Path, tmp_path: Path) -> None:
    spec = (
        f"lorpa(initial_rank=16,dense_share=0.25,stage_shares='0.25_0.25_0.25',cut_ratios={ratios!r},rewind={rewind})"
    )
    arm = make_arm(spec, tmp_path, tiny_bert, warmup_ratio=0.0)
    start: dict[str, Any] = {}
    rows: list[dict[str, list[int]]] = []
    kept: dict[str, Any] = {}
    sizes: list[int] = []
    rates: list[float] = []

    def end_phase(view: Any) -> None:
        kept["before"] = snapshot(view.sites)

    def observe(view: Any) -> None:
        sizes.append(len(kept["trainer"].optimizer.state))
        rates.append(kept["trainer"].optimizer.param_groups[0]["lr"])

    def after(step: int) -> None:
        if step not in (6, 12, 18):
            return
        found = {}
        for name, (A, B) in kept["before"].items():
            found[name] = top_ranks(A, B, "hadamard", ranks[step // 6])
            site, left = kept["sites"][name], start[name]
            assert torch.equal(site.A, (left[0] if rewind else A)[found[name]])
            assert torch.equal(site.B, (left[1] if rewind else B)[:, found[name]])
            start[name] = (left[0][found[name]], left[1][:, found[name]])
        rows.append(found)

    def built(model: Any, sites: SiteSet, trainer: Any) -> None:
        kept.update(sites=sites, trainer=trainer)
        start.update(snapshot(sites))

    run_watched(arm, {"built": built, "observe": observe, "end_phase": end_phase}, after)
    assert len(rows) == 3
    assert [step for step, size in enumerate(sizes) if size == 0] == [0, 6, 12, 18], "a fresh optimizer"
    assert [i for i in range(1, 24) if rates[i] > rates[i - 1]] == [6, 12, 18], "a fresh schedule"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stage_shares": "0.3_0.3"}, r"^lorpa.stage_shares: '0.3_0.3' sums to 0.8 with dense_share=0.2. Let them sum"),
        ({"stage_shares": "half"}, r"^lorpa.stage_shares: 'half' is not a list of numbers. Join them by _"),
        ({"cut_ratios": "0.5"}, r"^lorpa.cut_ratios: '0.5' does not fit 1 cuts. Give 0 numbers"),
        ({"stage_shares": "0.4_0.4", "cut_ratios": "1.5"}, r"^lorpa.cut_ratios: '1.5' does not fit 2 cuts"),
    ],
)
def test_stages_that_do_not_fit_are_refused(options: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load("lorpa")(**options)


def kept_by(method: str, seed: int, model: Path, folder: Path) -> list[list[int]]:
    _, before, after = cut_of(make_arm(f"{method}(initial_rank=16)", folder, model, seed=seed))
    return [[int((before[name][0] == row).all(1).nonzero()) for row in A] for name, (A, _) in after.items()]


def test_random_rank_keeps_ranks_at_random_but_reproducibly(tiny_bert: Path, tmp_path: Path) -> None:
    first, again = (kept_by("random-rank", 0, tiny_bert, tmp_path) for _ in range(2))
    assert first == again
    assert all(indices == sorted(indices) and len(indices) == 4 for indices in first)
    assert len({tuple(indices) for indices in first}) > 1
    assert first != kept_by("random-rank", 1, tiny_bert, tmp_path)
    assert first != kept_by("lorpa", 0, tiny_bert, tmp_path)


# --- restarting -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "restart"),
    [("lora", 0), ("lora-restart", 5), ("lorpa(initial_rank=16)", 5), ("lora-drop(sample=0.25,probe_passes=2)", 9)],
)
def test_a_restart_clears_the_optimizer_and_warms_up_again(
    method: str, restart: int, tiny_bert: Path, tmp_path: Path
) -> None:
    states, rates = [], []
    kept: dict[str, Any] = {}

    def built(model: Any, sites: SiteSet, trainer: Any) -> None:
        kept["trainer"] = trainer

    def observe(view: Any) -> None:
        optimizer = kept["trainer"].optimizer
        states.append(len(optimizer.state))
        rates.append(optimizer.param_groups[0]["lr"])

    _, _, trainer = run_watched(
        make_arm(method, tmp_path, tiny_bert, warmup_ratio=0.2), {"built": built, "observe": observe}
    )
    empty = [step for step, size in enumerate(states) if size == 0]
    assert empty == sorted({0, restart})
    rises = [i for i in range(1, 24) if rates[i] > rates[i - 1]]
    assert any(i > restart for i in rises) or restart == 0
    assert all(i < 5 or restart <= i for i in rises)
    steps = {int(state["step"]) for state in trainer.optimizer.state.values()}
    assert steps == {24 - restart}


# --- LoRA-drop --------------------------------------------------------------------------------------------------------

PROBE = "sample=0.25,probe_passes=2"


def test_lora_drop_scores_sites_by_the_energy_of_their_output(tiny_bert: Path, tmp_path: Path) -> None:
    spec = f"lora-drop({PROBE},threshold=0.6)"
    arm = make_arm(spec, tmp_path, tiny_bert, target_modules="all-linear", gradient_accumulation_steps=2)
    strategy: Any = arm.plan.method
    kept: dict[str, Any] = {}
    energy: dict[str, float] = {}
    modes = []
    watched: set[tuple[str, int]] = set()

    def built(model: Any, sites: SiteSet, trainer: Any) -> None:
        kept.update(model=model, sites=sites, inputs=Inputs(model, sites))

    def observe(view: Any) -> None:
        seen = kept["inputs"].take()
        watched.add((view.phase.name, len(view.signals.get(Signal.OUTPUT_ENERGY, {}))))
        if view.phase.name != "score":
            return
        modes.append(kept["model"].training)
        for name, x in seen.items():
            site = view.sites[name]
            y = 2.0 * (x @ site.A.double().T @ site.B.double().T)
            energy[name] = energy.get(name, 0.0) + float(y.square().sum())

    run_watched(arm, {"built": built, "observe": observe})
    assert modes == [False] * 3
    assert watched == {("probe", 0), ("score", 12), ("finetune", 0)}, "watching costs time in every step that has it"
    assert strategy.energy == pytest.approx(energy, rel=1e-4)
    order = sorted(energy, key=lambda name: -energy[name])
    total, running, expected = sum(energy.values()), 0.0, []
    for name in order:
        expected.append(name)
        running += energy[name]
        if running >= 0.6 * total:
            break
    assert 0 < len(expected) < len(order)
    alone = {name for name, others in kept["sites"].shared_with().items() if not others}
    rest = [name for name in order if name not in expected]
    kinds = [kept["sites"][name].kind for name in rest]
    # A site that is the only one of its kind among the rest shares with nobody.
    assert alone == set(expected) | {name for name in rest if kinds.count(kept["sites"][name].kind) == 1}


def drop_everything_but_one(method: str, tiny_bert: Path, folder: Path, **settings: Any) -> Arm:
    """A threshold that the first site crosses: the others share, or go."""
    return make_arm(f"{method}({PROBE},threshold=0.01)", folder, tiny_bert, budget="rank=6,steps=24", **settings)


def test_lora_drop_shares_one_adapter_per_kind_that_counts_once(tiny_bert: Path, tmp_path: Path) -> None:
    arm = drop_everything_but_one("lora-drop", tiny_bert, tmp_path)
    _, sites, _ = run_watched(arm, {"built": lambda *_: None})
    pairs = {tuple(sorted((name, *others))) for name, others in sites.shared_with().items() if others}
    assert len(pairs) == 1
    one, other = pairs.pop()
    assert sites[one].kind == sites[other].kind
    before = sites[other].A.clone()
    sites[one].A[0, 0] += 1.0
    sites[one].B[0, 0] += 1.0
    assert torch.equal(sites[other].A, sites[one].A)
    assert sites[other].A[0, 0] == before[0, 0] + 1.0
    assert torch.equal(sites[other].B, sites[one].B)

    result = arm.run()
    # Three holders for what four sites had: the budget gives each a third more.
    holders = [row["rank"] for row in result["allocation"] if row["site"] != other]
    assert holders == [8, 8, 8]
    assert result["ledger"]["final_params"] == result["ledger"]["unique_params"] == 3 * 8 * 64
    assert result["ledger"]["expanded_params"] == 4 * 8 * 64
    stored = stored_adapter(arm.folder)
    for matrix in ("lora_A", "lora_B"):
        tensors = [stored[f"base_model.model.{name}.{matrix}.weight"] for name in (one, other)]
        assert torch.equal(*tensors)


@pytest.mark.parametrize("score", ["params", "size", "gradient", "random"])
def test_lora_drop_scores_by_alternatives(score: str, tiny_bert: Path, tmp_path: Path) -> None:
    spec = f"lora-drop({PROBE},threshold=0.6,score={score!r})"
    arm = make_arm(spec, tmp_path, tiny_bert, target_modules="all-linear")
    strategy: Any = arm.plan.method
    expected: dict[str, float] = {}
    kept: dict[str, Any] = {}

    def observe(view: Any) -> None:
        if view.phase.name == "probe" and score == "gradient":
            for name, site in view.sites.items():
                for row in [*site.grad_A.tolist(), *site.grad_B.tolist()]:
                    expected[name] = expected.get(name, 0.0) + sum(x * x for x in row)

    def end_phase(view: Any) -> None:
        if view.phase.name != "score":
            return
        for name, site in view.sites.items():
            if score == "params":
                expected[name] = float((2.0 * site.B.double() @ site.A.double()).square().sum())
            elif score == "size":
                expected[name] = site.A.numel() + site.B.numel()

    run_watched(
        arm, {"built": lambda m, sites, t: kept.update(sites=sites), "observe": observe, "end_phase": end_phase}
    )
    found = {name: float(value) for name, value in strategy.energy.items()}
    if score == "random":
        assert len(set(found.values())) == len(found) == 12
        assert all(0 <= value < 1 for value in found.values())
        expected = found
    assert found == pytest.approx(expected, rel=1e-4)
    running, important = 0.0, set()
    for name in sorted(expected, key=lambda name: -expected[name]):
        if running < 0.6 * sum(expected.values()):
            important.add(name)
        running += expected[name]
    shares = {name for name, others in kept["sites"].shared_with().items() if others}
    assert shares
    assert not shares & important


def test_lora_drops_other_sites_share_go_or_stay(tiny_bert: Path, tmp_path: Path) -> None:
    def ranks(method: str) -> dict[str, int]:
        arm = make_arm(f"{method}", tmp_path / method, tiny_bert, budget="rank=6,steps=24")
        _, sites, trainer = run_watched(arm, {"built": lambda *_: None})
        assert trainer.pruning.trace.rows[-1]["reason"].startswith("kept 1 of 4 sites")
        assert not any(sites.shared_with().values())
        return sites.ranks

    deleted = ranks(f"lora-drop({PROBE},threshold=0.01,rest='delete')")
    assert sorted(deleted.values()) == [0, 0, 0, 24]
    assert deleted == ranks(f"delete({PROBE},threshold=0.01)")
    assert set(ranks(f"lora-drop({PROBE},threshold=0.01,rest='keep')").values()) == {6}


@pytest.mark.parametrize(("rest", "holders"), [("share", 3), ("delete", 1)])
def test_without_refill_the_rank_stays_and_the_table_says_so(
    rest: str, holders: int, tiny_bert: Path, tmp_path: Path
) -> None:
    spec = f"lora-drop({PROBE},threshold=0.01,rest={rest!r},refill=False)"
    arm = make_arm(spec, tmp_path, tiny_bert, budget="rank=6,steps=24")
    result = arm.run()
    assert result["ledger"]["final_params"] == holders * 6 * 64
    assert result["budget"]["params"] == 4 * 6 * 64
    assert {row["rank"] for row in result["allocation"]} <= {0, 6}
    assert result["exemption"].startswith("fewer parameters")


def test_sharing_survives_a_crash(tiny_bert: Path, tmp_path: Path) -> None:
    with pytest.raises(CrashError):
        drop_everything_but_one("lora-drop", tiny_bert, tmp_path, checkpoints=4).run(crash_at=14)
    _, sites, trainer = drop_everything_but_one("lora-drop", tiny_bert, tmp_path, checkpoints=4).build()
    assert not any(sites.shared_with().values())
    trainer.run()
    shared = [name for name, others in sites.shared_with().items() if others]
    assert len(shared) == 2
    one, other = (sites[name] for name in shared)
    assert one.A.data_ptr() == other.A.data_ptr()
    assert one.B.data_ptr() == other.B.data_ptr()
    in_optimizer = [p for group in trainer.optimizer.param_groups for p in group["params"]]
    assert len(in_optimizer) == len({id(p) for p in in_optimizer})
    assert sum(p.data_ptr() == one.A.data_ptr() for p in in_optimizer) == 1
    trained = {id(p) for p in trainer.model.parameters() if p.requires_grad}
    assert {id(p) for p in in_optimizer} == trained


def test_delete_removes_what_lora_drop_shares(tiny_bert: Path, tmp_path: Path) -> None:
    arm = drop_everything_but_one("delete", tiny_bert, tmp_path)
    model, sites, _ = run_watched(arm, {"built": lambda *_: None})
    ranks = sorted(sites.ranks.values())
    # 6 · 4 · 64 parameters at one site of cost 64 would be rank 24.
    assert ranks == [0, 0, 0, 24]
    assert sum(".lora_A." in name for name, _ in model.named_parameters()) == 1
    surgery.fold(sites)
    assert len(sites.peft_config.target_modules) == 1


def test_a_revision_changes_the_hashes_of_its_method_alone(tiny_bert: Path, tmp_path: Path, monkeypatch: Any) -> None:
    before = {m: make_arm(m, tmp_path, tiny_bert).config for m in ("lora", "lorpa")}
    monkeypatch.setattr(load("lorpa"), "revision", 1)
    after = {m: make_arm(m, tmp_path, tiny_bert).config for m in ("lora", "lorpa")}
    assert after == {"lora": before["lora"], "lorpa": before["lorpa"] | {"revision": 1}}
