"""The energy laws, as data.

Every law gives E_tok, the energy in joules of one output token of one request: the energy of a whole batch run divided
by batch × output tokens. n = input tokens, m = output tokens, B = requests in the batch. Every law is a sum of terms,
linear in its coefficients. Where the KV cache does not hold the batch, its requests run in waves, each a batch of its
own: then B is the batch divided by the waves. Standard library only, because a prediction reads these laws without the
analysis packages.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Number = Any  # a Python number or a NumPy array of float64: the forms below serve both

FORMS: dict[str, Callable[[Number, Number], Number]] = {
    "1": lambda n, m: m / m,
    "n/m": lambda n, m: n / m,
    "m": lambda n, m: m,
    "n": lambda n, m: n,
    "n^2/m": lambda n, m: n * (n / m),
    "1/m": lambda n, m: 1 / m,
    "n + m/2": lambda n, m: n + (m - 1) / 2,
    "n^2 + nm + m^2/3": lambda n, m: n * (n + m - 1) + (m - 1) * (2 * m - 1) / 6,
}
"""How a term depends on the lengths. Where the cells cannot tell two forms apart, the earlier one is kept.

The last two are means over the steps of a reply: of the context n + j, and of its square, j = 0 .. m - 1.
"""

_POWERS: dict[str, Callable[[float], tuple[float, float, float]]] = {
    "n/m": lambda n: (n, 0.0, 0.0),
    "m": lambda n: (0.0, 1.0, 0.0),
    "n^2/m": lambda n: (n * n, 0.0, 0.0),
    "1/m": lambda n: (1.0, 0.0, 0.0),
    "n + m/2": lambda n: (0.0, 0.5, 0.0),
    "n^2 + nm + m^2/3": lambda n: (0.0, n - 0.5, 1 / 3),
}
"""What multiplies 1/m, m and m^2 in a form, at n input tokens; nothing in the forms that are not here."""

ROUTINGS: dict[str, Callable[[Number, Number], Number]] = {
    "even": lambda chosen, batch: 1 - (1 - chosen) ** batch,
    "skewed": lambda chosen, batch: batch * chosen / (1 + (batch - 1) * chosen),
}
"""A: the share of a mixture's experts that B tokens activate, where one token activates the share p = k/E of them.

