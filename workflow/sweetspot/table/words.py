"""What headers mean: every quantity that a table may give, its names, and units, from facts.toml.

Beside the columns of a row, these are the quantities that determine a column or must agree with it: of a request
(`energy_per_request_j`), of a run of many requests (`run_energy_j`, `requests`), of one board (`power_per_gpu_w`), sums
over the batch or the run (`batch_output_tokens`), and rates.
"""

import re
import tomllib
import unicodedata
from collections.abc import Iterable
from functools import cache
from importlib.resources import files
from typing import NamedTuple

from sweetspot.vocabulary import LATENCIES

FACTS = tomllib.loads(files("sweetspot.table").joinpath("facts.toml").read_text("utf-8"))
UNITS: dict[str, dict[str, float]] = FACTS["units"]
LIMITS: list[str] = FACTS["limits"]
QUANTITIES = FACTS["quantities"]
NUMBERS: dict[str, str] = {name: of["kind"] for name, of in QUANTITIES.items() if of["kind"] != "text"}
NUMBERS |= dict.fromkeys(LATENCIES, "time")
COUNTS = ("batch", "input_tokens", "output_tokens")
_BY_CASE = ("mJ", "MJ", "mW")  # units that differ by case only
_MANY = {"1k": 1e3, "1000": 1e3, "1m": 1e6, "million": 1e6}
# Per token may be per output token: what the same words may also mean.
_ALSO = {
    "energy_per_total_token_j": ("energy_per_output_token_j", r"per(1k|1m|1000|million)?(token|tok)"),
    "total_tokens_per_j": ("output_tokens_per_j", r"^(?!.*output).*tok(en)?s?perj"),
}


class Meaning(NamedTuple):
    """What a header may mean: a quantity, the factor to its unit, and the unit if the header states one."""

    quantity: str
    factor: float = 1.0
    unit: str = ""

    @property
    def kind(self) -> str:
        """The dimension of the quantity, one of `UNITS`."""
        return NUMBERS.get(self.quantity, "text")

    @property
    def header(self) -> str:
        """A header that means this, for `--map`: `energy_j`, or in another unit `energy_kWh`."""
        return self.quantity if self.factor == 1 else f"{re.sub('_[jsw]$', '', self.quantity)}_{self.unit}"

    def of(self, scope: str) -> "list[Meaning]":
        """What it is if it is of a whole "run", of one "board", of one "request", or of "each" request or token."""
        return [self._replace(quantity=other) for other in FACTS["scopes"][scope].get(self.quantity, ())]

    def within(self, unit: str) -> "Meaning":
        """The same quantity in another unit."""
        return Meaning(self.quantity, UNITS[self.kind][unit], unit)


def folded(header: str) -> str:
    """A header without case, accents, spaces and punctuation: "Énergie (J)" is "energiej"."""
    plain = unicodedata.normalize("NFKD", header.replace("µ", "u").casefold()).replace("/", "per")
    return re.sub(r"[^a-z0-9]+", "", plain)


def meanings(header: str) -> tuple[Meaning, ...]:
    """All that a header may mean; of a nested name ("usage.prompt_tokens") its last part counts.

    A header that is one of our names means that alone.
    """
    if header in QUANTITIES:
        return (Meaning(header),)
    written = (header, header.rpartition(".")[2], header.replace("/", " "))  # "Energy / kJ"
    found = next((known for each in written if (known := _known().get(folded(each)))), [])
    by_case = [unit for unit in _BY_CASE if re.search(unit[0] + "[JW]", header)]
    kept = [one for one in found if one.unit not in _BY_CASE or one.unit in by_case]
    return tuple({one[:2]: one for one in reversed(kept)}.values())[::-1]  # the first of those that are alike


def unclear_unit(headers: Iterable[str]) -> str | None:
    """The first header that may be in millijoules or in megajoules: nine orders apart."""
    unclear = (name for name in headers if not meanings(name))
    return next((name for name in unclear if any(one.unit in _BY_CASE for one in _known().get(folded(name), ()))), None)


@cache
def _known() -> dict[str, list[Meaning]]:
    known: dict[str, list[Meaning]] = {}
    for name, of in QUANTITIES.items():
        units, per = UNITS[of["kind"]], of.get("per", ())
        plain = [*of.get("names", "").split(), folded(name)]
        plain += [f"{base}per{what}" for what in per for base in ("energy", "totalenergy", "gpuenergy")]
        plain += [f"energy{what}" for what in per]
        ways = [(word + folded(unit), Meaning(name, units[unit], unit)) for word in plain for unit in units]
        ways += [(f"{folded(unit)}per{what}", Meaning(name, units[unit], unit)) for what in per for unit in units]
        for many, number in _MANY.items() if per else ():
            for unit in units:
                one = Meaning(name, units[unit] / number, f"{unit}/{many}")
                ways += [(f"{folded(unit)}per{many}{what}s", one) for what in per]
                ways += [(f"{base}per{many}{what}s{folded(unit)}", one) for what in per for base in ("energy", "")]
                ways += [(folded(one.header), one)]
        if name == "energy_j":  # the unit alone
            ways += [(folded(unit), Meaning(name, units[unit], unit)) for unit in ("joules", "kWh", "Wh", "mWh", "kJ")]
        for word, one in [*ways, *((word, Meaning(name)) for word in plain)]:
            known.setdefault(word, []).append(one)
            other, form = _ALSO.get(name, ("", "$^"))
            if re.search(form, word):
                known[word].append(one._replace(quantity=other))
    return known
