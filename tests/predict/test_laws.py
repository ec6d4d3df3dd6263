"""The laws as data: their formulas, their terms, and the sweet spot."""

import itertools
import math
import re

import numpy as np
import pytest

from energies import spot_of
from sweetspot.predict import laws
from sweetspot.predict.laws import FORMS, LAWS, ROUTINGS, Form, Law, Term, per_token

LENGTHS = (64, 500, 4096)
CHOSEN = 0.4  # share of a mixture's experts
VALUES = {
    "linear": {"c0": -3.0, "c1": 0.01, "c2": 0.2},
    "wilkins": {"a0": 0.01, "a1": 0.2, "a2": 1e-5},
    "paper-5": {"t0": 0.2, "t1": 1e-6, "t2": 1e-5, "t3": 0.01, "t4": 2e-5},
    "paper-6": {"t0": 0.2, "t1": 1e-6, "t2": 1e-5, "t3": 0.01, "t4": 2e-5, "t5": -0.3},
    "steps-5": {"t0": 0.2, "t1": 1e-6, "t2": 1e-5, "t3": 0.01, "t5": 0.3},
}
_STEPS = {"u": 0.01, "v": 1.5, "t1": 1e-6, "t2": 1e-5, "t3": 0.01, "w": 0.1, "x": 40.0}
VALUES |= {"steps-8": _STEPS | {"a": 5e-6}, "skewed-9": _STEPS | {"c": 0.2, "y": 4.0}}
VALUES |= {"experts-10": VALUES["skewed-9"] | {"z": 2.0}}


def by_formula(name: str, n: float, m: float, batch: float) -> float:
    """E_tok by the law's own one-line formula, the one that reports show."""
    left, right = LAWS[name].formula.split(" = ")
    right = re.sub(r"(?<=[\w)]) (?=[nmA(])", " * ", right.replace("^", "**"))
    active = {"experts-10": 1 - (1 - CHOSEN) ** batch, "skewed-9": batch * CHOSEN / (1 + (batch - 1) * CHOSEN)}
    value = eval(right, {"n": n, "m": m, "B": batch, "A": active.get(name), **VALUES[name]})
    return float(value / m if left == "E_req" else value)


@pytest.mark.parametrize("name", VALUES)
def test_terms_are_what_the_formula_says(name: str) -> None:
    assert set(VALUES[name]) == {term.name for term in LAWS[name].terms}
    for n, m, batch in itertools.product(LENGTHS, LENGTHS, (1, 37)):
        given = per_token(LAWS[name], VALUES[name], n, m, batch, CHOSEN)
        assert given == pytest.approx(by_formula(name, n, m, batch), rel=1e-12)


@pytest.mark.parametrize("name", VALUES)
def test_terms_take_arrays_and_numbers_alike(name: str) -> None:
    n, m, batch = (
        np.array(values, dtype=float) for values in zip(*itertools.product(LENGTHS, LENGTHS, (1, 37)), strict=True)
    )
    for term in LAWS[name].terms:
        each = [term.value(*map(int, cell)) for cell in zip(n, m, batch, strict=True)]
        np.testing.assert_allclose(term.value(n, m, batch), each, rtol=1e-14)


def test_only_the_once_per_request_terms_have_a_free_sign() -> None:
    for name in VALUES.keys() - {"linear", "wilkins"}:
        free = {term.name for term in LAWS[name].terms if term.lower is None}
        assert free == ({"t5"} if name == "paper-6" else set())


def test_steps_8_at_one_batch_is_steps_5() -> None:
    eight, batch = VALUES["steps-8"] | {"a": 0.0}, 16
    five = eight | {"t0": eight["u"] + eight["v"] / batch, "t5": eight["w"] + eight["x"] / batch}
    for n, m in itertools.product(LENGTHS, LENGTHS):
        at_one = per_token(LAWS["steps-5"], five, n, m, batch)
        assert per_token(LAWS["steps-8"], eight, n, m, batch) == pytest.approx(at_one)
        assert spot_of("steps-8", eight, n, batch) == pytest.approx(spot_of("steps-5", five, n, batch))


