"""Runs the authors' released code on the golden cases and stores what it decides in `tests/data/golden/`.

    python -m benchmarks.golden.make lorpa --source path/to/LoRPA

`--source` is a checkout of the repository that `RELEASED` names; EVA needs none, because PEFT holds its authors' code.
The released modules are imported with stand-ins for packages that they import and these functions do not need.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.util
import io
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import torch
from torch import Tensor, nn

from benchmarks.golden import cases

FOLDER = Path(__file__).parents[2] / "tests" / "data" / "golden"


def stand_in(*names: str) -> None:
    """Lets modules be imported that are not installed."""
    for name in names:
        sys.modules[name] = MagicMock(spec=ModuleType(name), __all__=[])


def check_distinct(scores: Tensor) -> None:
    """Refuses a case that rounding could decide."""
    ordered = scores.flatten().double().sort().values
    if not bool((ordered.diff() > 1e-6 * ordered[1:]).all()):
        raise SystemExit("two scores are equal or nearly so; change the cases")


# --- LoRPA ----------------------------------------------------------------------------------------------------------


def lorpa() -> list[Any]:
    """Returns, for each event and site, which of the components before it stay."""
    stand_in("arguments", "tasks", "tasks.utils", "datasets")
    sys.modules["arguments"].get_args = None  # type: ignore[attr-defined]
    released = importlib.import_module("prune")

    def half(weight: Tensor) -> SimpleNamespace:
        return SimpleNamespace(default=SimpleNamespace(weight=SimpleNamespace(data=weight, size=lambda: weight.shape)))

    def run(case: cases.Cuts) -> list[Any]:
        now = [(A.clone(), B.clone()) for A, B in case.sites]
        events = []
        for removed in case.removed:
            projections = [SimpleNamespace(lora_A=half(A), lora_B=half(B)) for A, B in now]
            for A, B in now:
                check_distinct((A * B.T).abs().sum(1))
            layer = SimpleNamespace(
                attention=SimpleNamespace(self=SimpleNamespace(query=projections[0], value=projections[1]))
            )
            roberta = SimpleNamespace(encoder=SimpleNamespace(layer=[layer]))
            model = SimpleNamespace(config=SimpleNamespace(model_type="roberta", num_hidden_layers=1), roberta=roberta)
            rank = len(now[0][0])
            _, left, kept = released.prune(model, rank, removed, {}, "top-k", "magnitude")
            assert left == rank - removed
            events.append([kept[0][part].tolist() for part in ("query_encoder", "value_encoder")])
            now = [(p.lora_A.default.weight.data, p.lora_B.default.weight.data) for p in projections]
        return events

    return [run(cases.lorpa(i)) for i in range(cases.COUNT)]


# --- AdaLoRA, ElaLoRA -----------------------------------------------------------------------------------------------


def triplets(run: cases.Run, method: str) -> nn.ModuleList:
    """Returns modules whose tensors bear the released names."""
    model = nn.ModuleList(nn.Module() for _ in range(run.sites))
    for index in range(run.sites):
        refill(model, run, method, 0, index, run.rank)
    return model


def refill(model: nn.ModuleList, run: cases.Run, method: str, step: int, index: int, rank: int) -> None:
    """Sets a site's tensors and gradients to those of a step."""
    found = cases.components(method, run.case, step, index, rank, run.width)
    pairs = {"A": (found.A, found.grad_A), "B": (found.B, found.grad_B)}
    pairs["E"] = found.gate[:, None].clone(), found.grad_gate[:, None]
    for name, (value, grad) in pairs.items():
        parameter = nn.Parameter(value.clone())
        parameter.grad = grad
        setattr(model[index], f"lora_{name}", parameter)


def combined(allocator: Any, index: int) -> Tensor:
    """Returns the scores of a site's components from the released averages."""
    parts = {name: allocator.calculate_score(f"{index}.lora_{name}") for name in "ABE"}
    return parts["E"][:, 0] + parts["A"].mean(1) + parts["B"].mean(0)


