"""The precision of the frozen base model: number format, quantisation to 8 or 4 bits, and devices."""

import importlib.util
import warnings
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Literal, get_args

from peftprune.errors import UsageError
from peftprune.strategy.lazy import Module, Tensor, torch, transformers

BaseDtype = Literal["float32", "bfloat16", "float16"]
LoadIn = Literal["8bit", "4bit"]


@dataclass(frozen=True)
class BaseForm:
    """How to load a base model. The default is float32 on the CPU; the trainer moves it.

    `load_in` quantises the linear layers with bitsandbytes: "8bit" (LLM.int8) or "4bit" (NF4). `device_map` places the
    model as in transformers, such as "auto".
    """

    dtype: BaseDtype = "float32"
    load_in: LoadIn | None = None
    device_map: str | None = None

    def arguments(self) -> dict[str, Any]:
        """Returns keyword arguments for `from_pretrained`. Raises UsageError as `check_quantisation` does."""
        found: dict[str, Any] = {"dtype": getattr(torch, self.dtype)}
        if self.device_map is not None:
            found["device_map"] = self.device_map
        if self.load_in is not None:
            check_quantisation(self.load_in, found["dtype"], self.device_map)
            four_bits = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": found["dtype"]}
            options: dict[str, Any] = {f"load_in_{self.load_in}": True, **(four_bits if self.load_in == "4bit" else {})}
            found["quantization_config"] = transformers.BitsAndBytesConfig(**options)
        return found


def check_quantisation(load_in: LoadIn, dtype: Any, device_map: str | None = None) -> None:
    """Refuses quantisation where bitsandbytes is absent or does not work on this machine, with a UsageError.

    `dtype` is that of the products, which depend on it; `device_map` is as in `BaseForm`.
    """
    assert load_in in get_args(LoadIn)
    cure = "Use base_dtype bfloat16, which needs no further package, or a machine that has it"
    if importlib.util.find_spec("bitsandbytes") is None:
        install = 'Install it: pip install "peftprune[quantised]"'
        raise UsageError.of("load_in", load_in, "needs the package bitsandbytes, which is not installed", install)
    try:
        works = transformers.integrations.validate_bnb_backend_availability(raise_exception=False)
        if works:
            # It answers for the kind of device; whether this one has the kernels shows in a product.
            _multiply(load_in, dtype, device_map)
    # Its native library may fail to load in any way.
    except Exception as error:
        raise UsageError.of("load_in", load_in, f"does not work here ({error})", cure) from error
    if not works:
        raise UsageError.of("load_in", load_in, "is not supported by bitsandbytes on this machine", cure)


def _multiply(load_in: LoadIn, dtype: Any, device_map: str | None) -> None:
    """Multiplies by a small quantised matrix, with gradients as in training and one row without as in decoding."""
    import bitsandbytes

    device = torch.accelerator.current_accelerator(check_available=True) if device_map != "cpu" else None
    # The layer's initial values must not shift the random numbers of what follows.
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if load_in == "8bit":
            layer = bitsandbytes.nn.Linear8bitLt(64, 64, bias=False, has_fp16_weights=False)
        else:
            layer = bitsandbytes.nn.Linear4bit(64, 64, bias=False, compute_dtype=dtype, quant_type="nf4")
        layer = layer.requires_grad_(False).to(device or "cpu")
        rows = torch.ones(2, 64, dtype=dtype, device=device or "cpu", requires_grad=True)
        layer(rows).sum().backward()
        with torch.no_grad():
            layer(rows[:1])


def keep_head_exact(model: Module, head: tuple[str, ...]) -> None:
    """Holds the trained task head in float32, whatever the precision of the base model."""
    for name in head:
        model.get_submodule(name).float().register_forward_pre_hook(_in_float32)


def _in_float32(module: Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(a.float() if isinstance(a, torch.Tensor) and a.is_floating_point() else a for a in args)


def pick_dtype(requested: str = "auto") -> str:
    """Returns the dtype to train in: "float32" or "bfloat16". Raises UsageError for another request.

    "auto" takes bfloat16 on a GPU that multiplies it natively, and on a CPU where a product takes at most two thirds of
    float32's time. "bfloat16" is allowed elsewhere: it is then emulated.
    """
    if requested not in ("auto", "float32", "bfloat16"):
        raise UsageError.of("dtype", requested, "is not supported", 'Use "auto", "float32" or "bfloat16"')
    return timed_dtype()[0] if requested == "auto" else requested


def timed_dtype() -> tuple[str, dict[str, float]]:
    """Returns the dtype that "auto" takes, and the seconds that decided it by dtype: empty where there is a GPU."""
    if torch.cuda.is_available():
        return ("bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"), {}
    seconds = product_seconds()
    # Casts, norms and the optimizer stay in float32, so a small gain in products is lost again.
    return ("bfloat16" if 1.5 * seconds["bfloat16"] <= seconds["float32"] else "float32"), seconds


def product_seconds() -> dict[str, float]:
    """Returns the seconds of one matrix product on the CPU by dtype, the best of some within 0.1 seconds."""
    operands = {d: torch.ones(512, 512, dtype=getattr(torch, d)) for d in get_args(BaseDtype)[:2]}
    best = dict.fromkeys(operands, float("inf"))
    until = perf_counter() + 0.1
    for turn in range(100):
        if turn > 1 and perf_counter() > until:
            break
        for dtype, weight in operands.items():
            began = perf_counter()
            torch.mm(weight[:64], weight)
            # The first product of a dtype also prepares its kernel.
            if turn:
                best[dtype] = min(best[dtype], perf_counter() - began)
    return best


def frozen_bytes(model: Module) -> int:
    """Returns the bytes of the frozen weights in memory; tied ones once."""
    held: dict[int, Tensor] = {p.data_ptr(): p for p in model.parameters() if not p.requires_grad}
    return sum(p.numel() * p.element_size() for p in held.values())
