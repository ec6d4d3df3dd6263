"""Reading tables: what is accepted, and that each mistake is named by file, row, column and value."""

import json
from collections.abc import Mapping
from pathlib import Path

import polars as pl
import pytest

from sweetspot.campaign.collect import collect
from sweetspot.errors import SweetspotError
from sweetspot.table import read as table
from sweetspot.table.cells import cell_means

GOOD: dict[str, object] = {
    "model": "m",
    "batch": 8,
    "input_tokens": 64,
    "output_tokens": 128,
    "energy_j": 100.0,
    "duration_s": 1.0,
}

STRANGE = [float("nan"), float("inf")]


def csv(path: Path, *rows: Mapping[str, object]) -> Path:
    """A CSV of rows that differ from GOOD in what is given; the text stays as written."""
    whole = [{**GOOD, **row} for row in rows]
    columns = list(dict.fromkeys(column for row in whole for column in row))
    lines = [",".join(columns)] + [",".join(str(row.get(column, "")) for column in columns) for row in whole]
    path.write_text("\n".join(lines) + "\n")
    return path


def refusal(*paths: Path, rename: dict[str, str] | None = None) -> str:
    with pytest.raises(SweetspotError) as caught:
        table.read(list(paths), rename)
    return str(caught.value)


@pytest.mark.parametrize(
    ("column", "value", "rule"),
    [
        ("energy_j", "inf", "number"),
        ("energy_j", "-5", "above 1e-09"),
        ("energy_j", "1e-310", "above 1e-09"),
        ("energy_j", "true", "number"),
        ("batch", "0", "at least 1"),
        ("batch", "0.5", "at least 1"),
        ("input_tokens", "0", "above 0"),
        ("input_tokens", "", "missing"),
        ("output_tokens", "1e300", "whole number"),
        ("output_tokens", "4.5", "whole number"),
        ("output_tokens", "-64", "above 0"),
        ("duration_s", "-1", "above 0"),
        ("duration_s", "fast", "number"),
        ("repetition", "-1", "at least 0"),
        ("model", " ", "missing"),
        ("valid", "perhaps", "true or false"),
        ("experts_per_token", "16", "at most the number of experts, 8"),
    ],
)
def test_a_wrong_value_is_named_by_row_and_column(tmp_path: Path, column: str, value: str, rule: str) -> None:
    usual = {"repetition": 1, "source": "measured", "valid": "true", "experts": 8, "experts_per_token": 2}
    odd = usual | {column: value}
    rows = table.read([csv(tmp_path / "rows.csv", usual, usual, odd, usual)])
    assert rows.frame["valid"].to_list() == [True, True, False, True]
    assert cell_means(rows.frame)["repetitions"].to_list() == [3]
    path = tmp_path / "rows.csv"
    (message,) = rows.notes
    assert "1 of 4 rows cannot be used" in message
    assert rows.frame["reasons"][2] == message.splitlines()[1]
    collect([path], tmp_path / "all.parquet")  # what is set aside stays so
    assert table.read([tmp_path / "all.parquet"]).frame["reasons"].to_list() == rows.frame["reasons"].to_list()
    message = refusal(csv(path, odd, odd, usual)).splitlines()[0]
    message = message.replace("row 1", "row 3")
    assert f"{path}, row 3: {column} is " in message
    assert rule in message
    assert value.strip() in message


