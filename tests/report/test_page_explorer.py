"""The explorer's numbers are the library's: asked of the page in a real browser, and of `sweetspot predict`."""

import json
import random
from collections.abc import Iterator
from dataclasses import astuple
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import browser
import debian
from browser import Browser, Tab
from energies import BATCHES, measured
from pages import Made, Outcome, page, results
from simulation import ARCHITECTURES
from sweetspot import models
from sweetspot.errors import SweetspotError
from sweetspot.fit.fit import fit_table
from sweetspot.fit.validation import validate
from sweetspot.precision import element_bytes
from sweetspot.predict import advise, predictor, workload
from sweetspot.predict.across_models import features, predict_by
from sweetspot.predict.laws import LAWS
from sweetspot.table import read as table

REASON = browser.unavailable()

DATA = "JSON.parse(document.getElementById('explorer-data').textContent)"
ASK = """(queries) => {
    const data = JSON.parse(document.getElementById("explorer-data").textContent);
    return queries.map(([index, query]) => {
        try { return predict(data.groups[index], data.laws, query); } catch (error) { return { error: error.message }; }
    });
}"""


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    if REASON:
        debian.skip(f"NO BROWSER SAW THE REPORT: {REASON}")
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
    """An answer with the parts of its interval and its latencies as numbers of their own."""
    parts = {f"part {k}": float(v) for k, v in answer.get("interval_parts", {}).items()}
    late = {f"{k} {end}": x for k, ends in answer.get("latency_s", {}).items() for end, x in ends.items()}
    return {k: v for k, v in answer.items() if k not in ("interval_parts", "latency_s")} | parts | late


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
        (pl.col("input_tokens") <= 128, "is not determined by the cells"),
        ((pl.col("input_tokens") == 64) & (pl.col("output_tokens") < 256), "do not determine the energy of"),
        ((pl.col("input_tokens") == 64) | (pl.col("output_tokens") == 64), "no cell combines such lengths"),
    ],
)
def test_what_the_cells_do_not_combine_is_known_to_the_page(
    chromium: Browser, tmp_path: Path, kept: pl.Expr, said: str
) -> None:
    rows = results(tmp_path, models=("model",), lengths=(64, 128, 256, 512, 1024), batches=(1,)).measurements
    rows.filter(kept).write_parquet(tmp_path / "some.parquet")
    read = table.read([tmp_path / "some.parquet"])
    found = Outcome(read.frame, fit_table(read), *validate(read), None, None)
    page(found, tmp_path)
    tab = chromium.open(tmp_path / "report.html")
    asked = [
        (0, {"input_tokens": n, "output_tokens": m, "batch": 1})
        for n, m in ((256, 256), (512, 64), (64, 512), (500, 500), (4096, 64), (128, 100))
    ]
    expected = [of_library(found.predictor, *query) for query in asked]
    assert any(said in str(answer) for answer in expected)
    for ours, theirs in zip(of_page(tab, asked), expected, strict=True):
        assert same(ours, theirs)
    assert tab.complaints() == []
    tab.close()


@pytest.mark.parametrize("unknown", [["in_flight"], ["waves", "in_flight"]])
def test_the_page_knows_in_how_many_waves_a_batch_runs(chromium: Browser, tmp_path: Path, unknown: list[str]) -> None:
    rows = measured("steps-8", batches=BATCHES, capacity=60_000, noise=0.02)
    timed = rows.with_columns(duration_s=pl.col("energy_j") / 400, gpu=pl.lit("g"), engine=pl.lit("e"))
    timed.drop(unknown).write_parquet(tmp_path / "rows.parquet")
    read = table.read([tmp_path / "rows.parquet"])
    found = Outcome(read.frame, fit_table(read), *validate(read), None, None)
    page(found, tmp_path)
    tab = chromium.open(tmp_path / "report.html")
    asked = queries(found.predictor, 200)
    expected = [of_library(found.predictor, *query) for query in asked]
    assert {1, 2, 3} <= {answer.get("waves") for answer in expected}
    assert any("number of waves" in " ".join(answer.get("extrapolates", [])) for answer in expected)
    for query, ours, theirs in zip(asked, of_page(tab, asked), expected, strict=True):
        assert same(ours, theirs), (query, ours, theirs)
    tab.close()


