"""Makes the stored study that `tests/test_stored_study.py` reads.

It ran once, with the version before the packages were regrouped (commit e3c033b), and what that run left is kept file
by file: a study that a later version stores proves nothing. The command line trains a tiny encoder on two tiny files.
One method fails for want of a file, and the process is killed (SIGKILL) in the middle of another arm.

    python tests/data/make_stored_study.py FOLDER
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

METHODS = [
    "lora",
    "lorpa(initial_rank=8)",
    "prilora(prune_every=5)",
    "lora-drop(sample=0.25,probe_passes=2.0,threshold=0.6)",
    "listed.py:Listed",
]
# A file called train.csv would give the task the name of its folder, which is part of every arm's hash.
OPTIONS = {
    "train-file": "verdicts.csv",
    "test-file": "held_out.csv",
    "text": "sentence",
    "label": "verdict",
    "methods": ",".join(METHODS),
    "model": "model",
    "budget": "rank=2",
    "seeds": "2",
    "target-modules": "attention",
    "epochs": "4",
    "batch-size": "8",
    "learning-rate": "5e-3",
    "max-length": "16",
    "dtype": "float32",
    "checkpoints": "4",
    "threads": "1",
    "workers": "1",
    "output-dir": "study",
}
KILLED_AT = "study/arms/prilora-s1-*/checkpoint/checkpoint-6"
LISTED = '''"""A strategy of a user's own. What it keeps stands in a file, which the first run lacks."""

import json
from pathlib import Path

from peftprune import AdapterSpec, PruningPlan, RankPruningStrategy


class Listed(RankPruningStrategy):
    """Starts at twice the rank; half-way, every site keeps the components that keep.json lists."""

    name = "listed"

    def spec(self, sites, budget):
        final = budget.solve(sites)
        return AdapterSpec(ranks={n: 2 * r for n, r in final.items()}, final_ranks=final)

    def decide(self, view):
        if view.step != view.total_steps // 2:
            return PruningPlan()
        listed = json.loads(Path("keep.json").read_text())
        return PruningPlan(keep=dict.fromkeys(view.sites, listed), reason="kept what keep.json lists")
'''
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
PLAIN = ["cat", "dog", "bird", "fish", "red", "blue", "very", "and", "on", "the"]
TELLING = {"good": ["good", "big"], "bad": ["bad", "small"]}
READ = ("table", "runs", "against", "allocation", "history", "trace")
"""Frames of the study as the killed process left it."""
GONE_ON = ("allocation", "history", "trace")
"""Frames of the study when the same command has gone on to the end."""


def save_model(folder: Path) -> None:
    """A random encoder of width 32 with two layers and no dropout, and its tokenizer."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    words = [*SPECIAL, *PLAIN, *TELLING["good"], *TELLING["bad"]]
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=16,
        initializer_range=0.2,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    BertModel(config).save_pretrained(folder)
    inner = Tokenizer(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    ends = [(word, words.index(word)) for word in ("[CLS]", "[SEP]")]
    inner.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    names = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
    PreTrainedTokenizerFast(tokenizer_object=inner, model_max_length=16, **names).save_pretrained(folder)


def write_data(file: Path, size: int, seed: int) -> None:
    """Texts of 3 to 9 words, one of which says whether the verdict is good or bad."""
    rng = random.Random(seed)
    lines = ["sentence,verdict"]
    for i in range(size):
        verdict = ("bad", "good")[i % 2]
        words = rng.choices(PLAIN, k=rng.randint(2, 8))
        words.insert(rng.randint(0, len(words)), rng.choice(TELLING[verdict]))
        lines.append(f"{' '.join(words)},{verdict}")
    file.write_text("\n".join(lines) + "\n")


def start(folder: Path, cache: str) -> subprocess.Popen[bytes]:
    """The study's command, at work in a folder."""
    command = [sys.executable, "-m", "peftprune", "compare"]
    command += [part for name, value in OPTIONS.items() for part in (f"--{name}", value)]
    return subprocess.Popen(command, cwd=folder, env=os.environ | {"PEFTPRUNE_CACHE": cache, "OMP_NUM_THREADS": "1"})


def kill_midway(process: subprocess.Popen[bytes], folder: Path) -> None:
    """Kill it as soon as the arm that is to be interrupted has its first checkpoint."""
    while process.poll() is None and not any(folder.glob(KILLED_AT)):
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it ended by itself"


def values(frame: Any) -> dict[str, Any]:
    """A frame for JSON, with None where it has no value."""
    rows = frame.astype(object).where(frame.notna(), None).to_numpy().tolist()
    return {"columns": list(frame.columns), "rows": rows}


def frames(study: Path, names: tuple[str, ...]) -> dict[str, Any]:
    """What this version reads from the study."""
    import peftprune

    found = peftprune.Comparison.load(study)
    return {name: values(getattr(found, name)()) for name in names}


def main(folder: Path) -> None:
    folder.mkdir(parents=True)
    save_model(folder / "model")
    write_data(folder / "verdicts.csv", 48, 1)
    write_data(folder / "held_out.csv", 20, 2)
    (folder / "listed.py").write_text(LISTED)
    with tempfile.TemporaryDirectory() as elsewhere:
        kill_midway(start(folder, elsewhere), folder)
        copy = Path(elsewhere) / "copy"
        shutil.copytree(folder, copy)
        (copy / "keep.json").write_text("[0, 3]")
        assert start(copy, elsewhere).wait() == 0
        expected = {"read": frames(folder / "study", READ), "gone_on": frames(copy / "study", GONE_ON)}
    # One row a line.
    text = json.dumps(expected).replace('[["', '[\n["').replace('], ["', '],\n["')
    (folder / "expected.json").write_text(text + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
