"""The figures and the page: what they say, and that they say it of the right rows."""

import json
import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import polars as pl
import pytest

from pages import FOUR, NASTY, Made, Outcome, PageText, page, results
from sweetspot.fit.fit import fit_table
from sweetspot.fit.heldout import SCHEMES
from sweetspot.fit.validation import validate
from sweetspot.predict.laws import LAWS
from sweetspot.report import explorer
from sweetspot.report import page as report
from sweetspot.report.results import Results
from sweetspot.report.words import source_label
from sweetspot.table import read as table
from sweetspot.vocabulary import ON_MEASURED_KERNELS, SIMULATED


def test_the_page_needs_nothing_but_itself(simulated: Made) -> None:
    seen = PageText(simulated.html)
    assert all(target.startswith(("#", "data:")) for target in seen.fetched)
    assert [link for link in seen.links if not link.startswith("#")] == [
        "https://doi.org/10.1145/3777884.3797011",
        "https://arxiv.org/abs/2602.05695",
    ]
    assert not {"link", "iframe", "object", "embed", "base"} & set(seen.tags)
    assert "default-src 'none'" in simulated.html  # the browser itself refuses every request
    assert not re.search(r"@import|url\(", simulated.html.split("</style>")[0])


def test_every_link_and_reference_of_the_page_has_one_target(simulated: Made) -> None:
    seen = PageText(simulated.html)
    assert len(seen.ids) == len(set(seen.ids))
    wanted = {target[1:] for target in (*seen.links, *seen.fetched) if target.startswith("#")}
    assert wanted <= set(seen.ids)


def test_simulated_rows_are_called_so_everywhere(simulated: Made) -> None:
    banner = re.search(r'<div class="strip".*?</div>', simulated.html)
    assert banner
    label = SIMULATED[ON_MEASURED_KERNELS]
    assert label in banner[0]
    assert "no GPU was used" in banner[0]
    drawings = sorted((simulated.directory / "figures").glob("*.svg"))
    assert drawings
    for drawing in drawings:
        assert re.search(r"<text[^>]*>SIMULATED</text>", drawing.read_text()), drawing.name
        assert label in " ".join(re.findall(r"<text[^>]*>([^<]*)</text>", drawing.read_text())), drawing.name


@pytest.mark.parametrize(
    ("sources", "label"),
    [
        (["simulated"], "SIMULATED"),
        (["simulated-kernels"], "SIMULATED (kernel times measured by NVIDIA, power modelled)"),
        (["simulated-kernels", "simulated"], "SIMULATED"),
        (["measured", "simulated-kernels"], "SIMULATED (kernel times measured by NVIDIA, power modelled)"),
    ],
)
def test_the_label_names_what_was_simulated(sources: list[str], label: str) -> None:
    assert source_label(sources) == label


def test_the_script_of_the_page_has_the_same_labels() -> None:
    for source, label in SIMULATED.items():
        assert f'"{source}": "{label}"' in explorer.script()


def test_measured_rows_are_not_called_simulated(measured: Made) -> None:
    words = PageText(measured.html).words
    assert "SIMULATED" not in words
    assert "MEASURED" in words
    for drawing in (measured.directory / "figures").glob("*.svg"):
        assert "SIMULATED" not in drawing.read_text()


def test_no_figure_is_missing(simulated: Made, measured: Made) -> None:
    kinds = ["curves", "heatmap", "batch"]
    per_model = {f"{kind}-{model}" for kind in kinds for model in FOUR}
    every = per_model | {"sweet-spots", "ratios", "predicted", "accuracy", "residuals"}
    for kind in ("svg", "png", "csv"):
        assert {path.stem for path in (simulated.directory / "figures").glob(f"*.{kind}")} == every
    assert (simulated.directory / "figures/figures.pdf").read_bytes().count(b"/Type /Page ") == len(every)
    one_batch = {path.stem.split("-")[0] for path in (measured.directory / "figures").glob("*.svg")}
    assert "batch" not in one_batch
    assert {"curves", "heatmap"} <= one_batch


def test_page_and_figures_are_the_same_bytes_again(measured: Made, tmp_path: Path) -> None:
    assert page(measured.results, tmp_path) == measured.html
    for path in sorted((tmp_path / "figures").iterdir()):
        assert path.read_bytes() == (measured.directory / "figures" / path.name).read_bytes(), path.name


