"""Tables that may be wrong: refused, or the doubt stays with the predictor; 300 malformed ones."""

import gzip
import json
import random
from pathlib import Path

import pytest

from kinds import BATCH, CELLS, GPU, HEADER, J_PER_TOKEN, MODEL, german, joules, per_token, plain, text
from sweetspot.commands.main import main
from sweetspot.errors import SweetspotError
from sweetspot.table import read as table

M, B, G = MODEL, BATCH, GPU


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


SEVERAL = [(b, n, m, m * (3 + 0.1 * b + 1e-4 * b * n)) for b in (1, 8, 32) for n in (128, 512, 4096) for m in (64, 256)]


@pytest.mark.parametrize("gpu", [True, False])
@pytest.mark.parametrize(
    ("lengths", "energy", "maps"),
    [
        (1, "request", ["energy_j=energy_per_request_j"]),
        ("batch", "batch", ["input_tokens=batch_input_tokens", "output_tokens=batch_output_tokens"]),
    ],
)
def test_energy_that_falls_as_the_batch_grows_is_no_energy_of_a_batch(
    tmp_path: Path, lengths: object, energy: str, maps: list[str], gpu: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of one request, or with lengths that are sums over the batch: only with batches of 1 would they be right."""
    rows = ["model,batch,input_tokens,output_tokens,energy_j" + ",gpu" * gpu]
    for b, n, m, e in SEVERAL:
        times = b if lengths == "batch" else 1
        cells = [M, b, n * times, m * times, e / b if energy == "request" else e, *[G] * gpu]
        rows.append(",".join(map(str, cells)))
    path = tmp_path / "a.csv"
    path.write_text("\n".join(rows) + "\n")
    fit = ["fit", str(path), "--out", str(tmp_path / "out")]
    assert main(fit) == 1
    said = capsys.readouterr().err
    assert "falls as the batch grows" in said
    assert all(one.partition("=")[2] in said for one in maps)
    assert main([*fit, *(part for one in maps for part in ("--map", one))]) == 0
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
    first.write_text(text(HEADER))
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
    row = "model,batch_size,isl,osl,num_requests,total_energy_j,duration_s,gpu"
    path.write_text(text(row, lambda c: [M, B, c.n, c.m, B * 125, c.e * 125, c.t * 125, G]))
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
