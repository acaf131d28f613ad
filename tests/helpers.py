"""Tiny models and tasks, and one arm of a study with everything in reach."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors.torch import load_file
from torch import Tensor

from peftprune.methods.request import parse
from peftprune.models.bundled import bundled_config
from peftprune.strategy.budget import Outcome, parse_budget
from peftprune.strategy.interface import RankPruningStrategy
from peftprune.strategy.sites import SiteSet
from peftprune.study.arm import make_trainer, prepare_model, run_arm
from peftprune.study.planning import ArmPlan
from peftprune.study.store import ArmFolder, StudyFolder
from peftprune.study.task_setup import Setup, environment
from peftprune.tasks import Task
from peftprune.tasks.base import make_dataset
from peftprune.training.objectives import ArmInputs
from peftprune.training.settings import resolve_settings
from peftprune.training.trainer import PruningTrainer
from tests.tiny import DEBERTA_V3

WORDS = list("abcdefgh")
WORDS += ["good", "bad", "big", "small", "cat", "dog", "bird", "fish", "red", "blue", "not", "very", "and", "on"]
POSITIVE, NEGATIVE = ("good", "big"), ("bad", "small")
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
SIZES = {"vocab_size": len(SPECIAL) + len(WORDS) + 1, "pad_token_id": 0}
_BERT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
_BERT |= {"max_position_embeddings": 66, "initializer_range": 0.2}
_GPT2 = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64, "bos_token_id": 2, "eos_token_id": 3}
_T5 = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2, "eos_token_id": 3}
NARROW: dict[str, dict[str, Any]] = {
    "deberta-v2": {**_BERT, **DEBERTA_V3},
    "roberta": {**_BERT, "bos_token_id": 2, "eos_token_id": 3},
    "gpt2": {**_GPT2, "initializer_range": 0.2},
    "t5": {**_T5, "decoder_start_token_id": 0},
}
"""Architectures of width 16, by `model_type`."""


class CrashError(Exception):
    """Stands in for a process that died."""


# --- models -----------------------------------------------------------------------------------------------------------


def save_model(architecture: str, folder: Path) -> Path:
    """Save a randomly initialised model of two layers, or the shapes of "minilm", with its tokenizer."""
    import transformers
    from transformers import BartConfig, BartModel, BertConfig, BertModel, LlamaConfig, LlamaModel

    torch.manual_seed(0)
    if architecture in NARROW:
        config = transformers.AutoConfig.for_model(architecture, **SIZES, **NARROW[architecture])
        model = transformers.AutoModel.from_config(config)
    elif architecture == "bert":
        sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
        model = BertModel(BertConfig(**SIZES, **sizes, max_position_embeddings=64, initializer_range=0.2))
    elif architecture == "minilm":
        sizes = {k: v for k, v in bundled_config("minilm").items() if k not in (*SIZES, "model_type")}
        model = BertModel(BertConfig(**sizes | SIZES))
    elif architecture == "bart":
        widths = {f"{s}_{k}": v for s in ("encoder", "decoder") for k, v in (("layers", 2), ("attention_heads", 4))}
        widths |= {"encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "d_model": 32, "max_position_embeddings": 64}
        ends = {"bos_token_id": 2, "eos_token_id": 3, "decoder_start_token_id": 3, "forced_eos_token_id": None}
        model = BartModel(BartConfig(**SIZES, **widths, **ends, init_std=0.2))
    else:
        heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2}
        sizes = {"hidden_size": 32, "intermediate_size": 48, "max_position_embeddings": 64, "initializer_range": 0.2}
        model = LlamaModel(LlamaConfig(**SIZES, **heads, **sizes, bos_token_id=2, eos_token_id=3))
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def tokenizer() -> Any:
    """WordPiece over a handful of words; every text ends in [SEP]."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *WORDS, "##s"])}
    inner = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inner.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    names |= {"mask_token": "[MASK]", "eos_token": "[SEP]"}
    # BART's end token may occur only once in a text, so texts come alone.
    inputs = ["input_ids", "attention_mask"]
    return PreTrainedTokenizerFast(tokenizer_object=inner, model_max_length=64, model_input_names=inputs, **names)


# --- tasks ------------------------------------------------------------------------------------------------------------


def texts(n: int, seed: int) -> tuple[list[str], list[int]]:
    """Texts of 3 to 12 words, and whether each holds a positive or a negative word."""
    rng = random.Random(seed)
    plain = [w for w in WORDS if w not in POSITIVE + NEGATIVE]
    found, labels = [], []
    for i in range(n):
        words = rng.choices(plain, k=rng.randint(2, 11))
        words.insert(rng.randint(0, len(words)), rng.choice(POSITIVE if i % 2 else NEGATIVE))
        found.append(" ".join(words))
        labels.append(i % 2)
    return found, labels


