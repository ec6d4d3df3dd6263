"""Tables as people have them: read rightly, or refused with the cause; never a wrong number without a word."""

import gzip
import io
import json
import math
import random
import re
import shlex
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from kinds import BATCH, CELLS, GPU, HEADER, J_PER_TOKEN, MODEL, WATTS, german, plain, text
from sweetspot.commands.main import main
from sweetspot.errors import SweetspotError
from sweetspot.table import files
from sweetspot.table import read as table

M, B, G = MODEL, BATCH, GPU


def per_token(rows: table.Table) -> float:
    valid = rows.frame.filter("valid")
    return float((valid["energy_j"] / (valid["batch"] * valid["output_tokens"])).median())  # type: ignore[arg-type]


def joules(path: Path, content: str | bytes, *maps: str) -> float:
    """Joules per output token of the table, which must have the lengths and times of `CELLS`."""
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    rows = table.read([path], dict(each.split("=") for each in maps))
    assert not rows.impossible
    cells = {(cell.n, cell.m): cell for cell in CELLS}
    for row in rows.frame.filter("valid").iter_rows(named=True):
        assert (row["model"], row["batch"]) == (M, B)
        assert row["duration_s"] is None or row["duration_s"] == pytest.approx(
            cells[row["input_tokens"], row["output_tokens"]].t, rel=1e-3
        )
    return per_token(rows)


def refusal(path: Path, content: str | bytes) -> str:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(SweetspotError) as caught:
        table.read([path])
    return str(caught.value)


RUN = 125  # runs of the batch in one measurement
SCOPES = {
    "a run of requests": text(
        "model,batch_size,isl,osl,num_requests,total_energy_j,duration_s,gpu",
        lambda c: [M, B, c.n, c.m, B * RUN, c.e * RUN, c.t * RUN, G],
    ),
    "a run of requests, latency of a batch": text(
        "model,batch_size,isl,osl,num_prompts,energy_j,latency_s,gpu",
        lambda c: [M, B, c.n, c.m, B * RUN, c.e * RUN, c.t, G],
    ),
    "iterations": text(
        "model,batch_size,isl,osl,iterations,total_energy_j,total_time_s,gpu",
        lambda c: [M, B, c.n, c.m, RUN, c.e * RUN, c.t * RUN, G],
    ),
    "means of iterations": text(
        "model,batch_size,isl,osl,num_iters,energy_j,latency_s,gpu", lambda c: [M, B, c.n, c.m, RUN, c.e, c.t, G]
    ),
    "concurrency beside a limit": text(
        "model,max_batch_size,concurrency,isl,osl,energy_j,duration_s,gpu",
        lambda c: [M, 256, B, c.n, c.m, c.e, c.t, G],
    ),
    "sums of tokens, told by joules per token": text(
        "model,batch,total_input_tokens,total_output_tokens,energy_j,joules_per_output_token,gpu",
        lambda c: [M, B, c.n * B, c.m * B, c.e, J_PER_TOKEN, G],
    ),
    "sums of tokens, told by a throughput": text(
        "model,batch,total_input_tokens,total_output_tokens,energy_j,duration_s,output_throughput,power_w,"
        "energy_per_request_j,gpu",
        lambda c: [M, B, c.n * B, c.m * B, c.e, c.t, B * c.m / c.t, WATTS, c.e / B, G],
    ),
    "tokens per joule": text(
        "model,batch,isl,osl,output_tokens_per_joule,gpu", lambda c: [M, B, c.n, c.m, 1 / J_PER_TOKEN, G]
    ),
    "tokens per second and watts": text(
        "model,batch,isl,osl,output tokens/s,power (W),gpu", lambda c: [M, B, c.n, c.m, B * c.m / c.t, WATTS, G]
    ),
    "a throughput of either kind": text(
        "model,batch,isl,osl,energy_j,duration_s,throughput,gpu",
        lambda c: [M, B, c.n, c.m, c.e, c.t, B * (c.n + c.m) / c.t, G],
    ),
    "kWh by size": text(
        "model,batch_size,isl,osl,duration,energy_consumed,gpu_model",
        lambda c: [M, B, c.n, c.m, c.t, c.e / 3.6e6, f"1 x {G}"],
    ),
}


