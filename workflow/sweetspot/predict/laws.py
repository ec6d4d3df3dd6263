"""The energy laws, as data.

Every law gives E_tok, the energy in joules of one output token of one request: the energy of a whole batch run divided
by batch × output tokens. n = input tokens, m = output tokens, B = requests in the batch. Every law is a sum of terms,
linear in its coefficients. If the KV cache cannot hold the batch, its requests run in waves, each a batch of its own,
and B is the batch divided by the waves. Standard library only, so that predictions run without the analysis packages.

A reply of m tokens takes one prefill and m - 1 decode steps. The laws of this project price these: what a step costs at
B requests and a context, and what a prefill costs. No price is negative, so the energy never falls if a prompt, a reply
or a batch grows.
"""

import itertools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

Number = Any  # a Python number or a NumPy array of float64; the code below handles both


@dataclass(frozen=True)
class Form:
    """How a term depends on the lengths: the sum of c * n^a * m^b over `parts` (c, a, b).

    Everything else follows from the parts: values, powers of m, the unit of the coefficient, and the entry in
    predictor.json that the report's page and other programs compute with.
    """

    name: str
    parts: tuple[tuple[float, float, float], ...]

    def value(self, n: Number, m: Number) -> Number:
        """What a coefficient is multiplied by at `n` input and `m` output tokens."""
        return sum(c * n**a * m**b for c, a, b in self.parts)

    @property
    def unit(self) -> str:
        """Unit of the coefficient, if the sum of all terms is in J per output token."""
        power = 1 + max(a + b for _, a, b in self.parts)
        if power <= 0:
            return "J" + " token" * (power < 0) + _superscript(-power)
        return "J/token" + _superscript(power)

    @property
    def shown(self) -> str:
        """The name with powers as superscripts."""
        return re.sub(r"\^(-?\d+(?:\.\d+)?)", lambda match: _superscript(float(match[1])), self.name)


