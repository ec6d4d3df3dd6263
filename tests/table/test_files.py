"""Tables as others write them: formats, headers, units, and cells that hold nothing. What is changed is said."""

import datetime
import gzip
import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from sweetspot.errors import SweetspotError
from sweetspot.table import read as table
from sweetspot.table.cells import cell_means

GOOD: dict[str, Any] = {"model": "m", "batch": 8, "input_tokens": 64, "output_tokens": 128, "energy_j": 100.0}
HEADER = ",".join(GOOD)
ROW = ",".join(map(str, GOOD.values()))


def read(path: Path, text: str, **constants: str) -> table.Table:
    path.write_text(text)
    return table.read([path], constants=constants)


def refusal(path: Path, **constants: str) -> str:
    with pytest.raises(SweetspotError) as caught:
        table.read([path], constants=constants)
    return str(caught.value)


def with_columns(path: Path, **columns: list[str]) -> table.Table:
    """The notes and rows of a CSV of good rows with these columns besides or instead."""
    count = len(next(iter(columns.values())))
    whole = {name: [str(value)] * count for name, value in GOOD.items()} | columns
    lines = [",".join(whole), *(",".join(row) for row in zip(*whole.values(), strict=True))]
    return read(path, "\n".join(lines) + "\n")


FORMATS = {
    "upper.CSV": f"{HEADER}\n{ROW}\n".encode(),
    "blank-lines.csv": f"\n{HEADER}\n\n{ROW}\n\n,,,,\n".encode(),
    "comments.csv": f"# measured by me\n{HEADER}\n# once\n{ROW}\n".encode(),
    "spaces.csv": f"{HEADER}\n{ROW}\n".replace(",", " , ").encode(),
    "semicolons.csv": f"{HEADER}\n{ROW}\n".replace(",", ";").encode(),
    "tabs.txt": f"{HEADER}\n{ROW}\n".replace(",", "\t").encode(),
    "pipes.csv": f"{HEADER}\n{ROW}\n".replace(",", "|").encode(),
    "windows.csv": f"{HEADER}\r\n{ROW}\r\n".encode("utf-16"),
    "latin.csv": f"{HEADER},note\n{ROW},é\n".encode("latin-1"),
    "packed.csv.gz": gzip.compress(f"{HEADER}\n{ROW}\n".encode()),
    "packed.jsonl.gz": gzip.compress(json.dumps(GOOD).encode()),
    "array.json": json.dumps([GOOD]).encode(),
    "blank-lines.jsonl": f"\n{json.dumps(GOOD)}\n\n".encode(),
}