@pytest.mark.parametrize("kind", SCOPES)
def test_the_scope_of_a_column_follows_from_its_neighbours(tmp_path: Path, kind: str) -> None:
    assert joules(tmp_path / "a.csv", SCOPES[kind]) == pytest.approx(J_PER_TOKEN, rel=1e-3)


@pytest.mark.parametrize(
    ("boards", "header", "watts"), [(8, "avg_power_w", 350), (4, "power_per_gpu_w", 350), (4, "total_power_w", 1400)]
)
def test_power_is_of_one_board_or_of_all(tmp_path: Path, boards: int, header: str, watts: float) -> None:
    content = text(f"model,batch,isl,osl,tp,duration_s,{header},gpu", lambda c: [M, B, c.n, c.m, boards, c.t, watts, G])
    assert joules(tmp_path / "a.csv", content) == pytest.approx(J_PER_TOKEN * boards)


QUESTIONS = {
    "power of two boards": (
        text("model,batch,isl,osl,tp,duration_s,avg_power_w,gpu", lambda c: [M, B, c.n, c.m, 2, c.t, 350, G]),
        {J_PER_TOKEN, 2 * J_PER_TOKEN},
    ),
    "sums over the batch or not": (
        text("model,batch,total_input_tokens,total_output_tokens,energy_j", lambda c: [M, B, c.n * B, c.m * B, c.e]),
        {J_PER_TOKEN, J_PER_TOKEN / B},
    ),
    "two batches": (
        text("model,batch_size,concurrency,isl,osl,energy_j,gpu", lambda c: [M, 1, B, c.n, c.m, c.e, G]),
        {J_PER_TOKEN, J_PER_TOKEN * B},
    ),
    "a small run": (
        text(
            "model,batch_size,isl,osl,num_requests,total_energy_j,duration_s,gpu",
            lambda c: [M, B, c.n, c.m, 2 * B, c.e * 2, c.t * 2, G],
        ),
        {J_PER_TOKEN, 2 * J_PER_TOKEN},
    ),
    "decimal or thousands": (
        "model;batch;input_tokens;output_tokens;energy_j\nm;1;128;128;1.024\nm;1;256;128;2.048\n",
        {0.012, 12},
    ),
}


@pytest.mark.parametrize("kind", QUESTIONS)
def test_what_only_a_person_can_know_is_asked_and_each_answer_works(tmp_path: Path, kind: str) -> None:
    content, values = QUESTIONS[kind]
    message = refusal(path := tmp_path / "a.csv", content)
    offered = re.findall(r"((?:--(?:map|decimal) \S+ )+)\(([\d.e-]+) J per output token\)", message)
    assert len(offered) >= len(values), message
    found = set()
    for options, said in offered:
        words = shlex.split(options)
        maps = dict(words[i + 1].split("=") for i in range(0, len(words), 2) if words[i] == "--map")
        decimal = next((words[i + 1] for i in range(0, len(words), 2) if words[i] == "--decimal"), "")
        rows = table.read([path], maps, decimal=decimal)
        assert per_token(rows) == pytest.approx(float(said), rel=0.01)
        found.add(float(said))
    assert all(any(one == pytest.approx(value, rel=0.01) for one in found) for value in values)