def test_names_are_escaped(measured: Made) -> None:
    assert NASTY not in measured.html
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in measured.html
    assert PageText(measured.html).tags.count("script") == 2  # the explorer's data and code
    for drawing in (measured.directory / "figures").glob("*.svg"):
        ElementTree.fromstring(drawing.read_text())


def test_errors_on_the_page_are_those_of_the_validation(simulated: Made) -> None:
    seen = PageText(simulated.html)
    schemes = list(SCHEMES)
    tables = [rows for rows, said in zip(seen.tables, seen.captions, strict=True) if said == "MAPE by law and scheme"]
    assert len(tables) == len(FOUR)
    for model, (head, *rows) in zip(FOUR, tables, strict=True):
        assert head == ["law", "in-sample", *(f"held-out: {scheme}" for scheme in schemes[1:])]
        assert len(rows) == len(LAWS)
        for law, *shown in rows:
            for scheme, text in zip(schemes, shown, strict=True):
                row = simulated.results.validation.row(
                    by_predicate=(pl.col("model") == model) & (pl.col("law") == law) & (pl.col("scheme") == scheme),
                    named=True,
                )
                error = row["mape_percent"]
                assert (
                    text == "–"
                    if error is None
                    else float(text.removesuffix(" %").replace(",", "")) == pytest.approx(error, rel=6e-3)
                )


def test_mean_errors_name_law_scheme_and_whether_held_out(simulated: Made) -> None:
    seen = PageText(simulated.html)
    head, *rows = seen.table("MAPE in %")
    shown = {(row[0].split(" ")[0], scheme): value for row in rows for scheme, value in zip(head, row, strict=True)}
    errors = simulated.results.validation
    for law in ("linear", "wilkins", "paper-6"):
        for scheme, said in (("in-sample", "in\u2011sample"), ("5-fold", "held\u2011out 5\u2011fold")):
            mean = errors.filter(pl.col("law") == law, pl.col("scheme") == scheme)["mape_percent"].to_list()
            assert float(shown[law, said]) == pytest.approx(sum(mean) / len(mean), rel=6e-3)
    assert any("the paper's 13: 1.79, scheme not known to us" in caption for caption in seen.captions)


def test_findings_are_those_of_the_rows(simulated: Made) -> None:
    rows = simulated.results.measurements.filter("valid").with_columns(
        j=pl.col("energy_j") / pl.col("batch") / pl.col("output_tokens")
    )
    means = rows.group_by("model", "batch", "input_tokens", "output_tokens").agg(pl.col("j").mean())
    spans = means.group_by("model", "batch").agg(pl.col("j").min().alias("low"), pl.col("j").max().alias("high"))
    top = spans.sort(pl.col("high") / pl.col("low")).row(-1, named=True)
    own = means.filter(pl.col("model") == top["model"], pl.col("batch") == top["batch"]).sort("j")
    best, worst = (
        f"{row['input_tokens']:,} tokens in, {row['output_tokens']:,} out"
        for row in (own.row(0, named=True), own.row(-1, named=True))
    )
    first, _, third = re.findall(r'<p class="finding">(.*?)</p>', simulated.html)
    assert first.startswith(f"{top['model']} at batch {top['batch']} needs {top['low']:.3g} [")
    ratio, low, high = re.findall(r"factor of ([\d.]+) \[([\d.]+), ([\d.]+)\]", first)[0]
    assert float(ratio) == pytest.approx(top["high"] / top["low"], rel=6e-3)
    assert float(low) < float(ratio) < float(high) < 1.1 * float(ratio)
    assert f"at best ({best})" in first
    assert f"at worst ({worst})" in first
    assert "held-out" in third
    assert "in-sample" in third


def test_skipped_invalid_and_flagged_rows_are_listed(simulated: Made) -> None:
    seen = PageText(simulated.html)
    _, *skipped = seen.table("Cells of the grid that were not run")
    assert sum(int(row[-1]) for row in skipped) == 2 * 9
    assert {row[0] for row in skipped} == {"opt-6.7b"}
    assert "64→2048" in skipped[0][2]
    assert skipped[0][1] == "positions: input + output tokens exceed the model's 2048 positions"
    counts = {row[0]: row[4] for row in seen.table("Invalid rows")[1:]}
    assert counts == {"counter_vs_integral": "1", "counter_stuck": "12"}
    assert [row[0] for row in seen.table("Flagged rows")[1:]] == ["power_capped"]


