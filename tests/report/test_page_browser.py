"""The report in a real browser: what a person sees and does, at the width of a phone and of a desktop, and on paper."""

import base64
import csv
import io
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest

import browser
import debian
from browser import DESKTOP, PHONE, Browser, Tab
from pages import Made, page, results

REASON = browser.unavailable()
CONTROLS = "#ask input, #ask select"


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    if REASON:
        debian.skip(f"NO BROWSER SAW THE REPORT: {REASON}")
    with browser.running() as running:
        yield running


@pytest.mark.parametrize("size", [PHONE, DESKTOP], ids=["phone", "desktop"])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_nothing_is_wrong_at_any_width_in_any_light(
    chromium: Browser, simulated: Made, size: tuple[int, int], dark: bool
) -> None:
    tab = chromium.open(simulated.path, size, dark=dark)
    assert tab.complaints() == []
    assert tab.requests() == []
    assert tab.run("document.documentElement.scrollWidth") == size[0]
    # What is wider than the page scrolls inside itself.
    wide = """[...document.querySelectorAll("main *, header *, #explorer *")].filter(e =>
        e.getBoundingClientRect().right > innerWidth + 1 && !e.closest(".scroll") && !e.closest("svg")).length"""
    assert tab.run(wide) == 0
    assert clipped(tab) == []
    ink, paper = (tab.run(f"getComputedStyle(document.body).{name}") for name in ("color", "backgroundColor"))
    assert (_luminance(ink) > _luminance(paper)) == dark
    assert _contrast(ink, paper) > 7
    tab.close()


def clipped(tab: Tab) -> list[str]:
    """Texts of figures that do not lie whole inside their figure."""
    found: list[str] = tab.run("""[...document.querySelectorAll("figure svg")].flatMap(svg => {
        const frame = svg.getBoundingClientRect();
        return [...svg.querySelectorAll("text")].filter(text => {
            const box = text.getBoundingClientRect();
            return box.width && (box.left < frame.left - 0.5 || box.right > frame.right + 0.5 ||
                box.top < frame.top - 0.5 || box.bottom > frame.bottom + 0.5);
        }).map(text => text.textContent); })""")
    return found