CONTRADICTIONS = {
    "joules per token": (
        text(
            "model,batch,input_tokens,output_tokens,energy_j,energy_per_output_token_j,gpu",
            lambda c: [M, B, c.n, c.m, c.e, J_PER_TOKEN * B, G],
        ),
        ("energy_j, energy_per_output_token_j disagree by a factor of 8",),
    ),
    "power": (
        text(
            "model,batch,input_tokens,output_tokens,energy_j,avg_power_w,duration_s,gpu",
            lambda c: [M, B, c.n, c.m, c.e / B, WATTS, c.t, G],
        ),
        ("disagree by a factor of 8", "--map energy_j=energy_per_request_j (0.5 J per output token)"),
    ),
    "sums under plain names": (
        text(
            "model,batch,input_tokens,output_tokens,energy_j,joules_per_token,gpu",
            lambda c: [M, B, c.n * B, c.m * B, c.e, J_PER_TOKEN, G],
        ),
        ("--map input_tokens=batch_input_tokens --map output_tokens=batch_output_tokens (0.5 J per output token)",),
    ),
    "a limit for a batch": (
        text("model,max_batch_size,isl,osl,energy_j,gpu", lambda c: [M, 256, c.n, c.m, c.e, G]),
        ("max_batch_size is a limit of the engine", "--set batch=NUMBER"),
    ),
    "two columns of one name": (text((*HEADER, "energy_j "), lambda c: [*plain(c), 5]), ("line 1", "'energy_j'")),
    "point and comma": (
        text(HEADER, lambda c: [M, B, c.n, c.m, f"{c.e + 0.5:.1f}".replace(".", ","), c.t, G], ";"),
        ("energy_j is", "with a decimal comma", "duration_s is", "with a decimal point"),
    ),
    "points that separate thousands": (
        text(HEADER, lambda c: [M, B, f"{c.n:,}".replace(",", "."), c.m, c.e + 0.25, c.t, G]),
        ("input_tokens is 2.048 in one row and 64 in another", "write 2048"),
    ),
    "a field too many": (text(HEADER).replace(f",{G}\n", f",{G},extra\n", 3), ("line 2: 8 fields",)),
    "one result of a benchmark": (json.dumps({"a": 1}), ("batch",)),
}


@pytest.mark.parametrize("kind", CONTRADICTIONS)
def test_columns_that_contradict_are_named(tmp_path: Path, kind: str) -> None:
    content, parts = CONTRADICTIONS[kind]
    message = refusal(tmp_path / "a.csv", content)
    assert "cut short" not in message
    for part in ("a.csv", *parts):
        assert part in message


NUMBERS = {
    "decimal comma": (
        lambda c: [M, B, c.n, c.m, f"{c.e:.2f}".replace(".", ","), f"{c.t:.6f}".replace(".", ","), G],
        ";",
    ),
    "German": (lambda c: [M, B, german(c.n, 0), german(c.m, 0), german(c.e), german(c.t, 6), G], ";"),
    "thousands without decimals": (
        lambda c: [M, B, german(c.n, 0), german(c.m, 0), german(c.e, 0), f"{c.t:.6f}".replace(".", ","), G],
        "\t",
    ),
    "American": (lambda c: [M, B, f'"{c.n:,}"', f'"{c.m:,}"', f'"{c.e:,.2f}"', c.t, G], ","),
    "Swiss": (lambda c: [M, B, *(f"{x:,.0f}".replace(",", "’") for x in (c.n, c.m, c.e)), c.t, G], ","),
    "French": (
        lambda c: [
            M,
            B,
            *(f"{x:,.0f}".replace(",", "\u202f") for x in (c.n, c.m, c.e)),
            f"{c.t:.6f}".replace(".", ","),
            G,
        ],
        ";",
    ),
    "units": (lambda c: [M, B, f"{c.n} tokens", f"{c.m} tok", f"{c.e / 3600:.9f} Wh", f"{c.t * 1e3} ms", G], ","),
    "mixed units": (
        lambda c: [M, B, c.n, c.m, f"{c.e / 1e3} kJ" if c.e > 1e3 else f"{c.e} J", f"{c.t:.6f}s", G],
        ",",
    ),
    "whole as floats": (lambda c: [M, f"{B}.0", f"{c.n}.0", f"{c.m}.0", c.e, c.t, G], ","),
}


@pytest.mark.parametrize("kind", NUMBERS)
def test_numbers_are_read_as_written(tmp_path: Path, kind: str) -> None:
    row, separator = NUMBERS[kind]
    content = text([f"{name}" for name in HEADER], row, separator)
    assert joules(tmp_path / "a.csv", content) == pytest.approx(J_PER_TOKEN, rel=1e-5)


