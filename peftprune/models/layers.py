"""Find the linear layers of a transformers model that can carry a LoRA, and the task head.

No table of architectures is needed. Three conventions of transformers are enough:

- the blocks of a stack sit in a list called `layer`, `layers`, `h`, `block` or `blocks`;
- query, key and value projections have one of a few names;
- everything beside the base model (`base_model_prefix`) is the task head. A model that generates has none: its
  language-model head is pre-trained and stays frozen.

All functions read names and shapes only, so they work on the meta device.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from peftprune.errors import UsageError, closest
from peftprune.strategy.lazy import nn
from peftprune.strategy.sites import SiteShape, Stream

QUERY_NAMES = frozenset({"query", "query_proj", "q_proj", "q", "q_lin"})
KEY_NAMES = frozenset({"key", "key_proj", "k_proj", "k", "k_lin"})
VALUE_NAMES = frozenset({"value", "value_proj", "v_proj", "v", "v_lin"})
CROSS_ATTENTION_NAMES = frozenset({"encoder_attn", "EncDecAttention", "crossattention"})

# The first match counts: T5 has lists within its blocks (`block.0.layer.1`).
_BLOCK = re.compile(r"(?:^|\.)(?:layers?|h|blocks?)\.(\d+)\.")


@dataclass(frozen=True)
class _Linear:
    """A linear layer outside the head, and its place. For layers outside all blocks, `layer` is None and `local` (the
    name within the block) is the name below the base model."""

    name: str
    stack: Stream
    layer: int | None
    local: str
    d_in: int
    d_out: int

    @property
    def last(self) -> str:
        return self.name.rpartition(".")[2]

    @property
    def stream(self) -> Stream:
        """The stack whose tokens the layer reads: keys and values of cross-attention read the encoder's."""
        crosses = not CROSS_ATTENTION_NAMES.isdisjoint(self.name.split("."))
        if self.stack == "decoder" and crosses and self.last in KEY_NAMES | VALUE_NAMES:
            return "cross"
        return self.stack


def discover_sites(model: nn.Module, target_modules: str | Sequence[str] = "attention") -> tuple[SiteShape, ...]:
    """Returns the layers that a LoRA adapts, in module order.

    `target_modules` is "attention" (query and value projections, those of cross-attention included), "all-linear" (all
    linear layers inside the transformer blocks: no pooler, no head, no projection of the embeddings), or a list of
    module names or name endings, as in PEFT: an item matches the module of exactly that name and those whose name ends
    with "." + item.

    A list may also name linear layers outside the blocks. Their `layer` is 0 if they come before the blocks and the
    last layer of the model if they come after them; their `kind` is the name below the base model. Layers of the task
    head are trained in full, so they never become sites.

    Raises UsageError where nothing matches, a list item matches no linear layer or none outside the head, or
    `target_modules` is neither of the two words nor a list.
    """
    linears = _linear_layers(model)
    if target_modules == "attention":
        chosen = [item for item in linears if item.layer is not None and item.last in QUERY_NAMES | VALUE_NAMES]
        if not chosen:
            raise _nothing_found(target_modules, "names no query or value projection of this model", linears)
    elif target_modules == "all-linear":
        chosen = [item for item in linears if item.layer is not None]
        if not chosen:
            raise _nothing_found(target_modules, "finds no linear layer inside a transformer block", linears)
    elif isinstance(target_modules, str):
        cure = f'Use "attention", "all-linear" or a list of module names, for example [{target_modules!r}]'
        raise UsageError.of("target_modules", target_modules, "is not a known choice", cure)
    else:
        chosen = _named(model, linears, target_modules)
    kinds, layers = _kinds(linears), _layers(linears)
    return tuple(SiteShape(m.name, layers[m.name], kinds[m.name], m.d_in, m.d_out, m.stream) for m in chosen)


