"""The energy laws, as data.

Every law gives E_tok, the energy in joules of one output token of one request: the energy of a whole batch run divided
by batch × output tokens. n = input tokens, m = output tokens, B = requests in the batch. Every law is a sum of terms,
linear in its coefficients. If the KV cache cannot hold the batch, its requests run in waves, each a batch of its own,
and B is the batch divided by the waves. Standard library only, so that predictions run without the analysis packages.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
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
    # Means of the context n + j, and of its square, over the steps j = 0 .. m - 1 of a reply.
    Form("n + m/2", ((1, 1, 0), (1 / 2, 0, 1), (-1 / 2, 0, 0))),
    Form("n^2 + nm + m^2/3", ((1, 2, 0), (1, 1, 1), (-1, 1, 0), (1 / 3, 0, 2), (-1 / 2, 0, 1), (1 / 6, 0, 0))),
)
FORMS: dict[str, Form] = {form.name: form for form in _FORMS}
"""Every form by its name. If the cells cannot distinguish two forms, the earlier one is kept."""

ROUTINGS: dict[str, Callable[[Number, Number], Number]] = {
    "even": lambda chosen, batch: 1 - (1 - chosen) ** batch,
    "skewed": lambda chosen, batch: batch * chosen / (1 + (batch - 1) * chosen),
}
"""A: the share of a mixture's experts that B tokens activate, if one token activates the share p = k/E of them.

Both are the mean of 1 - (1 - P)^B over the experts. "even": P = p for all. "skewed": some experts are popular, most are
not; P has the beta distribution with mean p and first shape 1. Both are p at B = 1, and 1 for a dense model (p = 1).
"""


@dataclass(frozen=True)
class Term:
    """One coefficient of a law.

    `lower` is 0 if physics forbids a negative value and None if the sign is free. A `per_batch` term is divided by the
    batch: it is paid once for all requests. A term with a `routing` is multiplied by the share of a mixture's experts
    that the batch activates (see `ROUTINGS`).
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
        form = FORMS[self.form].value(n, m)
        form = form * ROUTINGS[self.routing](chosen, batch) if self.routing else form
        return form / batch if self.per_batch else form

    def powers(self, n: float, batch: float, chosen: float = 1.0) -> dict[float, float]:
        """The factor of each power of m in `value`, at these input tokens and this batch."""
        share = (ROUTINGS[self.routing](chosen, batch) if self.routing else 1.0) / (batch if self.per_batch else 1.0)
        found: dict[float, float] = {}
        for c, a, b in FORMS[self.form].parts:
            found[b] = found.get(b, 0.0) + share * c * n**a
        return found

    @property
    def multiplies(self) -> str:
        """What the coefficient is multiplied by, in the notation of the formulas."""
        form = FORMS[self.form].shown
        top, _, under = form.partition("/") if form.startswith("1/") else (form, "", "")
        if self.routing:
            top = {"1": "A"}.get(top, f"A ({top})" if " " in top else f"A {top}")
        if not self.per_batch:
            return f"{top}/{under}" if under else top
        top = f"({top})" if " " in top and not self.routing else top
        return f"{top}/(B {under})" if under else f"{top}/B"

    def as_dict(self) -> dict[str, Any]:
        """For predictor.json, with the `parts` of the form."""
        return {**asdict(self), "parts": [list(part) for part in FORMS[self.form].parts]}


@dataclass(frozen=True)
class Law:
    """A law: its formula for people and its terms for the fit.

    A baseline without terms is validated alongside the laws but never used to predict; `no_terms` says why. A law with
    batch terms is fitted to a single batch only if `one_batch`, since the others have a form for that.
    """

    name: str
    formula: str
    source: str
    terms: tuple[Term, ...]
    no_terms: str = ""
    one_batch: bool = False

    def prompt(self, n: Number, batch: Number) -> Number:
        """The prompt length that the terms see, at n input tokens and this batch."""
        return n

    @property
    def has_batch_terms(self) -> bool:
        """Whether one set of coefficients covers every batch."""
        return any(term.per_batch for term in self.terms)

    @property
    def needs_experts(self) -> bool:
        """Whether the law is only for mixtures of experts."""
        return any(term.routing for term in self.terms)

    @property
    def can_have_sweet_spot(self) -> bool:
        """Whether a term grows with the reply; without one, energy per token has no minimum for any coefficients."""
        return any(b > 0 for term in self.terms for _, _, b in FORMS[term.form].parts)

    def powers(self, values: Mapping[str, float], n: float, batch: float, chosen: float = 1.0) -> dict[float, float]:
        """The factor of each power of m in E_tok with coefficients `values`; a term missing from them counts as 0."""
        found: dict[float, float] = {}
        for term in self.terms:
            for power, factor in term.powers(n, batch, chosen).items():
                found[power] = found.get(power, 0.0) + values.get(term.name, 0.0) * factor
        return found

    def as_dict(self) -> dict[str, Any]:
        """For predictor.json."""
        return {"formula": self.formula, "source": self.source, "terms": [term.as_dict() for term in self.terms]}


