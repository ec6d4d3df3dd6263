"""The report in a real browser: what a person sees and does, at the width of a phone and of a desktop, and on paper."""

import csv
import io
import re
import subprocess
import urllib.parse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import axe_core_python
import polars as pl
import pytest

import browser
import debian
from browser import DESKTOP, PHONE, Browser, Tab
from pages import Made, page, results

REASON = browser.unavailable()
CONTROLS = "#ask input, #ask select"
CHARTS = {
    *("ranking", "map", "reply", "prompt", "batch", "pareto", "throughput", "spots", "ratios"),
    *("residuals", "errors", "sensors"),
}


def drawn(tab: Tab, name: str) -> None:
    """Scroll a chart into view and wait until it is drawn or says why not."""
    tab.run(f"""new Promise(done => {{
        const plot = document.querySelector("#chart-{name} .plot");
        plot.scrollIntoView({{ block: "center" }});
        const wait = () => plot.querySelector("svg, p") ? done() : setTimeout(wait, 20);
        wait();
    }})""")


def settled(tab: Tab) -> None:
    """Wait until what was asked is drawn."""
    tab.run("new Promise(done => setTimeout(() => requestAnimationFrame(() => setTimeout(done, 0)), 150))")


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
    for name in CHARTS:
        drawn(tab, name)
    # What is wider than the page scrolls inside itself.
    wide = """[...document.querySelectorAll("main *, header *")].filter(e =>
        e.getBoundingClientRect().right > innerWidth + 1 && !e.closest(".scroll, nav, svg")).length"""
    assert tab.run(wide) == 0
    assert clipped(tab) == []
    assert tab.complaints() == []
    ink, paper = (tab.run(f"getComputedStyle(document.body).{name}") for name in ("color", "backgroundColor"))
    assert (_luminance(ink) > _luminance(paper)) == dark
    assert _contrast(ink, paper) > 7
    tab.close()


