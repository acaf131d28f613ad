"""The controls of placement: which sites get the ranks, and what an arm learns from the one it depends on."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, BertConfig, BertModel
from typer.testing import CliRunner

import peftprune
from peftprune.cli.app import app
from peftprune.errors import RunError, UsageError
from peftprune.methods.registry import load
from peftprune.methods.request import parse
from peftprune.report.export.recommend import NO_EVIDENCE, evidence, recommend
from peftprune.strategy import AdapterSpec
from peftprune.strategy.budget import ArmBudget, Outcome
from peftprune.strategy.interface import RankPruningStrategy
from peftprune.strategy.sites import SiteShape
from peftprune.study.execution import work as queue
from peftprune.study.packed import pack
from peftprune.study.request import in_order
from peftprune.tasks import Task
from peftprune.tasks.base import make_dataset
from peftprune.training.objectives import classification_loss
from tests.helpers import DEFAULTS, SIZES, classification_task, make_arm, same, stored_adapter, tokenizer
from tests.plain import arguments, examples, plain_trainer
from tests.stored import store
from tests.test_methods import PROBE, run_watched

# --- reverse ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("normalise", ["all", "kind"])
def test_reverse_keeps_as_many_sites_as_lora_drop_but_the_least_important(normalise: str) -> None:
    shapes = {n: SiteShape(n, i, n[0], 4, 4) for i, n in enumerate(("q0", "v0", "q1", "v1", "q2", "v2"))}
    energy = {"q0": 9.0, "v0": 1.0, "q1": 5.0, "v1": 0.5, "q2": 0.25, "v2": 4.0}
    kept = {}
    for name in ("lora-drop", "reverse"):
        strategy = load(name)(threshold=0.6, normalise=normalise)
        strategy.energy = {n: torch.tensor(e, dtype=torch.float64) for n, e in energy.items()}
        kept[name] = strategy.kept_sites(shapes)
    assert len(kept["lora-drop"]) == len(kept["reverse"]) == 2
    scores = strategy.scores(shapes)
    assert max(scores[n] for n in kept["reverse"]) <= min(scores[n] for n in kept["lora-drop"])


def test_reverse_takes_a_kind_without_output_for_the_least_important() -> None:
    shapes = {n: SiteShape(n, 0, n[0], 4, 4) for n in ("q0", "q1", "v0")}
    strategy = load("reverse")(threshold=0.5, normalise="kind")
    strategy.energy = {"q0": torch.tensor(3.0), "q1": torch.tensor(1.0), "v0": torch.tensor(0.0)}
    assert strategy.kept_sites(shapes) == ["v0"]


def test_reverse_shares_what_lora_drop_keeps(tiny_bert: Path, tmp_path: Path) -> None:
    alone = {}
    for method in ("lora-drop", "reverse"):
        arm = make_arm(f"{method}({PROBE},threshold=0.01)", tmp_path / method, tiny_bert, budget="rank=6,steps=24")
        _, sites, _ = run_watched(arm, {"built": lambda *_: None})
        scores = arm.plan.method.scores({s.name: s for s in arm.plan.shapes})  # type: ignore[union-attr]
        order = sorted(scores, key=scores.get)  # type: ignore[arg-type]
        kept = order[-1] if method == "lora-drop" else order[0]
        alone[method] = {name for name, others in sites.shared_with().items() if not others}
        assert kept in alone[method]
        assert len(alone[method]) == 2, "one kept, and the other of its kind shares with nobody"


# --- top-layers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("architecture", "kept", "layers"),
    [
        ("bert", 0.5, {("", 1)}),
        ("bert", 0.51, {("", 0), ("", 1)}),
        ("llama", 0.01, {("", 1)}),
        ("bart", 0.5, {("encoder", 1), ("decoder", 1)}),
    ],
)
def test_top_layers_spends_the_whole_budget_at_the_top(
    architecture: str, kept: float, layers: set[Any], tiny_models: dict[str, Path], tmp_path: Path
) -> None:
    arm = make_arm(f"top-layers(kept={kept})", tmp_path, tiny_models[architecture], target_modules="all-linear")
    found = set()
    for s in arm.plan.shapes:
        stack = s.kind.split(".")[0] if architecture == "bart" else ""
        if arm.plan.spec.ranks[s.name] > 0:
            found.add((stack, s.layer))
    assert found == layers
    assert arm.plan.final_params <= arm.plan.budget.params


def test_top_layers_refuses_to_keep_none() -> None:
    with pytest.raises(UsageError, match=r"^top-layers.kept: 0 is not in \(0, 1\]. Give 0.5"):
        load("top-layers")(kept=0)


# --- shuffled ---------------------------------------------------------------------------------------------------------

histograms = st.lists(st.integers(0, 6), min_size=3, max_size=8).filter(any)


def dealt(ranks: list[int], widths: list[int], params: int, seed: int = 0) -> dict[str, int]:
    sites = [SiteShape(f"s{i}", i, "x", 8, w) for i, w in enumerate(widths)]
    outcome = Outcome("other", {s.name: r for s, r in zip(sites, ranks, strict=True)}, seed)
    budget = ArmBudget(params, total_steps=1, num_examples=1, batch_size=1, outcome=outcome)
    return dict(load("shuffled")(of="other").spec(sites, budget).ranks)


@settings(max_examples=100, deadline=None)
@given(histograms, st.integers(0, 3))
def test_where_sites_cost_the_same_the_histogram_stays(ranks: list[int], seed: int) -> None:
    found = dealt(ranks, [8] * len(ranks), 16 * sum(ranks) + 15, seed)
    assert sorted(found.values()) == sorted(ranks)


@settings(max_examples=100, deadline=None)
@given(st.data(), histograms)
def test_where_they_do_not_the_budget_is_met(data: st.DataObject, ranks: list[int]) -> None:
    widths = data.draw(st.lists(st.integers(8, 40), min_size=len(ranks), max_size=len(ranks)))
    # A budget pays for one rank at every site at least, or is refused.
    params = max(sum(r * (8 + w) for r, w in zip(ranks, widths, strict=True)), sum(8 + w for w in widths))
    found = dealt(ranks, widths, params)
    costs = {f"s{i}": 8 + w for i, w in enumerate(widths)}
    left = params - sum(r * costs[n] for n, r in found.items())
    assert left >= 0
    assert all(left < costs[n] for n, r in found.items() if 0 < r < 8)
    assert sum(r > 0 for r in found.values()) <= sum(r > 0 for r in ranks)


def test_the_draw_depends_on_the_seed_alone() -> None:
    first, again, other = (dealt([1, 2, 3, 4, 5, 6], [8] * 6, 21 * 16, seed) for seed in (0, 0, 1))
    assert first == again
    assert first != other


def test_sites_that_share_count_once() -> None:
    rows = [("a", 4, ["c"]), ("b", 4, []), ("c", 4, ["a"]), ("d", 0, [])]
    result = {"label": "x", "seed": 3, "allocation": [{"site": s, "rank": r, "shared_with": w} for s, r, w in rows]}
    assert Outcome.of(result) == Outcome("x", {"a": 4, "b": 4, "c": 0, "d": 0}, 3, (("a", "c"),))
    with pytest.raises(RunError, match=r"^x: has no ranks"):
        Outcome.of(result | {"allocation": []})


# --- a planted allocation ---------------------------------------------------------------------------------------------

LIVE = (1, 5)
PAIRS = (("good", "bad"), ("big", "small"), ("red", "blue"), ("cat", "dog"))


class Oracle(RankPruningStrategy):
    """Plain LoRA that spends the budget on the two sites that can help."""

    name = "oracle"

    def spec(self, sites: Any, budget: ArmBudget) -> AdapterSpec:
        live = [s for s in sites if s.layer in LIVE and s.kind.endswith("value")]
        return AdapterSpec(ranks={s.name: 0 for s in sites} | budget.solve(live))


@torch.no_grad()
def planted_model(folder: Path) -> Path:
    """An encoder of six layers that change nothing, of which two can bring words to [CLS] by their value adapters.

    The first live layer reads the words of the first two pairs, the second one those of the last two.
    """
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 6, "num_attention_heads": 2, "intermediate_size": 32}
    model = BertModel(BertConfig(**SIZES, **sizes, max_position_embeddings=32))
    words = model.embeddings.word_embeddings.weight.normal_()
    words[:, -1] = 0
    for i, pair in enumerate(PAIRS):
        words[tokenizer().convert_tokens_to_ids(list(pair)), -1] = 3.0 if i < 2 else -3.0
    for i, layer in enumerate(model.encoder.layer):
        attention, reads = layer.attention.self, layer.attention.output.dense
        for linear in (attention.query, attention.key, attention.value, reads, layer.output.dense):
            linear.weight.zero_()
        if i in LIVE:
            reads.weight.copy_(torch.eye(32))
            # The first entry of each of the two heads compares a constant with the mark of the words.
            attention.query.bias[::16] = 1.0
            attention.key.weight[::16, -1] = 8.0 if i == LIVE[0] else -8.0
    model.pooler.dense.weight.copy_(torch.eye(32) / 2)
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def planted_task() -> Task:
    """Which word of each of four pairs is there more often, of three draws: four independent bits, sixteen classes."""

    def split(size: int, seed: int) -> Any:
        rng, found, labels = random.Random(seed), [], []
        for _ in range(size):
            draws = [rng.choices((0, 1), k=3) for _ in PAIRS]
            words = [pair[bit] for pair, bits in zip(PAIRS, draws, strict=True) for bit in bits]
            found.append(" ".join(rng.sample(words, len(words))))
            labels.append(sum((sum(bits) > 1) << i for i, bits in enumerate(draws)))
        return make_dataset([found], labels, names)

    names = tuple(f"{i:04b}" for i in range(16))
    splits = split(1600, 1), {"test": split(400, 2)}
    return Task("planted", "classification", ("text_a",), names, ("accuracy",), *splits, "generated", "generated")


@pytest.mark.slow
def test_where_two_sites_alone_help_their_ranks_beat_uniform_ones_which_beat_shuffled_ones(tmp_path: Path) -> None:
    """A rank of 1 carries one of two bits at each live site, where the oracle has rank 6.

    The live layers are ones that no shuffle of these six seeds gives any rank.
    """
    methods = ["lora", Oracle, "transplant(of='oracle')", "shuffled(of='oracle')"]
    given = {"task": planted_task(), "budget": "rank=1,steps=160", "target_modules": ["value", "intermediate.dense"]}
    given |= {"batch_size": 32, "learning_rate": 1e-2, "seeds": 6}
    found = compare(methods, tmp_path / "study", planted_model(tmp_path / "model"), **given)
    assert {r for seed in range(6) for r in final_ranks(found.path)["transplant", seed].values()} == {0, 6}
    rows = found.against("lora").set_index("method")
    assert rows["verdict"]["transplant"].startswith("better"), rows.to_string()
    assert rows["verdict"]["shuffled"].startswith("worse"), rows.to_string()


# --- depending on another arm -----------------------------------------------------------------------------------------


def compare(methods: Any, folder: Path, model: Path, **more: Any) -> Any:
    given = {"task": classification_task(), "budget": "rank=4,steps=6", "target_modules": "attention"}
    return peftprune.compare(methods, model=model, output_dir=folder, **(DEFAULTS | given | more))


def final_ranks(folder: Path) -> dict[tuple[str, int], dict[str, int]]:
    found = {}
    for path in folder.glob("arms/*/result.json"):
        result = json.loads(path.read_text())
        found[result["label"], result["seed"]] = {row["site"]: row["rank"] for row in result["allocation"]}
    return found


def test_the_other_arm_runs_first_and_its_ranks_arrive(
    tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[tuple[str, int]] = []
    run_arm = queue.run_arm

    def noted(plan: Any, inputs: Any, seed: int, *rest: Any) -> Any:
        ran.append((plan.label, seed))
        return run_arm(plan, inputs, seed, *rest)

    monkeypatch.setattr(queue, "run_arm", noted)
    methods = ["shuffled(of='svd:x')", "lora", "svd:x(initial_rank=16)"]
    found = compare(methods, tmp_path, tiny_bert, seeds=2)
    assert not found.failures
    assert ran == [(label, seed) for seed in (0, 1) for label in ("svd:x", "shuffled", "lora")]
    assert found.methods == ["shuffled", "lora", "svd:x"]
    assert list(found.runs()["method"]) == ["shuffled", "lora", "svd:x"] * 2
    ranks = final_ranks(tmp_path)
    for seed in (0, 1):
        assert sorted(ranks["shuffled", seed].values()) == sorted(ranks["svd:x", seed].values())
    ran.clear()
    compare(methods, tmp_path, tiny_bert, seeds=2)
    assert ran == []
    # Another allocation to shuffle is another arm, though its own options are the same.
    compare([methods[0], "svd:x(initial_rank=8)"], tmp_path / "other", tiny_bert)
    assert ran == [("svd:x", 0), ("shuffled", 0)]


def test_a_transplant_has_the_ranks_and_shared_adapters_of_the_other_arm(tiny_bert: Path, tmp_path: Path) -> None:
    drop = "sample=0.25,probe_passes=2,threshold=0.2"
    methods = ["lora", "transplant:t(of='lora')", f"lora-drop({drop})", "transplant:d(of='lora-drop')"]
    methods += [f"lora-drop:half({drop},refill=False)", "transplant:h(of='lora-drop:half')"]
    found = compare(methods, tmp_path, tiny_bert, budget="rank=4,steps=24")
    assert not found.failures
    labels = ["lora", "transplant:t", "lora-drop", "transplant:d", "lora-drop:half", "transplant:h"]
    results = {label: found.arm(label, 0).result() for label in labels}
    assert results["lora"]["digests"]["adapter"] == results["transplant:t"]["digests"]["adapter"]
    assert results["lora"]["metrics"] == results["transplant:t"]["metrics"]
    allocations = {n: [(r["rank"], r["shared_with"]) for r in result["allocation"]] for n, result in results.items()}
    assert any(shared for _, shared in allocations["lora-drop"])
    assert allocations["transplant:d"] == allocations["lora-drop"]
    assert allocations["transplant:h"] == allocations["lora-drop:half"]
    assert results["transplant:d"]["exemption"] is None
    assert results["transplant:h"]["exemption"] == "takes the ranks of lora-drop:half"
    assert results["transplant:h"]["ledger"]["final_params"] == results["lora-drop:half"]["ledger"]["final_params"]
    parts = found.decompose("lora-drop")
    assert list(parts["part"]) == ["ranks", "ranks", "dynamics", "dynamics"]
    gain = found.against("lora").set_index(["method", "metric"])["difference"]
    summed = parts.groupby("metric")["difference"].sum()
    assert all(summed[m] == pytest.approx(gain["lora-drop", m]) for m in ("accuracy", "f1"))
    assert (found.decompose("lora")[["difference", "low", "high"]] == 0).all(axis=None)
    with pytest.raises(UsageError, match=r"'transplant:d' has no transplant in the study. Add transplant\(of="):
        found.decompose("transplant:d")


class OwnRanks(RankPruningStrategy):
    """Trains an adapter at the ranks that a plain configuration gave it."""

    name = "own-ranks"
    given: ClassVar[dict[str, int]] = {}

    def spec(self, sites: Any, budget: ArmBudget) -> AdapterSpec:
        return AdapterSpec(ranks=self.given)


def plain_lora(config: LoraConfig, base: Path) -> Any:
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=2)
    return get_peft_model(model, config)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("request_", ["svd(initial_rank=16)", "top-layers"])
def test_recommended_ranks_train_in_a_plain_script_to_the_bits_of_the_transplant(
    request_: str, tiny_bert: Path, tmp_path: Path
) -> None:
    method, steps = request_.partition("(")[0], 8
    methods = [request_, f"transplant(of='{method}')"]
    found = compare(methods, tmp_path / "study", tiny_bert, budget=f"rank=4,steps={steps}", seeds=[3])
    recommend(found, tmp_path / "out", method=method, seed=3)
    config, scope = LoraConfig.from_pretrained(tmp_path / "out"), dict[str, Any]()
    exec((tmp_path / "out" / "lora_config.py").read_text(), scope)
    assert vars(config) == vars(scope["config"])
    model = plain_lora(config, tiny_bert)
    own = {n: p for n, p in model.named_parameters() if "lora_" in n}
    params = sum(p.numel() for p in own.values())
    assert params == found.arm("transplant", 3).result()["ledger"]["final_params"]
    prefix, suffix = "base_model.model.", ".lora_A.default.weight"
    OwnRanks.given = {n[len(prefix) : -len(suffix)]: len(p) for n, p in own.items() if n.endswith(suffix)}
    prepared = peftprune.prepare(model, OwnRanks, f"params={params}", seed=3)
    args = arguments(tmp_path / "plain", max_steps=steps, lr_scheduler_type="constant", weight_decay=0.01)
    callback = peftprune.PruningCallback(OwnRanks, budget=f"params={params}", schedule="restart")
    rows = peftprune.sampler(examples())
    trainer = plain_trainer(prepared, args, callback, rows=rows, compute_loss_func=classification_loss)
    trainer.train()
    trainer.save_model(str(tmp_path / "trained"))
    trained = load_file(tmp_path / "trained" / "adapter_model.safetensors")
    assert same(trained, stored_adapter(found.arm("transplant", 3)))


def test_what_a_tool_cannot_express_is_said(tiny_bert: Path, tmp_path: Path) -> None:
    drop = "lora-drop(sample=0.25,probe_passes=2,threshold=0.2)"
    methods, steps = ["svd(initial_rank=16)", drop], "rank=4,steps=16"
    found = compare(methods, tmp_path / "study", tiny_bert, scaling=0.3, budget=steps)
    done = recommend(found, tmp_path / "svd", method="svd")
    assert done.evidence == f"{NO_EVIDENCE}: the study has no uniform lora under this budget."
    axolotl, factory = (
        yaml.safe_load((tmp_path / "svd" / f"{name}.yaml").read_text()) for name in ("axolotl", "llamafactory")
    )
    assert axolotl == {}
    assert factory == {"finetuning_type": "lora", "adapter_name_or_path": "untrained"}
    assert "cannot express this scaling" in (tmp_path / "svd" / "axolotl.yaml").read_text()
    with pytest.raises(UsageError, match=r"^method: 'lora-drop' shares one adapter between .*Train transplant\(of="):
        recommend(found, tmp_path / "drop", method="lora-drop")
    assert not (tmp_path / "drop").exists()


def test_evidence_for_ranks_is_a_verdict_against_uniform_lora(tmp_path: Path) -> None:
    stored = store(tmp_path / "stored", methods=("lora", "top", "flat"), seeds=range(5))
    said = evidence(stored, "top")
    assert said.startswith("Evidence: top against lora (rte, budget rank=8; at equal parameters, 5 seeds): accuracy ")
    assert "Holm): better (at the ceiling (1.000)). This includes how top trains; transplant(of='top') would" in said
    assert evidence(stored, "flat").startswith(f"{NO_EVIDENCE}: flat against lora")


def test_whole_alphas_are_written_for_each_tool(tiny_bert: Path, tmp_path: Path) -> None:
    found = compare(["lora", "svd(initial_rank=16)"], tmp_path / "study", tiny_bert)
    recommend(found, tmp_path / "svd", method="svd")
    pack(found.path, tmp_path / "packed")
    arguments_ = ["--method", "lora", "--out", str(tmp_path / "lora")]
    written = CliRunner().invoke(app, ["recommend", str(tmp_path / "packed"), *arguments_])
    assert written.exit_code == 0, written.output
    assert "LLaMA-Factory can express these ranks" in written.output
    ranks = final_ranks(found.path)
    axolotl = yaml.safe_load((tmp_path / "svd" / "axolotl.yaml").read_text())
    config = LoraConfig.from_pretrained(tmp_path / "svd")
    assert axolotl["lora_rank_pattern"] == config.rank_pattern
    assert {*axolotl["lora_target_modules"]} == {n for n, r in ranks["svd", 0].items() if r}
    assert all(axolotl["lora_alpha_pattern"][n] == 2 * r for n, r in config.rank_pattern.items())
    assert axolotl["lora_modules_to_save"] == ["classifier", "score"]
    factory = yaml.safe_load((tmp_path / "lora" / "llamafactory.yaml").read_text())
    assert factory["lora_rank"] * 2 == factory["lora_alpha"] == 8
    assert factory["lora_target"].split(",") == sorted(ranks["lora", 0])


def test_ranks_of_another_study_are_taken_seed_by_seed_and_by_content(tiny_bert: Path, tmp_path: Path) -> None:
    other = compare("svd(initial_rank=16)", tmp_path / "other", tiny_bert, seeds=2, task=classification_task(name="b"))
    pack(other.path, tmp_path / "packed")
    there = f"of='{other.path}',method='svd'"
    methods = [f"transplant({there})", f"shuffled({there})"]
    found = compare(methods, tmp_path / "study", tiny_bert, seeds=2)
    assert not found.failures
    taken, ranks = final_ranks(other.path), final_ranks(found.path)
    for seed in (0, 1):
        assert ranks["transplant", seed] == taken["svd", seed]
        assert sorted(ranks["shuffled", seed].values()) == sorted(taken["svd", seed].values())
    hashes = [arm["hash"] for arm in found.request["arms"]]
    file = other.arm("svd", 1).path / "result.json"
    result = json.loads(file.read_text())
    rows = result["allocation"]
    first, second = next((a, b) for a in rows for b in rows if a["rank"] > b["rank"] and a["kind"] == b["kind"])
    first["rank"], second["rank"] = second["rank"], first["rank"]
    file.write_text(json.dumps(result))
    changed = compare(methods[:1], tmp_path / "changed", tiny_bert, seeds=2)
    assert [arm["hash"] in hashes for arm in changed.request["arms"]] == [True, False]

    def refused(text: str, **more: Any) -> str:
        with pytest.raises(UsageError) as error:
            compare(text, tmp_path / "never", tiny_bert, **more)
        return str(error.value)

    packed = f"transplant(of='{tmp_path / 'packed'}',method='svd')"
    assert refused(packed, seeds=[2]).startswith("transplant: seeds: 2 has no finished arm of svd in ")
    assert "Finished seeds: 0, 1" in refused(methods[0], seeds=[2])
    assert refused("transplant(of='nowhere',method='svd')").startswith("transplant: output_dir: 'nowhere' holds no")
    assert "method: 'sv' is not in the study. It has: svd" in refused(methods[0].replace("svd", "sv"))
    assert "is adapted in one of the two studies only" in refused(methods[0], target_modules="all-linear")
    with pytest.raises(UsageError, match="needs the outcome of svd"):
        peftprune.PruningCallback(methods[0], budget="rank=4")


def test_an_arm_whose_other_failed_says_so_and_succeeds_later(
    tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    methods = ["shuffled(of='svd')", "svd(initial_rank=16)"]
    with monkeypatch.context() as patch:
        patch.setattr(load("svd"), "end_phase", lambda self, view: 1 / 0)
        failed = compare(methods, tmp_path, tiny_bert).failures
    assert failed["shuffled, seed 0"].startswith("shuffled: needs the outcome of 'svd', which failed")
    assert len(failed) == 2
    assert len(compare(methods, tmp_path, tiny_bert).failures) == 0


def test_the_other_label_must_be_in_the_study(tiny_bert: Path, tmp_path: Path) -> None:
    problem = r"^shuffled depends on: 'lora-drop' is not a method of this study. Add lora-drop to methods, .*\(lora\)"
    with pytest.raises(UsageError, match=problem):
        compare("shuffled,lora", tmp_path / "never", tiny_bert)
    assert not (tmp_path / "never").exists()


def test_methods_may_not_depend_on_each_other() -> None:
    with pytest.raises(UsageError, match=r"^methods: 'shuffled:a on shuffled:b on shuffled:a' depend on each other"):
        in_order(parse("shuffled:a(of='shuffled:b'),shuffled:b(of='shuffled:a')"))


def test_others_keep_their_order_and_their_hashes() -> None:
    specs = parse("shuffled(of='delete'),lora,delete,svd")
    assert [s.label for s, _ in in_order(specs)] == ["lora", "delete", "svd", "shuffled"]
    assert [needed for _, needed in in_order(specs)] == [None, None, None, "delete"]
    assert RankPruningStrategy.depends_on.fget(load("lora")()) is None  # type: ignore[attr-defined]
    assert "outcome" not in ArmBudget(1, 1, 1, 1).as_dict()
