"""A campaign that was killed, however often and wherever, and went on has the rows of one that nothing disturbed."""

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blocks import job, measure, prepare
from sweetspot.measure import journal
from sweetspot.measure.protocol import Protocol

CELLS = [(64, 64), (64, 128), (128, 64), (256, 128)]
WORK = job(CELLS, protocol=asdict(Protocol(anchor_every=0)))  # each session would make anchors of its own
OF_A_SESSION = {"session", "raw", "time_s", "idle_after_w"}
# What a run does to its disk, after which it may be killed: raw samples, a line, rows.
DOES = ("sweetspot.measure.raw.write", "sweetspot.measure.journal.append", "sweetspot.files.write_with_digest")


@contextmanager
def killed_at(moment: int) -> Iterator[None]:
    """End the run just before (even) or after (odd) it writes for the (moment / 2)th time."""
    left = [moment]
    with pytest.MonkeyPatch.context() as patch:
        for name in DOES:
            module, _, function = name.rpartition(".")
            original = getattr(__import__(module, fromlist=["_"]), function)

            def writing(*arguments: Any, original: Any = original) -> Any:
                for act in (lambda: None, lambda: original(*arguments)):
                    act()
                    left[0] -= 1
                    if left[0] == -1:
                        raise KeyboardInterrupt

            patch.setattr(name, writing)
        yield


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return measure(prepare(tmp_path_factory.mktemp("undisturbed")), WORK)


def alike(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {
            name: pytest.approx(value, rel=1e-9) if isinstance(value, float | list) else value
            for name, value in row.items()
            if name not in OF_A_SESSION
        }
        for row in rows
    ]


@settings(max_examples=12, deadline=None)
@given(moments=st.lists(st.integers(0, 30), max_size=5))
def test_a_killed_campaign_that_goes_on_has_the_rows_of_an_undisturbed_one(
    undisturbed: list[dict[str, Any]], moments: list[int]
) -> None:
    with tempfile.TemporaryDirectory() as directory:
        place = prepare(Path(directory))
        for moment in moments:
            with killed_at(moment):
                try:
                    measure(place, WORK)
                except AssertionError:  # its status
                    continue
        rows = measure(place, WORK)
        assert [{k: v for k, v in row.items() if k not in OF_A_SESSION} for row in rows] == alike(undisturbed)
        assert len({row["energy_j"] for row in rows}) == len(rows), "no noise is repeated"
        assert {path.name for path in place.glob("raw/*/*/*")} == {Path(row["raw"]).name for row in rows}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    place = prepare(tmp_path_factory.mktemp("written"))
    measure(place, WORK)
    (path,) = place.glob("journal/*/*/*.jsonl")
    return path.read_bytes()


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_a_journal_cut_at_any_byte_is_read_as_the_records_before_the_cut(written: bytes, data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(written)))
    # A line without its end is whole if only the newline is missing.
    whole = [json.loads(line) for line in written.splitlines()]
    count = written[: cut + 1].count(b"\n")
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "journal.jsonl"
        path.write_bytes(written[:cut])
        assert journal.records([path]) == whole[:count]
        more = {"key": "k", "session": "later"}
        journal.append(path, more)
        assert journal.records([path]) == [*whole[:count], more]
        assert path.read_bytes().startswith(written[:cut]), "what was written stays as it was"
        path.with_name("whole.jsonl").write_bytes(written)
        found = journal.records([path, path.with_name("whole.jsonl")])
        assert sorted(map(json.dumps, found)) == sorted(map(json.dumps, [*whole, more]))
