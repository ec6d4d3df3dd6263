"""Files of requests: what is read, and what is refused."""

import json
from pathlib import Path

import pytest

from sweetspot.errors import SweetspotError
from sweetspot.predict.workload import Workload, of_counts
from sweetspot.table import requests


def read(path: Path, rename: dict[str, str] | None = None) -> Workload:
    return of_counts(requests.read(path, rename).counts)


def test_csv_and_json_lines_are_counted_alike(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("prompt;output_tokens;count;user\n1500;200;3;a\n200;100;1;b\n1500;200;4;c\n")
    objects = [(1500, 200, 7), (200, 100, None)]
    (tmp_path / "log.jsonl").write_text(
        "\n\n".join(
            json.dumps({"input_tokens": n, "output_tokens": m} | ({"count": count} if count else {}))
            for n, m, count in objects
        )
    )
    mix = read(tmp_path / "log.csv", {"prompt": "input_tokens"})
    assert mix.lengths == ((200, 100, 1), (1500, 200, 7))
    assert mix == read(tmp_path / "log.jsonl")
    assert (mix.requests, mix.input_tokens, mix.output_tokens) == (8, round(10700 / 8), round(1500 / 8))


@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        ("a.csv", "", ["no requests"]),
        ("a.csv", "input_tokens,output_tokens\n", ["no requests"]),
        ("a.csv", "input_tokens,output_tokens,count\n5,5,0\n", ["no requests"]),
        (
            "a.csv",
            "words,output_tokens\n5,5\n",
            ["input_tokens missing", "there are words", "--map THEIRS=input_tokens"],
        ),
        (
            "a.csv",
            "input_tokens,output_tokens\n5,5\n5,-3\nx,\n",
            ["row 2: output_tokens is -3", "row 3: output_tokens"],
        ),
        ("a.csv", "input_tokens,output_tokens\n5,1.5\n", ["row 1: output_tokens is 1.5", "whole number"]),
        ("a.csv", "input_tokens,output_tokens\n5\n", ["row 1: output_tokens is missing"]),
        ("a.csv", "input_tokens,output_tokens,count\n5,5,inf\n", ["row 1: count is inf"]),
        ("a.csv", "input_tokens,output_tokens\n5,5\n5,5,6\n", ["line 3: 3 fields, but the header has 2"]),
        ("a.csv", b"\xff\xfe\x00", ["cannot be read"]),
        ("a.jsonl", '{"input_tokens": 5, "output_tokens": 5}\n{"input', ["row 2", "cut short"]),
        ("a.jsonl", '{"input_tokens": 5, "output_tokens": 5}\n[5, 5]', ["row 2 is not a JSON object"]),
        ("a.jsonl", '{"input_tokens": 5}', ["output_tokens missing", "there are input_tokens"]),
        (
            "a.jsonl",
            '{"input_tokens": true, "output_tokens": null}',
            ["input_tokens is True", "output_tokens is missing"],
        ),
        ("a.png", "", [".csv, .tsv, .parquet, .json or .jsonl"]),
    ],
)
def test_bad_files_of_requests(tmp_path: Path, name: str, content: str | bytes, parts: list[str]) -> None:
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(SweetspotError) as caught:
        read(path)
    assert str(path) in str(caught.value)
    for part in parts:
        assert part in str(caught.value)


def test_columns_that_are_not_used_may_hold_anything(tmp_path: Path) -> None:
    messages = ({"role": "user"}, [{"role": "user", "parts": ["a", {"text": "b"}]}], "text", None, 5)
    rows = [{"input_tokens": 5, "output_tokens": 7, "messages": message} for message in messages]
    (tmp_path / "log.jsonl").write_text("\n\n".join(map(json.dumps, rows)))
    assert read(tmp_path / "log.jsonl").lengths == ((5, 7, 5),)


@pytest.mark.parametrize(
    ("rename", "part"),
    [
        ({"x": "input_tokens"}, "no column 'x'"),
        ({"c": "input_tokens"}, "already"),
        ({"c": "input_tokens", "input_tokens": "input_tokens"}, "another column"),
    ],
)
def test_bad_renames(tmp_path: Path, rename: dict[str, str], part: str) -> None:
    (tmp_path / "a.csv").write_text("input_tokens,output_tokens,c\n5,5,5\n")
    with pytest.raises(SweetspotError, match=part):
        read(tmp_path / "a.csv", rename)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(SweetspotError, match=r"no\.csv: no such file"):
        read(tmp_path / "no.csv")
