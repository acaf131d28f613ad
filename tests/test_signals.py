"""Collected statistics equal the slow reference over inputs that independent hooks stored whole."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch.nn.functional import pad

from peftprune.adapters.surgery import apply_plan
from peftprune.errors import RunError
from peftprune.scoring import output_energy
from peftprune.strategy.plan import PruningPlan
from peftprune.strategy.signal import Signal
from peftprune.training.signals import Collectors, token_mask
from tests.reference import signals as slow
from tests.tiny import adapt, random_batch, stir, tiny_bart, tiny_bert, tiny_deberta, tiny_llama_gqa

BOTH = frozenset({Signal.INPUT_NORM, Signal.OUTPUT_ENERGY})
NORM = frozenset({Signal.INPUT_NORM})
LAYER = "bert.encoder.layer.{}.attention.self.{}"


class Stored:
    """Every input of every site, with the mask that the test says applies to its stream."""

    def __init__(self, sites):
        self.inputs = {name: [] for name in sites}
        self.masks = {}
        for site in sites.values():
            site._layer.register_forward_pre_hook(self._hook(site))

    def _hook(self, site):
        def hook(module, args):
            self.inputs[site.name].append((args[0].detach().clone(), self.masks.get(site.shape.stream)))

        return hook


def adapted(base, **kwargs):
    model, sites = adapt(base, **kwargs)
    stir(sites)
    model.train()
    return model, sites, Stored(sites)


def collect(model, sites, batches, signals=BOTH):
    collectors = Collectors(model, sites, signals)
    collectors.arm()
    for batch in batches:
        model(**batch).loss.backward()
    taken = collectors.take()
    collectors.remove()
    return taken, collectors


def assert_norms(found, stored):
    assert found.keys() == stored.inputs.keys()
    for name, inputs in stored.inputs.items():
        torch.testing.assert_close(found[name], torch.tensor(slow.input_norm(inputs)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("base", [tiny_bert(layers=1), tiny_llama_gqa(layers=1)], ids=["bert", "llama"])
def test_input_norm_without_padding_tokens(base):
    model, sites, stored = adapted(base)
    batch = random_batch(batch=2, length=5)
    assert not batch["attention_mask"].all()
    stored.masks["self"] = batch["attention_mask"]
    taken, _ = collect(model, sites, [batch])
    assert_norms(taken[Signal.INPUT_NORM], stored)


def test_padding_would_have_counted():
    """The stored inputs of padding tokens are not zero: leaving the mask out gives something else."""
    model, sites, stored = adapted(tiny_bert(layers=1), targets=["query"])
    taken, _ = collect(model, sites, [random_batch(batch=2, length=5)])
    (name,) = sites
    unmasked = torch.tensor(slow.input_norm(stored.inputs[name]))
    assert not torch.allclose(taken[Signal.INPUT_NORM][name], unmasked, rtol=0.01)


def test_signals_do_not_depend_on_how_much_padding_there_is():
    batch = random_batch(batch=2, length=5)
    longer = {
        "input_ids": pad(batch["input_ids"], (0, 4), value=1),
        "attention_mask": pad(batch["attention_mask"], (0, 4)),
        "labels": batch["labels"],
    }
    found = []
    for given in (batch, longer):
        model, sites, _ = adapted(tiny_bert(layers=2))
        found.append(collect(model, sites, [given])[0])
    for signal in BOTH:
        for name, value in found[0][signal].items():
            torch.testing.assert_close(value, found[1][signal][name], rtol=1e-4, atol=1e-6)


def test_micro_batches_are_summed():
    model, sites, stored = adapted(tiny_bert(layers=1))
    collectors = Collectors(model, sites, NORM)
    collectors.arm()
    for seed, length in ((1, 5), (2, 4)):
        batch = random_batch(batch=2, length=length, seed=seed)
        stored.masks["self"] = batch["attention_mask"]
        model(**batch).loss.backward()
    assert all(len(inputs) == 2 for inputs in stored.inputs.values())
    assert_norms(collectors.take()[Signal.INPUT_NORM], stored)


def test_each_step_starts_at_zero():
    model, sites, _ = adapted(tiny_bert(layers=1))
    collectors = Collectors(model, sites, BOTH)
    batch, found = random_batch(batch=2, length=5), []
    for _ in range(2):
        collectors.arm()
        model(**batch)
        found.append(collectors.take())
    for signal in BOTH:
        for name, value in found[0][signal].items():
            assert torch.equal(value, found[1][signal][name])


def test_sites_that_read_the_same_input_share_one_collector():
    model, sites, _ = adapted(tiny_bert(layers=2))
    collectors = Collectors(model, sites, NORM)
    collectors.arm()
    model(**random_batch())
    for layer in (0, 1):
        leaders = {collectors.leader[LAYER.format(layer, kind), 0] for kind in ("query", "key", "value")}
        assert leaders == {(LAYER.format(layer, "query"), 0)}
    # Per layer: q, k and v together, the attention's output, and both feed-forward layers.
    assert len(collectors._sums) == 2 * 4
    taken = collectors.take()[Signal.INPUT_NORM]
    assert len(taken) == len(sites) == 2 * 6
    assert torch.equal(taken[LAYER.format(0, "key")], taken[LAYER.format(0, "query")])


def test_a_site_whose_leader_is_dropped_goes_on():
    model, sites, stored = adapted(tiny_bert(layers=1), targets=["query", "value"])
    query, value = sites
    collectors = Collectors(model, sites, NORM)
    for step in range(2):
        batch = random_batch(batch=2, length=5, seed=step)
        stored.masks["self"] = batch["attention_mask"]
        stored.inputs[value].clear()
        collectors.arm()
        model(**batch)
        taken = collectors.take()[Signal.INPUT_NORM]
        apply_plan(sites, PruningPlan(drop=frozenset({query})))
    assert taken.keys() == {value}
    torch.testing.assert_close(taken[value], torch.tensor(slow.input_norm(stored.inputs[value])))


# --- when nothing is collected -------------------------------------------------------------------------------------


def test_nothing_is_collected_outside_arm_and_take():
    """Evaluation runs between take and arm."""
    model, sites, _ = adapted(tiny_bert(layers=1))
    collectors = Collectors(model, sites, BOTH)
    batch = random_batch(batch=2, length=5)
    model(**batch)
    assert not collectors._sums
    collectors.arm()
    model(**batch)
    once = collectors.take()
    model.eval()
    with torch.no_grad():
        model(**random_batch(seed=5))
    again = collectors.take()
    for signal in BOTH:
        for name, value in once[signal].items():
            assert torch.equal(value, again[signal][name])


def test_nothing_is_collected_after_removal():
    model, sites, _ = adapted(tiny_bert(layers=1))
    collectors = Collectors(model, sites, BOTH)
    collectors.remove()
    collectors.arm()
    model(**random_batch())
    assert collectors.take() == {Signal.INPUT_NORM: {}, Signal.OUTPUT_ENERGY: {}}


def test_undeclared_signals_put_no_hook_on_the_model():
    model, sites, _ = adapted(tiny_bert(layers=1))
    collectors = Collectors(model, sites, frozenset())
    assert not collectors._handles
    collectors.arm()
    model(**random_batch())
    assert collectors.take() == {}


def test_a_failed_forward_pass_leaves_no_half_open_state():
    model, sites, _ = adapted(tiny_bert(layers=1))
    collectors = Collectors(model, sites, BOTH)
    collectors.arm()
    with pytest.raises(IndexError):
        model(input_ids=torch.full((1, 3), 10**6))
    assert collectors._inputs is None


def test_recomputation_under_activation_checkpointing_adds_nothing():
    found, calls = [], []
    for checkpointing in (False, True):
        model, sites, stored = adapted(tiny_bert(layers=2))
        if checkpointing:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # renamed in newer versions of transformers
                model.get_base_model().gradient_checkpointing_enable({"use_reentrant": False})
        found.append(collect(model, sites, [random_batch(batch=2, length=5)])[0])
        calls.append(len(stored.inputs[LAYER.format(0, "query")]))
    assert calls == [1, 2], "the second pass should have been recomputed"
    for signal in BOTH:
        for name, value in found[0][signal].items():
            torch.testing.assert_close(value, found[1][signal][name])


def test_collecting_changes_neither_loss_nor_gradients():
    batch, grads = random_batch(), []
    for signals in (frozenset(), BOTH):
        model, sites, _ = adapted(tiny_bert(layers=2))
        collect(model, sites, [batch], signals)
        grads.append([site.grad_A for site in sites.values()])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_collected_tensors_carry_no_graph():
    model, sites, _ = adapted(tiny_bert(layers=1))
    taken, _ = collect(model, sites, [random_batch()])
    assert not any(value.requires_grad for values in taken.values() for value in values.values())


# --- encoder-decoder -----------------------------------------------------------------------------------------------


def shifted(mask):
    """The decoder's tokens: a start token, which is real, then the encoder's but the last."""
    rows = [[1, *row[:-1]] for row in mask.tolist()]
    return torch.tensor(rows)


@pytest.mark.parametrize("explicit", [False, True])
def test_encoder_decoder_streams_have_their_own_masks(explicit):
    model, sites, stored = adapted(tiny_bart(layers=1))
    batch = random_batch(batch=3, length=6)
    decoder_mask = shifted(batch["attention_mask"])
    if explicit:
        decoder_mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0], [1, 1, 0, 0, 0, 0]])
        batch["decoder_attention_mask"] = decoder_mask
    stored.masks = {"encoder": batch["attention_mask"], "cross": batch["attention_mask"], "decoder": decoder_mask}
    taken, collectors = collect(model, sites, [batch])
    assert {s.shape.stream for s in sites.values()} == {"encoder", "decoder", "cross"}
    assert_norms(taken[Signal.INPUT_NORM], stored)
    cross = [n for n, s in sites.items() if s.shape.stream == "cross"]
    assert len(cross) == 2
    assert len({collectors.leader[n, 0] for n in cross}) == 1


def test_token_mask():
    encoder = torch.tensor([[1, 1, 0]])
    decoder = torch.tensor([[1, 0]])
    labels = torch.tensor([[5, -100, 7, -100]])
    assert token_mask({}, "self") is None
    for stream in ("self", "encoder", "cross"):
        assert token_mask({"attention_mask": encoder, "decoder_attention_mask": decoder}, stream) is encoder
    assert token_mask({"attention_mask": encoder, "decoder_attention_mask": decoder}, "decoder") is decoder
    assert token_mask({"attention_mask": encoder, "labels": labels}, "decoder").tolist() == [[1, 0, 1, 0]]
    assert token_mask({"attention_mask": encoder, "labels": torch.tensor([1])}, "decoder").tolist() == [[1, 1, 1]]
    assert token_mask({"attention_mask": encoder, "decoder_input_ids": decoder}, "decoder") is None


def test_a_site_that_never_reads_the_batch_is_an_error():
    model, sites, _ = adapted(tiny_bert(layers=1), targets=["intermediate.dense"])
    (site,) = sites.values()
    # Like attention in windows, which pads what it reads.
    site._layer.register_forward_pre_hook(lambda module, args: (pad(args[0], (0, 0, 0, 3)),))
    site._layer.register_forward_hook(lambda module, args, output: output[:, :-3])
    with pytest.raises(RunError, match=r"dense' reads tokens of shape \(2, 8\).*shape \(2, 5\)\. Leave this site out"):
        collect(model, sites, [random_batch(batch=2, length=5)], NORM)


# --- calls on something else than the batch ------------------------------------------------------------------------


@pytest.mark.parametrize("masked", [True, False])
def test_calls_on_relative_positions_are_not_counted(masked):
    """DeBERTaV3 sends its relative positions through the projections of queries and keys as well."""
    model, sites, stored = adapted(tiny_deberta(layers=1))
    batch = random_batch(batch=2, length=5)
    if not masked:
        del batch["attention_mask"]
    stored.masks["self"] = batch.get("attention_mask")
    taken, collectors = collect(model, sites, [batch])
    query, key = (next(n for n in sites if n.endswith(f"{kind}_proj")) for kind in ("query", "key"))
    for name in (query, key):
        tokens, positions = (inputs for inputs, _ in stored.inputs[name])
        assert [len(tokens), len(positions)] == [2, 1]
    for name, inputs in stored.inputs.items():
        stored.inputs[name] = inputs[:1]
        energy = output_energy(sites[name].A, sites[name].B, *inputs[0], 2.0)
        assert float(taken[Signal.OUTPUT_ENERGY][name]) == pytest.approx(energy, rel=1e-4)
    assert_norms(taken[Signal.INPUT_NORM], stored)
    assert collectors.leader[key, 0] == (query, 0)


def test_every_call_of_a_projection_counts():
    """The second input of the query is its own: the key, which shares the first one, must not inherit it."""
    model, sites, stored = adapted(tiny_bert(layers=1), targets=["query", "key"])
    attention = model.get_base_model().bert.encoder.layer[0].attention.self
    inner = attention.forward
    attention.forward = lambda x, *args, **kwargs: (inner(x, *args, **kwargs), attention.query(2 * x))[0]
    batch = random_batch(batch=2, length=5)
    stored.masks["self"] = batch["attention_mask"]
    taken, _ = collect(model, sites, [batch])
    assert [len(inputs) for inputs in stored.inputs.values()] == [2, 1]
    assert_norms(taken[Signal.INPUT_NORM], stored)
    for name, inputs in stored.inputs.items():
        energies = [output_energy(sites[name].A, sites[name].B, x, mask, 2.0) for x, mask in inputs]
        assert float(taken[Signal.OUTPUT_ENERGY][name]) == pytest.approx(sum(energies), rel=1e-4)


# --- output energy -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("base", [tiny_bert(layers=2), tiny_bart(layers=1), tiny_llama_gqa(layers=1)])
def test_output_energy_equals_the_pure_function(base):
    model, sites, stored = adapted(base)
    batch = random_batch(batch=3, length=6)
    encoder = batch["attention_mask"]
    stored.masks = {"self": encoder, "encoder": encoder, "cross": encoder, "decoder": shifted(encoder)}
    taken, _ = collect(model, sites, [batch])
    assert taken[Signal.OUTPUT_ENERGY].keys() == sites.keys()
    for name, site in sites.items():
        ((x, mask),) = stored.inputs[name]
        expected = output_energy(site.A, site.B, x, mask, site.scaling)
        assert expected > 0
        assert float(taken[Signal.OUTPUT_ENERGY][name]) == pytest.approx(expected, rel=1e-4)


def test_output_energy_is_collected_in_eval_mode_when_armed():
    """The scoring phase of a forward-only kind runs so."""
    model, sites, stored = adapted(tiny_bert(layers=1))
    batch = random_batch(batch=2, length=5)
    stored.masks["self"] = batch["attention_mask"]
    collectors = Collectors(model, sites, frozenset({Signal.OUTPUT_ENERGY}))
    collectors.arm()
    model.eval()
    with torch.no_grad():
        model(**batch)
    taken = collectors.take()[Signal.OUTPUT_ENERGY]
    for name, site in sites.items():
        ((x, mask),) = stored.inputs[name]
        assert float(taken[name]) == pytest.approx(output_energy(site.A, site.B, x, mask, 2.0), rel=1e-4)
