"""Broken files of every kind that a user hands over, and what the commands make of them.

`python tests/broken_files.py` reads hundreds of configurations, tables of models, architectures and journals, and
prints how many were refused in a line, read rightly, and how many ended in a traceback, took too long or gave wrong
numbers. The tests read a part of them (tests/test_broken_files.py).
"""

import contextlib
import io
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent / "helpers"))

from blocks import job, measure, prepare
from simulation import ARCHITECTURES
from sweetspot.commands.main import main

SECONDS = 20  # for one file
BASE = {
    "campaign": "x",
    "models": "models.tsv",
    "input_tokens": [64],
    "output_tokens": [64],
    "batches": [1],
    "engine": {"name": "simulated"},
    "protocol": {"repetitions": 5, "window_s": 10.0},
}
TABLE = (
    "model\tarchitecture\tprecision\ttensor_parallel\tpipeline_parallel\texpert_parallel\tweights\n"
    "opt\topt.json\tfloat16\t1\t2\tfalse\tdummy\nllama\tllama.json\tbfloat16\t1\t2\tfalse\tdummy\n"
)
HUGE, DEEP, LONG = "9" * 400, "[" * 3000 + "]" * 3000, "n" * 5000
TEXTS = (
    *("-1", "0", "1.5", "1e400", ".inf", ".nan", "true", "yes", "null", "''", "[]", "{}", "[[1]]", "0100", "1:30"),
    *("64.0", HUGE, f"'{LONG}'", DEEP, "'{x}'", "'a\\nb'", '"\\0"', '"\\ud800"', "'ü'", "*x", "!!binary aGk="),
    *("2026-01-01", "1_000", "!!int x", "!!float y", "/dev/null", "'/'"),
)
BYTES: dict[str, Callable[[bytes], bytes]] = {
    "nothing": lambda data: b"",
    "half": lambda data: data[: len(data) // 2],
    "without its end": lambda data: data[:-2],
    "UTF-16": lambda data: data.decode().encode("utf-16"),
    "UTF-16 without a mark": lambda data: data.decode().encode("utf-16-le"),
    "UTF-32": lambda data: data.decode().encode("utf-32"),
    "a mark": lambda data: b"\xef\xbb\xbf" + data,
    "Latin-1": lambda data: data.replace(b"opt", b"\xf6pt"),
    "zeros": lambda data: data + b"\0" * 64,
    "random bytes": lambda data: random.Random(1).randbytes(500),
    "old line ends": lambda data: data.replace(b"\n", b"\r"),
    "Windows line ends": lambda data: data.replace(b"\n", b"\r\n"),
    "tabs for spaces": lambda data: data.replace(b"  ", b"\t"),
    "twice": lambda data: data + data,
    "an archive": lambda data: b"PK\x03\x04" + random.Random(2).randbytes(200),
    "a page": lambda data: b"<!DOCTYPE html><html><body>404: not found</body></html>",
    "conflict marks": lambda data: b"<<<<<<< HEAD\n" + data + b"=======\n" + data + b">>>>>>> other\n",
    "deep": lambda data: b"[" * 200_000,
}


@dataclass(frozen=True)
class Case:
    """One broken file: what it is called, and what tries it in a directory of its own."""

    name: str
    run: Callable[[Path], str]


def cases() -> Iterator[Case]:
    """Every broken file."""
    yield from _configurations()
    yield from _tables()
    yield from _architectures()
    yield from _journals()


def outcome(case: Case, directory: Path) -> str:
    """What becomes of it: refused, read, or what is wrong: traceback, hang, unclear, wrong number."""

    def late(*_: object) -> None:
        raise TimeoutError

    signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    here = Path.cwd()
    try:
        os.chdir(directory)
        return case.run(directory)
    except TimeoutError:
        return "hang"
    finally:
        signal.alarm(0)
        os.chdir(here)


def command(*arguments: str) -> tuple[str, str]:
    """Run a command here: what became of it, and what it printed."""
    printed, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(errors):
        try:
            status = main([*arguments])
        except TimeoutError:
            raise
        except SystemExit as error:
            status = int(error.code or 0)
    said = errors.getvalue()
    if status == 70 or "Traceback" in said:
        return f"traceback: {said.strip()[:300]}", ""
    if status and not (said.startswith("sweetspot: error: ") and len(said) < 4000 and said.count("\n") < 8):
        return f"unclear: {said[:300]}", ""
    return "refused" if status else "read", printed.getvalue()


def _campaign(directory: Path, config: bytes, table: bytes = TABLE.encode()) -> None:
    (directory / "c.yaml").write_bytes(config)
    (directory / "models.tsv").write_bytes(table)
    for name, source in (("opt", "opt-1.3b"), ("llama", "llama-3.2-1b")):
        (directory / f"{name}.json").write_text((ARCHITECTURES / f"{source}.json").read_text())


def _planned(directory: Path, config: bytes, table: bytes = TABLE.encode(), cells: int | None = None) -> str:
    _campaign(directory, config, table)
    became, printed = command("plan", "--configfile", "c.yaml")
    if became == "read" and cells is not None and f"{cells} cells" not in printed:
        return f"wrong number: {printed[:200]}"
    return became


def _yaml(config: Any) -> str:
    return "".join(f"{name}: {json.dumps(value)}\n" for name, value in config.items())


def _configurations() -> Iterator[Case]:
    for change, make in BYTES.items():
        yield Case(f"configuration: {change}", partial(_planned, config=make(_yaml(BASE).encode())))
    keys = [
        *BASE,
        "results",
        "select",
        "rows",
        "cells",
        "gpu",
        "board",
        "machine",
        "positions",
        "cells_per_job",
        "seed",
    ]
    for text in TEXTS:
        for key in (*keys, "nothing of ours"):
            said = _yaml({name: value for name, value in BASE.items() if name != key}) + f"{key}: {text}\n"
            yield Case(f"configuration: {key} is {text[:20]}", partial(_planned, config=said.encode(errors="replace")))
        for key in ("poll_s", "repetitions", "window_s", "version"):
            said = _yaml(BASE | {"protocol": {}}).replace("{}", f"{{{key}: {text}}}")
            yield Case(f"configuration: {key} is {text[:20]}", partial(_planned, config=said.encode(errors="replace")))
        for key in ("input_tokens", "batches", "select"):
            said = _yaml(BASE | {key: []}).replace("[]", f"[{text}]")
            yield Case(f"configuration: {key} has {text[:20]}", partial(_planned, config=said.encode(errors="replace")))
    many = _yaml(BASE | {"campaign": [1] * 9_999}).replace("campaign: ", "campaign: &a ")
    yield Case("configuration: long aliases", partial(_planned, config=f"{many}batches: [{'*a, ' * 9_999}]".encode()))
    usual = {name: value for name, value in BASE.items() if name != "batches"}
    aliases = _yaml({"x": [1] * 30_000} | usual).replace("x: ", "x: &a ") + f"batches: [{'*a, ' * 9_999}]"
    yield Case("configuration: a list of long aliases", partial(_planned, config=aliases.encode()))
    lengths = _yaml(BASE | {"input_tokens": [1, *range(1, 20_000)]})
    yield Case("configuration: a length twice among many", partial(_planned, config=lengths.encode()))
    for length in (1, 64, 100, 1047):
        said = _yaml(BASE | {"input_tokens": [length]}).replace(f"[{length}]", f"[00{length}]")
        yield Case(f"configuration: 00{length} tokens", partial(_planned, config=said.encode(), cells=2))


def _tables() -> Iterator[Case]:
    config = _yaml(BASE).encode()
    for change, make in BYTES.items():
        yield Case(f"table of models: {change}", partial(_planned, config=config, table=make(TABLE.encode())))
    for text in ("", *TEXTS, "../" * 2000, "/dev/null", "/", ".", "a/b", "a\tb", '"', "#", "=1+1", LONG, "\x1b[31m"):
        for old in (
            "opt\t",
            "opt.json",
            "float16",
            "architecture",
            "precision",
            "model\t",
            "1\t",
            "2\t",
            "false",
            "dummy",
        ):
            new = text + "\t" * old.endswith("\t")
            table = TABLE.replace(old, new, 1).encode(errors="replace")
            yield Case(f"table of models: {text[:20]} for {old.strip()}", partial(_planned, config=config, table=table))


def _architectures() -> Iterator[Case]:
    base = (ARCHITECTURES / "llama-3.2-1b.json").read_bytes()
    for change, make in BYTES.items():
        yield Case(f"architecture: {change}", partial(_modelled, data=make(base)))
    whole = json.loads(base)
    values = (None, True, -1, 0, 1.5, "x", [], {}, [1], 10**400, 1e300, "9" * 400, {"a": {"b": 1}}, 3)
    for key in sorted(whole):
        for value in values:
            yield Case(
                f"architecture: {key} is {str(value)[:20]}",
                partial(_modelled, data=json.dumps({**whole, key: value}).encode(), changed=(key, value)),
            )
    nested = b'{"model_type": ' + b'{"a": ' * 50_000 + b"1" + b"}" * 50_001
    yield Case("architecture: nested", partial(_modelled, data=nested))


def _modelled(directory: Path, data: bytes, changed: tuple[str, Any] | None = None) -> str:
    (directory / "m.json").write_bytes(data)
    became, printed = command("model", "m.json", "--json")
    if became == "read" and changed:
        found = json.loads(printed)
        key, value = changed
        sizes = {"num_hidden_layers": "layers", "max_position_embeddings": "max_positions"}
        if key in sizes and found[sizes[key]] != value and value is not None:
            return f"wrong number: {key} {value!r} is read as {found[sizes[key]]}"
        if found["parameters"] <= 0 or found["kv_bytes_per_token"] < 0:
            return "wrong number: not positive"
    return became


def _journals() -> Iterator[Case]:
    """A journal that something happened to: its rows are those measured, or there is an error."""
    with tempfile.TemporaryDirectory() as kept:
        with contextlib.redirect_stderr(io.StringIO()):
            measure(prepare(Path(kept)), job([(64, 64), (64, 128)]))
        (whole,) = Path(kept).glob("journal/*/*/*.jsonl")
        data = whole.read_bytes()
    lines = data.splitlines(keepends=True)
    draw = random.Random(3)
    broken = {change: make(data) for change, make in BYTES.items()}
    for cut in sorted(draw.sample(range(len(data)), 60)):
        broken[f"cut at byte {cut}"] = data[:cut]
        broken[f"cut at byte {cut}, then written on"] = data[:cut] + b"\n" + data
    for at in draw.sample(range(len(data)), 60):
        broken[f"byte {at} changed"] = data[:at] + bytes([data[at] ^ 0x11]) + data[at + 1 :]
    for number in range(len(lines)):
        broken[f"line {number} missing"] = b"".join(lines[:number] + lines[number + 1 :])
        broken[f"line {number} twice"] = b"".join(lines[: number + 1] + lines[number:])
        broken[f"line {number} nested"] = b"".join([*lines[:number], b"[" * 50_000 + b"\n", *lines[number:]])
        broken[f"line {number} without rows"] = b"".join([*lines[:number], b'{"key": 1}\n', *lines[number:]])
    for change, content in broken.items():
        yield Case(f"journal: {change}", partial(_resumed, data=content, true=data))
        yield Case(f"journal: {change}, beside the whole one", partial(_resumed, data=content, true=data, beside=True))


def _resumed(directory: Path, data: bytes, true: bytes, beside: bool = False) -> str:
    place = prepare(directory)
    path = place / "journal/opt/bs4/grid.jsonl"
    path.parent.mkdir(parents=True)
    path.write_bytes(true if beside else data)
    if beside:
        path.with_name("grid.backup.jsonl").write_bytes(data)
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            rows = measure(place, job([(64, 64), (64, 128)]))
    except TimeoutError:
        raise
    except AssertionError:
        return "refused" if errors.getvalue().startswith("error: ") else f"unclear: {errors.getvalue()[:200]}"
    except Exception as error:
        return f"traceback: {type(error).__name__}: {error}"
    known = {_identity(row): row["energy_j"] for row in _rows(true)}
    counted = Counter(map(_identity, rows))
    if repeated := [name for name, count in counted.items() if count > 1]:
        return f"wrong number: {len(repeated)} rows twice"
    changed = [row for row in rows if known.get(_identity(row), row["energy_j"]) != row["energy_j"]]
    return f"wrong number: {len(changed)} energies changed" if changed else "read"


def _rows(data: bytes) -> list[dict[str, Any]]:
    records = [json.loads(line) for line in data.splitlines()]
    return [row for record in records for row in record.get("rows", ())]


def _identity(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(
        row.get(name) for name in ("input_tokens", "output_tokens", "visit", "repetition", "session", "time_s")
    )


def report() -> int:
    """Try all of them; print the counts and what is wrong."""
    counts: Counter[str] = Counter()
    start_s = time.monotonic()
    for case in cases():
        with tempfile.TemporaryDirectory() as directory:
            became = outcome(case, Path(directory))
        counts[became.partition(":")[0]] += 1
        if became not in ("read", "refused"):
            print(f"{case.name}: {became}", flush=True)
    print(f"{counts.total()} files in {time.monotonic() - start_s:.0f} s: {dict(counts)}")
    return int(any(name not in ("read", "refused") for name in counts))


if __name__ == "__main__":
    sys.exit(report())
