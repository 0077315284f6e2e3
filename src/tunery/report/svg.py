"""A matplotlib figure as SVG that lives inside the page: its colours are the page's, light or dark, and its text is text.

Charts are drawn in stand-in colours that nobody would choose, which are then replaced by the page's CSS variables. What a
browser does not need inside a page (prologue, metadata, name spaces, unused ids, global style) is taken out; so no
address of any kind is left in it.
"""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BEFORE, AFTER, VALID, INK, SOFT, GRID = "#010203", "#010204", "#010205", "#010206", "#010207", "#010208"
"""Stand-ins for: before, after, validation, text, lesser text, grid lines."""

_VARIABLES = {BEFORE: "--before", AFTER: "--after", VALID: "--valid", INK: "--ink", SOFT: "--soft", GRID: "--grid"}


def settings() -> Any:
    """The context in which every chart is drawn and saved; user text is never taken for a formula."""
    import matplotlib

    return matplotlib.rc_context({
        "svg.fonttype": "none", "svg.hashsalt": "tunery", "text.parse_math": False, "font.size": 11, "text.color": INK,
        "axes.edgecolor": GRID, "axes.labelcolor": SOFT, "axes.titlecolor": INK, "axes.titlesize": 11.5, "axes.labelsize": 10.5,
        "axes.facecolor": "none", "axes.spines.top": False, "axes.spines.right": False, "axes.spines.left": False, "axes.axisbelow": True,
        "axes.unicode_minus": True, "xtick.color": SOFT, "ytick.color": SOFT, "xtick.labelsize": 10.5, "ytick.labelsize": 10.5,
        "xtick.major.size": 0, "ytick.major.size": 0, "xtick.major.pad": 6, "grid.color": GRID, "grid.linewidth": 0.8,
        "figure.facecolor": "none", "savefig.facecolor": "none",
    })  # fmt: skip


def inline(figure: Figure, label: str) -> str:
    """The figure as one `<svg>` element, as wide as its place. `label` describes it to who cannot see it (escaped here)."""
    from html import escape

    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", svg, flags=re.DOTALL)
    opening = re.match(r"<svg[^>]*>", svg)
    box = re.search(r'viewBox="([-\d. ]+)"', svg)
    if opening is None or box is None:
        raise RuntimeError("matplotlib wrote an SVG without a viewBox")
    svg = f'<svg class="chart" role="img" aria-label="{escape(label, quote=True)}" viewBox="{box[1]}">' + svg[opening.end() :]
    svg = svg.replace("xlink:href", "href")
    # The page's own font is wanted: matplotlib names its families, in a shorthand or apart, by version.
    svg = re.sub(r"font: (?:(\d+) )?([\d.]+)px [^;\"]*", lambda m: f"font-size: {m[2]}px" + (f"; font-weight: {m[1]}" if m[1] else ""), svg)
    svg = re.sub(r"font-family: [^;\"]*;? ?", "", svg)
    used = set(re.findall(r"(?:url\(#|href=\"#)([^\")]+)", svg))
    svg = re.sub(r' id="([^"]*)"', lambda m: m[0] if m[1] in used else "", svg)
    for stand_in, variable in _VARIABLES.items():
        svg = svg.replace(stand_in, f"var({variable})")
    return re.sub(r"\n\s*", "\n", svg).strip()
