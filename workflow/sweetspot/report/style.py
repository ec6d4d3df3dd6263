"""One look for all figures: colours that keep their meaning, a header with title, caption and label, small SVG files.

Colours are distinguishable with the common colour-vision deficiencies (after Okabe and Ito 2008). Their medium
lightness shows on white and on near-black pages, so a page needs to swap only ink and background.
"""

import hashlib
import re
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import seaborn as sns
from matplotlib.backends.backend_pdf import PdfPages
from matplotlib.colors import LinearSegmentedColormap, to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator
from seaborn.utils import relative_luminance

from sweetspot.report.words import number

LineStyle = Literal["-", "--", ":"]
INK, MUTED, GRID, ALARM = "#1f2328", "#5f6873", "#d9dee3", "#c2410c"
FAMILIES = {
    "opt": "#0072b2",
    "llama": "#d55e00",
    "gemma": "#009e73",
    "falcon": "#c56a9d",
    "qwen": "#56b4e9",
    "granite": "#96741a",
    "mistral": "#7a5bc7",
    "phi": "#b8473f",
}
OTHER_FAMILIES = ("#6b7a1e", "#8a5a3c", "#4f7f8b", "#a04fb0", "#5f6bd0", "#35608f", "#3f8f4f", "#a8506c")
# Upper bound in billion parameters, marker, line.
SIZES: tuple[tuple[float, str, LineStyle], ...] = ((2.0, "o", ":"), (5.0, "s", "--"), (float("inf"), "^", "-"))
RAMP = LinearSegmentedColormap.from_list("ramp", ["#2b5fc4", "#7a55c9", "#b94a9b", "#d6564f", "#d98a1f"])
HEAT = sns.color_palette("rocket_r", as_cmap=True)
RC = {
    **sns.axes_style("ticks"),
    "font.family": "DejaVu Sans",  # shipped with matplotlib, and wider than what a browser may substitute
    "font.size": 8.5,
    "axes.titlesize": 8.5,
    "axes.labelsize": 8.5,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "legend.fontsize": 7.5,
    "legend.title_fontsize": 7.5,
    "legend.frameon": False,
    "axes.facecolor": "none",
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "axes.linewidth": 0.7,
    "axes.axisbelow": True,
    "lines.linewidth": 1.3,
    "hatch.linewidth": 0.6,
    "text.parse_math": False,  # a model's name may contain a dollar sign
    "svg.fonttype": "none",  # text stays text: small, sharp, searchable
    "pdf.fonttype": 42,  # fonts that journals accept
    "svg.hashsalt": "sweetspot",
    **{name: INK for name in ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")},
}
_HEADER_PT = {"title": 11.5, "subtitle": 8.0}
_PNG_DPI = 200
WIDTH = 7.6  # inches; a figure's text is then as large as the page's on a screen 1280 pixels wide
_BANDS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100)


@dataclass(frozen=True)
class ModelStyle:
    """How a model is drawn in every figure."""

    colour: str
    marker: str
    line: LineStyle


def model_style(model: str) -> ModelStyle:
    """Colour by family, marker and line by size, both from the name alone, so other models never change them."""
    words = model.lower()
    family = next((name for name in FAMILIES if name in words), None)
    if family:
        colour = FAMILIES[family]
    else:
        stem = re.split(r"[-_ ]?\d", words.rsplit("/", 1)[-1])[0] or words
        colour = OTHER_FAMILIES[int(hashlib.sha256(stem.encode()).hexdigest(), 16) % len(OTHER_FAMILIES)]
    size = re.search(r"(\d+(?:\.\d+)?)\s?b(?![a-z])", words)
    billions = float(size[1]) if size else float("inf")
    _, marker, line = next(entry for entry in SIZES if billions < entry[0] or entry[0] == float("inf"))
    return ModelStyle(colour, marker, line)


def ramp(values: Iterable[int]) -> dict[int, str]:
    """A colour for each distinct value, in order from blue (small) to amber (large)."""
    ordered = sorted(set(values))
    return {value: to_hex(RAMP(index / max(len(ordered) - 1, 1))) for index, value in enumerate(ordered)}


def figure(width: float, height: float, title: str, subtitle: str, label: str) -> Figure:
    """An empty figure of `width` by `height` inches below a header: title, wrapped subtitle, and the source `label`.

    Of a label with a note in brackets, the word stands in the box, and the whole begins the subtitle.
    """
    word, *note = label.split(" ", 1)
    subtitle = f"{label}. {subtitle}" if note else subtitle
    characters = int(width * 72 / (_HEADER_PT["subtitle"] * 0.54))
    lines = textwrap.wrap(subtitle, characters, break_on_hyphens=False)
    header = (_HEADER_PT["title"] * 1.75 + len(lines) * _HEADER_PT["subtitle"] * 1.35 + 5) / 72
    total = height + header
    # Laid out at the resolution it is saved at: hinting makes text narrower at a lower one.
    fig = Figure(figsize=(width, total), dpi=_PNG_DPI, layout="constrained")
    engine: Any = fig.get_layout_engine()
    engine.set(rect=(0, 0, 1, height / total), w_pad=0.06, h_pad=0.06)
    top, left = 1 - 4 / 72 / total, 1 / 72 / width
    fitting = 72 * (width - 0.15 * len(word) - 0.1) / (0.62 * len(title))
    fig.text(left, top, title, va="top", fontsize=min(_HEADER_PT["title"], fitting), fontweight="bold")
    below = top - _HEADER_PT["title"] * 1.65 / 72 / total
    fig.text(left, below, "\n".join(lines), va="top", fontsize=_HEADER_PT["subtitle"], color=MUTED, linespacing=1.3)
    if label:
        box = {"boxstyle": "round,pad=0.25", "facecolor": "none", "edgecolor": ALARM, "linewidth": 1.0}
        fig.text(
            1 - 5 / 72 / width, top, word, va="top", ha="right", fontsize=9, fontweight="bold", color=ALARM, bbox=box
        )
    return fig