def adalora() -> list[Any]:
    """Returns, for each masking, the step, and each site's components outside the mask; and the last scores."""
    released = importlib.import_module("loralib.adalora")

    def run(case: cases.Run) -> dict[str, Any]:
        model = triplets(case, "adalora")
        allocator = released.RankAllocator(
            model, case.rank, case.target, case.warmup, case.final, case.every, 0.85, 0.85, total_step=case.steps
        )
        events = []
        for step in range(1, case.steps - case.final + 2):
            for index in range(case.sites):
                refill(model, case, "adalora", step, index, case.rank)
            _, threshold = allocator.update_and_mask(model, step)
            if threshold is not None:
                check_distinct(torch.cat([combined(allocator, index) for index in range(case.sites)]))
                events.append([step, [layer.lora_E[:, 0].nonzero().flatten().tolist() for layer in model]])
        return {"events": events, "scores": [combined(allocator, index).tolist() for index in range(case.sites)]}

    return [run(cases.adalora(i)) for i in range(cases.COUNT)]


def elalora() -> list[Any]:
    """Returns, for each round, the step, each site's components that stay, and its rank after it."""
    stand_in("seaborn")
    released = importlib.import_module("loralib.elalora")
    released.plot_rank = lambda *_: None

    def run(case: cases.Run) -> dict[str, Any]:
        model = triplets(case, "elalora")
        options: dict[str, Any] = {"k": 2, "b": case.amount, "enable_scheduler": True, "total_step": case.steps}
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
            allocator = released.RankAllocator(
                model,
                case.rank,
                case.rank,
                case.warmup,
                case.final,
                case.every,
                0.85,
                0.85,
                output_dir=folder,
                **options,
            )
            exchange, scores, events = allocator.mask_to_target_rank, [], []

            def watched(*arguments: Any) -> Any:
                scores[:] = [combined(allocator, index) for index in range(case.sites)]
                return exchange(*arguments)

            allocator.mask_to_target_rank = watched
            for step in range(1, case.steps + 1):
                before = []
                for index, layer in enumerate(model):
                    refill(model, case, "elalora", step, index, len(layer.lora_E))
                    before.append(layer.lora_A.detach().clone())
                _, threshold = allocator.update_and_mask(model, step)
                if threshold is not None:
                    check_distinct(torch.cat(scores))
                    nominated = sum(min(2, len(A) - 1) for A in before)
                    assert allocator.b <= nominated // 2, "a component may be cut and a reason to grow"
                    kept = []
                    for A, layer in zip(before, model, strict=True):
                        rows = layer.lora_A.detach()
                        kept.append([k for k in range(len(A)) if bool((rows == A[k]).all(1).any())])
                    events.append([step, kept, [len(layer.lora_E) for layer in model]])
        return {"events": events}

    return [run(cases.elalora(i)) for i in range(cases.COUNT)]


# --- DoRA with dynamic rank -----------------------------------------------------------------------------------------


def dora_dynamic() -> list[Any]:
    """Returns, for each decision, the step and each site's components outside the mask; last scores and penalty."""
    stand_in("aenum")
    sys.modules["aenum"].Enum = type("Enum", (), {"__members__": ()})  # type: ignore[attr-defined]
    sys.modules["aenum"].NoAlias = None  # type: ignore[attr-defined]
    for name in ("Finetune_Config", "Global_Config", "Tokenize_Config"):
        sys.modules[name] = MagicMock()
    sys.modules["Global_Config"].Dataset_Name_Enum = sys.modules["aenum"].Enum  # type: ignore[attr-defined]
    released = importlib.import_module("Finetune_Utils")

    def run(case: cases.Run) -> dict[str, Any]:
        config = SimpleNamespace(
            linear_name_to_apply_lora_list=["site"], adaptive_lora_start_rank=case.rank, lora_dropout=0.0, lora_alpha=1,
            adaptive_lora_end_avg_rank=case.target, adaptive_lora_start_prune_step_ratio=case.warmup / case.steps,
            adaptive_lora_end_prune_step_ratio=case.final / case.steps, adaptive_lora_sensitivity_beta=0.9,
            adaptive_lora_prune_interval_step=case.every, adaptive_lora_eps=1e-8,
        )  # fmt: skip
        layers = {f"site{i}": nn.Linear(case.width, case.width, bias=False) for i in range(case.sites)}
        model = released.Adaptive_Lora_Model_Wrapper(
            config, nn.ModuleDict({"model": nn.ModuleDict(layers)}), case.steps, main_process_flag=False
        )
        sites, events = list(model.model.model.values()), []
        last = case.steps - case.final
        for step in range(1, last + 1):
            assert model.get_prune_step(step) == (step - case.warmup, last - case.warmup)
            for index, site in enumerate(sites):
                found = cases.components("dora-dynamic", case.case, step, index, case.rank, case.width)
                site.lora_a_linear.weight.data = found.A.clone()
                site.lora_b_linear.weight.data = found.B.clone()
                site.lora_scaler.data = found.gate.clone()
            penalty = model.regularization_loss(step).item()
            model.prune_lora_scaler(step)
            kept = [site.lora_scaler.nonzero().flatten().tolist() for site in sites]
            if sum(map(len, kept)) < case.sites * case.rank:
                check_distinct(torch.cat(list(model.sensitivity_score_dict.values())))
                events.append([step, kept])
        scores = [score.tolist() for score in model.sensitivity_score_dict.values()]
        return {"events": events, "scores": scores, "penalty": penalty}

    return [run(cases.dora_dynamic(i)) for i in range(cases.COUNT)]


