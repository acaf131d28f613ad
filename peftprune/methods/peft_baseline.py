"""`peft:NAME`: any method that the installed PEFT builds from a configuration."""

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, fields, make_dataclass
from functools import cache
from inspect import signature
from typing import Any, ClassVar

from peftprune.errors import UsageError, did_you_mean
from peftprune.methods.lora import beside_budget, capped
from peftprune.strategy import AdapterSpec, ArmBudget, Baseline, Preparation, Site, SiteShape
from peftprune.strategy.lazy import Module, Tensor, peft, torch
from peftprune.strategy.options import Options, identity, option
from peftprune.strategy.rng import stream_seed

PREFIX = "peft:"

_INITIAL = ("pissa", "olora", "orthogonal", "mica")
"""Names of initialisations of LoRA that need no data, as PEFT's `init_lora_weights` has them."""
_RANKED = {"init_lora_weights", "use_rslora", "r"}
"""Options with which LoRA has as many parameters as without."""
_REFUSED = {
    "adalora": ("decides on ranks in training", "Use adalora-peft"),
    "xlora": ("mixes adapters that are trained already", "Train one of them instead"),
    "poly": ("needs the task of every example", "Use another method"),
    "multitask-prompt-tuning": ("needs the task of every example", "Use prompt-tuning"),
    "cpt": ("needs the tokens of a prompt", "Use prompt-tuning"),
}
_DATA = ("eva", "corda", "lora_ga", "loftq")
_OURS = {
    *("peft_type", "task_type", "inference_mode", "auto_mapping", "peft_version", "revision", "modules_to_save"),
    *("base_model_name_or_path", "rank_pattern", "alpha_pattern", "runtime_config", "prefix_projection"),
}
"""Fields of a configuration that the run decides, and one with which PEFT cannot load its own checkpoints."""
_SEEDS = {"projection_prng_key", "random_loc_seed", "random_seed", "projection_seed", "proj_seed"}
_DERIVED = {
    "target_modules": "the sites; for ln-tuning all normalisation layers",
    "feedforward_modules": "the sites whose input is wider than their output",
    **dict.fromkeys(_SEEDS, "drawn from the arm's seed"),
}
"""Fields whose default the run derives, in words."""
_VIRTUAL_TOKENS = 20
_EXEMPTION = "its options set its size; FLOPs leave out its own products"
_ERRORS = (AttributeError, ImportError, KeyError, RuntimeError, TypeError, ValueError)
"""The errors by which PEFT refuses configurations and models."""
_TYPES = ("int", "float", "bool", "str")