def test_coefficients_have_units_and_errors(simulated: Made) -> None:
    group = simulated.results.predictor["groups"][0]
    _, *rows = PageText(simulated.html).table(f"Coefficients of {group['law']}")
    terms = group["laws"][group["law"]][0]["terms"]
    assert {row[0]: row[3] for row in rows} == {
        **dict.fromkeys(("u", "v", "t3"), "J/token"),
        **dict.fromkeys(("t1", "t2", "a"), "J/token²"),
        **dict.fromkeys(("w", "x"), "J"),
    }
    value, error = rows[1][4].split(" ± ")
    assert float(value) == pytest.approx(terms["v"]["value"], rel=1e-2)
    assert float(error) == pytest.approx(terms["v"]["standard_error"], rel=6e-2)


def test_a_law_for_each_batch_has_a_line_for_each_batch(simulated: Made, tmp_path: Path) -> None:
    found = simulated.results
    predictor = json.loads(json.dumps(found.predictor))
    for group in predictor["groups"]:
        group["law"] = "paper-6"
    prepared = Results.of(**{**vars(found), "predictor": predictor})
    report.write(prepared, tmp_path / "report.html")
    head, *rows = PageText((tmp_path / "report.html").read_text()).table("Coefficients of paper-6")
    assert head[4:] == ["batch 1", "batch 64"]
    assert [row[0] for row in rows] == ["t0", "t1", "t2", "t3", "t4", "t5"]
    assert [row[1] for row in rows] == ["1", "n²/m", "n", "n/m", "m", "1/m"]
    assert [row[3] for row in rows] == ["J/token", "J/token²", "J/token²", "J/token", "J/token²", "J"]


def test_no_valid_row_is_said_not_crashed_on(simulated: Made, tmp_path: Path) -> None:
    found = simulated.results
    rows = found.measurements.with_columns(valid=pl.lit(False), reasons=pl.lit("counter_stuck"))
    empty = {**found.predictor, "groups": []}
    html = page(replace(found, measurements=rows, predictor=empty, validation=found.validation.clear()), tmp_path)
    assert "No valid row" in html
    assert "SIMULATED" in html
    assert PageText(html).table("Invalid rows")[1][:1] == ["counter_stuck"]
    assert "<figure" not in html


def test_a_published_table_without_a_campaign(tmp_path: Path) -> None:
    """The five required columns and a source: no duration, temperature, plan or campaign."""
    source = tmp_path / "rows.csv"
    rows = results(tmp_path, models=("model",), lengths=(64, 256, 1024), batches=(8,)).measurements
    columns = ["model", "batch", "input_tokens", "output_tokens", "energy_j"]
    rows.filter("valid").select(columns).with_columns(source=pl.lit("published")).write_csv(source)
    read = table.read([source])
    validation, predictions = validate(read)
    found = Outcome(read.frame.select(*columns, "source"), fit_table(read), validation, predictions, None, None)
    html = page(found, tmp_path)
    words = PageText(html).words
    assert "PUBLISHED" in words
    assert "SIMULATED" not in words


def test_a_model_keeps_its_colour_when_others_join(simulated: Made, tmp_path: Path) -> None:
    """On the page and in the figures."""
    alone = results(tmp_path, models=("llama-3.1-8b",))
    page(alone, tmp_path)
    one, four = (explorer.data(Results.of(**vars(found)))["looks"] for found in (alone, simulated.results))
    assert one[0] in four
    assert len({look["colour"] for look in four}) == 4
    drawing = (tmp_path / "figures" / "sweet-spots.svg").read_text()
    assert f"stroke: {one[0]['colour']}" in drawing


def test_models_of_one_family_differ_in_colour_and_marker(tmp_path: Path) -> None:
    found = results(tmp_path, models=("qwen2-7b", "qwen3-8b", "qwen3-30b-a3b"), lengths=(64, 256), batches=(1,))
    looks = explorer.data(Results.of(**vars(found)))["looks"]
    assert len({look["colour"] for look in looks}) == len({look["marker"] for look in looks}) == 3
