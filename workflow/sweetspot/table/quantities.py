"""How the quantities of a table determine each other: what is missing is derived, what is there twice must agree."""

import re
from collections.abc import Iterator, Mapping
from fractions import Fraction
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Values = dict[str, NDArray[np.float64]]

# Each line is one relation between quantities (see `words`); the first that gives a missing one is used. The first line
# holds without copies of the model only, so nothing is checked by it.
_RELATIONS = """
gpus = tensor_parallel * pipeline_parallel
requests = batch * runs
batch_input_tokens = input_tokens * batch
batch_output_tokens = output_tokens * batch
run_input_tokens = input_tokens * requests
run_output_tokens = output_tokens * requests
energy_per_request_j = energy_per_output_token_j * output_tokens
energy_per_request_j = energy_per_total_token_j * tokens
1 = energy_per_output_token_j * output_tokens_per_j
1 = energy_per_total_token_j * total_tokens_per_j
energy_j = energy_per_request_j * batch
run_energy_j = energy_per_request_j * requests
run_energy_j * batch = energy_j * requests
energy_j = energy_per_gpu_j * gpus
power_w = power_per_gpu_w * gpus
output_throughput = output_throughput_per_gpu * gpus
total_throughput = total_throughput_per_gpu * gpus
run_duration_s * batch = duration_s * requests
requests = run_duration_s * request_throughput
run_output_tokens = run_duration_s * output_throughput
batch = duration_s * request_throughput
batch_output_tokens = duration_s * output_throughput
batch * tokens = duration_s * total_throughput
output_tokens = duration_s * user_throughput
energy_j = power_w * duration_s
run_energy_j = power_w * run_duration_s
power_w = output_throughput * energy_per_output_token_j
power_w = total_throughput * energy_per_total_token_j
"""


class Relation(NamedTuple):
    """A product of powers that is 1: the exponent of each quantity."""

    powers: Mapping[str, int]
    text: str


def _read(line: str) -> Relation:
    left, right = (re.findall(r"[a-z_]+", side) for side in line.split("="))
    return Relation({**dict.fromkeys(left, 1), **dict.fromkeys(right, -1)}, line.strip())


RELATIONS = tuple(map(_read, _RELATIONS.strip().splitlines()))


class Conflict(NamedTuple):
    """Two ways to one quantity that differ by this factor (median over the rows)."""

    relation: Relation
    ratio: float


def solve(given: Values) -> tuple[Values, dict[str, Relation]]:
    """All quantities that follow from the given ones, and by which relation each does.

    `tokens` is the length of prompt and reply together; a table without `pipeline_parallel` has one stage.
    """
    known, how = dict(given), {}
    if "tensor_parallel" in known and "pipeline_parallel" not in known:
        known["pipeline_parallel"] = np.ones_like(known["tensor_parallel"])
    found = True
    while found:
        found = False
        if "tokens" not in known and "input_tokens" in known and "output_tokens" in known:
            known["tokens"], found = known["input_tokens"] + known["output_tokens"], True
        for relation in RELATIONS:
            missing = [name for name in relation.powers if name not in known]
            if len(missing) == 1:
                known[missing[0]] = _product(relation, known) ** -relation.powers[missing[0]]
                how[missing[0]] = relation
                found = True
                break
    return known, how


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
    for relation in RELATIONS[1:]:
        if all(name in known for name in relation.powers):
            yield relation, _product(relation, known)


def conflicts(known: Values, tolerance: float) -> list[Conflict]:
    """The relations that do not hold within a factor, in most rows that have all their quantities."""
    found = []
    for relation, ratio in ratios(known):
        sure = ratio[np.isfinite(ratio) & (ratio > 0)]
        if len(sure) and abs(np.log(typical := float(np.median(sure)))) > np.log(tolerance):
            found.append(Conflict(relation, typical))
    return found


def _product(relation: Relation, known: Values) -> NDArray[np.float64]:
    product = np.ones(1)
    with np.errstate(all="ignore"):
        for name, power in relation.powers.items():
            if name in known:
                product = product * known[name] ** power
    return product