class PeftBaseline(Baseline):
    """Trains one of PEFT's methods in the trainer that all methods share, from the options of its configuration.

    The options are the fields of PEFT's configuration class, with PEFT's defaults. Initial values and random
    projections derive from the arm's seed, sites become `target_modules`, and the run's scaling and dropout apply to
    LoRA. LoRA with another initialisation (`peft:pissa`, `peft:olora`, `peft:orthogonal`) costs what LoRA costs, so the
    budget decides on its ranks unless `r` does. Every other method has the size that its options give it and is exempt.
    The ledger counts the trained parameters of all of them. Its FLOPs leave out the products of exempt methods and
    virtual tokens. All of this is convention.
    """

    name = "peft"
    source = "Hugging Face PEFT"
    reads_weights = True
    kind: ClassVar[str] = ""
    fixed: ClassVar[Mapping[str, Any]] = {}

    def __init__(self, config: Any = None, **options: Any) -> None:
        super().__init__(config, **options)
        self._encoder: dict[str, Tensor] = {}
        """The trained tensors of the prompt encoder; PEFT's files hold only the prompt that comes of them."""
        self._restored: Mapping[str, Tensor] = {}

    @property
    def given(self) -> dict[str, Any]:
        """The fields of PEFT's configuration that differ from its defaults."""
        return {**self.fixed, **identity(self.config)}

    @property
    def _ranked(self) -> bool:
        return self.kind == "LORA" and set(self.given) <= _RANKED

    def spec(self, sites: Sequence[SiteShape], budget: ArmBudget) -> AdapterSpec:
        if not self._ranked:
            return AdapterSpec(ranks={})
        rank = self.config.r
        return AdapterSpec(ranks=budget.solve(sites) if rank is None else capped(rank, sites))

    def exempt(self, sites: Sequence[SiteShape], budget: ArmBudget) -> str | None:
        if not self._ranked:
            return _EXEMPTION
        if self.given.get("init_lora_weights") == "mica":
            return "trains A alone, at the rank that the budget pays for with both factors"
        return None if self.config.r is None else beside_budget(self.config.r, sites, budget)

    def multiplied(self, sites: Sequence[SiteShape], spec: AdapterSpec) -> tuple[int, int]:
        entries, trained = super().multiplied(sites, spec)
        if self.given.get("init_lora_weights") == "mica":
            trained = sum(spec.ranks.get(s.name, 0) * s.d_in for s in sites)
        return entries, trained

    def prepare(self, model: Module, given: Preparation) -> Module:
        from peftprune.adapters.inject import wrap

        try:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(stream_seed(given.seed, "init", "peft"))
                if given.spec.ranks:
                    return self._lora(model, given)
                adapted = wrap(model, self._peft_config(model, given), given.head)
        except _ERRORS as error:
            if isinstance(error, UsageError):
                raise
            problem = f"cannot be built by PEFT in this model ({type(error).__name__}: {error})"
            cure = "Give its options other values, or take another method"
            if any(p.is_meta for p in model.parameters()):
                cure += ". A plan has the shapes alone; compare has the weights too"
            raise UsageError.of("method", self.name, problem, cure) from error
        trained = [(n, p) for n, p in adapted.named_parameters() if p.requires_grad]
        self._encoder = {n: p.detach() for n, p in trained if n.startswith("prompt_encoder.")}
        return adapted

    def penalty_for(self, model: Module, sites: Mapping[str, Site]) -> Tensor | None:
        # The first call of a step, before its forward pass.
        self._restore()
        return super().penalty_for(model, sites)

    def finish(self, model: Module) -> None:
        self._restore()

    def state_dict(self) -> dict[str, Any]:
        return {"encoder": {name: tensor.clone() for name, tensor in self._encoder.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        # PEFT reads its own file after this.
        self._restored = state["encoder"]

    def _restore(self) -> None:
        for name, tensor in self._restored.items():
            self._encoder[name].copy_(tensor)
        self._restored = {}

    def _lora(self, model: Module, given: Preparation) -> Module:
        from peftprune.adapters.inject import inject
        from peftprune.adapters.surgery import freeze

        options = {name: value for name, value in self.given.items() if name != "r"}
        if not any(p.is_meta for p in model.parameters()):
            return inject(model, given, **options)[0]
        # Without weights there is nothing to start from: only the sizes count.
        start = options.pop("init_lora_weights", True)
        adapted, sites = inject(model, given, **options)
        if start == "mica":
            freeze(sites, ["B"])
        return adapted

    def _peft_config(self, model: Module, given: Preparation) -> Any:
        from peftprune.adapters.inject import task_type_of

        cls = _config_classes()[self.kind]
        config: Any = model.config
        classifies = config.is_encoder_decoder and task_type_of(model) == "SEQ_CLS"
        if classifies and issubclass(cls, peft.PromptLearningConfig):
            raise NotImplementedError("an encoder-decoder that classifies takes no virtual tokens")
        read = {name for m in (model, *model.children()) for name in signature(m.forward).parameters}
        if self.kind == "PREFIX_TUNING" and "past_key_values" not in read:
            raise NotImplementedError("it takes no past keys and values")
        known = {f.name for f in fields(cls)}
        norms = [name for name, module in model.named_modules() if "Norm" in type(module).__name__]
        derived = {
            "task_type": task_type_of(model),
            "modules_to_save": list(given.head) or None,
            "target_modules": norms if self.kind == "LN_TUNING" else [s.name for s in given.sites],
            "feedforward_modules": [s.name for s in given.sites if s.d_in > s.d_out],
            f"{self.kind.lower()}_dropout": given.lora_dropout,
            "num_virtual_tokens": getattr(self.config, "num_virtual_tokens", None),
            **{name: stream_seed(given.seed, "init", name) % 2**31 for name in _SEEDS},
        }
        if self.kind == "LORA":
            derived["lora_alpha"] = given.scaling * (self.config.r or cls.r)
        return cls(**{n: v for n, v in {**derived, **self.given}.items() if n in known})


@cache
def peft_method(name: str) -> type[PeftBaseline]:
    """Returns the class of `peft:NAME`.

    Raises UsageError for a name that PEFT does not have, or a method that a configuration alone does not start.
    """
    kinds = {kind.lower().replace("_", "-"): kind for kind in _config_classes()} | dict.fromkeys(_INITIAL, "LORA")
    if name in _REFUSED:
        raise UsageError.of("method", f"{PREFIX}{name}", *_REFUSED[name])
    if name not in kinds:
        known = sorted(set(kinds) - set(_REFUSED))
        cure = f"{did_you_mean(name, known)}The installed PEFT has {', '.join(known)}"
        raise UsageError.of("method", f"{PREFIX}{name}", "is not a method of PEFT's", cure)
    kind = kinds[name]
    fixed = {"init_lora_weights": name} if name in _INITIAL else {}
    config = _config_classes()[kind]
    declared = [(f.name, *_declared(f, kind)) for f in fields(config) if f.init and f.name not in _OURS | set(fixed)]
    summary = f"PEFT's `{config.__name__}`" + "".join(f" with `{k}={v!r}`" for k, v in fixed.items())
    members = {
        "__doc__": f"{summary}.\n\n{(PeftBaseline.__doc__ or '').partition(chr(10) * 2)[2]}",
        "__module__": __name__,
        "name": f"{PREFIX}{name}",
        "source": summary,
        "kind": kind,
        "fixed": fixed,
        "exemption": None if kind == "LORA" else _EXEMPTION,
        "Config": make_dataclass(f"{config.__name__}Options", declared, bases=(_PeftOptions,), frozen=True),
    }
    return type(f"Peft{config.__name__.removesuffix('Config')}", (PeftBaseline,), members)


class _PeftOptions(Options):
    def __post_init__(self) -> None:
        super().__post_init__()
        start = getattr(self, "init_lora_weights", None)
        if start in _DATA:
            cure = "Use eva, or an initialisation that needs the weights alone, such as 'pissa'"
            raise UsageError.of("init_lora_weights", start, "needs data or another base model", cure)


def _declared(field: Field[Any], kind: str) -> tuple[str, Any]:
    """Returns the annotation and the declaration of an option that stands for a field of PEFT's configuration."""
    name, default = field.name, None if field.default is MISSING else field.default
    about = " ".join(str(field.metadata.get("help", "")).split())
    if name in _DERIVED:
        default, about = None, f"{about} None: {_DERIVED[name]}".strip()
    elif name == "num_virtual_tokens":
        default = _VIRTUAL_TOKENS
    elif name == "r" and kind == "LORA":
        default, about = None, "rank of every site; None: the budget decides"
    # Only annotations of one plain type are checked here; PEFT checks the rest.
    text = field.type if isinstance(field.type, str) else getattr(field.type, "__name__", str(field.type))
    plain = text.removeprefix("Optional[").removesuffix("]").removesuffix(" | None")
    annotation = plain if plain in _TYPES else "object"
    none = " | None" if default is None or plain != text else ""
    return f"{annotation}{none}", option(default, help=about, later=True)


@cache
def _config_classes() -> dict[str, Any]:
    """Returns PEFT's type of method, such as "IA3", to its configuration class."""
    return {kind.value: cls for kind, cls in peft.PEFT_TYPE_TO_CONFIG_MAPPING.items()}