def _luminance(colour: str) -> float:
    parts = [int(part) / 255 for part in colour.removeprefix("rgb(").removesuffix(")").split(",")]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _contrast(one: str, other: str) -> float:
    """The contrast ratio of WCAG 2."""
    low, high = sorted((_luminance(one), _luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_the_first_screen_says_what_it_is_and_what_was_found(chromium: Browser, simulated: Made) -> None:
    tab = chromium.open(simulated.path, DESKTOP)
    seen = """(selector) => [...document.querySelectorAll(selector)].filter(e => {
        const box = e.getBoundingClientRect(); return box.height > 0 && box.bottom <= innerHeight; }).length"""
    assert tab.run(f"({seen})('.strip, .badge')") == 2
    assert tab.run(f"({seen})('.findings li')") == 3
    assert tab.run(f"({seen})('figure.hero svg')") == 1
    assert tab.run(f"({seen})('.first tbody tr.strong')") == 1
    tab.close()


def test_every_control_changes_what_is_shown(chromium: Browser, simulated: Made) -> None:
    tab = chromium.open(simulated.path)
    controls = tab.run(f"[...document.querySelectorAll('{CONTROLS}')].map(e => e.id || e.name)")
    assert {"ask-input", "ask-output", "ask-batch", "ask-law", "ask-shorter", "ask-cap", "ask-other"} < set(controls)
    assert sum(name.startswith("model-") for name in controls) == 4
    tab.run("document.getElementById('ask-output').value = 512, document.forms.ask.requestSubmit()")
    for name in controls:
        change = """(name) => {
            const e = document.getElementById(name) || document.forms.ask.elements[name];
            const shown = () => ["ask-answer", "ask-costs", "ask-charts", "ask-instead"].map(
                id => document.getElementById(id).outerHTML).join();
            const before = shown();
            if (e.type === "checkbox") e.checked = !e.checked;
            else if (e.tagName === "SELECT") e.value = "linear";
            else if (e.type === "range") e.value = Number(e.value) + 150;
            else e.value = Math.round(Number(e.value) / 2) + 7;
            e.dispatchEvent(new Event("input", { bubbles: true }));
            return before !== shown();
        }"""
        assert tab.run(f"({change})({name!r})"), name
    assert tab.complaints() == []
    tab.close()


def test_a_mouse_on_a_chart_sets_the_length(chromium: Browser, simulated: Made) -> None:
    tab = chromium.open(simulated.path)
    before = tab.run("document.getElementById('ask-output').value")
    place = tab.run("""(() => { const svg = document.querySelector("#ask-charts svg");
        svg.scrollIntoView({block: "center"}); const box = svg.getBoundingClientRect();
        return [box.left + box.width * 0.7, box.top + box.height / 2]; })()""")
    for kind in ("mousePressed", "mouseReleased"):
        tab.call("Input.dispatchMouseEvent", type=kind, x=place[0], y=place[1], button="left", clickCount=1)
    assert tab.run("document.getElementById('ask-output').value") != before
    tab.close()


def test_nonsense_is_answered_with_a_sentence(chromium: Browser, simulated: Made) -> None:
    tab = chromium.open(simulated.path)
    for value in ("0", "-5", "1.5", "", "99999999999999", "1e9"):
        tab.run(f"document.getElementById('ask-input').value = '{value}'")
        tab.run("document.getElementById('ask-input').dispatchEvent(new Event('input', {bubbles: true}))")
        answer = tab.run("document.getElementById('ask-answer').textContent")
        said = ("give a whole number", "extrapolated", "do not determine the energy")
        assert any(words in answer for words in said), (value, answer)
        assert "NaN" not in tab.run("document.getElementById('explorer').innerHTML")
        assert "Infinity" not in tab.run("document.getElementById('explorer').innerHTML")
    for index in range(4):
        tab.run(f"document.forms.ask.elements['model-{index}'].checked = false")
    tab.run("document.forms.ask.dispatchEvent(new Event('input'))")
    assert tab.run("document.getElementById('ask-answer').textContent") == "Choose a model."
    assert tab.complaints() == []
    tab.close()


def test_the_keyboard_reaches_and_moves_every_control(chromium: Browser, simulated: Made) -> None:
    tab = chromium.open(simulated.path)
    wanted = set(tab.run(f"[...document.querySelectorAll('{CONTROLS}')].map(e => e.id || e.name)"))
    reached, outlined = [], set()
    for _ in range(40):
        tab.press("Tab", 9)
        reached.append(tab.run("document.activeElement.id || document.activeElement.name || ''"))
        outlined.add(tab.run("getComputedStyle(document.activeElement).outlineStyle"))
    assert tab.run("document.querySelector('.skip').getAttribute('href')") == "#main"
    assert wanted <= set(reached)
    assert "none" not in outlined
    before = tab.run("document.getElementById('ask-input-slide').focus(), document.getElementById('ask-input').value")
    tab.press("ArrowLeft", 37)
    after = tab.run("document.getElementById('ask-input').value")
    assert 0 < int(after) < int(before)
    said = tab.run("document.getElementById('ask-input-slide').getAttribute('aria-valuetext')")
    assert said == f"{int(after):,} tokens"
    tab.close()


def test_every_control_table_and_figure_has_a_name(chromium: Browser, simulated: Made) -> None:
    tab = chromium.open(simulated.path)
    tree = tab.call("Accessibility.getFullAXTree")["nodes"]
    roles = ("spinbutton", "slider", "combobox", "checkbox", "table", "image", "link", "region", "status")
    nodes = [node for node in tree if not node.get("ignored") and node.get("role", {}).get("value") in roles]
    assert len(nodes) > 40
    nameless = [node["role"]["value"] for node in nodes if not node.get("name", {}).get("value")]
    assert set(nameless) <= {"status"}  # it is what it says
    tab.close()


def test_without_javascript_it_is_a_page_that_says_so(chromium: Browser, simulated: Made) -> None:
    tab = chromium.open(simulated.path, scripts=False)
    tab.call("Emulation.setScriptExecutionDisabled", value=False)
    assert tab.run("document.getElementById('ask').checkVisibility()") is False
    assert "needs JavaScript" in tab.run("document.querySelector('noscript').textContent")
    assert tab.run("document.querySelectorAll('figure svg').length") > 10
    tab.close()


def test_every_printed_sheet_carries_the_label(chromium: Browser, simulated: Made, tmp_path: Path) -> None:
    tab = chromium.open(simulated.path)
    (tmp_path / "page.pdf").write_bytes(tab.pdf())
    printed = subprocess.run(["pdftotext", "-layout", tmp_path / "page.pdf", "-"], capture_output=True, text=True)
    sheets = printed.stdout.split("\f")[:-1]
    assert len(sheets) > 5
    assert all("SIMULATED" in sheet for sheet in sheets)
    tab.media("print")
    assert tab.run("getComputedStyle(document.getElementById('ask-input-slide')).display") == "none"
    tab.close()


def test_a_figure_is_a_click_from_its_data(chromium: Browser, simulated: Made) -> None:
    tab = chromium.open(simulated.path)
    links = tab.run("[...document.querySelectorAll('figure a[download]')].map(a => [a.download, a.href])")
    assert len(links) == tab.run("document.querySelectorAll('figure > .scroll > svg').length")
    for name, address in links:
        rows = list(csv.DictReader(io.StringIO(base64.b64decode(address.partition(",")[2]).decode())))
        assert rows, name
        assert (simulated.directory / "figures" / name).exists()
    tab.close()


def test_names_with_markup_stay_text(chromium: Browser, measured: Made) -> None:
    tab = chromium.open(measured.path)
    assert tab.complaints() == []
    assert tab.run("document.querySelectorAll('script').length") == 2
    assert "<script>alert(1)</script>" in tab.run("document.getElementById('ask-answer').textContent")
    assert "MEASURED" in tab.run("document.querySelector('.strip').textContent")
    assert "simulated" not in tab.run("document.body.innerText").lower().replace("measured or simulated", "")
    tab.close()


def test_no_valid_row_leaves_a_page_without_an_explorer(chromium: Browser, simulated: Made, tmp_path: Path) -> None:
    found = simulated.results
    rows = found.measurements.with_columns(valid=pl.lit(False), reasons=pl.lit("counter_stuck"))
    empty = {**found.predictor, "groups": []}
    page(replace(found, measurements=rows, predictor=empty, validation=found.validation.clear()), tmp_path)
    tab = chromium.open(tmp_path / "report.html", PHONE)
    assert tab.complaints() == []
    assert tab.run("document.getElementById('explorer')") is None
    assert tab.run("document.documentElement.scrollWidth") == PHONE[0]
    tab.close()


THIRTEEN = tuple(f"{family}-{size}b" for family in ("opt", "llama", "gemma") for size in (1, 3, 7, 13))


def test_thirteen_models_and_ten_thousand_rows(chromium: Browser, tmp_path: Path) -> None:
    models = (*THIRTEEN, "granite-code-3.1-instruct-8b")
    found = results(tmp_path, models=models, lengths=(64, 256, 1024), batches=(64,))
    many = pl.concat([found.measurements] * (1 + 10_000 // found.measurements.height))
    page(replace(found, measurements=many), tmp_path)
    assert many.height > 10_000
    assert (tmp_path / "report.html").stat().st_size < 15e6
    tab = chromium.open(tmp_path / "report.html", PHONE)
    assert tab.complaints() == []
    assert tab.run("document.documentElement.scrollWidth") == PHONE[0]
    tab.run("for (let i = 0; i < 13; i++) document.forms.ask.elements[`model-${i}`].checked = true")
    tab.run("document.forms.ask.dispatchEvent(new Event('input'))")
    assert tab.run("document.querySelectorAll('#ask-costs tbody tr').length") == 13
    assert clipped(tab) == []
    tab.close()