# --- FlexLoRA -------------------------------------------------------------------------------------------------------


def flexlora() -> list[Any]:
    """Returns, for each round, the step, each site's entropy before it, the components that stay, and the ranks."""
    stand_in("pandas")
    released = importlib.import_module("loralib.flexlora")

    def run(case: cases.Run) -> list[Any]:
        model, events = triplets(case, "flexlora"), []
        with contextlib.redirect_stdout(io.StringIO()):
            allocator = released.RankAllocator(
                model, case.warmup, case.final, case.every, case.steps, b=case.amount, enable_scheduler=True
            )
            for step in range(1, case.steps + 1):
                for index, layer in enumerate(model):
                    refill(model, case, "flexlora", step, index, len(layer.lora_E))
                before = [layer.lora_E.detach().clone() for layer in model]
                _, moved = allocator.update_and_mask(model, step)
                if moved:
                    # One site of rank 1, whose entropy is not a number, is still above all others.
                    entropies = torch.tensor([allocator.compute_matrix_importance("", E) for E in before])
                    check_distinct(entropies.nan_to_num(1.0))
                    kept = [
                        [k for k, e in enumerate(E) if e in layer.lora_E]
                        for E, layer in zip(before, model, strict=True)
                    ]
                    events.append([step, entropies.nan_to_num(1.0).tolist(), kept, [len(x.lora_E) for x in model]])
        return events

    return [run(cases.flexlora(i)) for i in range(cases.COUNT)]


# --- IncreLoRA ------------------------------------------------------------------------------------------------------


def increlora() -> list[Any]:
    """Returns each step's released sensitivity of every site, and for each round the step and the ranks after it."""
    stand_in("ipdb")
    released = importlib.import_module("loralib.increlora")

    def run(case: cases.Run) -> dict[str, Any]:
        model = nn.ModuleList(released.SVDLinear(case.width, case.width, r=1, bias=False) for _ in range(case.sites))
        allocator = released.RankAllocator(
            model, 1, case.target, case.warmup, case.every, case.amount, False, 0.85, 0.85, case.steps, incre_rank_num=1
        )
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
        for layer in model:
            layer.score = torch.tensor(0.0)
        sensitivities, events = [], []
        with contextlib.redirect_stdout(io.StringIO()):
            allocator.update_and_increase(model, 0, optimizer)
            for step in range(1, case.steps - case.final + 1):
                for index, layer in enumerate(model):
                    rank = int(layer.ranknum)
                    inputs, outputs, found = cases.products(case.case, step, index, rank, case.width)
                    for k in range(rank):
                        layer.lora_A[k].data = found.A[k : k + 1].clone()
                        layer.lora_B[k].data = found.B[:, k : k + 1].clone()
                        layer.lora_E[k].data = found.gate[k].reshape(1, 1).clone()
                    (layer(inputs) * outputs).sum().backward()
                sensitivities.append([float(layer.score) for layer in model])
                _, threshold = allocator.update_and_increase(model, step, optimizer)
                if threshold is not None:
                    check_distinct(
                        torch.tensor([float(allocator.calculate_score(str(i), None)) for i in range(case.sites)])
                    )
                    events.append([step, [int(layer.ranknum) for layer in model]])
        return {"sensitivities": sensitivities, "events": events}

    return [run(cases.increlora(i)) for i in range(cases.COUNT)]