def left_out(model: nn.Module, target_modules: str | Sequence[str]) -> str | None:
    """Returns what "all-linear" cannot adapt in the transformer blocks, in words; None where that is nothing.

    These are matrices that are not linear layers, such as the experts of a mixture, which transformers holds as tensors
    of three dimensions, and its router.
    """
    from transformers.pytorch_utils import Conv1D

    if target_modules != "all-linear":
        return None
    sizes: Counter[str] = Counter()
    for name, parameter in model.named_parameters():
        match, owner = _BLOCK.search(name), model.get_submodule(name.rpartition(".")[0])
        if match and parameter.dim() > 1 and not isinstance(owner, nn.Linear | Conv1D | nn.Embedding):
            sizes[name[match.end() :].removesuffix(".weight")] += parameter.numel()
    if not sizes:
        return None
    which = f"{', '.join(sizes)} ({sizes.total():,} parameters)"
    return f"all-linear leaves out {which}: these are not linear layers. They stay frozen, and FLOPs do not count them."


def head_modules(model: nn.Module) -> tuple[str, ...]:
    """Returns the names of the newly initialised task-head modules, which are trained in full beside the LoRA.

    They are the children of the model, other than the base model, that hold parameters: `classifier` for BERT,
    `pooler` and `classifier` for DeBERTa, `score` for Llama, `classification_head` for BART. The pooler of BERT is part
    of the base model and keeps its pre-trained weights. PEFT calls these modules `modules_to_save`. Models that
    generate have none.
    """
    if language_model_head(model) is not None:
        return ()
    prefix = getattr(model, "base_model_prefix", "")
    children = [(name, child) for name, child in model.named_children() if name != prefix]
    return tuple(name for name, child in children if next(child.parameters(), None) is not None)


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """Returns the numbers of parameters outside the task head and inside it."""
    head = {id(p) for name in head_modules(model) for p in model.get_submodule(name).parameters()}
    sizes = [(p.numel(), id(p) in head) for p in model.parameters()]
    return sum(n for n, inside in sizes if not inside), sum(n for n, inside in sizes if inside)


def language_model_head(model: nn.Module) -> nn.Module | None:
    """Returns the layer that maps hidden states to scores of tokens; None where the model has none."""
    find = getattr(model, "get_output_embeddings", None)
    return None if find is None else find()


def base_linear_cost(model: nn.Module) -> dict[str, Any]:
    """Returns what an analytic estimate of the base model's floating-point operations needs.

    `linear_params_per_layer` maps (stream, layer) to the weights, without biases, of the linear layers inside a block:
    a forward pass spends 2 operations per weight and token of the stream, see `SiteShape.stream`. `hidden_size` is the
    model's width, and `attention_layers` counts one attention per block and one more with cross-attention.
    """
    params: Counter[tuple[Stream, int]] = Counter()
    attentions = set()
    for item in _linear_layers(model):
        if item.layer is not None:
            params[item.stream, item.layer] += item.d_in * item.d_out
            crosses = not CROSS_ATTENTION_NAMES.isdisjoint(item.name.split("."))
            attentions |= {(item.stack, item.layer, False), (item.stack, item.layer, crosses)}
    config: Any = model.config
    sizes = {"hidden_size": int(config.hidden_size), "attention_layers": len(attentions)}
    return {"linear_params_per_layer": dict(params), **sizes}


def _linear_layers(model: nn.Module) -> list[_Linear]:
    """Returns all linear layers outside the head, in module order."""
    heads = head_modules(model)
    two_stacks = bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))
    prefix = getattr(model, "base_model_prefix", "")
    found = []
    for name, shape in _named_linears(model):
        if any(name == head or name.startswith(f"{head}.") for head in heads):
            continue
        match = _BLOCK.search(name)
        layer, local = (int(match[1]), name[match.end() :]) if match else (None, name.removeprefix(f"{prefix}."))
        before_block = name[: match.start()] if match else name
        stack: Stream = "self"
        if two_stacks:
            stack = "decoder" if "decoder" in before_block.split(".") else "encoder"
        found.append(_Linear(name, stack, layer, local, *shape))
    return found


