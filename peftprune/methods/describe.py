"""What `peftprune plan` and `peftprune methods` show, as plain values."""

from __future__ import annotations

import inspect
import re
from dataclasses import fields
from typing import Any

from peftprune.methods.registry import load, names
from peftprune.strategy.interface import RankPruningStrategy
from peftprune.strategy.options import Mark

_SAID_BY: dict[Mark, str] = {
    "paper": r"stated in the paper|the paper says|paper states|paper's own|as the paper|the paper counts",
    "authors' code": r"authors' code|released (code|run|score)|by its code",
    "secondary summary": r"secondary summar",
    "convention of ours": r"conventions? of ours|controls? of ours",
}


def describe_methods() -> list[dict[str, Any]]:
    """One entry a registered method: what `describe_method` says, and `observed`: what it was seen to do.

    See `peftprune.cli.probe` for the latter.
    """
    from peftprune.cli.probe import capabilities

    observed = capabilities(names())
    return [describe_method(name) | {"observed": observed[name]} for name in names()]


def describe_method(name: str) -> dict[str, Any]:
    """What a registered method states of itself.

    Returns:
        `name`, `year`, `source`, `kind` ("strategy" or "baseline"), `prunes`, `signals`, `summary`; `options` with
        default, the default's origin (`mark`) and meaning; `claims`: the sentences of its documentation that say where
        something comes from, with the `marks` they carry.
    """
    cls = load(name)
    strategy = issubclass(cls, RankPruningStrategy)
    year = re.search(r"\b(?:19|20)\d\d\b", cls.source)
    return {
        "name": name,
        "year": int(year[0]) if year else None,
        "source": cls.source,
        "kind": "strategy" if strategy else "baseline",
        "prunes": cls.prunes,
        "signals": sorted(cls.signals) if strategy else [],
        "summary": (inspect.getdoc(cls) or "").partition("\n\n")[0].replace("\n", " "),
        "options": [
            {"name": f.name, "default": f.default, **{k: f.metadata.get(k, "") for k in ("mark", "help")}}
            for f in fields(cls.Config)
        ],
        "claims": _claims(cls),
    }


def _claims(cls: type) -> list[dict[str, Any]]:
    """The sentences of a class's documentation that say where something comes from, word for word."""
    text = " ".join((inspect.getdoc(cls) or "").split())
    # A number before a full stop is an item of a list, not the end of a sentence.
    sentences = re.split(r"(?<=[^\d][.?!:)])\s+(?=[A-Z\d])", text)
    marked = ((s, [mark for mark, said in _SAID_BY.items() if re.search(said, s)]) for s in sentences)
    return [{"text": sentence, "marks": marks} for sentence, marks in marked if marks]
