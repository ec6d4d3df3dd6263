"""A configuration file is read as YAML 1.2; what is not one is refused in a line, in bounded time."""

import time
from math import inf
from pathlib import Path
from typing import Any

import pytest

from sweetspot.campaign.configfile import read_configuration
from sweetspot.errors import SweetspotError

BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
MAPS = "a: &a {x: 1}\n" + "".join(f"a{i}: &a{i} {{x: *a{i - 1 or ''}, y: *a{i - 1 or ''}}}\n" for i in range(1, 40))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *(("0100", 100), ("-08", -8), ("0o17", 15), ("0x1F", 31), ("1e3", 1000.0), (".5", 0.5), (".inf", inf)),
        *(("1:30", "1:30"), ("1_000", "1_000"), ("yes", "yes"), ("off", "off"), ("2026-01-01", "2026-01-01")),
        *(("true", True), ("FALSE", False), ("null", None), ("", None), ("~", None), ("'0100'", "0100")),
        *(("[1, 2.0]", [1, 2.0]), ('{"b": "ü"}', {"b": "ü"})),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_value_is_what_it_looks_like(text: str, value: Any, encoding: str, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(f"a: {text}\n", encoding=encoding)
    found = read_configuration(tmp_path / "c.yaml")["a"]
    assert found == value
    assert type(found) is type(value)


def test_aliases_may_save_writing(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("a: &lengths [64, 128]\nb: *lengths\n")
    assert read_configuration(tmp_path / "c.yaml") == {"a": [64, 128], "b": [64, 128]}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\nb: 2\na: 3\n", ", line 3: 'a' is set twice; remove one"),
        ("a:\n  b: {c: 1, c: 1}\n", ", line 2: 'c' is set twice; remove one"),
        ("64: 1\n0064: 1\n", ", line 2: 64 is set twice; remove one"),
        ("a:\n\tb: 1\n", ", line 2: found character that cannot start any token; indent with spaces, not with tabs"),
        ("a: [1, 2\n", ", line 2: did not find expected ',' or ']'"),
        ("a: " + "9" * 5000, ", line 1: a number of 5000 digits"),
        ("a: !!python/object:os.system x", ", line 1: could not determine a constructor"),
        ("a: !!int '1:30'", ": invalid literal"),
        ("a: &a [*a]", ": the alias *a lies in what has an anchor itself; write it out"),
        (BOMB, ": the alias *a lies in"),
        (MAPS, ": the alias *a lies in"),
        ("a: &a [1]\nb: &b\n  c: [{d: *a}]\n", ": the alias *a lies in"),
        ("a: *b", ", line 1: found undefined alias"),
        ("a: " + "[" * 60 + "]" * 60, ": nested deeper than 50 levels"),
        ("a: " + "[" * 100_000, ": nested deeper than 50 levels"),
        ("a: 'x'\n" * 200_000, ": more than 131072 bytes"),
        ("- a\n", ": not a configuration"),
        ("", ": an empty file"),
        ("? [a]\n: 1\n", ", line 1: found unhashable key"),
        ("a: 1\n---\nb: 1\n", ", line 2: but found another document"),
        ("a: \0", ": unacceptable character"),
        (b"a: \xfc\xdf", ": unacceptable character"),
        (None, ": cannot be read (No such file"),
    ],
)
def test_what_is_no_configuration_is_refused(text: str | bytes | None, said: str, tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    start_s = time.process_time()
    with pytest.raises(SweetspotError) as error:
        read_configuration(path)
    assert time.process_time() - start_s < 5
    assert str(error.value).startswith(f"{path}{said}")
    assert len(str(error.value).splitlines()) == 1