def _named_linears(model: nn.Module) -> Iterable[tuple[str, tuple[int, int]]]:
    """Yields (name, (d_in, d_out)) of every linear layer, including the task head's, without the language-model head.

    A layer that PEFT adapted counts once.
    """
    from transformers.pytorch_utils import Conv1D

    frozen = language_model_head(model)
    adapted = "\0"
    for name, module in model.named_modules():
        if module is frozen or name.startswith(adapted):
            continue
        layer = getattr(module, "base_layer", module)
        if layer is not module:
            adapted = f"{name}."
        if isinstance(layer, nn.Linear):
            yield name, (layer.in_features, layer.out_features)
        elif isinstance(layer, Conv1D):  # GPT-2 stores its weights transposed: (d_in, d_out)
            yield name, (layer.weight.shape[0], layer.weight.shape[1])


def _matches(name: str, item: str) -> bool:
    """Returns whether an item of a `target_modules` list matches a name, by PEFT's rule."""
    return name == item or name.endswith(f".{item}")


def _named(model: nn.Module, linears: Sequence[_Linear], items: Sequence[str]) -> list[_Linear]:
    """Returns the layers that a list of names matches; each item must match at least one."""
    if not items:
        raise UsageError.of("target_modules", list(items), "is empty", "Name at least one module")
    for item in items:
        if any(_matches(linear.name, item) for linear in linears):
            continue
        if any(_matches(name, item) for name, _ in _named_linears(model)):
            heads = ", ".join(head_modules(model))
            cure = f"The head ({heads}) is trained in full beside the LoRA; leave it out"
            raise UsageError.of("target_modules", item, "matches only layers of the task head", cure)
        raise _nothing_found(item, "matches no linear layer", linears)
    return [linear for linear in linears if any(_matches(linear.name, item) for item in items)]


def _nothing_found(value: str, problem: str, linears: Sequence[_Linear]) -> UsageError:
    """Returns a UsageError that lists the layers to choose from, the closest name first."""
    names = dict.fromkeys(_suffixes(linears).values())
    if not names:
        return UsageError.of("target_modules", value, problem, "This model has no linear layers outside its head")
    if all(linear.layer is None for linear in linears):
        return UsageError.of("target_modules", value, problem, f"Its linear layers are: {', '.join(names)}")
    # A short name may exist in several places (`dense`); suggesting the last component would hide that.
    close = closest(value, names)
    attention = [name for name in names if "attn" in name or "attention" in name.lower()]
    example = [close] if close else attention[:1] or list(names)[:1]
    cure = f"The linear layers of a block are: {', '.join(names)}. Name some of them in a list, for example {example!r}"
    return UsageError.of("target_modules", value, problem, cure)


def _suffixes(linears: Sequence[_Linear]) -> Mapping[str, str]:
    """Returns, for each layer inside a block (or, in a model without blocks, each layer), the shortest dotted ending of
    its name that no other layer of a block of the same stack shares; its name within the block if all are shared.

    `attention.output.dense` and `output.dense` of BERT are an example of the latter: the second is an ending of the
    first, so no ending of it is unique. Blocks of one stack are compared together, so that a role has one name even
    where the blocks differ.
    """
    inside = [item for item in linears if item.layer is not None] or list(linears)
    by_stack: dict[Stream, dict[str, None]] = {}
    for item in inside:
        by_stack.setdefault(item.stack, {})[item.local] = None
    shared = {stack: Counter(end for local in names for end in _endings(local)) for stack, names in by_stack.items()}
    return {m.name: next((end for end in _endings(m.local) if shared[m.stack][end] == 1), m.local) for m in inside}


def _endings(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[i:]) for i in range(len(parts) - 1, -1, -1)]


def _kinds(linears: Sequence[_Linear]) -> dict[str, str]:
    suffixes = _suffixes(linears)
    kinds = {}
    for item in linears:
        kind = suffixes.get(item.name, item.local)
        stack_prefix = "" if item.stack == "self" else f"{item.stack}."
        kinds[item.name] = stack_prefix + kind.removeprefix(stack_prefix)
    return kinds


def _layers(linears: Sequence[_Linear]) -> dict[str, int]:
    """Returns `SiteShape.layer` of every layer, by name: outside the blocks, 0 before them and the last layer after."""
    layers: dict[str, int] = {}
    last: dict[Stream, int] = {}
    for item in linears:
        if item.layer is not None:
            last[item.stack] = max(last.get(item.stack, 0), item.layer)
        layers[item.name] = item.layer if item.layer is not None else last.get(item.stack, 0)
    return layers