UNITS = {
    "Energy [kWh],Duration [ms]": (1 / 3.6e6, 1e3),
    "Energy (mJ),time_ms": (1e3, 1e3),
    "energy_wh,runtime (min)": (1 / 3600, 1 / 60),
    "GPU energy / kJ,elapsed_seconds": (1e-3, 1),
    "energy_mwh,latency_us": (1 / 3.6, 1e6),
    "Wh/request,latency_s": (1 / 3600 / B, 1),
    "joules,time": (1, 1),
    "energy,latency": (1 / 3.6e6, 1),  # without a unit, by size
}


@pytest.mark.parametrize("header", UNITS)
def test_units_of_headers(tmp_path: Path, header: str) -> None:
    joule, second = UNITS[header]
    content = text(f"model,batch,isl,osl,{header},gpu", lambda c: [M, B, c.n, c.m, c.e * joule, c.t * second, G])
    assert joules(tmp_path / "a.csv", content) == pytest.approx(J_PER_TOKEN, rel=1e-5)


def objects() -> list[dict[str, Any]]:
    return [dict(zip(HEADER, plain(cell), strict=True)) for cell in CELLS]


def sheet(**sheets: pl.DataFrame) -> bytes:
    """A workbook, by the standard library: nothing here writes one."""
    import zipfile
    from xml.sax.saxutils import escape

    def cell(value: Any) -> str:
        if isinstance(value, str):
            return f'<c t="inlineStr"><is><t>{escape(value)}</t></is></c>'
        return f"<c><v>{value}</v></c>"

    names = "".join(f'<sheet name="{name}" sheetId="{i}" r:id="r{i}"/>' for i, name in enumerate(sheets, 1))
    kind = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
    main_space = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
    types = "application/vnd.openxmlformats-officedocument.spreadsheetml."
    parts = {
        "[Content_Types].xml": '<Types xmlns="http://schemas.openxmlformats.org/package/2006/content-types">'
        '<Default Extension="rels" ContentType="application/vnd.openxmlformats-package.relationships+xml"/>'
        f'<Override PartName="/xl/workbook.xml" ContentType="{types}sheet.main+xml"/>'
        + "".join(
            f'<Override PartName="/xl/s{i}.xml" ContentType="{types}worksheet+xml"/>' for i in range(1, len(sheets) + 1)
        )
        + "</Types>",
        "_rels/.rels": '<Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships">'
        f'<Relationship Id="r1" Type="{kind}/officeDocument" Target="xl/workbook.xml"/></Relationships>',
        "xl/workbook.xml": f'<workbook xmlns="{main_space}" xmlns:r="{kind}"><sheets>{names}</sheets></workbook>',
        "xl/_rels/workbook.xml.rels": '<Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships">'
        + "".join(
            f'<Relationship Id="r{i}" Type="{kind}/worksheet" Target="s{i}.xml"/>' for i in range(1, len(sheets) + 1)
        )
        + "</Relationships>",
    }
    for i, frame in enumerate(sheets.values(), 1):
        rows = [frame.columns, *frame.rows()]
        body = "".join(f"<row>{''.join(map(cell, row))}</row>" for row in rows)
        parts[f"xl/s{i}.xml"] = f'<worksheet xmlns="{main_space}"><sheetData>{body}</sheetData></worksheet>'
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, part in parts.items():
            archive.writestr(name, f'<?xml version="1.0" encoding="UTF-8"?>{part}')
    return content.getvalue()