def readable_on(colour: Any) -> str:
    """White or near black, whichever has more contrast on `colour` (relative luminance of WCAG 2)."""
    dark = "#161616"  # not INK, which turns light on a dark page
    return "#ffffff" if relative_luminance(colour) < 0.195 else dark


def band(errors: Any) -> float:
    """Half-width in percent of a band around 0: the smallest round one with 95 % of `errors` (percent) inside."""
    reach = np.quantile(np.abs(errors), 0.95)
    return next((width for width in _BANDS if reach <= width), _BANDS[-1])


def panels(fig: Figure, count: int, columns: int, x: str, y: str, **shared: Any) -> list[Any]:
    """The axes of `count` panels in rows of `columns`; only the outer ones are labelled."""
    axes = fig.subplots(-(-count // columns), columns, squeeze=False, **shared)
    for ax in axes.flat[count:]:
        ax.remove()
    for position, ax in enumerate(axes.flat[:count]):
        if position % columns == 0:
            ax.set_ylabel(y)
        if position + columns >= count:
            ax.set_xlabel(x)
            ax.tick_params(labelbottom=True)
    return list(axes.flat[:count])


def columns(panels: int, most: float = 3) -> int:
    """Number of columns for that many panels: one row where `most` allows it, else two columns, else one."""
    return panels if panels <= most else 2 if most >= 2 else 1


def length_axis(axis: Any, values: Iterable[int], gap: float = 0.12) -> None:
    """Put the ticks of a logarithmic axis at the measured lengths or batches, thinned where they would touch.

    `gap` is the smallest distance between two ticks, as a share of the axis.
    """
    ticks: list[int] = []
    ordered = sorted(set(values))
    span = np.log(ordered[-1] / ordered[0]) if len(ordered) > 1 else 1.0
    for value in ordered:
        if not ticks or np.log(value / ticks[-1]) > gap * span:
            ticks.append(value)
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def value_axis(axis: Any) -> None:
    """Put round ticks on a logarithmic axis of quantities, written without powers of ten."""
    low, high = sorted(axis.get_view_interval())
    decades = np.log10(high / low)
    finer = ((0.8, (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)), (1.6, (1.0, 2.0, 5.0)), (3.0, (1.0, 3.0)))
    steps = next((steps for limit, steps in finer if decades < limit), (1.0,))
    locator = MaxNLocator(5, steps=[1, 2, 5, 10]) if decades < 0.4 else LogLocator(subs=steps, numticks=12)
    axis.set_major_locator(locator)
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def save(fig: Figure, directory: Path, name: str, pdf: PdfPages) -> list[Path]:
    """Write `name`.svg and `name`.png and add a page to `pdf`; the same figure gives the same bytes."""
    svg, png = directory / f"{name}.svg", directory / f"{name}.png"
    layout: Any = fig.get_layout_engine()
    layout.execute(fig)
    fig.set_layout_engine(None)  # the layout just computed serves both formats; it costs as much as drawing
    fig.savefig(svg, facecolor="none", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    fig.savefig(png, dpi=_PNG_DPI, facecolor="white", metadata={"Software": None})
    pdf.savefig(fig)  # type: ignore[no-untyped-call]
    # Verdana, as wide as DejaVu Sans, is for readers who do not have DejaVu Sans.
    text = svg.read_text().replace("'DejaVu Sans'", "'DejaVu Sans', Verdana, Arial, sans-serif")
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    # A hundredth of a point is finer than any screen; text between tags is not touched.
    svg.write_text(re.sub(r'="[^"]*"', lambda attribute: re.sub(r"(\.\d\d)\d+", r"\1", attribute[0]), text))
    return [svg, png]


def rows_axis(ax: Any, names: Sequence[str]) -> None:
    """Name the rows of a chart whose values lie along x."""
    ax.set_yticks(range(len(names)), names)
    ax.tick_params(axis="y", length=0)
    ax.grid(visible=False, axis="y")


def dots(model: str, alpha: float, raster: bool) -> dict[str, Any]:
    """How `scatter` draws the cells or rows of a model."""
    look = model_style(model)
    shape = {"color": look.colour, "marker": look.marker, "s": 9, "linewidths": 0}
    return {**shape, "alpha": alpha, "rasterized": raster}


def shortened(name: str) -> str:
    """A name for a legend, at most 28 characters."""
    return name if len(name) <= 28 else f"{name[:16]}…{name[-11:]}"


def shown(value: float) -> str:
    """A number inside a figure: short, without separators."""
    return number(value).replace(",", "")
