"""Figures as inline SVG in the page's colours."""

import io
import re
from collections.abc import Iterator
from contextlib import suppress
from html import escape
from typing import Any

from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.figure import Figure

from peftprune.analysis.frames import Frames
from peftprune.errors import UsageError
from peftprune.report.figures import KINDS, draw

_SALT = "peftprune"
_TAG = re.compile(r"<[^>]*>")
_ID = re.compile(r'\bid="([^"]+)"')
_REFERENCE = re.compile(r'((?:xlink:)?href="|url\()#')
_FINE = re.compile(r"(\d\d\.\d|\.\d\d)\d+")
"""Digits beyond a tenth of a point, and a hundredth of small numbers, which nobody sees and which double the page."""
_BOX = re.compile(r"M (\S+) (\S+) L (\S+) \2 L \3 (\S+) L \1 \4 L \1 \2 ")
_UNSEEN = re.compile(r"""(?<=<g) id="[^"]*_\d+"| transform="rotate\(-0 [^"]*"| ?font-family: 'DejaVu Sans'[^;"]*;?""")
"""Names of groups that nothing refers to, turns by nothing, and the font, which is that of the page."""
_ALONE = re.compile(r"<g>(<[^<>]*/>|<text[^<>]*>[^<>]*</text>)</g>")
_SIZE = re.compile(r'<svg [^>]*?\bviewBox="0 0 ([\d.]+) ([\d.]+)"[^>]*>', re.DOTALL)


def drawings(frames: Frames) -> Iterator[dict[str, Any]]:
    """Yields `kind`, `title`, `svg` and natural `width` in CSS pixels of every figure that the study has data for."""
    for kind, title in KINDS.items():
        with suppress(UsageError):
            figure = draw(frames, kind)
            # A CSS pixel is 1/96 inch.
            width = round(figure.get_figwidth() * 96)
            yield {"kind": kind, "title": title, "svg": to_svg(figure, kind, title), "width": width}


def to_svg(figure: Figure, prefix: str, title: str) -> Markup:
    """Returns an `<svg>` element in the page's colours.

    Black becomes the page's text colour, white becomes transparent; other colours stay. Text remains text. `prefix`
    precedes identifiers and must differ between the figures of a page; `title` is what screen readers read.
    """
    held = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": _SALT}):
        figure.savefig(held, format="svg", metadata={"Date": None})
    text = held.getvalue()
    size = _SIZE.search(text)
    if size is None:
        raise ValueError("matplotlib wrote an SVG without a viewBox")
    body = text[size.end() :].rpartition("</svg>")[0]
    # Matplotlib's style sheet would apply to the whole page; the page's own has the same rules for figures.
    body = re.sub(r"<metadata>.*?</metadata>|<style .*?</style>|<!--.*?-->", "", body, flags=re.DOTALL)
    body = re.sub(r">\s+<", "><", _TAG.sub(lambda tag: _adapted(tag[0], prefix), body))
    for _ in range(2):  # a group of one element, in a group of its own
        body = _ALONE.sub(r"\1", body)
    width, height = size[1], size[2]
    return Markup(
        f'<svg role="img" aria-labelledby="{prefix}-title" viewBox="0 0 {width} {height}" fill="currentColor">'
        f'<title id="{prefix}-title">{escape(title)}</title>{body.strip()}</svg>'
    )


def _adapted(tag: str, prefix: str) -> str:
    tag = _ID.sub(lambda found: f'id="{prefix}-{found[1]}"', tag)
    tag = _REFERENCE.sub(lambda found: f"{found[1]}#{prefix}-", tag).replace("xlink:href=", "href=")
    tag = re.sub(r"\b(fill|stroke): #ffffff\b", r"\1: none", tag).replace(": #000000", ": currentColor")
    tag = _UNSEEN.sub("", re.sub(r"\s+", " ", _FINE.sub(r"\1", tag)))
    return re.sub(r"([:;]) ", r"\1", _BOX.sub(r"M\1 \2H\3V\4H\1Z", tag))