# --- gates and weights ----------------------------------------------------------------------------------------------


def weightlora() -> list[Any]:
    """Returns all weights after each step."""
    released = importlib.import_module("optimizers")

    def run(case: cases.Weights) -> list[Any]:
        weights = [nn.Parameter(w.reshape(1).clone()) for w in case.start]
        group = {"params": weights, "k": case.kept, "proj": released.proj_0, "lr": case.rate, "name": "weight_params"}
        optimizer = released.WeightAdamW([group])
        steps = []
        for gradients in case.gradients:
            for weight, gradient in zip(weights, gradients, strict=True):
                weight.grad = gradient.reshape(1)
            optimizer.step()
            assert all(float(weight) >= 0 for weight in weights)
            steps.append([float(weight) for weight in weights])
        return steps

    return [run(cases.weightlora(i)) for i in range(cases.COUNT)]


def sora() -> list[Any]:
    """Returns the gates after the proximal step of each event."""

    class AdamW(torch.optim.Optimizer):
        """Stands in for transformers' former optimizer, of which only the constructor is called."""

        def __init__(self, params: Any) -> None:
            defaults = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-6, "weight_decay": 0.0, "correct_bias": True}
            super().__init__(params, defaults)

    stand_in("transformers")
    sys.modules["transformers"].AdamW = AdamW  # type: ignore[attr-defined]
    released = importlib.import_module("sparse_optimizer")

    def run(case: cases.Gates) -> list[Any]:
        results = []
        for (gate,) in case.events:
            parameter = nn.Parameter(gate.clone())
            parameter.grad = torch.zeros_like(gate)
            with contextlib.redirect_stdout(io.StringIO()):
                released.SparseAdamW(sparse_lambda=case.threshold, params=[parameter]).step()
            results.append(parameter.tolist())
        return results

    return [run(cases.sora(i)) for i in range(cases.COUNT)]


def l1ra() -> list[Any]:
    """Returns, for each site, the components that stay and the rank after the reassignment."""
    import peft.utils

    peft.utils.get_auto_gptq_quant_linear = None
    stand_in("l1ra", "l1ra.tuner", "l1ra.tuner.gptq", "l1ra.tuner.layer")
    for name, attribute in (("gptq", "L1RAQuantLinear"), ("layer", "L1RALayer"), ("layer", "L1RALinear")):
        setattr(sys.modules[f"l1ra.tuner.{name}"], attribute, None)
    path = Path(sys.path[0]) / "l1ra" / "tuner" / "model.py"
    spec: Any = importlib.util.spec_from_file_location("l1ra.tuner.model", path)
    released = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(released)
    strategy = released.L1RAModel

    def run(case: cases.Gates) -> list[Any]:
        (gates,) = case.events
        model = nn.Module()
        for index, gate in enumerate(gates):
            site = nn.Module()
            marks = torch.arange(1.0, len(gate) + 1)
            # The first number of each component tells which one it was.
            values = {"c": gate.clone(), "A": marks.repeat(4, 1), "B": marks[:, None].repeat(1, 4)}
            for name, value in values.items():
                setattr(site, f"lora_{name}", nn.ParameterDict({"default": nn.Parameter(value)}))
            setattr(model, f"site{index}", site)
        config = SimpleNamespace(rank_update_ratio=0.1, prune_threshold=case.threshold, reassign=True, r=4)
        this = SimpleNamespace(
            model=model, peft_config={"default": config}, trainable_adapter_name="default", active_adapter="default",
            exclude_pruned=True, rank_evolution=[], named_parameters=model.named_parameters,
        )  # fmt: skip
        for name in (
            "remove_elem",
            "remove_row",
            "remove_col",
            "get_module_by_attribute",
            "expand_c",
            "expand_A",
            "expand_B",
        ):
            setattr(this, name, getattr(strategy, name).__get__(this))
        strategy.update_ranks(this, 10, 100)
        found = []
        for index in range(len(gates)):
            site = getattr(model, f"site{index}")
            marks = site.lora_B["default"][:, 0]
            found.append([(marks[marks > 0] - 1).int().tolist(), len(site.lora_c["default"])])
        return found

    cuda = torch.Tensor.cuda
    torch.Tensor.cuda = lambda self: self  # type: ignore[method-assign,assignment]
    try:
        return [run(cases.l1ra(i)) for i in range(cases.COUNT)]
    finally:
        torch.Tensor.cuda = cuda  # type: ignore[method-assign]