def _superscript(power: float) -> str:
    """A power as a superscript of a unit or a length; empty for powers 0 and 1."""
    if power in (0, 1):
        return ""
    return f"{power:g}".translate(str.maketrans("-0123456789.", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹·"))


_FORMS = (
    Form("1", ((1, 0, 0),)),
    Form("n/m", ((1, 1, -1),)),
    Form("m", ((1, 0, 1),)),
    Form("n", ((1, 1, 0),)),
    Form("n^2/m", ((1, 2, -1),)),
    Form("1/m", ((1, 0, -1),)),
    # The mean of the context n + j over the tokens j = 0 .. m - 1 of a reply.
    Form("n + m/2", ((1, 1, 0), (1 / 2, 0, 1), (-1 / 2, 0, 0))),
    # The m - 1 decode steps of a reply, and the sum of their contexts n + j, j = 1 .. m - 1, for each of its m tokens.
    Form("(m - 1)/m", ((1, 0, 0), (-1, 0, -1))),
    Form("(m - 1) (n + m/2)/m", ((1, 1, 0), (1 / 2, 0, 1), (-1, 1, -1), (-1 / 2, 0, 0))),
)
FORMS: dict[str, Form] = {form.name: form for form in _FORMS}
"""Every form by its name."""

ROUTINGS: dict[str, Callable[[Number, Number], Number]] = {
    "even": lambda chosen, batch: 1 - (1 - chosen) ** batch,
    "skewed": lambda chosen, batch: batch * chosen / (1 + (batch - 1) * chosen),
    "even^2": lambda chosen, batch: (1 - (1 - chosen) ** batch) ** 2,
}
"""A: the share of a mixture's experts that B tokens activate, if one token activates the share p = k/E of them.

Both are the mean of 1 - (1 - P)^B over the experts. "even": P = p for all. "skewed": some experts are popular, most are
not; P has the beta distribution with mean p and first shape 1. Both are p at B = 1, and 1 for a dense model (p = 1).
"even^2" is the square of "even": measured kernels of a mixture slow down faster than the share of experts grows.
"""


@dataclass(frozen=True)
class Term:
    """One coefficient of a law.

    `lower` is 0 if physics forbids a negative value and None if the sign is free. The term is divided by the batch to
    the power `batch_power`: 1 if it is paid once for all requests. A term with a `routing` is multiplied by the share
    of a mixture's experts that the batch activates (see `ROUTINGS`). `prior`: which of `PRIORS` says what to expect of
    the coefficient; None if nothing is. A term that `saturates_at` S tokens is divided by (1 + x^4)^(1/4), x = B
    (n + m/2)/S: with fewer tokens of context in flight it is as it is, with more it no longer grows for the batch.
    """

    name: str
    form: str
    lower: float | None
    meaning: str
    batch_power: float = 0.0
    routing: str | None = None
    prior: str | None = None
    saturates_at: float | None = None

    def value(self, n: Number, m: Number, batch: Number, chosen: Number = 1.0) -> Number:
        """What the coefficient is multiplied by; all arguments are numbers or float arrays of equal shape.

        `chosen`: the share of a mixture's experts that one token activates, k/E.
        """
        form = FORMS[self.form].value(n, m)
        form = form * ROUTINGS[self.routing](chosen, batch) if self.routing else form
        form = form / batch**self.batch_power if self.batch_power else form
        return form / (1 + self._full(n, m, batch)) ** 0.25 if self.saturates_at else form

    def slope(self, n: float, m: float, batch: float, chosen: float = 1.0) -> float:
        """The derivative of `value` with respect to m, times m."""
        scale = (ROUTINGS[self.routing](chosen, batch) if self.routing else 1.0) / batch**self.batch_power
        falls = 0.0
        if self.saturates_at:
            full = self._full(n, m, batch)
            scale, falls = scale / (1 + full) ** 0.25, full / (1 + full) * m / (2 * n + m)
        return float(scale * sum((b - falls) * c * n**a * m**b for c, a, b in FORMS[self.form].parts))

    def _full(self, n: Number, m: Number, batch: Number) -> Number:
        return (batch * (n + m / 2) / self.saturates_at) ** 4

    def expected(self, batch: float) -> tuple[float, float] | None:
        """Mean and standard deviation expected of the coefficient, in decode steps; `batch` is that of its cells.

        Only a coefficient that belongs to one batch depends on it: it includes what that batch shares.
        """
        if self.prior is None:
            return None
        mean, sd, shared, shared_sd = PRIORS[self.prior]
        return mean + shared / batch, math.hypot(sd, shared_sd / batch)

    @property
    def multiplies(self) -> str:
        """What the coefficient is multiplied by, in the notation of the formulas."""
        if self.saturates_at:
            return f"{replace(self, saturates_at=None).multiplies}/(1 + (B (n + m/2)/{self.saturates_at:g})⁴)^¼"
        form = FORMS[self.form].shown
        top, _, under = form.partition("/") if form.startswith("1/") or form.endswith(")/m") else (form, "", "")
        if self.routing:
            active = "A²" if self.routing.endswith("^2") else "A"
            top = {"1": active}.get(top, f"{active} ({top})" if " " in top and top[0] != "(" else f"{active} {top}")
        if not self.batch_power:
            return f"{top}/{under}" if under else top
        shared = {1: "B", 0.75: "B^¾"}.get(self.batch_power, f"B^{self.batch_power:g}")
        top = f"({top})" if " " in top and not self.routing and top[0] != "(" else top
        return f"{top}/({shared} {under})" if under else f"{top}/{shared}"

    def as_dict(self) -> dict[str, Any]:
        """For predictor.json, with the `parts` of the form."""
        return {**asdict(self), "parts": [list(part) for part in FORMS[self.form].parts]}


@dataclass(frozen=True)
class Law:
    """A law: its formula for people and its terms for the fit.

    Only a law that `predicts` may be chosen: its prices keep predictions physical. The others are validated beside it;
    `no_terms` says why one has no coefficients.
    """

    name: str
    formula: str
    source: str
    terms: tuple[Term, ...]
    no_terms: str = ""
    predicts: bool = False

    def prompt(self, n: Number, batch: Number) -> Number:
        """The prompt length that the terms see, at n input tokens and this batch."""
        return n

    @property
    def has_batch_terms(self) -> bool:
        """Whether one set of coefficients covers every batch."""
        return any(term.batch_power for term in self.terms)

    @property
    def bounded(self) -> bool:
        """Whether no price can be negative, so that energies are positive and never fall as a request grows."""
        return all(term.lower == 0 for term in self.terms)

    @property
    def needs_experts(self) -> bool:
        """Whether the law is only for mixtures of experts."""
        return any(term.routing for term in self.terms)

    def slope(self, values: Mapping[str, float], n: float, m: float, batch: float, chosen: float = 1.0) -> float:
        """The derivative of E_tok with respect to m, times m; a term missing from `values` counts as 0."""
        return sum(values.get(term.name, 0.0) * term.slope(n, m, batch, chosen) for term in self.terms)

    def as_dict(self) -> dict[str, Any]:
        """For predictor.json."""
        return {"formula": self.formula, "source": self.source, "terms": [term.as_dict() for term in self.terms]}


PRIORS = {
    "step of a batch": (1.0, 1.0, 0.0, 0.0),
    "step of a request": (0.01, 0.03, 0.0, 0.0),
    "step, tiles": (0.0, 0.15, 0.0, 0.0),
    "step, all": (0.01, 0.2, 1.0, 1.0),
    "experts": (1.0, 2.0, 0.0, 0.0),
    "context token": (1e-5, 2e-5, 0.0, 0.0),
    "context token, few": (0.0, 5e-6, 0.0, 0.0),
    "reply token": (5e-6, 1e-5, 0.0, 0.0),
    "prompt token": (5e-3, 1e-2, 0.0, 0.0),
    "prompt token squared": (1e-7, 1e-6, 0.0, 0.0),
    "request": (0.02, 0.1, 0.0, 0.0),
    "batch": (1.0, 10.0, 0.0, 0.0),
    "request and batch": (0.02, 0.1, 1.0, 10.0),
}
"""What a coefficient is expected to be before any measurement, in units of one decode step of the whole batch: mean
and standard deviation, and the same of what a coefficient of a single batch adds divided by that batch.

A step reads all weights once; a prompt token computes with them, which costs the bandwidth of a board divided by its
FLOP/s: 1/150 to 1/300 of a step on A100, H100 and B200 (data sheets). A token of context reads its KV cache: 2e-6 to
4e-5 of the weights in models of 7 to 70 billion parameters with grouped or full attention. The spreads are wide: a
handful of rows that determine a coefficient override its prior; where the rows are silent, it bounds what is said.
"""

# Bounds: the derivation prices FLOPs, bytes and static power, all positive. Only t5 of the paper's forms mixes signs:
# the last token is never fed back (minus); overheads add (plus).
_T0 = Term("t0", "1", 0.0, "applying the weights to one token, and static power", prior="step, all")
_T1 = Term("t1", "n^2/m", 0.0, "attention within the prompt", prior="prompt token squared")
_T2 = Term("t2", "n", 0.0, "each new token attends to the prompt and reads its KV cache", prior="context token")
_T3 = Term(
    "t3", "n/m", 0.0, "prefill: applying the weights to each prompt token, spread over the reply", prior="prompt token"
)
_T4 = Term("t4", "m", 0.0, "each new token attends to the reply so far and reads its KV cache", prior="reply token")
_T5 = Term("t5", "1/m", None, "fixed energy of a request", prior="request and batch")
_STEP, _CONTEXT = "(m - 1)/m", "(m - 1) (n + m/2)/m"
_CACHE = Term(
    "t2", _CONTEXT, 0.0, "each decode step attends to all tokens before and reads their KV cache", prior="context token"
)
_OF_STEP = (
    Term("u", _STEP, 0.0, "a decode step: arithmetic of each request", prior="step of a request"),
    Term(
        "v",
        _STEP,
        0.0,
        "a decode step: reading the weights for all requests, and static power",
        1,
        prior="step of a batch",
    ),
)
_TILES = Term("c", _STEP, 0.0, "a decode step: kernels grow with the batch in tiles", 0.75, prior="step, tiles")
# Fixed for all tables: kernels that NVIDIA measured on an H100 are described best by 12,000 to 20,000 tokens.
_FILLS = 16384
_FEW = Term(
    "a",
    _CONTEXT,
    0.0,
    "attention of a decode step is slower per token until its contexts fill the GPU",
    prior="context token, few",
    saturates_at=_FILLS,
)
_OF_PREFILL = (
    _T1,
    _T3,
    Term("w", "1/m", 0.0, "prefill: host and sampling for each request", prior="request"),
    Term("x", "1/m", 0.0, "prefill: reading the weights, and overheads, for all requests", 1, prior="batch"),
)
_READ = "a decode step: reading the experts that its tokens activate"
_EVEN = Term("y", _STEP, 0.0, _READ, 1, "even", "experts")
_CROWDED = Term("z", _STEP, 0.0, "a decode step: slower kernels if many experts are active", 1, "even^2", "experts")
_SKEWED = Term("y", _STEP, 0.0, _READ, 1, "skewed", "experts")
_BY_STEP = "t1 n^2 + t3 n + w + x/B) / m"

CHOSEN = "chosen"

_LAWS = (
    Law(
        "tdp-time",
        "E_batch = TDP * T",
        "rule of thumb; T is the measured duration",
        (),
        "nothing to fit: TDP times the measured duration",
    ),
    Law(
        CHOSEN,
        "the law that the other cells choose",
        "this project: the choice is made again inside each fold, so that its error includes the choice",
        (),
        "the choice, not a law",
    ),
    Law(
        "across-models",
        "E_batch = sum of FLOPs, bytes, passes, layers and tokens, each times its price",
        "this project: prices shared by all models on a GPU and engine, terms from each model's architecture",
        (),
        "fitted to all models together",
    ),
    # The baselines' authors set no bounds, and a law that lacks terms may need a negative coefficient to compensate.
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
        predicts=True,
    ),
    Law(
        "steps-5",
        "E_tok = ((m - 1) (t0 + t2 (n + m/2)) + t1 n^2 + t3 n + t5) / m",
        "this project: prefill and decode steps at one batch",
        (
            Term("t0", _STEP, 0.0, "a decode step, for each request", prior="step, all"),
            _CACHE,
            _T1,
            _T3,
            Term("t5", "1/m", 0.0, "prefill: all that does not depend on its length", prior="request and batch"),
        ),
        predicts=True,
    ),
    Law(
        "steps-8",
        f"E_tok = ((m - 1) (u + v/B + (t2 + a/(1 + (B (n + m/2)/{_FILLS})^4)^(1/4)) (n + m/2)) + {_BY_STEP}",
        "this project: prefill and decode steps at every batch",
        (*_OF_STEP, _CACHE, _FEW, *_OF_PREFILL),
        predicts=True,
    ),
    Law(
        "experts-10",
        f"E_tok = ((m - 1) (u + v/B + c/B^(3/4) + y A/B + z A^2/B + t2 (n + m/2)) + {_BY_STEP}",
        "this project: as steps-8, with the experts' weights; a step reads the share A = 1 - (1 - k/E)^B of them",
        (*_OF_STEP, _TILES, _EVEN, _CROWDED, _CACHE, *_OF_PREFILL),
        predicts=True,
    ),
    Law(
        "skewed-9",
        f"E_tok = ((m - 1) (u + v/B + c/B^(3/4) + y A/B + t2 (n + m/2)) + {_BY_STEP}",
        "this project: as experts-10, with some experts more popular than others: A = B k/(E + (B - 1) k)",
        (*_OF_STEP, _TILES, _SKEWED, _CACHE, *_OF_PREFILL),
        predicts=True,
    ),
)
LAWS: dict[str, Law] = {law.name: law for law in _LAWS}


def check(laws: Sequence[Law] = _LAWS, forms: Sequence[Form] = _FORMS) -> None:
    """Raise ValueError if two laws, two forms or two terms of a law share a name, or a term names what is not there."""
    named = {"two laws": [law.name for law in laws], "two forms": [form.name for form in forms]}
    named |= {f"law {law.name}: two terms": [term.name for term in law.terms] for law in laws}
    for what, names in named.items():
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"{what} are named {', '.join(sorted(twice))}; rename one")
    known = {"form": named["two forms"], "routing": ["", *ROUTINGS], "prior": ["", *PRIORS]}
    for law in laws:
        for term, (what, there) in itertools.product(law.terms, known.items()):
            if (asked := getattr(term, what) or "") not in there:
                raise ValueError(f"law {law.name}, term {term.name}: no {what} {asked!r}; known: {', '.join(there)}")


check()


def per_token(law: Law, values: Mapping[str, float], n: float, m: float, batch: float, chosen: float = 1.0) -> float:
    """E_tok in joules by `law` with coefficients `values`; a term missing from them counts as 0."""
    return float(sum(values[term.name] * term.value(n, m, batch, chosen) for term in law.terms if term.name in values))