def classification_task(n: int = 70, evaluation: tuple[str, ...] = ("test",), name: str = "tiny") -> Task:
    """Positive or negative; with two evaluation splits it is shaped like MNLI."""
    names = ("negative", "positive")

    def split(size: int, seed: int) -> Any:
        found, labels = texts(size, seed)
        return make_dataset([found], labels, names)

    held_out = {split_name: split(20, 100 + i) for i, split_name in enumerate(evaluation)}
    metrics = ("accuracy",) if len(evaluation) > 1 else ("accuracy", "f1")
    return Task(name, "classification", ("text_a",), names, metrics, split(n, 1), held_out, "generated", "generated")


def regression_task(folder: Path, n: int = 70, shift: float = 0.0, factor: float = 1 / 12) -> Task:
    """Files whose label is the number of words, by default scaled to about 0 to 1."""
    for file, size, seed in (("train.csv", n, 1), ("test.csv", 20, 100)):
        found, _ = texts(size, seed)
        numbers = [shift + factor * len(text.split()) for text in found]
        pd.DataFrame({"sentence": found, "score": numbers}).to_csv(folder / file, index=False)
    return Task.from_files(
        folder / "train.csv", folder / "test.csv", "sentence", "score", regression=True, name="length"
    )


# --- arms -------------------------------------------------------------------------------------------------------------

AFTER_PROGRESS = "" if int(version("rich").partition(".")[0]) >= 15 else "\n"
"""What rich writes to a log file after a progress display."""
DEFAULTS = {"batch_size": 8, "learning_rate": 5e-3, "dtype": "float32", "checkpoints": 0, "max_length": 32}
BUDGET = "rank=4,steps=24"
_SETUPS: dict[Any, Setup] = {}


@dataclass
class Arm:
    """One arm, solved and ready to run, in a folder of its own."""

    plan: ArmPlan
    inputs: ArmInputs
    seed: int
    folder: ArmFolder
    config: dict[str, Any]

    def run(self, *, crash_at: int | None = None, progress: Callable[[int, int, str], None] | None = None) -> Any:
        """`run_arm`, with a death inside the given step (after its update, before it is saved)."""

        def step(done: int, total: int, phase: str, ranks: int) -> None:
            if done == crash_at:
                raise CrashError(f"died in step {done}")
            if progress is not None:
                progress(done, total, phase)

        return run_arm(self.plan, self.inputs, self.seed, self.folder, self.config, step)

    def build(self) -> tuple[Any, SiteSet, PruningTrainer]:
        """The arm's model, sites and trainer, untrained."""
        model, sites = prepare_model(self.plan, self.inputs.model.model, self.inputs.head, self.seed)
        return model, sites, make_trainer(self.plan, self.inputs, self.seed, self.folder, model, sites)

    def with_method(self, method: RankPruningStrategy) -> Arm:
        """The same arm with another strategy in its place, for example one that watches the first."""
        return replace(self, plan=replace(self.plan, method=method))


def make_arm(
    method: Any,
    folder: Path,
    model: Path,
    *,
    task: Task | None = None,
    budget: str = BUDGET,
    seed: int = 0,
    target_modules: Any = "attention",
    **settings: Any,
) -> Arm:
    """Solve one arm. `method` is a name, a labelled spec, a strategy object or a class."""
    given = DEFAULTS | settings
    (spec,) = parse([method])
    resolved = resolve_settings(given)
    if task is None:
        # Arms of the usual task share what a study's arms share.
        key = str(model), str(target_modules), resolved
        setup = _SETUPS.get(key) or Setup(model, classification_task(), resolved, target_modules)
        _SETUPS[key] = setup
    else:
        setup = Setup(model, task, resolved, target_modules)
    plan = setup.plan(spec, parse_budget(budget), given)
    if plan.method.depends_on is not None:
        options: dict[str, Any] = {"task": task, "budget": budget, "seed": seed, "target_modules": target_modules}
        first = make_arm(plan.method.depends_on, folder / "depends-on", model, **options, **settings)
        plan = plan.after(Outcome.of(first.folder.result() or first.run()))
    found = environment(StudyFolder(folder), resolved, None, 1)
    config = setup.arm_config(spec, plan, seed, found)
    return Arm(plan, setup.inputs(plan, found["dtype"]), seed, ArmFolder(folder), config)


def stored_adapter(folder: ArmFolder) -> dict[str, Tensor]:
    """The exported adapter's tensors, or those that a baseline trained."""
    (file,) = folder.adapter.glob("*.safetensors")
    return load_file(file)


def stored_logits(folder: ArmFolder, split: str = "test") -> Tensor:
    """(n, outputs), in the order of the data."""
    frame = pd.read_parquet(folder.predictions)
    return torch.tensor([list(row) for row in frame[frame["split"] == split]["logits"]], dtype=torch.float32)


def same(a: Any, b: Any) -> bool:
    """Equality to the bit, through mappings, sequences and tensors."""
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        both = isinstance(a, Tensor) and isinstance(b, Tensor)
        return both and a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return type(a) is type(b) and a == b
