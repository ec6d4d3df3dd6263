"""Files as programs write them: read rightly, or refused in a line; never a wrong number without a word."""

import gzip
import io
import json
import math
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from kinds import BATCH, CELLS, GPU, HEADER, J_PER_TOKEN, MODEL, joules, plain, refusal, text
from sweetspot.errors import SweetspotError
from sweetspot.table import files
from sweetspot.table import read as table

M, B, G = MODEL, BATCH, GPU


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


def test_a_long_text_is_read_as_a_short_one(tmp_path: Path) -> None:
    (tmp_path / "short.csv").write_text(short := text((*HEADER, "note"), lambda c: [*plain(c), " a "]))
    long = short + "\n".join(short.splitlines()[1:] * 1500).replace(", a ", "", 1)
    (tmp_path / "long.csv").write_text(long)
    one, many = files.load(tmp_path / "short.csv"), files.load(tmp_path / "long.csv")
    assert many[: one.height].equals(one)
    assert (many["note"].null_count(), many.height) == (1, 1501 * one.height)
    (tmp_path / "long.csv").write_text(long + "\n1,2,3,4,5,6,7,8,9\n")
    with pytest.raises(SweetspotError, match=f"line {many.height + 2}: 9 fields, but the header has 8"):
        files.load(tmp_path / "long.csv")