Both are the mean of 1 - (1 - P)^B over the experts. "even": P = p for all. "skewed": some experts are popular, most are
not; P has the beta distribution of mean p whose first shape is 1. Both are p at B = 1, and 1 in a dense model (p = 1).
"""


@dataclass(frozen=True)
class Term:
    """One coefficient of a law.

    `lower` is 0 where physics forbids a negative value and None where the sign is free. A `per_batch` term is divided
    by the batch: it is paid once for all requests. A term with a `routing` is multiplied by the share of a mixture's
    experts that the batch activates (see `ROUTINGS`).
    """

    name: str
    form: str
    lower: float | None
    meaning: str
    per_batch: bool = False
    routing: str | None = None

    def value(self, n: Number, m: Number, batch: Number, chosen: Number = 1.0) -> Number:
        """What the coefficient is multiplied by; all arguments are numbers or float arrays of equal shape.

        `chosen`: the share of a mixture's experts that one token activates, k/E.
        """
        form = FORMS[self.form](n, m)
        form = form * ROUTINGS[self.routing](chosen, batch) if self.routing else form
        return form / batch if self.per_batch else form

    def powers(self, n: float, batch: float) -> tuple[float, float, float]:
        """What multiplies 1/m, m and m^2 in `value` at these input tokens and this batch."""
        inverse, linear, square = _POWERS[self.form](n) if self.form in _POWERS else (0.0, 0.0, 0.0)
        share = batch if self.per_batch else 1
        return inverse / share, linear / share, square / share


@dataclass(frozen=True)
class Law:
    """A law: its formula for people and its terms for the fit.

    A baseline without terms is validated beside the laws but predicts for nobody; `no_terms` says why.
    """

    name: str
    formula: str
    source: str
    terms: tuple[Term, ...]
    no_terms: str = ""

    @property
    def has_batch_terms(self) -> bool:
        """Whether one set of coefficients serves every batch."""
        return any(term.per_batch for term in self.terms)

    @property
    def needs_experts(self) -> bool:
        """Whether it is a law for mixtures of experts only."""
        return any(term.routing for term in self.terms)

    @property
    def can_have_sweet_spot(self) -> bool:
        """Whether a term grows with the reply; without, no coefficients give a reply of least energy per token."""
        return any(any(term.powers(1.0, 1.0)[1:]) for term in self.terms)


# Bounds: the derivation prices FLOPs, bytes and static power, all positive, and each of these terms is a sum of them
# with positive factors. Only the 1/m terms mix signs: the last token is never fed back (minus), overheads add (plus).
_T0 = Term("t0", "1", 0.0, "the weights applied to one token, and static power")
_T1 = Term("t1", "n^2/m", 0.0, "attention among the prompt's tokens")
_T2 = Term("t2", "n", 0.0, "each new token attends to, and reads the cache of, the prompt")
_T3 = Term("t3", "n/m", 0.0, "prefill: the weights applied to each prompt token, spread over the reply")
_T4 = Term("t4", "m", 0.0, "each new token attends to, and reads the cache of, the reply so far")
_T5 = Term("t5", "1/m", None, "what a request costs once")
_CACHE = Term("t2", "n + m/2", 0.0, "each new token attends to, and reads the cache of, all tokens before it")
_BY_BATCH = (
    Term("u", "1", 0.0, "the weights applied to one token: arithmetic of each request"),
    Term("v", "1", 0.0, "reading the weights, and static power: once a step for the whole batch", per_batch=True),
)
_ONCE_BY_BATCH = (
    Term("w", "1/m", None, "what a request costs once"),
    Term("x", "1/m", None, "what a batch costs once", per_batch=True),
)
_EVEN, _SKEWED = (
    Term("y", "1", 0.0, "reading the experts that the tokens of a step activate", per_batch=True, routing=routing)
    for routing in ("even", "skewed")
)
_AGAIN = (
    Term("r1", "n + m/2", 0.0, "each step applies the weights to the whole sequence again"),
    Term("r2", "n^2 + nm + m^2/3", 0.0, "each step attends among all tokens of the sequence again"),
)

_LAWS = (
    Law(
        "tdp-time",
        "E_batch = TDP * T",
        "rule of thumb; T is the measured duration",
        (),
        "nothing to fit: TDP times the measured duration",
    ),
    Law(
        "shared",
        "E_batch = sum of FLOPs, bytes, passes, layers and tokens, each at a price",
        "this project: prices shared by the models of a GPU and engine, terms from each model's architecture",
        (),
        "fitted to all models together",
    ),
    Law(
        "trees",
        "gradient-boosted trees of log E_tok over the logs of n, m and B",
        "scikit-learn, optional: what no physics can do with the same cells",
        (),
        "no coefficients: boosted trees are validated only",
    ),
    # The baselines' authors set no bounds, and a law with missing terms may need a negative one to make up for them.
    Law(
        "linear",
        "E_req = c0 + c1 n + c2 m",
        "price per token, the usual estimate",
        (
            Term("c0", "1/m", None, "fixed energy of a request"),
            Term("c1", "n/m", None, "energy of an input token"),
            Term("c2", "1", None, "energy of an output token"),
        ),
    ),
    Law(
        "wilkins",
        "E_req = a0 n + a1 m + a2 n m",
        "Wilkins et al. 2024 (bilinear)",
        (
            Term("a0", "n/m", None, "energy of an input token"),
            Term("a1", "1", None, "energy of an output token"),
            Term("a2", "n", None, "interaction of input and output"),
        ),
    ),
    Law(
        "paper-5",
        "E_tok = t0 + t1 n^2/m + t2 n + t3 n/m + t4 m",
        "SweetSpot, arXiv 2602.05695 (FLOPs form)",
        (_T0, _T1, _T2, _T3, _T4),
    ),
    Law(
        "paper-6",
        "E_tok = t0 + t1 n^2/m + t2 n + t3 n/m + t4 m + t5/m",
        "SweetSpot, arXiv 2602.05695 (final form)",
        (_T0, _T1, _T2, _T3, _T4, _T5),
    ),
    Law(
        "cache-5",
        "E_tok = t0 + t1 n^2/m + t2 (n + (m - 1)/2) + t3 n/m + t5/m",
        "this project: paper-6 where the cache of prompt and of reply cost the same",
        (_T0, _T1, _CACHE, _T3, _T5),
    ),
    Law(
        "recompute-4",
        "E_tok = t0 + r1 (n + (m - 1)/2) + r2 (n (n + m - 1) + (m - 1) (2 m - 1)/6) + t5/m",
        "this project: an engine without KV cache runs the whole sequence again for each token",
        (_T0, *_AGAIN, _T5),
    ),
    Law(
        "batch-8",
        "E_tok = u + v/B + t1 n^2/m + t2 n + t3 n/m + t4 m + (w + x/B)/m",
        "this project: only t0 and t5 of paper-6 depend on the batch",
        (*_BY_BATCH, _T1, _T2, _T3, _T4, *_ONCE_BY_BATCH),
    ),
    Law(
        "batch-7",
        "E_tok = u + v/B + t1 n^2/m + t2 (n + (m - 1)/2) + t3 n/m + (w + x/B)/m",
        "this project: batch-8 where the cache of prompt and of reply cost the same",
        (*_BY_BATCH, _T1, _CACHE, _T3, *_ONCE_BY_BATCH),
    ),
    Law(
        "experts-8",
        "E_tok = u + v/B + y A/B + t1 n^2/m + t2 (n + (m - 1)/2) + t3 n/m + (w + x/B)/m",
        "this project: batch-7 and the experts' weights, of which a step reads the share A = 1 - (1 - k/E)^B",
        (*_BY_BATCH, _EVEN, _T1, _CACHE, _T3, *_ONCE_BY_BATCH),
    ),
    Law(
        "skewed-8",
        "E_tok = u + v/B + y A/B + t1 n^2/m + t2 (n + (m - 1)/2) + t3 n/m + (w + x/B)/m",
        "this project: experts-8 where some experts are more popular than others: A = B k/(E + (B - 1) k)",
        (*_BY_BATCH, _SKEWED, _T1, _CACHE, _T3, *_ONCE_BY_BATCH),
    ),
    Law(
        "recompute-6",
        "E_tok = u + v/B + r1 (n + (m - 1)/2) + r2 (n (n + m - 1) + (m - 1) (2 m - 1)/6) + (w + x/B)/m",
        "this project: recompute-4 for every batch",
        (*_BY_BATCH, *_AGAIN, *_ONCE_BY_BATCH),
    ),
)
LAWS: dict[str, Law] = {law.name: law for law in _LAWS}


def per_token(law: Law, values: Mapping[str, float], n: float, m: float, batch: float, chosen: float = 1.0) -> float:
    """E_tok in joules by `law` with coefficients `values`; a term that `values` lacks counts as 0."""
    return float(sum(values[term.name] * term.value(n, m, batch, chosen) for term in law.terms if term.name in values))


def why_not_identified(law: str | None) -> str:
    """Why no sweet spot of the law of this name is known where its status is "not identified"."""
    if law in LAWS and not LAWS[law].can_have_sweet_spot:
        return f"no term of law {law} grows with the reply, so it can show no minimum even where there is one"
    return "the measured cells do not tell where it lies"


def sweet_spot(law: Law, values: Mapping[str, float], n: float, batch: float) -> float | None:
    """Output length of least energy per output token at `n` input tokens, in tokens (not rounded).

    With N, a and q what multiplies 1/m, m and m^2, it solves 2 q m^3 + a m^2 = N. Where q = 0 that is the closed form
    m*(n) = sqrt((t1 n^2 + t3 n + t5) / t4) of arXiv 2602.05695, with t5 = w + x/B in the laws for every batch. None
    where there is no interior minimum: nothing grows with m, or N is not positive.
    """
    inverse, linear, square = (
        sum(values.get(term.name, 0.0) * term.powers(n, batch)[power] for term in law.terms) for power in range(3)
    )
    if linear < 0 or square < 0 or linear + square <= 0 or inverse <= 0:
        return None
    if square == 0:
        spot = math.sqrt(inverse / linear)
        return spot if math.isfinite(spot) else None
    spot = (inverse / (2 * square)) ** (1 / 3)  # right of the root of an increasing convex cubic: Newton falls onto it
    for _ in range(100):
        step = (2 * square * spot**3 + linear * spot**2 - inverse) / (6 * square * spot**2 + 2 * linear * spot)
        spot -= step
        if abs(step) <= 1e-12 * spot:
            break
    return spot if math.isfinite(spot) else None
