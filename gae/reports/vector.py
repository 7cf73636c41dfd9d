"""Figures as SVG in the text of a page, in its colours, and with an alternative text."""

import io
import re
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

NARROW = 600  # pixels below which a figure is not shrunk: on a phone it scrolls in its box

# The colours of figures on white, and those that take their place on a dark page.
DARK = {
    "#222222": "#e6e8ec",
    "#000000": "#ffffff",
    "#1a1a1a": "#e6e8ec",
    "#666666": "#9aa2ad",
    "#888888": "#7d8694",
    "#e4e4e4": "#2f3540",
    "#dddddd": "#3a414d",
    "#0072b2": "#4ba3dd",
    "#d55e00": "#f28a3e",
    "#009e73": "#2cc598",
    "#cc79a7": "#e59cc4",
    "#e69f00": "#f0b429",
    "#56b4e9": "#a8dcff",
    "#332288": "#9a8ff0",
    "#cc6677": "#ec8c9b",
    "#117733": "#4fbf78",
    "#999933": "#c9c95c",
    "#88ccee": "#9bd8f5",
    "#882255": "#d877a9",
    "#44aa99": "#5fcab8",
    "#aa4499": "#d67fc8",
    "#ddaa33": "#e8bf5a",
    "#555555": "#b4bac4",
}
COLOUR = re.compile("#[0-9a-f]{6}")
IDENTIFIER = re.compile(r'(?<= id=")[^"]+|(?<=href="#)[^"]+|(?<=url\(#)[^)]+')


def palette(dark: bool = False) -> str:
    """The colours of figures as CSS variables of a page.

    >>> palette().partition(";")[0], palette(dark=True).partition(";")[0]
    ('--x222222: #222222', '--x222222: #e6e8ec')
    """
    return " ".join(f"--x{light[1:]}: {DARK[light] if dark else light};" for light in DARK)


def svg(canvas: "Canvas", alt: str, name: str) -> str:
    """SVG of a figure, for the text of a page; equal figures give equal text.

    Args:
        canvas: the figure.
        alt: the alternative text.
        name: a name that no other figure of the page has.
    """
    from matplotlib import rc_context

    stream = io.StringIO()
    facts = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with rc_context({"svg.hashsalt": name, "svg.fonttype": "path"}):
        canvas.savefig(stream, format="svg", transparent=True, metadata=facts)
    drawn = stream.getvalue()
    body = drawn[drawn.index(">", drawn.index("<svg")) + 1 :]
    body = re.sub(r"<!--.*?-->\n *", "", re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL))
    body = COLOUR.sub(lambda match: f"var(--x{match[0][1:]})" if match[0] in DARK else match[0], body)
    body = IDENTIFIER.sub(lambda match: f"{name}-{match[0]}", body).replace("*{", f"#{name} *{{")
    width, height = (72 * side for side in canvas.get_size_inches())
    return (
        f'<svg id="{name}" class="figure" viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(alt)}" '
        f'style="max-width: {4 * width / 3:.0f}px; min-width: {min(NARROW, 4 * width / 3):.0f}px">{body}'
    )
