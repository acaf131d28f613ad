"""What `inspect` says is what dense products say."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from peftprune import inspect, prune
from peftprune.adapters.convert import convert
from peftprune.adapters.formats.read import read_adapter
from peftprune.adapters.inspection import effective_rank
from tests.adapters import finished

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


def test_the_effective_rank_is_the_exponential_of_the_entropy() -> None:
    assert effective_rank(torch.ones(6)) == pytest.approx(6)
    assert effective_rank(torch.tensor([3.0, 0.0, 0.0])) == pytest.approx(1)
    assert effective_rank(torch.zeros(3)) == 0
    p = [0.5, 0.3, 0.2]
    assert effective_rank(10 * torch.tensor(p)) == pytest.approx(math.exp(-sum(x * math.log(x) for x in p)))


@pytest.mark.parametrize("form", ["peft", "native"])
def test_every_number_is_that_of_the_dense_product(form: str, tmp_path: Path) -> None:
    finished("bert", "all of it", tmp_path / "adapter")
    found = inspect(convert(tmp_path / "adapter", tmp_path / form, format=form))
    assert found.format == form
    adapter = read_adapter(tmp_path / "adapter")
    groups = {n: [m for m in g if m != n] for g in adapter.groups() for n in g}
    assert len(found.sites) == len(adapter.sites)
    for row in found.sites.to_dict("records"):
        f = adapter.sites[row["site"]]
        values = torch.linalg.svdvals(f.scaling * f.B.double() @ f.A.double())[: f.rank]
        assert found.spectra[row["site"]] == pytest.approx(values.tolist(), rel=1e-5, abs=1e-7)
        assert (row["rank"], row["d_out"], row["d_in"]) == (f.rank, f.B.shape[0], f.A.shape[1])
        assert row["norm"] == pytest.approx(float(values.norm()), rel=1e-6)
        assert row["largest"] == pytest.approx(float(values[0]), rel=1e-6)
        entries = torch.cat([f.A.flatten(), f.B.flatten()])
        assert row["density"] == pytest.approx(float((entries != 0).float().mean()))
        assert row["shared_with"] == ",".join(groups[row["site"]])
        assert f".{row['layer']}." in row["site"]
    assert any(found.sites["shared_with"])
    assert found.sites["density"].max() < 1
    once = sum(adapter.sites[g[0]].rank * adapter.sites[g[0]].unit_cost for g in adapter.groups())
    assert found.totals["params"] == once < found.totals["expanded_params"] == adapter.params
    assert found.totals["head_params"] == 66
    assert found.facts["method"] == "all of it"


def test_the_table_of_costs_is_what_pruning_then_does(tmp_path: Path) -> None:
    finished("bert", "uniform", tmp_path / "adapter")
    found = inspect(tmp_path / "adapter")
    assert list(found.further["rank"]) == [2, 1]
    for row in found.further.to_dict("records"):
        for uniform, column in ((False, "kept_energy"), (True, "uniform_energy")):
            out = tmp_path / f"{row['rank']}-{uniform}"
            done = prune(tmp_path / "adapter", out, budget=f"rank={row['rank']}", uniform=uniform)
            assert row[column] == pytest.approx(done.kept_energy)
            assert done.params_after <= row["params"]
            if uniform:
                assert row["worst_energy"] == pytest.approx(min(done.energies.values()))
                assert done.energies[row["worst_site"]] == pytest.approx(row["worst_energy"])


@pytest.mark.shared_data
def test_roberta_on_mnli_has_24_sites_of_rank_8(roberta_lora: Path) -> None:
    found = inspect(roberta_lora, alpha=16)
    assert list(found.sites["rank"]) == [8] * 24
    assert list(found.sites["layer"]) == [i for i in range(12) for _ in range(2)]
    assert (found.format, found.totals["params"], found.notes) == ("loralib", 24 * 8 * 1536, ())
    assert found.sites["norm"].sum() == pytest.approx(2 * inspect(roberta_lora).sites["norm"].sum())
    assert json.loads(json.dumps(found.as_dict()))["sites"][0]["spectrum"] == found.spectra[found.sites["site"][0]]


def test_names_without_a_layer_and_zero_updates_are_null_in_json(tmp_path: Path) -> None:
    save_file({"proj.lora_A": torch.ones(2, 4), "proj.lora_B": torch.zeros(4, 2)}, tmp_path / "lora.safetensors")
    (site,) = inspect(tmp_path).as_dict()["sites"]
    assert (site["layer"], site["half_energy"], site["effective_rank"]) == (None, None, 0.0)
    assert inspect(tmp_path).further.empty