@pytest.mark.parametrize("name", sorted(VALUES.keys() - {"linear", "wilkins", "paper-6"}))
def test_no_term_makes_a_longer_or_larger_run_cheaper(name: str) -> None:
    for n, m, batch in itertools.product((1, 64, 4096, 10**5), (1, 7, 500, 10**5), (1, 8, 100, 5000)):
        for term in LAWS[name].terms:
            run = m * batch * term.value(n, m, batch, CHOSEN)
            longer = [(n * 1.01, m, batch), (n, m * 1.01, batch)] + [(n, m, batch * 1.01)] * LAWS[name].has_batch_terms
            for a, b, c in longer:
                assert b * c * term.value(a, b, c, CHOSEN) >= run * (1 - 1e-12), (term.name, a, b, c)


@pytest.mark.parametrize("name", VALUES)
def test_a_slope_is_the_change_of_the_energy_with_the_reply(name: str) -> None:
    for n, m, batch in itertools.product(LENGTHS, LENGTHS, (1, 8, 100)):
        below, above = (per_token(LAWS[name], VALUES[name], n, m * (1 + h), batch, CHOSEN) for h in (-1e-4, 1e-4))
        slope = LAWS[name].slope(VALUES[name], n, m, batch, CHOSEN)
        assert slope == pytest.approx((above - below) / 2e-4, rel=1e-5, abs=1e-8)


def test_a_saturating_term_costs_a_batch_no_more_than_a_full_gpu() -> None:
    plain, full = Term("a", "n", 0, ""), Term("a", "n", 0, "", saturates_at=1000)
    assert full.value(100, 2, 1) == pytest.approx(plain.value(100, 2, 1), rel=1e-4)
    assert 64 * full.value(100, 2, 64) == pytest.approx(1000, rel=0.02)
    assert full.multiplies == "n/(1 + (B (n + m/2)/1000)⁴)^¼"


def test_the_forms_of_a_reply_are_means_over_its_steps() -> None:
    for n, m in itertools.product((1, 64, 500), (1, 2, 333)):
        assert FORMS["n + m/2"].value(n, m) == pytest.approx(sum(n + j for j in range(m)) / m)
        steps = range(1, m)  # the prompt's prefill gives the first token; each step sees one token more
        assert FORMS["(m - 1)/m"].value(n, m) == pytest.approx(len(steps) / m)
        assert FORMS["(m - 1) (n + m/2)/m"].value(n, m) == pytest.approx(sum(n + j for j in steps) / m)


def test_the_experts_that_a_batch_activates() -> None:
    random = np.random.default_rng(1)
    popularity = random.beta(1, 16 / 2 - 1, 3000)
    for batch in (1, 4, 40):
        drawn = [len({e for _ in range(batch) for e in random.permutation(16)[:2]}) / 16 for _ in range(3000)]
        assert ROUTINGS["even"](2 / 16, batch) == pytest.approx(np.mean(drawn), abs=0.01)
        drawn = [(random.random(batch) < p).any() for p in popularity]
        assert ROUTINGS["skewed"](2 / 16, batch) == pytest.approx(np.mean(drawn), abs=0.02)
        assert ROUTINGS["skewed"](1, batch) == ROUTINGS["even"](1, batch) == 1


@pytest.mark.parametrize("name", sorted(VALUES.keys() - {"linear", "wilkins"}))
@pytest.mark.parametrize("n", LENGTHS)
@pytest.mark.parametrize("batch", [1, 64])
def test_the_sweet_spot_is_the_cheapest_length(name: str, n: int, batch: int) -> None:
    replies = np.arange(1, 60_000)
    terms = LAWS[name].terms
    energies = sum(VALUES[name][term.name] * term.value(float(n), replies.astype(float), batch) for term in terms)
    spot = spot_of(name, VALUES[name], n, batch)
    assert spot is not None
    assert abs(spot - replies[np.argmin(energies)]) <= 1