@pytest.mark.parametrize(
    ("suffix", "value"), [("parquet", STRANGE[1]), ("parquet", -1.0), ("jsonl", -1.0), *(("jsonl", v) for v in STRANGE)]
)
def test_wrong_values_in_typed_files(tmp_path: Path, suffix: str, value: float) -> None:
    path = tmp_path / f"rows.{suffix}"
    rows = [GOOD, *[GOOD | {"energy_j": value}] * 2]
    if suffix == "parquet":
        pl.DataFrame(rows).write_parquet(path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    message = refusal(path)
    assert str(path) in message
    assert "row 2: energy_j is" in message


def test_many_problems_are_listed_in_order_and_counted(tmp_path: Path) -> None:
    path = csv(tmp_path / "rows.csv", *[{"energy_j": -1, "batch": 0}] * 6)
    lines = refusal(path).splitlines()
    assert [line.split(": ")[0].removeprefix(f"{path}, row ") for line in lines[:5]] == ["1", "2", "3", "4", "5"]
    assert lines[5:] == ["and 1 more", "6 of 6 rows cannot be used; correct or remove them"]


def test_row_numbers_count_within_their_own_file(tmp_path: Path) -> None:
    first, second = csv(tmp_path / "a.csv", {}, {}), csv(tmp_path / "b.csv", {}, *[{"energy_j": -1}] * 4)
    assert f"{second}, row 2: energy_j is -1" in refusal(first, second)


def test_missing_columns_list_what_is_there_and_guess(tmp_path: Path) -> None:
    path = tmp_path / "theirs.csv"
    path.write_text("n,output_token,Num Requests,foo\n64,64,1,9\n")
    message = refusal(path)
    assert "model, batch, input_tokens, output_tokens, energy_j missing" in message
    assert "there are n, output_token, Num Requests, foo" in message
    for guess in ("--map n=input_tokens", "--map output_token=output_tokens", "--map COLUMN=energy_j"):
        assert guess in message
    assert "--set model=NAME --set batch=NUMBER" in message
    assert "the number of requests of a run is not how many ran together" in message


def test_map_renames(tmp_path: Path) -> None:
    path = tmp_path / "theirs.csv"
    path.write_text("llm,bs,nin,nout,joules\nm,1,64,128,9.5\n")
    names = {"llm": "model", "bs": "batch", "nin": "input_tokens", "nout": "output_tokens", "joules": "energy_j"}
    row = table.read([path], names).frame.row(0, named=True)
    assert (row["model"], row["batch"], row["input_tokens"], row["output_tokens"], row["energy_j"]) == (
        "m",
        1,
        64,
        128,
        9.5,
    )


def test_map_of_a_column_that_is_not_there(tmp_path: Path) -> None:
    message = refusal(csv(tmp_path / "a.csv", {}), rename={"nin": "input_tokens"})
    assert "--map nin=input_tokens" in message
    assert "'nin'" in message
    assert "energy_j" in message


def test_map_onto_a_column_that_is_there(tmp_path: Path) -> None:
    message = refusal(csv(tmp_path / "a.csv", {"energy_wh": 1}), rename={"energy_wh": "energy_j"})
    assert "energy_wh=energy_j" in message
    assert "already" in message


def test_two_columns_mapped_to_one(tmp_path: Path) -> None:
    path = csv(tmp_path / "a.csv", {"a": 1, "b": 2})
    assert "'extra'" in refusal(path, rename={"a": "extra", "b": "extra"})


def test_map_may_swap_columns(tmp_path: Path) -> None:
    swap = {"input_tokens": "output_tokens", "output_tokens": "input_tokens"}
    frame = table.read([csv(tmp_path / "a.csv", {})], swap).frame
    assert frame["input_tokens"].to_list() == [128]
    assert frame["output_tokens"].to_list() == [64]


def test_formats_agree_and_other_columns_pass_through(tmp_path: Path) -> None:
    rows = [GOOD | {"note": "x"}, GOOD | {"batch": 16, "note": "y"}]
    pl.DataFrame(rows).write_parquet(tmp_path / "a.parquet")
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "a.tsv").write_text(csv(tmp_path / "a.csv", *rows).read_text().replace(",", "\t"))
    (tmp_path / "excel.csv").write_text("\ufeff" + (tmp_path / "a.csv").read_text().replace(",", ";"))
    frames = [table.read([tmp_path / n]).frame for n in ("a.parquet", "a.jsonl", "a.csv", "a.tsv", "excel.csv")]
    for frame in frames:
        assert frame.sort("batch").to_dicts() == frames[0].sort("batch").to_dicts()
    assert frames[0]["note"].to_list() == ["x", "y"]


def test_whole_numbers_may_be_written_as_decimals(tmp_path: Path) -> None:
    frame = table.read([csv(tmp_path / "a.csv", {"input_tokens": "64.0", "batch": " 8 "})]).frame
    assert frame.select("input_tokens", "batch").row(0) == (64, 8)
    assert frame["input_tokens"].dtype == pl.Int64


