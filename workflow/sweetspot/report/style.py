"""One look for all figures: colours that keep their meaning, a header with title, caption and label, small files.

Colours are distinguishable with the common colour-vision deficiencies (after Okabe and Ito 2008), on white and on
near-black pages.
"""

import hashlib
import re
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.backends.backend_pdf import PdfPages
from matplotlib.colors import LinearSegmentedColormap, to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, LogLocator, NullLocator

from sweetspot.report.words import Group

INK, MUTED, GRID, ALARM = "#1f2328", "#5f6873", "#d9dee3", "#c2410c"
_FAMILIES = {
    "opt": "#0072b2",
    "llama": "#d55e00",
    "gemma": "#009e73",
    "falcon": "#c56a9d",
    "qwen": "#56b4e9",
    "granite": "#96741a",
    "mistral": "#7a5bc7",
    "phi": "#b8473f",
}
_OTHER_FAMILIES = ("#6b7a1e", "#8a5a3c", "#4f7f8b", "#a04fb0", "#5f6bd0", "#35608f", "#3f8f4f", "#a8506c")
_LIGHTNESS = (None, 0.3, 0.68, 0.42, 0.58)  # of the first, second, ... model of a family; None: as above
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
RAMP = LinearSegmentedColormap.from_list("ramp", ["#2b5fc4", "#7a55c9", "#b94a9b", "#d6564f", "#d98a1f"])
RC = {
    **sns.axes_style("whitegrid"),
    "font.family": "DejaVu Sans",  # shipped with matplotlib
    "font.size": 8.5,
    "axes.titlesize": 8.5,
    "axes.labelsize": 8.5,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "legend.fontsize": 7.5,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "text.parse_math": False,  # a model's name may contain a dollar sign
    "svg.fonttype": "none",  # text stays text: small, sharp, searchable
    "pdf.fonttype": 42,  # fonts that journals accept
    "svg.hashsalt": "sweetspot",
}
_PNG_DPI = 200
_CHARACTERS = 16.5  # of the caption, in an inch


@dataclass(frozen=True)
class Look:
    """How a model is drawn everywhere: an RGB colour as hexadecimal, a marker of matplotlib."""

    colour: str
    marker: str


def looks(groups: Sequence[Group]) -> list[Look]:
    """A look for each group: hue by family, shade and marker by its place in the family, in the order of the groups.

    A model that joins at the end changes no other.
    """
    seen: dict[str, int] = {}
    found = []
    for group in groups:
        words = str(group["model"]).lower()
        family = next((name for name in _FAMILIES if name in words), None)
        family = family or re.split(r"[-_ ]?\d", words.rsplit("/", 1)[-1])[0] or words
        place = seen[family] = seen.get(family, -1) + 1
        spread = int(hashlib.sha256(family.encode()).hexdigest(), 16)
        colour: Any = _FAMILIES.get(family, _OTHER_FAMILIES[spread % len(_OTHER_FAMILIES)])
        if lightness := _LIGHTNESS[place % len(_LIGHTNESS)]:
            colour = sns.set_hls_values(colour, l=lightness)
        found.append(Look(to_hex(colour), _MARKERS[place % len(_MARKERS)]))
    return found


def ramp(values: Iterable[int]) -> dict[int, str]:
    """A colour for each distinct value, in order from blue (small) to amber (large)."""
    ordered = sorted(set(values))
    return {value: to_hex(RAMP(index / max(len(ordered) - 1, 1))) for index, value in enumerate(ordered)}


def header(fig: Figure, title: str, caption: str, label: str) -> None:
    """Write title, caption and the source `label` above a figure; saving makes room for them."""
    width, height = fig.get_size_inches()
    text = f"{label}. {caption}" if label else caption
    lines = textwrap.wrap(text, int(width * _CHARACTERS), break_on_hyphens=False)
    fig.text(0.01, 1 + 0.05 / height, "\n".join(lines), va="bottom", fontsize=8, color=MUTED, linespacing=1.3)
    above = 1 + (0.12 + 0.145 * len(lines)) / height
    fig.text(0.01, above, title, va="bottom", fontsize=11.5, fontweight="bold", color=INK)
    if label:
        box = {"boxstyle": "round,pad=0.25", "facecolor": "none", "edgecolor": ALARM}
        place: dict[str, Any] = {"va": "bottom", "ha": "right", "fontsize": 9, "fontweight": "bold", "bbox": box}
        fig.text(0.99, above, label.split(" ", 1)[0], color=ALARM, **place)


def lengths(axis: Any, values: Iterable[int]) -> None:
    """Put the ticks of a logarithmic axis at the measured lengths or batches, at most one per half octave or so."""
    ordered, ticks = sorted(set(values)), list[int]()
    for value in ordered:
        if not ticks or value / ticks[-1] > (ordered[-1] / ordered[0]) ** 0.12:
            ticks.append(value)
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter("{x:g}")


def amounts(axis: Any) -> None:
    """Put round ticks on a logarithmic axis of quantities, written without powers of ten."""
    low, high = sorted(axis.get_view_interval())
    decades = np.log10(high / low)
    finer = ((0.3, (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8, 9)), (0.9, (1, 1.5, 2, 3, 4, 6, 8)), (2.0, (1, 2, 5)))
    axis.set_major_locator(
        LogLocator(subs=next((subs for limit, subs in finer if decades < limit), (1, 3)), numticks=12)
    )
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter("{x:g}")


def save(fig: Figure, directory: Path, name: str, pdf: PdfPages) -> list[Path]:
    """Write `name`.svg and `name`.png and add a page to `pdf`; the same figure gives the same bytes."""
    svg, png = directory / f"{name}.svg", directory / f"{name}.png"
    none = {"Date": None, "Creator": None, "Format": None, "Type": None}
    fig.savefig(svg, facecolor="white", bbox_inches="tight", metadata=none)
    fig.savefig(png, facecolor="white", bbox_inches="tight", dpi=_PNG_DPI, metadata={"Software": None})
    pdf.savefig(fig, bbox_inches="tight")  # type: ignore[no-untyped-call]
    plt.close(fig)
    return [svg, png]