# Bounds: the derivation prices FLOPs, bytes and static power, all positive, and each of these terms is a sum of them
# with positive factors. Only the 1/m terms mix signs: the last token is never fed back (minus); overheads add (plus).
_T0 = Term("t0", "1", 0.0, "applying the weights to one token, and static power")
_T1 = Term("t1", "n^2/m", 0.0, "attention within the prompt")
_T2 = Term("t2", "n", 0.0, "each new token attends to the prompt and reads its KV cache")
_T3 = Term("t3", "n/m", 0.0, "prefill: applying the weights to each prompt token, spread over the reply")
_T4 = Term("t4", "m", 0.0, "each new token attends to the reply so far and reads its KV cache")
_T5 = Term("t5", "1/m", None, "fixed energy of a request")
_CACHE = Term("t2", "n + m/2", 0.0, "each new token attends to all tokens before it and reads their KV cache")
_BY_BATCH = (
    Term("u", "1", 0.0, "applying the weights to one token: arithmetic of each request"),
    Term("v", "1", 0.0, "reading the weights, and static power: once per step for the whole batch", per_batch=True),
)
_ONCE_BY_BATCH = (
    Term("w", "1/m", None, "fixed energy of a request"),
    Term("x", "1/m", None, "fixed energy of a batch", per_batch=True),
)
_EVEN, _SKEWED = (
    Term("y", "1", 0.0, "reading the experts that the tokens of a step activate", per_batch=True, routing=routing)
    for routing in ("even", "skewed")
)
_AGAIN = (
    Term("r1", "n + m/2", 0.0, "each step applies the weights to the whole sequence again"),
    Term("r2", "n^2 + nm + m^2/3", 0.0, "each step computes attention over the whole sequence again"),
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
        "across-models",
        "E_batch = sum of FLOPs, bytes, passes, layers and tokens, each times its price",
        "this project: prices shared by all models on a GPU and engine, terms from each model's architecture",
        (),
        "fitted to all models together",
    ),
    Law(
        "trees",
        "gradient-boosted trees for log E_tok from the logs of n, m and B",
        "scikit-learn, optional: how far the same cells go without physics",
        (),
        "no coefficients: boosted trees are validated only",
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
    ),
    Law(
        "cache-5",
        "E_tok = t0 + t1 n^2/m + t2 (n + (m - 1)/2) + t3 n/m + t5/m",
        "this project: paper-6 with equal costs for the KV cache of prompt and reply",
        (_T0, _T1, _CACHE, _T3, _T5),
    ),
    Law(
        "recompute-4",
        "E_tok = t0 + r1 (n + (m - 1)/2) + r2 (n (n + m - 1) + (m - 1) (2 m - 1)/6) + t5/m",
        "this project: an engine without a KV cache reruns the whole sequence for each token",
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
        "this project: batch-8 with equal costs for the KV cache of prompt and reply",
        (*_BY_BATCH, _T1, _CACHE, _T3, *_ONCE_BY_BATCH),
    ),
    Law(
        "experts-8",
        "E_tok = u + v/B + y A/B + t1 n^2/m + t2 (n + (m - 1)/2) + t3 n/m + (w + x/B)/m",
        "this project: batch-7 plus the experts' weights; a step reads the share A = 1 - (1 - k/E)^B of them",
        (*_BY_BATCH, _EVEN, _T1, _CACHE, _T3, *_ONCE_BY_BATCH),
    ),
    Law(
        "skewed-8",
        "E_tok = u + v/B + y A/B + t1 n^2/m + t2 (n + (m - 1)/2) + t3 n/m + (w + x/B)/m",
        "this project: experts-8 with some experts more popular than others: A = B k/(E + (B - 1) k)",
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


def check(laws: Sequence[Law] = _LAWS, forms: Sequence[Form] = _FORMS) -> None:
    """Raise ValueError if two laws, two forms or two terms of a law share a name, or a form or routing is unknown."""
    known = [form.name for form in forms]
    for what, names in (("laws", [law.name for law in laws]), ("forms", known)):
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"two {what} are named {', '.join(sorted(twice))}; rename one")
    for law in laws:
        names = [term.name for term in law.terms]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"law {law.name}: two terms are named {', '.join(sorted(twice))}; rename one")
        for term in law.terms:
            if term.form not in known:
                raise ValueError(f"law {law.name}, term {term.name}: no form {term.form!r}; known: {', '.join(known)}")
            if term.routing is not None and term.routing not in ROUTINGS:
                raise ValueError(f"law {law.name}, term {term.name}: no routing {term.routing!r}")


check()


def per_token(law: Law, values: Mapping[str, float], n: float, m: float, batch: float, chosen: float = 1.0) -> float:
    """E_tok in joules by `law` with coefficients `values`; a term missing from them counts as 0."""
    return float(sum(values[term.name] * term.value(n, m, batch, chosen) for term in law.terms if term.name in values))


def why_not_identified(law: str | None) -> str:
    """Why the sweet spot of the law of this name is "not identified"."""
    if law in LAWS and not LAWS[law].can_have_sweet_spot:
        return f"no term of law {law} grows with the reply, so it cannot show a minimum even if there is one"
    return "the measured cells do not determine it"
