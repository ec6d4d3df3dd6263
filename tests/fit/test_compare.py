"""`sweetspot compare`: ratios that are known beforehand come back, with intervals that hold, in words that say it."""

import json
import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import pytest

from energies import energy
from sweetspot.commands import main as cli
from sweetspot.fit import compare
from sweetspot.fit.fit import fit_table
from sweetspot.predict.predictor import write
from sweetspot.table.read import read

LENGTHS = (64, 256, 512, 1024, 2048)


def table(
    path: Path,
    factor: Callable[[int, int, int], float],
    noise: float = 0.01,
    seed: int = 1,
    batches: tuple[int, ...] = (1, 16),
    **names: str,
) -> Path:
    """Rows of three repetitions that cost `factor(batch, n, m)` times what the law of test_cli says."""
    rng = random.Random(seed)
    rows = [
        {
            "model": "mine",
            "gpu": "H100",
            "source": "measured",
            **names,
            "batch": b,
            "input_tokens": n,
            "output_tokens": m,
            "repetition": r,
            "energy_j": energy(n, m, b) * factor(b, n, m) * math.exp(rng.gauss(0, noise)),
        }
        for b in batches
        for n in LENGTHS
        for m in LENGTHS
        for r in range(3)
    ]
    pl.DataFrame(rows).write_csv(path)
    return path


def fitted(rows: Path) -> Path:
    write(fit_table(read([rows])), rows.with_suffix(".json"))
    return rows.with_suffix(".json")


