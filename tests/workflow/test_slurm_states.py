"""Which command tells how jobs ended, on clusters that this machine cannot be: with accounts, by what Slurm answers."""

import os
from pathlib import Path

import pytest

from sweetspot.campaign import slurm
from sweetspot.errors import SweetspotError


@pytest.mark.parametrize(
    ("wanted", "accounts", "remembered_s", "command", "why"),
    [
        ("sacct", True, 300, "sacct", ""),
        ("sacct", False, 300, "squeue", "has no accounting"),
        ("squeue", True, 300, "squeue", ""),  # somebody's own choice, where it works
        ("squeue", False, 300, "squeue", ""),
        ("squeue", True, 60, "sacct", "forgets jobs 60 s"),
    ],
)
def test_the_wanted_command_is_asked_unless_it_cannot_tell(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    wanted: str,
    accounts: bool,
    remembered_s: int,
    command: str,
    why: str,
) -> None:
    answer(tmp_path, monkeypatch, accounts, remembered_s)
    asked, words = slurm.status_command(wanted, 40)
    assert asked == command
    assert why in words
    assert bool(why) == bool(words)


@pytest.mark.parametrize("wanted", ["sacct", "squeue"])
def test_where_none_can_tell_nothing_is_submitted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wanted: str) -> None:
    answer(tmp_path, monkeypatch, False, 60)
    with pytest.raises(SweetspotError, match="forgets jobs 60 s"):
        slurm.status_command(wanted, 40)


def answer(place: Path, monkeypatch: pytest.MonkeyPatch, accounts: bool, remembered_s: int) -> None:
    """Put on the PATH what Slurm's commands say on such a cluster."""
    storage = "accounting_storage/slurmdbd" if accounts else "accounting_storage/none"
    config = f"AccountingStorageType   = {storage}\nMinJobAge               = {remembered_s} sec\n"
    (place / "config").write_text(config)
    for name, text in (("scontrol", f"cat {place}/config"), ("sacct", f"exit {0 if accounts else 1}")):
        script = place / name
        script.write_text(f"#!/bin/sh\n{text}\n")
        script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{place}{os.pathsep}{os.environ['PATH']}")
