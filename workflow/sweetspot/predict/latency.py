"""Time to first token (TTFT) and time per output token after it (TPOT): laws of their own. Standard library only.

B requests of n input and m output tokens start together. Prefill computes B n tokens, in passes of so many tokens at
most, and a request has its first token after the pass with the end of its prompt. A decode step reads the weights once
and the KV cache of each request.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sweetspot.predict.intervals import Place, around, of_distance, of_law
from sweetspot.predict.laws import Law, Number, Term, per_token
from sweetspot.predict.prediction import Interval

PASS_TOKENS = (None, 32768, 16384, 8192, 4096, 2048)
"""Prompt tokens per prefill pass that the fit tries, as engines have them; None: a whole batch in one pass."""

_TPOT = Law(
    "tpot",
    "TPOT = p + q B + r B (n + (m - 1)/2) + s B n/m",
    "this project: one decode step for the whole batch",
    (
        Term("p", "1", 0.0, "a decode step: reading the weights, host and launches", 1, prior="step of a batch"),
        Term("q", "1", 0.0, "applying the weights and sampling, for each request", prior="step of a request"),
        Term("r", "n + m/2", 0.0, "reading the KV cache of all tokens before", prior="context token"),
        Term("s", "n/m", 0.0, "waiting for the prefill of other requests, spread over the reply", prior="prompt token"),
    ),
)
_TTFT_TERMS = (
    Term("f", "1/m", 0.0, "a prefill pass: reading the weights, host and launches", 1, prior="batch"),
    Term("g", "1/m", 0.0, "admitting and sampling each request", prior="request"),
    Term("h", "n/m", 0.0, "applying the weights to each prompt token", prior="prompt token"),
    Term("k", "n^2/m", 0.0, "attention within the prompts", prior="prompt token squared"),
)


@dataclass(frozen=True)
class PrefillLaw(Law):
    """TTFT of the mean request (`share` None), or of the one after the `share` of the batch that has it sooner.

    N is the part of its prompt that a request would have if only the tokens up to its first token were computed: all
    n, if one pass of `pass_tokens` takes the whole batch, and half of it on average if there are many passes.
    """

    share: float | None = None
    pass_tokens: int | None = None

    def prompt(self, n: Number, batch: Number) -> Number:
        """N; numbers or arrays of equal shape."""
        if self.pass_tokens is None:
            return n
        whole, one_pass = batch * n, self.pass_tokens
        if self.share is None:
            return (whole + _least(whole, one_pass)) / 2 / batch
        return _least(whole, self.share * whole + one_pass / 2) / batch


def law_of(name: str, pass_tokens: int | None = None) -> Law:
    """The law of one of `vocabulary.LATENCIES`."""
    what, statistic, _ = name.split("_")
    if what == "tpot":
        return _TPOT
    share = None if statistic == "mean" else int(statistic.removeprefix("p")) / 100
    return PrefillLaw(
        "ttft",
        "TTFT = f + g B + h B N + k B N^2",
        "this project: prefill in passes",
        _TTFT_TERMS,
        share=share,
        pass_tokens=pass_tokens,
    )


LAWS = {law.name: law for law in (law_of("ttft_mean_s"), law_of("tpot_mean_s"))}
"""The laws by name, without what is particular to a mean or percentile."""


def per_law(name: str, output_tokens: Any, requests: Any) -> Any:
    """What a value of the law is multiplied by to give the latency in s; numbers or arrays of equal shape.

    The terms are those of laws.py, which are per output token of a request.
    """
    return requests * output_tokens if name.startswith("ttft") else requests


def latencies(group: Mapping[str, Any], batch: float, place: Place, ends: Sequence[Place]) -> dict[str, Interval]:
    """The latencies of a request among `batch` equal ones, by name (see `vocabulary.LATENCIES`), in s.

    `ends`: the same place with the fewest and the most waves that the cells allow; intervals cover them. Empty for a
    group without latencies; a reply of one token has no time per further token.
    """
    n, m, requests, _ = place
    found = {}
    for name, fit in group.get("latency", {}).items():
        law = law_of(name, fit["pass_tokens"])
        seen = _seen(law, place)
        value, *others = (_seconds(name, law, fit, one) for one in (place, *ends))
        if value <= 0 or (law is _TPOT and m == 1):
            continue
        distance = of_distance(group, fit, int(n), int(m), batch, requests)
        half = math.hypot(of_law(law, fit, value / per_law(name, m, requests), batch * m, *seen), distance)
        found[name] = around(value, half + max(abs(other / value - 1) for other in others))
    return found


def _seen(law: Law, place: Place) -> Place:
    """A place with the prompt length that the law's terms see."""
    n, m, requests, share = place
    return law.prompt(n, requests), m, requests, share


def _seconds(name: str, law: Law, fit: Mapping[str, Any], place: Place) -> float:
    values = {term: known["value"] for term, known in fit["terms"].items()}
    return float(per_token(law, values, *_seen(law, place)) * per_law(name, place[1], place[2]))


def _least(values: Number, most: Number) -> Number:
    """The lower of two numbers, or of arrays element by element."""
    return (values + most - abs(values - most)) / 2