# --- DyLoRA, EVA ----------------------------------------------------------------------------------------------------


def dylora() -> list[Any]:
    """Returns, for each number of components used: the outputs and both gradients, of all and of the last one alone."""
    stand_in("loralib.utils")
    released = importlib.import_module("loralib.layers")

    def run(case: cases.Truncation) -> list[Any]:
        layer = released.Linear(case.A.shape[1], case.B.shape[0], r=len(case.A), lora_alpha=len(case.A), bias=False)
        layer.weight.data.zero_()
        layer.lora_A.data, layer.lora_B.data = case.A.clone(), case.B.clone()
        found = []
        for used in range(1, len(case.A) + 1):
            row = []
            for frozen in (False, True):
                layer.zero_grad()
                layer.set_rank(used - 1, frozen=frozen)
                out = layer(case.inputs)
                (out * case.outputs).sum().backward()
                row.append([out.tolist(), layer.lora_A.grad.tolist(), layer.lora_B.grad.tolist()])
            found.append(row)
        return found

    return [run(cases.dylora(i)) for i in range(cases.COUNT)]


def eva() -> list[Any]:
    """Returns each layer's rank, the initial A, and the share of the variance that each row explains."""
    from peft import EvaConfig, LoraConfig
    from peft.tuners.lora.eva import get_eva_state_dict

    class Layers(nn.Module):
        def __init__(self, case: cases.Inputs) -> None:
            super().__init__()
            width = case.inputs[0].shape[1]
            self.layers = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in case.inputs)

        def forward(self, inputs: Sequence[Tensor]) -> None:
            for layer, x in zip(self.layers, inputs, strict=True):
                layer(x)

    def run(case: cases.Inputs) -> list[Any]:
        config = LoraConfig(
            r=case.rank,
            target_modules=["layers"],
            init_lora_weights="eva",
            eva_config=EvaConfig(rho=case.rho, tau=0.999),
        )
        names = [f"layers.{index}" for index in range(len(case.inputs))]
        config.target_modules = names
        found = get_eva_state_dict(
            Layers(case), [case.inputs], config, forward_fn=lambda model, inputs: model(inputs),
            prepare_model_inputs_fn=None, prepare_layer_inputs_fn=None, show_progress_bar=False,
        )  # fmt: skip
        return [found[name].tolist() if name in found else [] for name in names]

    return [run(cases.eva(i)) for i in range(cases.COUNT)]


# --- GoRA -----------------------------------------------------------------------------------------------------------


def gora() -> list[Any]:
    """Returns the importance and rank of each site, and its first B, as the scripts set the options."""
    folder = ModuleType("common.lora_modules")
    folder.__path__ = [str(Path(sys.path[0]) / "common" / "lora_modules")]
    sys.modules["common.lora_modules"] = folder
    stand_in("bitsandbytes")
    for name in ("common.lora_modules.adalomo", "common.utils", "common.utils.utils"):
        sys.modules[name] = MagicMock()
    released = importlib.import_module("common.lora_modules.gora")

    def run(case: cases.Probe) -> dict[str, Any]:
        options = SimpleNamespace(
            global_rank=0, world_size=1, device="cpu", lora_rank=case.uniform, gora_importance_type="union_mean",
            gora_scale_importance=False, gora_softmax_importance=False, gora_features_func=None,
            gora_allocate_stretagy="moderate", gora_min_rank=case.uniform // 2, gora_max_rank=4 * case.uniform,
        )  # fmt: skip
        model = nn.ModuleList()
        for weight, gradients in zip(case.weights, case.gradients, strict=True):
            config = released.LoRAConfig(weight.shape[1], weight.shape[0], lora_rank=case.uniform, lora_scaler=16)
            layer = released.LinearWithGoRA(config, gora_rank_stablize=True, gora_dynamic_scaling=True)
            layer.weight.data = weight.clone()
            layer.weight.grad_stored, layer.weight.iters = sum(gradients), len(gradients)
            model.append(layer)
        _, _, ranks, importances, _ = released.get_allocated_rank(model, options)
        assert list(ranks.values()) == case.ranks
        for layer, rank, A in zip(model, case.ranks, case.A, strict=True):
            layer._init_weight = lambda _, layer=layer, A=A: layer.weight_a.data.copy_(A)
            layer.weight.grad_stored /= layer.weight.iters
            layer.dynamic_init(case.uniform, rank, scaling_by_lr=True, lr=0.05)
        found = {"importances": list(importances.values()), "ranks": list(ranks.values())}
        return found | {"B": [layer.weight_b.tolist() for layer in model]}

    return [run(cases.gora(i)) for i in range(cases.COUNT)]


