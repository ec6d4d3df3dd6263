"""The explorer's numbers are the library's: asked of the page in a real browser, and of `sweetspot predict`."""

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import browser
from browser import Browser, Tab
from energies import BATCHES, measured
from pages import Made, Results, page, results
from sweetspot.errors import SweetspotError
from sweetspot.fit.fit import fit_table
from sweetspot.fit.validation import validate
from sweetspot.predict import predictor
from sweetspot.predict.laws import FORMS, LAWS, sweet_spot
from sweetspot.table import read as table

REASON = browser.unavailable()
pytestmark = pytest.mark.skipif(bool(REASON), reason=f"NO BROWSER ASKED THE EXPLORER: {REASON}")

ASK = """(queries) => {
    const data = JSON.parse(document.getElementById("explorer-data").textContent);
    return queries.map(([index, query]) => {
        try { return predict(data.groups[index], data.laws, query); } catch (error) { return { error: error.message }; }
    });
}"""


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser.running() as running:
        yield running


def of_page(tab: Tab, queries: list[tuple[int, dict[str, Any]]]) -> list[dict[str, Any]]:
    return list(tab.run(f"({ASK})({json.dumps(queries)})"))


def of_library(fitted: dict[str, Any], index: int, query: dict[str, Any]) -> dict[str, Any]:
    """What `sweetspot predict --json` prints, or its error; another law is one that the predictor had chosen."""
    group = dict(fitted["groups"][index])
    group["law"] = query.get("law") or group["law"]
    asked = {name: value for name, value in query.items() if name != "law"}
    try:
        return predictor.predict({**fitted, "groups": [group]}, group["model"], **asked).as_dict()
    except SweetspotError as error:
        return {"error": str(error)}


def flat(answer: dict[str, Any]) -> dict[str, Any]:
    """An answer with the parts of its interval as numbers of their own."""
    parts = answer.get("interval_parts", {})
    return {k: v for k, v in answer.items() if k != "interval_parts"} | {
        f"part {k}": float(v) for k, v in parts.items()
    }


def same(page: dict[str, Any], library: dict[str, Any]) -> bool:
    page, library = flat(page), flat(library)
    numbers = {name for name, value in library.items() if isinstance(value, float)}
    return {k: v for k, v in page.items() if k not in numbers} == {
        k: v for k, v in library.items() if k not in numbers
    } and all(page[name] == pytest.approx(library[name], rel=1e-9, abs=1e-12) for name in numbers)


def queries(fitted: dict[str, Any], count: int) -> list[tuple[int, dict[str, Any]]]:
    """Random questions: inside and outside of what was measured, measured batches and others, every law."""
    rng = random.Random(7)
    found: list[tuple[int, dict[str, Any]]] = []
    for number in range(count):
        n, m, batch = (round(2 ** rng.uniform(0, top)) for top in (13, 12, 9))
        batch = rng.choice([1, 64, batch])
        query: dict[str, Any] = {"input_tokens": n, "output_tokens": m, "batch": batch}
        if number % 2:
            query["law"] = rng.choice([name for name, law in LAWS.items() if law.terms])
        found.append((rng.randrange(len(fitted["groups"])), query))
    return found


def test_the_page_predicts_what_the_library_predicts(chromium: Browser, simulated: Made) -> None:
    fitted = simulated.results.predictor
    asked = [*queries(fitted, 200), (0, {"input_tokens": 0, "output_tokens": 5, "batch": 1})]
    tab = chromium.open(simulated.path)
    answers = of_page(tab, asked)
    expected = [of_library(fitted, *query) for query in asked]
    assert sum("error" not in answer for answer in expected) >= 100
    assert any("error" in answer for answer in expected)
    assert any(answer.get("extrapolates") for answer in expected)
    for query, ours, theirs in zip(asked, answers, expected, strict=True):
        assert same(ours, theirs), (query, ours, theirs)
    tab.close()


@pytest.mark.parametrize(
    ("kept", "said"),
    [
        (pl.col("input_tokens") == pl.col("output_tokens"), "only together"),
        ((pl.col("input_tokens") == 64) | (pl.col("output_tokens") == 64), "no measured cell combines such lengths"),
    ],
)
def test_what_the_cells_do_not_combine_is_known_to_the_page(
    chromium: Browser, tmp_path: Path, kept: pl.Expr, said: str
) -> None:
    rows = results(tmp_path, models=("model",), lengths=(64, 128, 256, 512, 1024), batches=(1,)).measurements
    rows.filter(kept).write_parquet(tmp_path / "some.parquet")
    read = table.read([tmp_path / "some.parquet"])
    found = Results(read.frame, fit_table(read), *validate(read), None, None)
    page(found, tmp_path)
    tab = chromium.open(tmp_path / "report.html")
    asked = [
        (0, {"input_tokens": n, "output_tokens": m, "batch": 1})
        for n, m in ((256, 256), (512, 64), (64, 512), (500, 500))
    ]
    expected = [of_library(found.predictor, *query) for query in asked]
    assert any(said in " ".join(answer.get("extrapolates", [])) for answer in expected)
    for ours, theirs in zip(of_page(tab, asked), expected, strict=True):
        assert same(ours, theirs)
    assert tab.complaints() == []
    tab.close()