def test_several_files_with_different_columns_are_joined(tmp_path: Path) -> None:
    first = csv(tmp_path / "a.csv", {"gpu": "H100", "note": "x"})
    second = csv(tmp_path / "b.csv", {"gpu": "", "flags": "throttled"})
    frame = table.read([first, second]).frame
    assert frame["gpu"].to_list() == ["H100", "unspecified"]
    assert frame["engine"].to_list() == ["unspecified"] * 2
    assert frame["valid"].to_list() == [True, True]
    assert frame["note"].to_list() == ["x", None]


@pytest.mark.parametrize("content", ["", "model,batch,input_tokens,output_tokens,energy_j\n"])
def test_a_table_without_rows(tmp_path: Path, content: str) -> None:
    path = tmp_path / "empty.csv"
    path.write_text(content)
    message = refusal(path)
    assert str(path) in message
    assert "no rows" in message


def test_files_that_are_no_tables(tmp_path: Path) -> None:
    whole = tmp_path / "whole.parquet"
    pl.DataFrame([GOOD] * 1000).write_parquet(whole)
    cut, text, binary, image, broken = (
        tmp_path / name for name in ("cut.parquet", "text.parquet", "binary.csv", "a.png", "cut.jsonl")
    )
    cut.write_bytes(whole.read_bytes()[:-100])
    text.write_text("not a table")
    binary.write_bytes(b"\x00\xff\xfe\x01" * 100)
    image.write_bytes(b"png")
    broken.write_text(json.dumps(GOOD) + "\n" + json.dumps(GOOD)[:30] + "\n")
    for path in (cut, text, binary, image, broken, tmp_path, tmp_path / "nowhere.csv"):
        assert str(path) in refusal(path)


def test_the_same_cell_in_two_units_is_refused(tmp_path: Path) -> None:
    other = {"batch": 1, "energy_j": 100 / 3600}  # another cell, however different, is not the same cell in two units
    path = csv(tmp_path / "a.csv", {}, {"energy_j": 100 / 3600, "duration_s": ""}, other | {"duration_s": ""})
    message = refusal(path)
    assert "two units?" in message
    assert f"{path}, row 1 (100.0 J)" in message
    assert f"{path}, row 2 (0.028 J)" in message
    assert "batch 8, 64 input and 128 output" in message
    table.read([csv(tmp_path / "b.csv", {}, {"energy_j": 100 / 45, "duration_s": ""}, other | {"duration_s": ""})])


def test_an_invalid_row_is_kept_counted_and_not_judged(tmp_path: Path) -> None:
    path = csv(
        tmp_path / "a.csv", {"valid": "true"}, {"valid": "false", "energy_j": 0}, {"valid": "False", "energy_j": 1e9}
    )
    rows = table.read([path])
    assert rows.frame["valid"].to_list() == [True, False, False]
    assert any("2 of 3 rows are marked invalid" in note for note in rows.notes)
    assert cell_means(rows.frame)["energy_j"].to_list() == [100.0]


@pytest.mark.parametrize(
    ("energy", "noted"), [(100 / 3600, True), (1e5, True), (100, False), (3000, False), (5, False)]
)
def test_an_implausible_power_is_noted(tmp_path: Path, energy: float, noted: bool) -> None:
    rows = table.read([csv(tmp_path / "a.csv", {"batch": 1}, {"energy_j": energy})])
    assert any("row 2" in note and " W;" in note for note in rows.notes) is noted


@pytest.mark.parametrize(
    ("more", "energy", "noted"),
    [({}, 11, True), ({}, 2900, True), ({}, 690, False), ({}, 90, False), ({"n_gpu": 4}, 2500, False)],
)
def test_the_power_of_a_known_gpu_is_judged_by_it(
    tmp_path: Path, more: dict[str, object], energy: float, noted: bool
) -> None:
    row = {"gpu": "NVIDIA H100 80GB HBM3", "energy_j": energy, **more}
    notes = table.read([csv(tmp_path / "a.csv", row)]).notes
    assert any("H100 80GB HBM3 (700 W) does not draw" in note for note in notes) is noted