@pytest.mark.parametrize(
    "changes",
    [{"t4": 0.0}, {"t4": -1e-6}, {"t5": -1e6}, {"t1": 0.0, "t3": 0.0, "t5": 0.0}, {"t4": 5e-324, "t3": 1e300}],
)
def test_there_may_be_no_sweet_spot(changes: dict[str, float]) -> None:
    assert spot_of("paper-6", VALUES["paper-6"] | changes, 512, 1) is None


@pytest.mark.parametrize("name", ["linear", "wilkins"])
def test_the_baselines_know_no_sweet_spot(name: str) -> None:
    assert spot_of(name, VALUES[name], 512, 1) is None


def test_the_sweet_spot_by_hand() -> None:
    assert spot_of("paper-6", {"t1": 1e-6, "t3": 0.01, "t4": 2e-5, "t5": -0.3}, 1000, 1) == pytest.approx(
        math.sqrt((1e-6 * 1000**2 + 0.01 * 1000 - 0.3) / 2e-5)
    )


@pytest.mark.parametrize(
    ("name", "shown"),
    [("n^2/m", "n²/m"), ("n^0.5 m^-1.5", "n⁰·⁵ m⁻¹·⁵"), ("n^1.5", "n¹·⁵"), ("m^-2", "m⁻²"), ("n + m/2", "n + m/2")],
)
def test_powers_are_shown_as_they_are(name: str, shown: str) -> None:
    assert Form(name, ((1, 1, 1),)).shown == shown


@pytest.mark.parametrize(
    ("form", "batch_power", "routing", "shown"),
    [
        ("1", 0, None, "1"),
        ("1", 1, None, "1/B"),
        ("1", 0, "even", "A"),
        ("1", 1, "even", "A/B"),
        ("1/m", 1, None, "1/(B m)"),
        ("1/m", 0, "skewed", "A/m"),
        ("1/m", 1, "skewed", "A/(B m)"),
        ("n", 0, "even", "A n"),
        ("n + m/2", 1, None, "(n + m/2)/B"),
        ("n + m/2", 1, "even", "A (n + m/2)/B"),
        ("(m - 1)/m", 0.75, None, "(m - 1)/(B^¾ m)"),
        ("(m - 1)/m", 1, "even^2", "A² (m - 1)/(B m)"),
        ("(m - 1) (n + m/2)/m", 0, None, "(m - 1) (n + m/2)/m"),
    ],
)
def test_a_term_says_all_that_it_multiplies(form: str, batch_power: float, routing: str | None, shown: str) -> None:
    assert Term("x", form, 0, "a meaning", batch_power, routing).multiplies == shown


ONE = Term("one", "1", 0, "a meaning")


@pytest.mark.parametrize(
    ("wrong", "forms", "message"),
    [
        ([Law("a", "", "", (ONE,)), Law("a", "", "", (ONE,))], [], "two laws are named a"),
        ([Law("a", "", "", (ONE, ONE))], [], "law a: two terms are named one"),
        ([Law("a", "", "", (Term("x", "n / m", 0, ""),))], [], "law a, term x: no form 'n / m'; known: 1, n/m"),
        ([Law("a", "", "", (Term("x", "n", 0, "", 0, "odd"),))], [], "law a, term x: no routing 'odd'"),
        ([Law("a", "", "", (Term("x", "n", 0, "", prior="hope"),))], [], "law a, term x: no prior 'hope'"),
        ([], [Form("n", ((1, 1, 0),))], "two forms are named n"),
    ],
)
def test_a_mistake_in_a_new_law_is_one_clear_error(wrong: list[Law], forms: list[Form], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        laws.check(wrong, [*FORMS.values(), *forms])