STANDARD = text(HEADER)
FILES: dict[str, tuple[str, str | bytes]] = {
    "Excel's line": ("a.csv", "sep=;\n" + text(HEADER, plain, ";")),
    "title lines": ("a.csv", "Energy of our models\nmeasured in March, by us\n\n" + STANDARD),
    "title of a spreadsheet": ("a.csv", "Energy of our models,,,,,,\n,,,,,,\n" + STANDARD),
    "header behind #": ("a.csv", "# " + STANDARD),
    "spaces": ("a.txt", text(HEADER[:-1], lambda c: plain(c)[:-1], "  ")),
    "row of units": ("a.csv", text("model,batch,isl,osl,energy,time,gpu").replace("gpu\n", "gpu\n,,,,J,s,\n", 1)),
    "index": ("a.csv", text(("", *HEADER), lambda c: ["7", *plain(c)])),
    "separators at the end": ("a.csv", text((*HEADER, ""), lambda c: [*plain(c), ""])),
    "the same column twice": ("a.csv", text((*HEADER, "energy_j"), lambda c: [*plain(c), c.e])),
    "a row of means": ("a.csv", STANDARD + "mean,,,,99999,,\n"),
    "UTF-16 without a mark": ("a.csv", STANDARD.encode("utf-16-le")),
    "only carriage returns": ("a.csv", STANDARD.replace("\n", "\r")),
    "NaN": ("a.json", json.dumps([*objects(), objects()[0] | {"energy_j": math.nan}])),
    "columns": ("a.json", json.dumps({name: [row[name] for row in objects()] for name in HEADER})),
    "a frame of pandas": (
        "a.json",
        json.dumps({name: {str(i): row[name] for i, row in enumerate(objects())} for name in HEADER}),
    ),
    "results in an object": ("a.json", json.dumps({"meta": {"by": "me"}, "results": objects()})),
    "lines": ("a.json", "\n".join(map(json.dumps, objects()))),
    "huge integers": ("a.json", json.dumps(objects()).replace('"energy_j": 256.0', '"energy_j": ' + "9" * 400, 1)),
    "two parts of gzip": ("a.csv.gz", gzip.compress(STANDARD[:300].encode()) + gzip.compress(STANDARD[300:].encode())),
    "a workbook": ("a.xlsx", sheet(rows=pl.DataFrame(objects()), notes=pl.DataFrame({"by me": ["March"]}))),
    "a long header": ("a.csv", text((*HEADER, "x" * 100_000), lambda c: [*plain(c), 1])),
}


@pytest.mark.parametrize("kind", FILES)
def test_files_are_read_as_others_write_them(tmp_path: Path, kind: str) -> None:
    name, content = FILES[kind]
    assert joules(tmp_path / name, content) == pytest.approx(J_PER_TOKEN, rel=1e-5)


@pytest.mark.parametrize(
    "word", ["[N/A]", "N/A", "[Not Supported]", "nan", "NULL", "-", "None", "n.a.", "#N/A", "—", "[Unknown Error]"]
)
def test_durations_may_be_missing_in_every_row(tmp_path: Path, word: str) -> None:
    content = text(HEADER, lambda c: [M, B, c.n, c.m, c.e, word, G])
    assert joules(tmp_path / "a.csv", content) == pytest.approx(J_PER_TOKEN)