def test_the_page_knows_what_every_term_multiplies(chromium: Browser, simulated: Made) -> None:
    tab = chromium.open(simulated.path)
    for law in LAWS.values():
        for number, term in enumerate(law.terms):
            for n, m, batch in ((64, 64, 1), (2048, 7, 16), (1, 4096, 3)):
                written = f"{DATA}.laws[{json.dumps(law.name)}].terms[{number}]"
                value = tab.run(f"termValue({written}, {n}, {m}, {batch}, 0.125)")
                assert value == pytest.approx(term.value(float(n), float(m), float(batch), 0.125), rel=1e-12), term
    tab.close()


def lengths_and_batches(fitted: dict[str, Any], count: int) -> list[tuple[int, int, int, int]]:
    """Random groups with a prompt, a reply and a batch, measured ones among them."""
    rng, found = random.Random(11), []
    for _ in range(count):
        group = rng.randrange(len(fitted["groups"]))
        n, m = (round(2 ** rng.uniform(3, 12)) for _ in range(2))
        found.append((group, rng.choice([64, 1024, n]), m, rng.choice([1, 8, 64, round(2 ** rng.uniform(0, 8))])))
    return found


def waves_and_all(tmp_path: Path) -> Made:
    """A page about a model whose KV cache is too small for its largest batches."""
    rows = measured("steps-8", batches=BATCHES, capacity=60_000, noise=0.02)
    timed = rows.with_columns(duration_s=pl.col("energy_j") / 400, uncertainty_gain=pl.lit(0.05))
    timed.write_parquet(tmp_path / "rows.parquet")
    read = table.read([tmp_path / "rows.parquet"])
    found = Outcome(read.frame, fit_table(read), *validate(read), None, None)
    return Made(found, page(found, tmp_path), tmp_path)


@pytest.mark.parametrize("full", [False, True], ids=["one wave", "a cache that fills"])
def test_the_page_finds_the_sweet_spots_of_the_library(
    chromium: Browser, simulated: Made, tmp_path: Path, full: bool
) -> None:
    made = waves_and_all(tmp_path) if full else simulated
    fitted, tab = made.results.predictor, chromium.open(made.path)
    asked = lengths_and_batches(fitted, 200)
    code = f"({json.dumps(asked)}).map(([g, n, m, b]) => sweetSpot({DATA}.groups[g], {DATA}.laws, n, b))"
    seen = set()
    for (index, n, _, batch), ours in zip(asked, tab.run(code), strict=True):
        theirs = predictor.sweet_spot(fitted["groups"][index], n, batch).as_dict()
        seen.add(theirs["status"])
        for name, value in theirs.items():
            expected = value if isinstance(value, str) or value is None else pytest.approx(value, rel=1e-9)
            assert ours.get(name) == expected, (index, n, batch, name)
    assert "interior" in seen
    tab.close()


SAVINGS = """(asked) => asked.map(([g, n, m, b, change, k]) => {
    const data = JSON.parse(document.getElementById("explorer-data").textContent);
    const request = (n, m, b, summary) => ({ key: `${n}/${m}/${b}/${summary}`, weight: 1,
        p: predict(data.groups[g], data.laws, { input_tokens: n, output_tokens: m, batch: b }) });
    const then = { truncate: () => [request(k, m, b, false)], cap: () => [request(n, k, b, false)],
        batches: () => [request(n, m, k, false)],
        summarise: () => [request(n, k, b, true), request(k, m, b, false)] }[change]();
    const now = [request(n, m, b, false)];
    return { now: costOf(now), then: costOf(then), ...savingOf(now, then) };
})"""


def test_the_page_and_advise_save_the_same(chromium: Browser, simulated: Made, tmp_path: Path) -> None:
    """The same changes of 200 random requests, at one wave and with a cache that fills: joules, percent, intervals."""
    for made in (simulated, waves_and_all(tmp_path)):
        fitted, tab, rng = made.results.predictor, chromium.open(made.path), random.Random(5)
        asked = []
        for index, n, m, batch in lengths_and_batches(fitted, 100):
            change = rng.choice(("truncate", "summarise", "cap", "batches"))
            most = {"truncate": n, "summarise": n, "cap": m, "batches": 65}[change]
            asked.append((index, n, m, batch, change, max(1, rng.randrange(1, max(most, 2)))))
        asked = [one for one in asked if one[5] < {"cap": one[2], "batches": 10**6}.get(one[4], one[1])]
        answers = tab.run(f"({SAVINGS})({json.dumps(asked)})")
        for (index, n, m, batch, change, k), ours in zip(asked, answers, strict=True):
            wishes = advise.Wishes(batch=batch, what_ifs={change: [k]})
            answer = advise.advise(fitted, fitted["groups"][index]["model"], workload.of_pair(n, m), wishes)
            (option,) = answer.options
            assert option.cost is not None
            assert option.saving is not None
            theirs = {"now": answer.now.energy_j, "then": option.cost.energy_j}
            theirs |= {"joules": option.saving.energy_j, "percent": option.saving.percent}
            for name, interval in theirs.items():
                expected = pytest.approx(list(astuple(interval)), rel=1e-9, abs=1e-9)
                assert ours[name] == expected, (index, n, m, batch, change, k, name)
        tab.close()


