"""How the report writes numbers, lists and labels."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sweetspot.vocabulary import SIMULATED

PAPER_MAPE_PERCENT = 1.79  # arXiv 2602.05695, abstract: mean over 13 models; how it was validated is not known to us
PAPER_RATIO = 33.41  # arXiv 2602.05695, abstract: worst over best cell

Group = Mapping[str, Any]


def representative(values: Iterable[int], most: int = 4) -> list[int]:
    """At most `most` of the distinct `values`: smallest, largest, and evenly (by rank) between."""
    distinct = sorted(set(values))
    if len(distinct) <= most:
        return distinct
    step = (len(distinct) - 1) / (most - 1)
    return [distinct[round(index * step)] for index in range(most)]


def source_label(sources: Iterable[str]) -> str:
    """The label required on everything that shows rows of these sources; "" if all rows were measured.

    Of two kinds of simulation, that of the coarser one.
    """
    kinds = {kind for source in sources for kind in source.split(",")}
    if simulated := kinds & SIMULATED.keys():
        return min((SIMULATED[kind] for kind in simulated), key=len)
    if "published" in kinds:
        return "PUBLISHED"
    return "" if kinds == {"measured"} else "SOURCE NOT STATED"


def some(what: str, shown: Sequence[int], every: Iterable[int]) -> str:
    """ "Batches 1, 8 of 1, 2, 8." if not all are shown, else nothing."""
    distinct = sorted(set(every))
    return f"{what} {listed(shown)} of {listed(distinct)}." if len(shown) < len(distinct) else ""


def law_words(groups: Sequence[Group]) -> str:
    """The chosen laws for a sentence: "paper-6", or "paper-6 for 10 models, steps-8 for 3"."""
    laws = [str(group["law"]) for group in groups if group.get("law")]
    counts = {law: laws.count(law) for law in dict.fromkeys(laws)}
    if len(counts) == 1:
        return next(iter(counts))
    words = [f"{law} for {count}" for law, count in counts.items()]
    return ", ".join([f"{words[0]} models", *words[1:]]) if words else "none"


def number(value: float | None, digits: int = 3) -> str:
    """`value` with `digits` significant digits, without an exponent if that stays short; "–" for nothing."""
    if value is None or not math.isfinite(value):
        return "–"
    if value == 0:
        return "0"
    exponent = math.floor(math.log10(abs(float(f"{value:.{digits - 1}e}"))))
    if -4 <= exponent < 6:
        return f"{value:,.{max(digits - 1 - exponent, 0)}f}"
    mantissa = f"{value / 10.0**exponent:.{digits - 1}f}"
    return f"{mantissa} × 10{str(exponent).translate(str.maketrans('-0123456789', '⁻⁰¹²³⁴⁵⁶⁷⁸⁹'))}"


def tokens(value: float) -> str:
    """A length predicted by a law, in whole tokens."""
    return f"{value:,.0f}"


def percent(value: float | None) -> str:
    """An error in percent, three significant digits; anything below 0.001 % is rounding error."""
    if value is None or not math.isfinite(value):
        return "–"
    return "< 0.001 %" if value < 0.001 else f"{number(value)} %"


def listed(values: Iterable[Any], most: int = 12) -> str:
    """Values for a sentence: "1, 8, 32"; a long list keeps its ends."""
    items = [str(value) for value in values]
    if len(items) > most:
        items = [*items[: most - 2], "…", items[-1]]
    return ", ".join(items)