RELEASED: dict[str, tuple[Callable[[], list[Any]], str, str, str]] = {
    "lorpa": (lorpa, "JuHyng/LoRPA", "", "prune.py"),
    "adalora": (adalora, "QingruZhang/AdaLoRA", "loralib", "loralib/loralib/adalora.py"),
    "dora-dynamic": (
        dora_dynamic,
        "MIkumikumi0116/DoRA",
        "Src/Finetune_And_Benchmark",
        "Src/Finetune_And_Benchmark/Finetune_Utils.py",
    ),
    "elalora": (elalora, "HuandongChang/ElaLoRA", "loralib", "loralib/loralib/elalora.py"),
    "flexlora": (flexlora, "Chongjie-Si/Subspace-Tuning", "loralib", "loralib/loralib/flexlora.py"),
    "increlora": (increlora, "FeiyuZhang98/IncreLoRA", "loralib", "loralib/loralib/increlora.py"),
    "weightlora": (weightlora, "Vepricov/Weight_Lora", "src", "src/optimizers.py"),
    "sora": (sora, "TsinghuaC3I/SoRA", "src", "src/sparse_optimizer.py"),
    "l1ra": (l1ra, "raul-singh/L1RA", "src", "src/l1ra/tuner/model.py"),
    "dylora": (dylora, "huawei-noah/Efficient-NLP", "DyLoRA", "DyLoRA/loralib/layers.py"),
    "gora": (gora, "hhnqqq/MyTransformers", "", "common/lora_modules/gora.py"),
    "eva": (eva, "huggingface/peft", "", "src/peft/tuners/lora/eva.py"),
}
"""Method to its runner, the repository, the folder that its modules are imported from, and the file."""


def rounded(value: Any) -> Any:
    """Returns numbers with the nine digits that single precision needs."""
    if isinstance(value, list):
        return [rounded(v) for v in value]
    if isinstance(value, dict):
        return {k: rounded(v) for k, v in value.items()}
    return float(f"{value:.9g}") if isinstance(value, float) else value


def commit(source: Path | None) -> str:
    """Returns the commit of the checkout, or PEFT's version."""
    if source is None:
        import peft

        return f"v{peft.__version__}"
    command = ["git", "-C", str(source), "rev-parse", "HEAD"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("method", choices=RELEASED)
    parser.add_argument("--source", type=Path, help="checkout of the authors' repository")
    arguments = parser.parse_args()
    run, repository, folder, file = RELEASED[arguments.method]
    command = f"python -m benchmarks.golden.make {arguments.method}"
    if arguments.source is not None:
        sys.path.insert(0, str(arguments.source / folder))
        command += f" --source {repository.partition('/')[2]}"
    found = {
        "repository": repository,
        "commit": commit(arguments.source),
        "file": file,
        "command": command,
        "cases": rounded(run()),
    }
    head = json.dumps({k: v for k, v in found.items() if k != "cases"}, indent=1)[:-2]
    rows = ",\n".join(json.dumps(case, separators=(",", ":")) for case in found["cases"])
    (FOLDER / f"{arguments.method}.json").write_text(f'{head},\n "cases": [\n{rows}\n]}}\n')
    print(f"{arguments.method}: {len(found['cases'])} cases from {repository} {found['commit']}")


if __name__ == "__main__":
    main()