DAMAGED: dict[str, tuple[str, bytes, str]] = {
    "flipped": (
        "a.csv.gz",
        (lambda d: d[:60] + bytes([d[60] ^ 255]) + d[61:])(gzip.compress(STANDARD.encode())),
        "damaged",
    ),
    "bomb": ("a.csv.gz", gzip.compress(bytes(2**20)), "GiB"),
    "deep": ("a.json", b"[" * 100_000, "nested"),
    "cut": ("a.json", json.dumps(objects()).encode()[:-30], "cut short"),
    "zeros": ("a.csv", bytes(1000), "not a text file"),
    "no workbook": ("a.xlsx", b"PK\x03\x04 not", "a.xlsx"),
    "two tables": ("a.xlsx", sheet(a=pl.DataFrame(objects()), b=pl.DataFrame(objects())), "several sheets"),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_damaged_file_is_one_line(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name, content, part = DAMAGED[kind]
    monkeypatch.setattr(files, "_LARGEST", 2**16)  # of 1 GiB, so that a bomb is small
    message = refusal(tmp_path / name, content)
    assert part in message
    assert "\n" not in message
    assert len(message) < 1500 + len(str(tmp_path))


def test_a_name_that_is_too_long_is_one_line() -> None:
    with pytest.raises(SweetspotError, match="cannot be read"):
        table.read([Path("x" * 5000 + ".csv")])


WRONG = {"kJ": 1e-3, "Wh": 1 / 3600, "mJ": 1e3, "kWh": 1 / 3.6e6, "J per token": None}


@pytest.mark.parametrize("gpu", [True, False])
@pytest.mark.parametrize("unit", WRONG)
def test_a_wrong_unit_without_durations_gives_no_predictor(
    tmp_path: Path, unit: str, gpu: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    factor = WRONG[unit]
    header = "model,batch,input_tokens,output_tokens,energy_j" + ",gpu" * gpu
    path = tmp_path / "a.csv"
    path.write_text(text(header, lambda c: [M, B, c.n, c.m, c.e * factor if factor else J_PER_TOKEN, *[G] * gpu]))
    fit = ["fit", str(path), "--out", str(tmp_path / "out")]
    assert main(fit) == 1
    said = capsys.readouterr().err
    assert not (tmp_path / "out" / "predictor.json").exists()
    target = "energy_per_output_token_j" if unit == "J per token" else f"energy_{unit}"
    assert f"--map energy_j={target} (0.5 J per output token)" in said
    assert main([*fit, "--map", f"energy_j={target}"]) == 0
    assert json.loads((tmp_path / "out" / "predictor.json").read_text())["table_warnings"] == []


def test_what_was_doubtful_comes_back_with_every_prediction(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.csv"
    path.write_text(text(HEADER, lambda c: [M, B, c.n, c.m, c.e / 1000, c.t, G]))
    assert main(["fit", str(path), "--out", str(tmp_path), "--trust"]) == 0
    capsys.readouterr()
    ask = ["--predictor", str(tmp_path / "predictor.json"), "--model", M, "--input-tokens", "100"]
    ask += ["--output-tokens", "100", "--batch", str(B)]
    for command in ("predict", "advise"):
        assert main([command, *ask]) == 0
        assert "does not draw" in capsys.readouterr().out


def test_copies_are_counted_once_and_contradictions_refused(tmp_path: Path) -> None:
    first, second = tmp_path / "a.csv", tmp_path / "b.parquet"
    first.write_text(STANDARD)
    table.read([first]).frame.select(HEADER).write_parquet(second)
    for paths in ([first, first], [first, second]):
        rows = table.read(paths)
        assert rows.frame.height == len(CELLS)
        assert f"{len(CELLS)} rows are there twice and counted once" in " ".join(rows.notes)
    measured = text((*HEADER, "session", "start", "repetition"), lambda c: [*plain(c), "s1", c.n + c.m, 1])
    first.write_text(measured + measured.splitlines()[1] + "\n")
    assert table.read([first]).frame.height == len(CELLS)
    first.write_text(measured + measured.splitlines()[1].replace("256.0", "300.0") + "\n")
    with pytest.raises(SweetspotError, match=r"a\.csv, row 1 and .*a\.csv, row 13 are one measurement"):
        table.read([first])


def test_import_shows_and_writes_what_fit_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = tmp_path / "a.csv", tmp_path / "rows.csv"
    path.write_text(SCOPES["a run of requests"])
    assert main(["import", str(path), "--out", str(out)]) == 0
    said = capsys.readouterr()
    assert "energy_j is total_energy_j times batch_size over num_requests" in said.err
    assert "0.5" in said.out
    assert per_token(table.read([out])) == pytest.approx(J_PER_TOKEN)
    assert table.read([out]).notes == []
    for wrong in (path, tmp_path / "rows.txt"):
        assert main(["import", str(path), "--out", str(wrong)]) == 1


def malformed(seed: int) -> tuple[str, bytes]:
    """A table with one to three things wrong: encoding, separator, truncation, types, sizes, headers, rows, columns."""
    rng = random.Random(seed)
    separator = rng.choice([",", ";", "\t", "|"])
    content = text(HEADER, plain, separator)
    for _ in range(rng.randint(1, 3)):
        lines = content.split("\n")
        place = rng.randrange(max(1, len(lines) - 1))
        fields = lines[place].split(separator)
        at = rng.randrange(len(fields))
        kind = rng.choice(
            ["cut", "value", "header", "field", "drop", "quote", "columns", "rows", "blank", "swap", "text"]
        )
        if kind == "cut":
            content = content[: rng.randrange(len(content))]
        elif kind == "columns":
            content = "\n".join(line + separator.join(["", *["7"] * 500]) for line in lines if line)
        elif kind == "rows":
            content += "\n".join(lines[1:]) * rng.choice([1, 50])
        elif kind == "swap":
            content = content.replace(separator, rng.choice([",", ";", " "]), rng.choice([1, 7, 100]))
        else:
            if kind == "value":
                odd = [
                    "1e400",
                    "1e-320",
                    "9" * 400,
                    "-1",
                    "0",
                    "inf",
                    "NaN",
                    "true",
                    "1.2.3",
                    "1,5",
                    "0x10",
                    "١٢",
                    "😀",
                    "",
                ]
                fields[at] = rng.choice(odd)
            elif kind == "header":
                lines[0] = lines[0].replace(
                    rng.choice(HEADER), rng.choice(["", "batch", "x y", "energy", "µ", '"a"']), 1
                )
                fields = lines[place].split(separator)
            elif kind == "field":
                fields.insert(at, "7")
            elif kind == "drop" and len(fields) > 1:
                del fields[at]
            elif kind == "quote":
                fields[at] = '"' + fields[at]
            elif kind == "text":
                fields[at] = "word " * rng.choice([1, 1000])
            lines[place] = "" if kind == "blank" else separator.join(fields)
            content = "\n".join(lines)
    data = content.encode(rng.choice(["utf-8", "utf-8", "utf-16", "utf-8-sig", "utf-16-le"]), errors="replace")
    suffix = rng.choice(["csv", "csv", "tsv", "txt", "csv.gz", "json"])
    if rng.random() < 0.1 and data:
        spot = rng.randrange(len(data))
        data = data[:spot] + bytes([rng.randrange(256)]) + data[spot + 1 :]
    return f"a.{suffix}", gzip.compress(data) if suffix.endswith("gz") else data


@pytest.mark.parametrize("first", range(0, 300, 50))
def test_malformed_tables_are_read_rightly_or_refused(tmp_path: Path, first: int) -> None:
    read = 0
    for seed in range(first, first + 50):
        name, data = malformed(seed)
        (tmp_path / name).write_bytes(data)
        try:
            rows = table.read([tmp_path / name])
        except SweetspotError:
            continue  # any other error fails the test
        if rows.impossible or not rows.frame["valid"].any():
            continue
        read += 1
        wrong = [
            row
            for row in rows.frame.filter("valid").iter_rows(named=True)
            if row["energy_j"] != pytest.approx(row["batch"] * row["output_tokens"] * J_PER_TOKEN, rel=1e-3)
        ]
        assert len(wrong) <= 3, (seed, wrong[:4])  # a row whose own value was changed
    assert read, "not all of them are refused"


def test_a_second_name_is_never_taken_in_silence(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    header = "model_name,model_id,batch,input_tokens,output_tokens,energy_j,device,gpu_name"
    path.write_text(text(header, lambda c: [M, f"id-{M}", B, c.n, c.m, c.e, "cuda:0", G]))
    with pytest.raises(SweetspotError, match="model_name and model_id could all be model"):
        table.read([path])
    rows = table.read([path], {"model_name": "model"})
    assert rows.frame["gpu"].unique().to_list() == ["cuda:0"]
    assert "gpu_name is not used, as device is read as gpu" in rows.notes


def test_counts_with_points_are_thousands_if_nothing_has_decimals(tmp_path: Path) -> None:
    header = "model,batch,input_tokens,output_tokens,energy_j,gpu"
    content = text(header, lambda c: [M, B, german(c.n, 0), german(c.m, 0), german(c.e, 0), G], ";")
    assert joules(tmp_path / "a.csv", content) == pytest.approx(J_PER_TOKEN)
    assert any("read with a decimal comma" in note for note in table.read([tmp_path / "a.csv"]).notes)