def clipped(tab: Tab) -> list[str]:
    """Texts of figures that do not lie whole inside their figure."""
    found: list[str] = tab.run("""[...document.querySelectorAll(".plot svg")].flatMap(svg => {
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
    settled(tab)
    assert tab.run(f"({seen})('#ask-answer, #ask-spot')") == 2
    assert tab.run(f"({seen})('#chart-ranking svg, #chart-map svg')") == 2
    assert tab.run(f"({seen})('.card tbody tr.strong')") == 1
    tab.close()


# What a newcomer asks, the link of the table of contents to click, if any, and where the number stands.
QUESTIONS = [
    ("Which model needs least energy for my request?", "", "#ask-answer", r"costs least with \S+, [\d.]+"),
    ("What does one request cost?", "", "#ask-answer", r"[\d.]+ \[[\d.]+, [\d.]+\] J per request"),
    ("How many Wh are 1,000 tokens?", "", "#chart-ranking .plot", r"[\d.]+ Wh"),
    ("Where is the sweet spot?", "", "#ask-spot", r"sweet spot .* a reply of [\d,]+"),
    ("What does the sweet spot save?", "", "#ask-spot", r"[\d.]+ % less"),
    ("How wrong is it on what it has not seen?", "", ".card:nth-child(3)", r"MAPE of [\d.]+ .*held-out"),
    ("On which GPU, in how many runs?", "", ".on", r"H100 .* [\d,]+ repetitions"),
    ("What would a shorter prompt save?", "Explore", "#ask-costs", r"[\d.]+ \["),
    ("Which batch is cheapest within my latency?", "Compare", "#ask-under", r"batch \d+: [\d.]+"),
    ("How wrong is each law?", "Accuracy", "#chart-residuals .plot", r"0"),
    ("How many rows are invalid, and why?", "Measurement", "#rows", r"counter_stuck.*12"),
]


@pytest.mark.parametrize(("link", "place", "answer"), [one[1:] for one in QUESTIONS], ids=[one[0] for one in QUESTIONS])
def test_a_newcomers_question_is_two_clicks_from_its_number(
    chromium: Browser, simulated: Made, link: str, place: str, answer: str
) -> None:
    tab = chromium.open(simulated.path)
    if link:
        tab.run(f"[...document.querySelectorAll('nav a')].find(a => a.textContent === {link!r}).click()")
    settled(tab)
    box = tab.run(f"(b => [b.top, b.bottom])(document.querySelector({place!r}).getBoundingClientRect())")
    assert box[0] < DESKTOP[1], f"below the screen: {box}"
    assert box[1] > 0, f"above the screen: {box}"
    shown = tab.run(f"document.querySelector({place!r}).textContent").replace("\n", " ")
    assert re.search(answer, shown), shown
    tab.close()


def test_a_price_becomes_money(chromium: Browser, simulated: Made) -> None:
    tab = chromium.open(simulated.path)
    price = "document.getElementById('ask-price')"
    tab.run(f"{price}.value = 0.3, {price}.dispatchEvent(new Event('input', {{ bubbles: true }}))")
    settled(tab)
    joules, energy, money = tab.run(
        "document.querySelector('#chart-ranking svg').textContent.match("
        "/([\\d.,]+) J · ([\\d.]+) Wh · ([\\d.]+) per million/).slice(1)"
    )
    per_thousand_j = float(joules.replace(",", ""))
    assert float(energy) == pytest.approx(per_thousand_j / 3600, rel=1e-2)
    assert float(money) == pytest.approx(0.3 * 1000 * per_thousand_j / 3.6e6, rel=1e-2)
    tab.close()


def test_every_control_changes_what_is_shown(chromium: Browser, simulated: Made) -> None:
    tab = chromium.open(simulated.path)
    controls = tab.run(f"[...document.querySelectorAll('{CONTROLS}')].map(e => e.id || e.name)")
    asked = {"ask-input", "ask-output", "ask-batch", "ask-law", "ask-shorter", "ask-cap", "ask-other", "ask-price"}
    assert asked | {"ask-focus", "ask-latency", "ask-bound", "ask-axis"} < set(controls)
    assert sum(name.startswith("model-") for name in controls) == 4
    tab.run("document.getElementById('ask-output').value = 512, document.forms.ask.requestSubmit()")
    drawn(tab, "residuals")
    for name in controls:
        before = tab.run("document.getElementById('main').innerHTML")
        tab.run(f"""(() => {{
            const e = document.getElementById({name!r}) || document.forms.ask.elements[{name!r}];
            if (e.type === "checkbox") e.checked = !e.checked;
            else if (e.id === "ask-law") e.value = "linear";
            else if (e.tagName === "SELECT") e.selectedIndex = (e.selectedIndex + 1) % e.options.length;
            else if (e.type === "range") e.value = Number(e.value) + 150;
            else e.value = Math.round(Number(e.value) / 2) + 7;
            e.dispatchEvent(new Event("input", {{ bubbles: true }}));
        }})()""")
        settled(tab)
        assert tab.run("document.getElementById('main').innerHTML") != before, name
        tab.run(f"(document.forms.ask.elements[{name!r}] || {{}}).checked = true")
    assert tab.complaints() == []
    tab.close()


def test_a_mouse_on_a_chart_reads_a_value_and_asks_for_it(chromium: Browser, simulated: Made) -> None:
    tab = chromium.open(simulated.path)
    before = tab.run("document.getElementById('ask-output').value")
    drawn(tab, "reply")
    box = tab.run("""(() => { const box = document.querySelector("#chart-reply svg").getBoundingClientRect();
        return [box.left, box.top, box.width, box.height]; })()""")
    said, reading = "", "document.querySelector('#chart-reply .reading').textContent"
    for height in range(20, int(box[3]), 20):  # somewhere along here there is a line
        tab.call("Input.dispatchMouseEvent", type="mouseMoved", x=box[0] + 0.7 * box[2], y=box[1] + height)
        said = tab.run(reading)
        if said:
            break
    assert "J per 1,000 output tokens" in said
    for kind in ("mousePressed", "mouseReleased"):
        place = {"x": box[0] + 0.7 * box[2], "y": box[1] + height}
        tab.call("Input.dispatchMouseEvent", type=kind, **place, button="left", clickCount=1)
    assert tab.run("document.getElementById('ask-output').value") != before
    tab.close()


def test_arrow_keys_read_every_chart(chromium: Browser, simulated: Made) -> None:
    tab = chromium.open(simulated.path)
    assert set(tab.run("[...document.querySelectorAll('figure')].map(f => f.id.slice(6))")) == CHARTS
    for name in CHARTS - {"sensors"}:  # these rows have one sensor only
        drawn(tab, name)
        settled(tab)
        tab.run(f"document.querySelector('#chart-{name} .plot').focus()")
        said = []
        for _ in range(3):
            tab.press("ArrowRight", 39)
            said.append(tab.run(f"document.querySelector('#chart-{name} .reading').textContent"))
        assert all(said), name
        assert len(set(said)) == 3, (name, said)
        assert "NaN" not in "".join(said), said
        assert "undefined" not in "".join(said), said
    drawn(tab, "sensors")
    assert "one energy sensor only" in tab.run("document.querySelector('#chart-sensors').textContent")
    tab.close()


def test_axe_finds_no_fault(chromium: Browser, simulated: Made) -> None:
    """The accessibility checker of Deque, on the whole page, drawn and unfolded."""
    script = Path(axe_core_python.__file__).with_name("axe.min.js").read_text(encoding="utf-8")
    for size, dark in ((DESKTOP, False), (DESKTOP, True), (PHONE, False)):
        tab = chromium.open(simulated.path, size, dark=dark)
        for name in CHARTS:
            drawn(tab, name)
        tab.run("document.querySelectorAll('details').forEach(one => { one.open = true; })")
        tab.run(f"{script}; 0")
        found = tab.run("axe.run().then(r => r.violations.map(v => [v.id, v.nodes.slice(0, 3).map(n => n.html)]))")
        assert found == []
        tab.close()


def test_nonsense_is_answered_with_a_sentence(chromium: Browser, simulated: Made) -> None:
    tab = chromium.open(simulated.path)
    for value in ("0", "-5", "1.5", "", "99999999999999", "1e9"):
        tab.run(f"document.getElementById('ask-input').value = '{value}'")
        tab.run("document.getElementById('ask-input').dispatchEvent(new Event('input', {bubbles: true}))")
        answer = tab.run("document.getElementById('ask-answer').textContent")
        said = ("give a whole number", "extrapolated", "do not determine the energy")
        assert any(words in answer for words in said), (value, answer)
        assert "NaN" not in tab.run("document.getElementById('main').innerText")
        assert "Infinity" not in tab.run("document.getElementById('main').innerText")
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
    for _ in range(110):
        tab.press("Tab", 9)
        reached.append(tab.run("document.activeElement.id || document.activeElement.name || ''"))
        if tab.run("document.activeElement !== document.body"):
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
    assert tab.run("document.getElementById('explorer').checkVisibility()") is False
    assert tab.run("document.getElementById('chart-ranking').checkVisibility()") is False
    assert "need JavaScript" in tab.run("document.querySelector('noscript').textContent")
    assert tab.run("document.querySelectorAll('.finding').length") == 3
    assert tab.run("document.querySelectorAll('table tbody tr').length") > 30
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


def test_a_chart_is_a_click_from_its_data(chromium: Browser, simulated: Made) -> None:
    tab = chromium.open(simulated.path)
    for name in CHARTS - {"sensors"}:
        link = f"document.querySelector('#chart-{name} a[download]')"
        address = tab.run(f"{link}.addEventListener('click', e => e.preventDefault()), {link}.click(), {link}.href")
        text = urllib.parse.unquote(address.partition(",")[2])
        rows = list(csv.DictReader(io.StringIO(text)))
        assert rows, name
        assert rows[0]["words"], name
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