@pytest.mark.parametrize("unknown", [["in_flight"], ["waves", "in_flight"]])
def test_the_page_knows_in_how_many_waves_a_batch_runs(chromium: Browser, tmp_path: Path, unknown: list[str]) -> None:
    rows = measured("batch-7", batches=BATCHES, capacity=60_000, noise=0.02)
    timed = rows.with_columns(duration_s=pl.col("energy_j") / 400, gpu=pl.lit("g"), engine=pl.lit("e"))
    timed.drop(unknown).write_parquet(tmp_path / "rows.parquet")
    read = table.read([tmp_path / "rows.parquet"])
    found = Results(read.frame, fit_table(read), *validate(read), None, None)
    page(found, tmp_path)
    tab = chromium.open(tmp_path / "report.html")
    asked = queries(found.predictor, 200)
    expected = [of_library(found.predictor, *query) for query in asked]
    assert {1, 2, 3} <= {answer.get("waves") for answer in expected}
    assert any("how many waves" in " ".join(answer.get("extrapolates", [])) for answer in expected)
    for query, ours, theirs in zip(asked, of_page(tab, asked), expected, strict=True):
        assert same(ours, theirs), (query, ours, theirs)
    tab.close()


def test_the_page_knows_every_form_of_every_term(chromium: Browser, simulated: Made) -> None:
    tab = chromium.open(simulated.path)
    for name, form in FORMS.items():
        for n, m in ((64, 64), (2048, 7), (1, 4096)):
            value = tab.run(f"FORMS[{json.dumps(name)}]({n}, {m})")
            assert value == pytest.approx(form(float(n), float(m)), rel=1e-12), name
    tab.close()


def test_what_the_page_shows_is_what_it_was_asked(chromium: Browser, simulated: Made) -> None:
    """Type a question, read the answer as a person would."""
    tab = chromium.open(simulated.path)
    fitted = simulated.results.predictor
    for name, value in {"input": 1500, "output": 300, "batch": 8, "shorter": 500, "cap": 100, "other": 64}.items():
        tab.run(f"document.getElementById('ask-{name}').value = {value}")
    tab.run("for (let i = 0; i < 4; i++) document.forms.ask.elements[`model-${i}`].checked = true")
    tab.run("document.forms.ask.dispatchEvent(new Event('input'))")
    rows = "[...document.querySelectorAll('#ask-{} tbody tr')].map(r => [...r.children].map(c => c.textContent))"
    costs, instead = (tab.run(rows.format(name)) for name in ("costs", "instead"))

    def joules(n: int, m: int, batch: int) -> float:
        answer = predictor.predict(fitted, fitted["groups"][1]["model"], n, m, batch)
        return answer.energy_per_request_j

    assert [row[0] for row in costs] == [group["model"] for group in fitted["groups"]]
    answer = predictor.predict(fitted, costs[1][0], 1500, 300, 8)
    numbers = [float(part) for part in costs[1][1].replace("[", "").replace("]", "").replace(",", "").split()]
    bounds = (answer.energy_per_request_j, answer.energy_per_request_low_j, answer.energy_per_request_high_j)
    assert numbers == pytest.approx(bounds, rel=6e-3)
    law, group = LAWS[answer.law], fitted["groups"][1]
    terms = group["laws"][answer.law][0]["terms"]
    spot = sweet_spot(law, {name: term["value"] for name, term in terms.items()}, 1500, 8)
    assert spot is not None
    assert float(costs[1][-2].split(" ")[0].replace(",", "")) == pytest.approx(spot, rel=0.02)

    own = {row[1]: row for row in instead if row[0] == costs[1][0]}
    now = joules(1500, 300, 8)
    expected = {
        "truncate the prompt to 500": joules(500, 300, 8),
        "sum the prompt up in 500 first": joules(1500, 500, 8) + joules(500, 300, 8),
        "cap the reply at 100": joules(1500, 100, 8),
        "batch 64 instead of 8": joules(1500, 300, 64),
    }
    assert own.keys() == expected.keys()
    for words, cost in expected.items():
        assert float(own[words][2].split(" ")[0].replace(",", "")) == pytest.approx(cost, rel=6e-3)
        percent = abs(100 * (1 - cost / now))
        verdict = own[words][3]
        assert verdict.startswith("saves" if cost < now else "costs"), verdict
        assert float(verdict.split(" ")[1].replace(",", "")) == pytest.approx(percent, rel=6e-3)
    tab.close()


def test_at_a_measured_prompt_the_page_says_the_sweet_spot_of_the_predictor(chromium: Browser, simulated: Made) -> None:
    group = simulated.results.predictor["groups"][0]
    spot = next(spot for spot in group["sweet_spots"] if spot["status"] == "interior")
    tab = chromium.open(simulated.path)
    for name, value in {"input": spot["input_tokens"], "batch": spot["batch"]}.items():
        tab.run(f"document.getElementById('ask-{name}').value = {value}")
    tab.run("document.forms.ask.elements['model-0'].checked = true")
    tab.run("document.forms.ask.dispatchEvent(new Event('input'))")
    shown = tab.run("document.querySelector('#ask-costs tbody tr').children[5].textContent")
    best, low, high = (f"{round(spot[name]):,}" for name in ("output_tokens", "plateau_low", "plateau_high"))
    assert shown == f"{best} (within 1 %: {low} to {high})"
    tab.close()