def test_the_law_across_models_is_on_the_page(chromium: Browser, tmp_path: Path) -> None:
    names = ("opt-1.3b", "llama-3.2-3b", "gemma-2-9b", "qwen2-7b", "qwen3-30b-a3b")
    found = results(tmp_path, models=names, lengths=(64, 256, 1024), batches=(1, 16))
    architectures = {model: models.load(ARCHITECTURES / f"{model}.json") for model in names}
    read = table.read([tmp_path / "simulated-5.parquet"])
    found.predictor = fit_table(read, architectures)
    found.validation, found.predictions = validate(read, architectures)
    page(found, tmp_path)
    tab = chromium.open(tmp_path / "report.html")
    (entry,) = found.predictor["across_models"]
    assert entry["reason"] == ""
    asked = [(i % 5, n, m, batch) for i, (_, n, m, batch) in enumerate(lengths_and_batches(found.predictor, 200))]
    code = f"""({json.dumps(asked)}).map(([g, n, m, b]) => {{
        try {{ return predictAcross({DATA}.across[g], {{ input_tokens: n, output_tokens: m, batch: b }}); }}
        catch (error) {{ return {{ error: error.message }}; }}
    }})"""
    for (index, n, m, batch), ours in zip(asked, tab.run(code), strict=True):
        model = found.predictor["groups"][index]["model"]
        try:
            theirs = predict_by(entry, architectures[model], n, m, batch).as_dict()
        except SweetspotError as error:
            theirs = {"error": str(error)}
        assert same(ours, theirs), (model, n, m, batch, ours, theirs)
    needs = f"priced({DATA}.across[0].architecture, {DATA}.across[0].memory, 512, 256, 16, 2, 'tp4-pp2')"
    amounts = features(architectures[names[0]], element_bytes("bfloat16"), 512, 256, 16, 2, "tp4-pp2")
    assert tab.run(needs) == pytest.approx(amounts)
    tab.run("document.getElementById('ask-law').value = 'across-models'")
    tab.run("document.forms.ask.dispatchEvent(new Event('input'))")
    assert tab.run("document.querySelector('#ask-costs tbody tr').lastChild.textContent") == "across-models"
    assert tab.complaints() == []
    tab.close()


def test_what_the_page_shows_is_what_it_was_asked(chromium: Browser, simulated: Made) -> None:
    """Type a question, read the answer as a person would."""
    tab = chromium.open(simulated.path)
    fitted = simulated.results.predictor
    for name, value in {"input": 1500, "output": 300, "batch": 8, "shorter": 500, "cap": 100, "other": 64}.items():
        tab.run(f"document.getElementById('ask-{name}').value = {value}")
    tab.run("document.getElementById('ask-focus').value = 1")
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
    spot = predictor.sweet_spot(fitted["groups"][1], 1500, 8)
    assert costs[1][-2].startswith(f"{spot.reply:,} (within 1 %: ")

    own = {row[0]: row for row in instead}
    now = joules(1500, 300, 8)
    expected = {
        "truncate the prompt to 500": joules(500, 300, 8),
        "summarise the prompt to 500 tokens first": joules(1500, 500, 8) + joules(500, 300, 8),
        "cap the reply at 100": joules(1500, 100, 8),
        "batch 64 instead of 8": joules(1500, 300, 64),
    }
    assert own.keys() == expected.keys()
    for words, cost in expected.items():
        assert float(own[words][1].split(" ")[0].replace(",", "")) == pytest.approx(cost, rel=6e-3)
        percent = abs(100 * (1 - cost / now))
        verdict = own[words][2]
        assert verdict.removeprefix("no clear difference: ").startswith("saves" if cost < now else "costs"), verdict
        if not verdict.startswith("no clear"):
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
    shown = tab.run("document.querySelector('#ask-costs [data-head^=sweet]').textContent")
    best, low, high = (f"{round(spot[name]):,}" for name in ("output_tokens", "plateau_low", "plateau_high"))
    assert shown == f"{best} (within 1 %: {low} to {high})"
    tab.close()