@pytest.mark.parametrize(
    ("header", "factor"),
    [
        ("energy_per_request_j", 8),
        ("J/request", 8),
        ("joules_per_output_token", 8 * 128),
        ("Energy per output token (J)", 8 * 128),
        ("avg_power_w", 2.5),
        ("GPU power draw (W)", 2.5),
    ],
)
def test_energy_of_a_request_or_token_and_power_give_that_of_the_batch(
    tmp_path: Path, header: str, factor: float
) -> None:
    row = {header: 3.0, "duration_s": 2.5}
    path = csv(tmp_path / "a.csv", row, {**row, header: "much"}, {**row, header: 4.0})
    path.write_text(path.read_text().replace("energy_j,", "spare,"))
    rows = table.read([path])
    assert rows.frame.filter("valid")["energy_j"].to_list() == [3 * factor, 4 * factor]
    assert any(f"energy_j is {header} times " in note for note in rows.notes)
    assert any("row 2" in note and "much" in note for note in rows.notes), rows.notes


def test_energy_of_the_batch_is_never_guessed(tmp_path: Path) -> None:
    path = csv(tmp_path / "a.csv", {"energy_per_request_j": 3, "energy_per_token_j": 1})
    assert "disagree by a factor of" in refusal(path)
    path = csv(tmp_path / "b.csv", {"energy_per_token_j": 3, "duration_s": ""})
    path.write_text(path.read_text().replace("energy_j,", "spare,", 1))
    message = refusal(path)
    for quantity, joules in (("energy_per_total_token_j", 4.5), ("energy_per_output_token_j", 3)):
        assert f"--map energy_per_token_j={quantity} ({joules:.3g} J per output token)" in message
    found = table.read([path], {"energy_per_token_j": "energy_per_output_token_j"}).frame["energy_j"][0]
    assert found == 3 * 8 * 128


def test_sources_do_not_mix_within_a_group(tmp_path: Path) -> None:
    message = refusal(csv(tmp_path / "a.csv", {"source": "measured"}, {"source": "simulated"}))
    assert "measured and simulated" in message
    table.read([csv(tmp_path / "b.csv", {"source": "measured"}, {"source": "simulated", "engine": "simulated"})])


def test_cells_average_their_repetitions(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"energy_j": 90, "duration_s": 1},
        {"energy_j": 110, "duration_s": 3},
        {"output_tokens": 64, "duration_s": ""},
    ]
    first, second = cell_means(table.read([csv(tmp_path / "a.csv", *rows)]).frame).iter_rows(named=True)
    assert (first["output_tokens"], first["repetitions"], first["energy_sd_j"], first["duration_s"]) == (
        64,
        1,
        None,
        None,
    )
    assert (second["output_tokens"], second["repetitions"], second["energy_j"], second["duration_s"]) == (
        128,
        2,
        100,
        2,
    )
    assert second["energy_sd_j"] == pytest.approx(200**0.5)


def test_groups_keep_the_order_of_the_table(tmp_path: Path) -> None:
    frame = table.read([csv(tmp_path / "a.csv", {"model": "z"}, {"model": "a"}, {"model": "z", "batch": 1})]).frame
    assert cell_means(frame).select("model", "batch").rows() == [("z", 1), ("z", 8), ("a", 8)]


def test_collect_joins_blocks_into_one_table(tmp_path: Path) -> None:
    blocks = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    for block, energy in zip(blocks, (None, 99.0), strict=True):
        block.write_text(json.dumps(GOOD | {"energy_instant_j": energy}) + "\n")
    collect(blocks, tmp_path / "new" / "all.parquet")
    assert table.read([tmp_path / "new" / "all.parquet"]).frame["energy_instant_j"].to_list() == [None, 99.0]
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["all.parquet"]


def test_watt_hours_without_durations_are_noted(tmp_path: Path) -> None:
    bare = {"duration_s": ""}
    assert not table.read([csv(tmp_path / "a.csv", {**bare, "energy_j": 8 * 128 * 0.5})]).notes
    (note,) = table.read([csv(tmp_path / "b.csv", {**bare, "energy_j": 8 * 128 * 0.5 / 3600})]).notes
    assert "Wh" in note


def test_repetitions_that_disagree_are_noted(tmp_path: Path) -> None:
    assert not table.read([csv(tmp_path / "a.csv", {"energy_j": 100}, {"energy_j": 120})]).notes
    (note,) = table.read([csv(tmp_path / "b.csv", {"energy_j": 100}, {"energy_j": 210, "duration_s": 2})]).notes
    assert "2.1 times in 2 repetitions" in note
