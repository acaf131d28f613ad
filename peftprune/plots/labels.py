"""Names short enough for a plot."""

import re
from collections.abc import Sequence

from peftprune.plots.style import TICK_SIZE, TITLE_SIZE

# Short forms of the parts of a kind; a plot keeps the full names where two short ones would be equal.
_SHORT = {
    "attention": "attn",
    "self_attn": "self",
    "SelfAttention": "self",
    "encoder_attn": "cross",
    "EncDecAttention": "cross",
    "crossattention": "cross",
    "intermediate": "inter",
    "output": "out",
    "encoder": "enc",
    "decoder": "dec",
}
_GLYPH = 0.6  # mean width of a character, in units of the type's size


def short_kinds(kinds: Sequence[str]) -> list[str]:
    """Returns shorter names for an axis: `attention.output.dense` becomes `attn.out`, `encoder.q_proj` becomes `enc.q`.

    Names that would become equal stay unchanged, so different kinds have different names.
    """
    short = [_short_kind(str(kind)) for kind in kinds]
    return [brief if short.count(brief) == 1 else str(kind) for kind, brief in zip(kinds, short, strict=True)]


def _short_kind(kind: str) -> str:
    parts = [_SHORT.get(part, part) for part in kind.split(".")]
    if len(parts) > 1 and parts[-1] == "dense":
        parts.pop()
    return re.sub(r"_(proj|lin)$", "", ".".join(parts))


def text_width(text: str, size: float = TICK_SIZE) -> float:
    """Returns the approximate width of the longest line in points, in type of `size` points."""
    return _GLYPH * size * max(map(len, text.split("\n")), default=0)


def wrap(name: str, width: float, size: float = TITLE_SIZE) -> str:
    """Breaks a name into lines that fit `width` inches at `size` points, preferably after punctuation."""
    most = max(8, int(width * 72 / (_GLYPH * size)))
    lines = [""]
    for piece in re.findall(r"[^\s:(,_=./-]*[\s:(,_=./-]|[^\s:(,_=./-]+", name):
        for part in (piece[i : i + most] for i in range(0, len(piece), most)):
            if len(lines[-1]) + len(part.rstrip()) > most:
                lines.append("")
            lines[-1] += part
    return "\n".join(line.rstrip() for line in lines if line.strip())


def fit(name: str, width: float, lines: int = 3, size: float = TICK_SIZE) -> str:
    """Wraps a name to at most `lines` lines; a longer one loses its middle, since names mostly differ at their ends."""
    found = wrap(str(name), width, size).split("\n")
    if len(found) <= lines:
        return "\n".join(found)
    most = max(8, int(width * 72 / (_GLYPH * size)))
    last = "…" + str(name)[1 - most :]
    if lines == 1:
        half = (most - 1) // 2
        return str(name)[: most - 1 - half] + "…" + str(name)[-half:]
    return "\n".join([*found[: lines - 1], last])


def within(text: str, points: float, size: float, lines: int = 3) -> str:
    """Returns the text with lines wider than `points` wrapped."""
    return "\n".join(
        fit(line, points / 72, lines, size) if text_width(line, size) > points else line for line in text.split("\n")
    )


def every(count: int, points: float, size: float = TICK_SIZE) -> int:
    """Returns the step at which `count` labels over `points` can be written in lines that do not touch."""
    return max(1, -(-int(count * size * 1.3) // max(int(points), 1)))


def spread(middles: Sequence[float], widths: Sequence[float], low: float, high: float) -> list[float]:
    """Moves ascending centres so that labels of these widths do not overlap and, if they fit, stay in low … high."""
    total = sum(widths)
    if total > high - low:
        widths = [width * (high - low) / total for width in widths]
    moved: list[float] = []
    edge = low
    for middle, width in zip(middles, widths, strict=True):
        moved.append(max(middle, edge + width / 2))
        edge = moved[-1] + width / 2
    edge = high
    for i in reversed(range(len(moved))):
        moved[i] = min(moved[i], edge - widths[i] / 2)
        edge = moved[i] - widths[i] / 2
    return moved