@pytest.mark.parametrize("name", FORMATS)
def test_formats_are_read_alike(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(FORMATS[name])
    rows = table.read([tmp_path / name])
    assert [{key: row[key] for key in GOOD} for row in rows.frame.iter_rows(named=True)] == [GOOD]
    assert ["comment lines left out" in note for note in rows.notes] == [True] * (name == "comments.csv")


@pytest.mark.parametrize("content", [b"{}", b"[1]", b"[", b"[]"])
def test_json_that_is_no_table(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.json").write_bytes(content)
    assert "a.json" in refusal(tmp_path / "a.json")


def test_a_packed_file_that_is_cut_short(tmp_path: Path) -> None:
    (tmp_path / "a.csv.gz").write_bytes(FORMATS["packed.csv.gz"][:-9])
    assert "cut short" in refusal(tmp_path / "a.csv.gz")


def test_a_row_number_counts_every_line_of_data(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(f"{HEADER}\n{ROW}\n\nm,8,64,128,-1\n")
    assert "row 3: energy_j is -1" in table.read([tmp_path / "a.csv"]).notes[0]


@pytest.mark.parametrize("value", ["", "NA", "NaN", "nan", "N/A", "n/a", "-", "null", "0", "0.0"])
def test_a_row_without_an_energy_is_kept_named_and_not_fitted(tmp_path: Path, value: str) -> None:
    rows = with_columns(tmp_path / "a.csv", energy_j=["100", "100", value, value])
    assert rows.frame["valid"].to_list() == [True, True, False, False]
    (note,) = rows.notes
    assert "2 of 4 rows cannot be used" in note
    assert f"{tmp_path}/a.csv, row 3: energy_j is " in note


def test_a_table_without_any_energy_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(f"{HEADER}\nm,8,64,128,NaN\nm,8,64,128,NaN\n")
    assert "2 of 2 rows cannot be used" in refusal(tmp_path / "a.csv")


@pytest.mark.parametrize(
    ("column", "values", "meaning", "said"),
    [
        ("duration_s", ["0", "1.5", "NA"], [None, 1.5, None], "row 1: duration_s is 0: read as unknown"),
        ("waves", ["0", "2", ""], [1.0, 2.0, 1.0], "row 1: waves is 0"),
        ("experts", ["0", "8", "None"], [None, 8, None], "row 1: experts is 0"),
        ("in_flight", ["4", "0", "nan"], [4, None, None], "row 2: in_flight is 0"),
        ("valid", ["yes", "NO", "1.0"], [True, False, True], "marked invalid"),
        ("valid", ["TRUE", "0.0", ""], [True, False, True], "marked invalid"),
        ("source", ["Measured", " MEASURED", "measured"], ["measured"] * 3, ""),
        ("source", ["nvml", "nvml", ""], ["unspecified"] * 3, "2 rows, first"),
        ("gpu", ["A100", "N/A", "-"], ["A100", "unspecified", "unspecified"], ""),
        ("repetition", ["run_1", "run_2", "3"], [1, 2, 3], "repetition is a label"),
        ("repetition", ["a", "b", ""], [None, None, None], "repetition is a label"),
        ("batch", ["7.96", "8", "8.02"], [8, 8, 8], "batch is not a whole number: rounded"),
        (
            "output_tokens",
            ["724.2", "128", "64.0"],
            [724, 128, 64],
            "row 1: output_tokens is not a whole number",
        ),
    ],
)
def test_harmless_values_are_read(
    tmp_path: Path, column: str, values: list[str], meaning: list[Any], said: str
) -> None:
    rows = with_columns(tmp_path / "a.csv", **{column: values})
    assert rows.frame[column].to_list() == meaning
    assert [note for note in rows.notes if "repetitions that differ" not in note] if said else not rows.notes
    assert said in " ".join(rows.notes)


@pytest.mark.parametrize(
    "series",
    [
        pl.Series([[1], [2]]),
        pl.Series([{"a": 1}, {"a": 2}]),
        pl.Series([b"a", b"b"]),
        pl.Series([datetime.datetime(2026, 1, 1)] * 2),
        pl.Series([True, False]),
        pl.Series(["x", "y"], dtype=pl.Categorical),
    ],
    ids=lambda series: str(series.dtype),
)
@pytest.mark.parametrize("column", ["batch", "energy_j", "gpu", "repetition", "source", "other"])
def test_odd_types_are_refused_only_where_numbers_are_needed(tmp_path: Path, column: str, series: pl.Series) -> None:
    pl.DataFrame([GOOD] * 2).with_columns(series.alias(column)).write_parquet(tmp_path / "a.parquet")
    if column in ("batch", "energy_j") or (column == "repetition" and series.dtype in (pl.Datetime, pl.Boolean)):
        assert f"a.parquet, row 1: {column} is {series[0] if series.dtype != pl.List else '[1]'}: must be a" in refusal(
            tmp_path / "a.parquet"
        )
    else:
        assert table.read([tmp_path / "a.parquet"]).frame.height == 2


def test_categories_are_names_and_decimals_numbers(tmp_path: Path) -> None:
    pl.DataFrame([GOOD]).with_columns(
        pl.col("model").cast(pl.Enum(["m"])),
        pl.col("energy_j").cast(pl.Decimal(9, 2)),
        batch=pl.Series(["8"], dtype=pl.Categorical),
    ).write_parquet(tmp_path / "a.parquet")
    assert table.read([tmp_path / "a.parquet"]).frame.select(*GOOD).row(0) == tuple(GOOD.values())


def test_other_columns_of_two_types_become_text(tmp_path: Path) -> None:
    kinds: list[Any] = [1.5, "fast", [1, 2], datetime.date(2026, 1, 1), None]
    paths = [tmp_path / f"{number}.parquet" for number in range(len(kinds))]
    for path, value in zip(paths, kinds, strict=True):
        pl.DataFrame([GOOD | {"speed": value}]).write_parquet(path)
    assert table.read(paths).frame["speed"].to_list() == ["1.5", "fast", "[1, 2]", "2026-01-01", None]


HEADERS = [
    ("Model,Batch Size,Input Tokens,Output-Tokens,Energy (J),Latency (s)", 1.0, 1.0),
    ("model_name,batch_size,input_len,output_len,energy,duration", 1.0, 1.0),
    ("llm,bs,prompt_tokens,completion_tokens,total_energy_j,runtime_s", 1.0, 1.0),
    ("model,batch,num_input_tokens,num_output_tokens,energy_joules,time_s", 1.0, 1.0),
    ("model,batch,input_length,output_length,energy_wh,latency_ms", 3600.0, 1e-3),
    ("model,batch,isl,osl,Energy (kWh),duration_ms", 3.6e6, 1e-3),
    ("model,batch,nin,nout,energy_mJ,duration_s", 1e-3, 1.0),
    ("model,batch,nin,nout,energy_kj,duration_s", 1e3, 1.0),
]


@pytest.mark.parametrize(("header", "joules", "seconds"), HEADERS)
def test_headers_that_leave_no_doubt(tmp_path: Path, header: str, joules: float, seconds: float) -> None:
    rows = read(tmp_path / "a.csv", f"{header}\nm,8,64,128,{1000 / joules!r},{2 / seconds!r}\n")
    (row,) = rows.frame.select(*GOOD, "duration_s").rows()
    assert row == ("m", 8, 64, 128, pytest.approx(1000), pytest.approx(2))
    said = " ".join(rows.notes)
    theirs = header.split(",")[4:]
    if joules != 1:
        assert f"{theirs[0]} is in " in said
        assert f"multiplied by {joules:g} for energy_j" in said
    if seconds != 1:
        assert f"{theirs[1]} is in ms by its name" in said
    if "bs" in header:
        assert "total_energy_j as energy_j" in said


def test_a_header_that_leaves_doubt_is_asked_about(tmp_path: Path) -> None:
    for energies, parts in {
        "energy,total_energy": ("energy and total_energy could all be energy_j", "--map energy=energy_j"),
        "energy_mj,note": ("energy_mj may be millijoules or megajoules",),
        "energy_consumed,note": ("--map energy_consumed=energy_j", "--map energy_consumed=energy_Wh"),
    }.items():
        (tmp_path / "a.csv").write_text(f"model,batch,input_tokens,output_tokens,{energies}\nm,8,64,128,1,2\n")
        message = refusal(tmp_path / "a.csv")
        for part in parts:
            assert part in message


def test_a_mapped_header_keeps_the_unit_that_it_states(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("model,batch,input_tokens,output_tokens,energy_wh,b\nm,8,64,128,1,2\n")
    rows = table.read([tmp_path / "a.csv"], {"energy_wh": "energy_j"})
    assert rows.frame["energy_j"].to_list() == [3600.0]
    assert "Wh" in " ".join(rows.notes)


def test_what_is_the_same_in_every_row_can_be_set(tmp_path: Path) -> None:
    text = "input_tokens,output_tokens,energy_j\n64,128,100\n"
    rows = read(tmp_path / "a.csv", text, batch="1", model="m", gpu="A100")
    assert rows.frame.select("batch", "model", "gpu").row(0) == (1, "m", "A100")
    message = refusal(tmp_path / "a.csv")
    assert "--set model=NAME --set batch=NUMBER" in message
    (tmp_path / "b.csv").write_text(f"{HEADER}\n{ROW}\n")
    assert "there is already a column 'batch'" in refusal(tmp_path / "b.csv", batch="1")
    assert "there is already a column 'energy_j'" in refusal(tmp_path / "b.csv", energy_j="1")
    assert "--set colour=red: there is no such column" in refusal(tmp_path / "b.csv", colour="red")
    assert "batch is x: must be a whole number" in refusal(tmp_path / "a.csv", model="m", batch="x")


@pytest.mark.parametrize("column", ["n_gpu", "TP", "task"])
def test_set_ups_are_no_repetitions(tmp_path: Path, column: str) -> None:
    rows = with_columns(tmp_path / "a.csv", **{column: ["1", "1", "2", "2"], "energy_j": ["100", "102", "60", "61"]})
    assert rows.frame["engine"].to_list() == [f"{column}=1"] * 2 + [f"{column}=2"] * 2
    assert cell_means(rows.frame)["energy_j"].to_list() == [101.0, 60.5]
    assert column in " ".join(rows.notes)
    same = with_columns(tmp_path / "b.csv", **{column: ["1", "1"], "engine": ["vllm", "vllm"]})
    assert same.frame["engine"].to_list() == ["vllm", "vllm"]
    assert same.notes == []


def test_a_column_that_varies_with_the_cell_is_no_set_up(tmp_path: Path) -> None:
    rows = with_columns(tmp_path / "a.csv", batch=["1", "8", "32"], n_gpu=["1", "2", "4"])
    assert rows.frame["engine"].to_list() == ["unspecified"] * 3


def test_the_few_rows_without_a_source_are_set_aside(tmp_path: Path) -> None:
    rows = with_columns(tmp_path / "a.csv", source=["measured", "measured", "nvml"])
    assert rows.frame["valid"].to_list() == [True, True, False]
    assert "1 rows without a known source are set aside" in " ".join(rows.notes)
    with pytest.raises(SweetspotError, match="measured and unspecified sources"):
        with_columns(tmp_path / "b.csv", source=["measured", "nvml", "nvml"])


@pytest.mark.parametrize("wrong", ['"m', 'm"', '"m"x"'])
@pytest.mark.parametrize("place", [1, 2, 3])
def test_a_quotation_mark_that_is_not_closed_is_named_by_its_line(tmp_path: Path, wrong: str, place: int) -> None:
    lines = [ROW] * 3
    lines[place - 1] = ROW.replace("m", wrong, 1)
    (tmp_path / "a.csv").write_text("\n".join([HEADER, *lines]) + "\n")
    assert f"line {place + 1}: a quotation mark is not closed" in refusal(tmp_path / "a.csv")


def test_two_quotation_marks_that_are_not_closed_are_not_a_file_cut_short(tmp_path: Path) -> None:
    stray = ROW.replace("m", '"m', 1)
    (tmp_path / "a.csv").write_text("\n".join([HEADER, stray, ROW, stray, ROW]) + "\n")
    assert "line 2: a quotation mark is not closed" in refusal(tmp_path / "a.csv")


def test_a_quoted_note_may_span_lines(tmp_path: Path) -> None:
    text = f'{HEADER},note\n{ROW},"first,\nsecond"\n{ROW},none\n'
    assert read(tmp_path / "a.csv", text).frame.height == 2
