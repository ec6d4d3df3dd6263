"""How the quantities of a table determine each other: what is missing is derived, what is there twice must agree."""

import re
from collections.abc import Iterator, Mapping
from fractions import Fraction
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sweetspot.table.words import FACTS

Values = dict[str, NDArray[np.float64]]


class Relation(NamedTuple):
    """A product of powers that is 1: the exponent of each quantity."""

    powers: Mapping[str, int]
    text: str

    def product(self, known: Values, without: str = "") -> NDArray[np.float64]:
        """The product of its quantities in each row, all or without one."""
        product = np.ones(1)
        with np.errstate(all="ignore"):
            for name, power in self.powers.items():
                if name != without:
                    product = product * known[name] ** power
        return product


def _read(line: str) -> Relation:
    left, right = (re.findall(r"[a-z_]+", side) for side in line.split("="))
    return Relation({**dict.fromkeys(left, 1), **dict.fromkeys(right, -1)}, line)


_RELATIONS = tuple(map(_read, FACTS["relations"].strip().splitlines()))


def solve(given: Values) -> tuple[Values, dict[str, Relation]]:
    """All quantities that follow from the given ones, and by which relation each does.

    `tokens` is the length of prompt and reply together; a table without `pipeline_parallel` has one stage.
    """
    known = dict(given)
    how: dict[str, Relation] = {}
    if "tensor_parallel" in known:
        known.setdefault("pipeline_parallel", np.ones_like(known["tensor_parallel"]))
    while True:
        if {"input_tokens", "output_tokens"} <= known.keys():
            known.setdefault("tokens", known["input_tokens"] + known["output_tokens"])
        open_ones = ((one, [name for name in one.powers if name not in known]) for one in _RELATIONS)
        relation, missing = next(((one, names[0]) for one, names in open_ones if len(names) == 1), (None, ""))
        if relation is None:
            return known, how
        known[missing] = relation.product(known, missing) ** -relation.powers[missing]
        how[missing] = relation


def origins(name: str, given: Values, how: Mapping[str, Relation]) -> dict[str, Fraction]:
    """The exponents with which given quantities make up this one."""
    if name in given or name not in how:
        return {name: Fraction(1)}
    found: dict[str, Fraction] = {}
    for other, power in how[name].powers.items():
        for origin, exponent in origins(other, given, how).items() if other != name else ():
            found[origin] = found.get(origin, Fraction(0)) - exponent * Fraction(power, how[name].powers[name])
    return {origin: exponent for origin, exponent in found.items() if exponent}


def ratios(known: Values) -> Iterator[tuple[Relation, NDArray[np.float64]]]:
    """Each relation all of whose quantities are known, and its product in each row: 1 where it holds."""
    return ((one, one.product(known)) for one in _RELATIONS[1:] if one.powers.keys() <= known.keys())


def conflicts(known: Values, tolerance: float) -> list[tuple[Relation, float]]:
    """The relations that do not hold within a factor, in most rows that have all their quantities, and the factor."""
    found = []
    for relation, ratio in ratios(known):
        sure = ratio[np.isfinite(ratio) & (ratio > 0)]
        if len(sure) and abs(np.log(typical := float(np.median(sure)))) > np.log(tolerance):
            found.append((relation, typical))
    return found
