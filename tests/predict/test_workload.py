"""Files of requests: what is read, and what is refused."""

import json
from pathlib import Path

import pytest

from sweetspot.errors import SweetspotError
from sweetspot.predict import workload


def test_csv_and_json_lines_are_counted_alike(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("prompt;output_tokens;count;user\n1500;200;3;a\n200;100;1;b\n1500;200;4;c\n")
    objects = [(1500, 200, 7), (200, 100, None)]
    (tmp_path / "log.jsonl").write_text(
        "\n\n".join(
            json.dumps({"input_tokens": n, "output_tokens": m} | ({"count": count} if count else {}))
            for n, m, count in objects
        )
    )
    mix = workload.read(tmp_path / "log.csv", {"prompt": "input_tokens"})
    assert mix.lengths == ((200, 100, 1), (1500, 200, 7))
    assert mix == workload.read(tmp_path / "log.jsonl")
    assert (mix.requests, mix.input_tokens, mix.output_tokens) == (8, round(10700 / 8), round(1500 / 8))


@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        ("a.csv", "", ["no requests"]),
        ("a.csv", "input_tokens,output_tokens\n", ["no requests"]),
        ("a.csv", "input_tokens,output_tokens,count\n5,5,0\n", ["no requests"]),
        ("a.csv", "isl,output_tokens\n5,5\n", ["input_tokens missing", "there are isl", "--map THEIRS=input_tokens"]),
        (
            "a.csv",
            "input_tokens,output_tokens\n5,5\n5,-3\nx,\n",
            ["row 2: output_tokens is -3", "row 3: output_tokens"],
        ),
        ("a.csv", "input_tokens,output_tokens\n5,1.5\n", ["row 1: output_tokens is 1.5", "whole number"]),
        ("a.csv", "input_tokens,output_tokens\n5\n", ["row 1: output_tokens is missing"]),
        ("a.csv", "input_tokens,output_tokens,count\n5,5,inf\n", ["row 1: count is inf"]),
        ("a.csv", b"\xff\xfe\x00", ["cannot be read"]),
        ("a.jsonl", '{"input_tokens": 5, "output_tokens": 5}\n{"input', ["row 2", "cut short"]),
        ("a.jsonl", '{"input_tokens": 5}', ["row 1", "output_tokens missing"]),
        (
            "a.jsonl",
            '{"input_tokens": true, "output_tokens": null}',
            ["input_tokens is True", "output_tokens is missing"],
        ),
        ("a.xlsx", "", [".csv, .tsv or .jsonl"]),
    ],
)
def test_bad_files_of_requests(tmp_path: Path, name: str, content: str | bytes, parts: list[str]) -> None:
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(SweetspotError) as caught:
        workload.read(path)
    assert str(path) in str(caught.value)
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.parametrize(("rename", "part"), [({"x": "input_tokens"}, "no 'x'"), ({"c": "input_tokens"}, "already")])
def test_bad_renames(tmp_path: Path, rename: dict[str, str], part: str) -> None:
    (tmp_path / "a.csv").write_text("input_tokens,output_tokens,c\n5,5,5\n")
    with pytest.raises(SweetspotError, match=part):
        workload.read(tmp_path / "a.csv", rename)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(SweetspotError, match=r"no\.csv: cannot be read"):
        workload.read(tmp_path / "no.csv")