@dataclass
class Done:
    """A command that ended."""

    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def sweetspot(capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """The command, without a process of its own."""

    def run(*arguments: object) -> Done:
        status = cli.main([str(argument) for argument in arguments])
        return Done(status, *capsys.readouterr())

    return run


def test_tables_that_differ_above_a_length_are_told_apart_there(tmp_path: Path, sweetspot: Callable[..., Done]) -> None:
    a = table(tmp_path / "a.csv", lambda b, n, m: 1.0)
    b = table(tmp_path / "b.csv", lambda b, n, m: 0.88 if n >= 1024 else 1.0, seed=2, engine="new")
    said = sweetspot("compare", a, b)
    assert said.returncode == 0, said.stderr
    assert "A: mine (H100, measured)\nB: mine (H100, new, measured)\n" in said.stdout
    low, high = (line for line in said.stdout.splitlines() if line.endswith("cells)"))
    assert low.startswith("  up to 512 input tokens: no difference shown")
    assert high.startswith("  at least 1,024 input tokens: B uses 12 % [")
    assert high.endswith("] less (20 cells)")
    assert "two boards may each be off" in said.stdout
    regions = json.loads(sweetspot("compare", a, b, "--json").stdout)[0]["regions"]
    assert [region["where"]["input_tokens"] for region in regions] == [[64, 512], [1024, 2048]]
    assert regions[1]["low"] < 0.88 < regions[1]["high"] < 0.9
    assert regions[0]["low"] < 1 < regions[0]["high"]


def test_regions_may_be_of_batch_and_length(tmp_path: Path, sweetspot: Callable[..., Done]) -> None:
    a = table(tmp_path / "a.csv", lambda b, n, m: 1.0, noise=0.002)
    b = table(tmp_path / "b.csv", lambda b, n, m: 1.3 if b == 16 and m >= 512 else 1.0, noise=0.002, seed=2)
    said = sweetspot("compare", a, b).stdout
    assert "  batch 16, at least 512 output tokens: B uses 30 % [" in said
    regions = json.loads(sweetspot("compare", a, b, "--json").stdout)[0]["regions"]
    found = {(*region["where"]["batch"], *region["where"]["output_tokens"]): region["ratio"] for region in regions}
    assert found == {
        (1, 1, 64, 2048): pytest.approx(1.0, abs=0.01),
        (16, 16, 64, 256): pytest.approx(1.0, abs=0.01),
        (16, 16, 512, 2048): pytest.approx(1.3, abs=0.01),
    }


def test_intervals_of_tables_hold_the_truth(tmp_path: Path) -> None:
    held = 0
    for seed in range(100):
        a = table(tmp_path / "a.csv", lambda b, n, m: 1.0, noise=0.02, seed=2 * seed, batches=(4,))
        b = table(tmp_path / "b.csv", lambda b, n, m: 0.95, noise=0.02, seed=2 * seed + 1, batches=(4,))
        overall = compare.compare(compare.read(a, {}), compare.read(b, {}))[0].overall
        assert overall.low is not None
        assert overall.high is not None
        held += overall.low < 0.95 < overall.high
    assert 88 <= held <= 99


def test_predictors_are_compared_by_their_laws(tmp_path: Path, sweetspot: Callable[..., Done]) -> None:
    a = fitted(table(tmp_path / "a.csv", lambda b, n, m: 1.0, source="simulated"))
    b = fitted(table(tmp_path / "b.csv", lambda b, n, m: 0.8, seed=2, source="simulated", gpu="H200"))
    answer = json.loads(sweetspot("compare", a, b, "--json").stdout)
    assert len(answer) == 1
    assert len(answer[0]["regions"]) == 1
    overall = answer[0]["overall"]
    assert overall["ratio"] == pytest.approx(0.8, abs=0.01)
    assert overall["low"] < 0.8 < overall["high"] < 0.85
    assert overall["verdict"].endswith("less")
    assert overall["where"] == {"batch": [1, 16], "input_tokens": [64, 2048], "output_tokens": [64, 2048]}
    same = sweetspot("compare", a, a).stdout
    assert "no difference shown" in same
    assert "SIMULATED: both sides" in same
    c = fitted(table(tmp_path / "c.csv", lambda b, n, m: 0.8, source="simulated-kernels", gpu="H200"))
    kinds = "SIMULATED and SIMULATED (kernel times measured by NVIDIA, power modelled): both sides"
    assert kinds in sweetspot("compare", a, c).stdout


def test_a_predictor_is_compared_with_a_table_at_its_cells(tmp_path: Path, sweetspot: Callable[..., Done]) -> None:
    a = fitted(table(tmp_path / "a.csv", lambda b, n, m: 1.0))
    b = table(tmp_path / "b.csv", lambda b, n, m: 1.1, seed=2)
    for pair, expected in (((a, b), 1.1), ((b, a), 1 / 1.1)):
        overall = json.loads(sweetspot("compare", *pair, "--json").stdout)[0]["overall"]
        assert overall["cells"] == 50
        assert overall["low"] < expected < overall["high"]


def test_groups_of_one_file_are_chosen_by_key_and_value(tmp_path: Path, sweetspot: Callable[..., Done]) -> None:
    one = table(tmp_path / "1.csv", lambda b, n, m: 1.0, precision="bfloat16")
    two = table(tmp_path / "2.csv", lambda b, n, m: 0.7, precision="fp8", seed=2)
    both = tmp_path / "both.csv"
    pl.concat([pl.read_csv(one), pl.read_csv(two)]).write_csv(both)
    said = sweetspot("compare", both, both, "--a", "precision=bf", "--b", "precision=fp8")
    assert "B uses 30 % [" in said.stdout, said.stderr
    refused = sweetspot("compare", both, one, "--a", "precision=fp16")
    assert refused.returncode == 1
    assert "no group matches precision=fp16" in refused.stderr
    assert "mine (H100, bfloat16, measured)" in refused.stderr
    unclear = sweetspot("compare", both, table(tmp_path / "3.csv", lambda b, n, m: 1.0, precision="int4"))
    assert unclear.returncode == 1
    assert "choose with --a and --b" in unclear.stderr


def test_a_whole_name_is_not_a_part_of_another(tmp_path: Path, sweetspot: Callable[..., Done]) -> None:
    """ "tp1" means the group "tp1", although "tp16" holds it; so does a model's name."""
    tables = [
        pl.read_csv(table(tmp_path / f"{name}.csv", lambda b, n, m, factor=factor: factor, seed=seed)).with_columns(
            parallelism=pl.lit(name)
        )
        for seed, (name, factor) in enumerate({"tp1": 1.0, "tp16": 0.7}.items())
    ]
    both = tmp_path / "both.csv"
    pl.concat(tables).write_csv(both)
    said = sweetspot("compare", both, both, "--a", "parallelism=tp1", "--b", "parallelism=tp16")
    assert "B uses 30 % [" in said.stdout, said.stderr


def test_what_cannot_be_compared_is_said(tmp_path: Path, sweetspot: Callable[..., Done]) -> None:
    one = table(tmp_path / "1.csv", lambda b, n, m: 1.0)
    other = table(tmp_path / "2.csv", lambda b, n, m: 1.0, batches=(2,))
    more = tmp_path / "more.csv"
    pl.concat([pl.read_csv(one).with_columns(model=pl.lit(name)) for name in ("x", "y")]).write_csv(more)
    for arguments, words in (
        ((one, other), "no cell in common"),
        ((one, more), "no model in common: A has mine; B has x, y"),
        ((one, tmp_path / "none.csv"), "none.csv"),
        ((one, one, "--a", "colour=red"), "write KEY=VALUE with a key of model, gpu, engine, precision"),
    ):
        done = sweetspot("compare", *arguments)
        assert done.returncode == 1, arguments
        assert words in done.stderr
        assert "Traceback" not in done.stderr


def test_a_table_may_be_a_json_array(tmp_path: Path, sweetspot: Callable[..., Done]) -> None:
    one = table(tmp_path / "1.csv", lambda b, n, m: 1.0)
    array = tmp_path / "2.json"
    array.write_text("\ufeff\n" + json.dumps(pl.read_csv(one).to_dicts()), encoding="utf-8")
    assert sweetspot("compare", one, array).returncode == 0


def test_a_remedy_is_one_that_the_command_has(tmp_path: Path, sweetspot: Callable[..., Done]) -> None:
    """`compare` has neither --map nor --set; `sweetspot fit` has, and makes what can be compared."""
    good = table(tmp_path / "1.csv", lambda b, n, m: 1.0, batches=(1,))
    bare = tmp_path / "2.csv"
    pl.read_csv(good).drop("batch").rename({"input_tokens": "nin"}).write_csv(bare)
    done = sweetspot("compare", good, bare)
    assert done.returncode == 1
    assert "options of `sweetspot fit`" in done.stderr
    fit = sweetspot("fit", bare, "--map", "nin=input_tokens", "--set", "batch=1", "--out", tmp_path / "out")
    assert fit.returncode == 0, fit.stderr
    assert sweetspot("compare", good, tmp_path / "out/predictor.json").returncode == 0


def test_a_group_is_described_without_repeats(tmp_path: Path, sweetspot: Callable[..., Done]) -> None:
    one = table(tmp_path / "1.csv", lambda b, n, m: 1.0, engine="simulated", source="simulated")
    done = sweetspot("compare", one, one)
    assert "mine (H100, simulated)" in done.stdout


def test_one_cell_without_repetitions_has_no_interval(tmp_path: Path, sweetspot: Callable[..., Done]) -> None:
    a, b = (tmp_path / f"{name}.csv" for name in "ab")
    row = {"model": "mine", "batch": 1, "input_tokens": 64, "output_tokens": 64}
    pl.DataFrame([row | {"energy_j": 100.0}]).write_csv(a)
    pl.DataFrame([row | {"energy_j": 90.0}]).write_csv(b)
    said = sweetspot("compare", a, b)
    assert "B relative to A: −10 %; too few cells and repetitions for an interval" in said.stdout
