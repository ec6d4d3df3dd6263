"""Broken files are refused in a line or read rightly: a part of what `python tests/broken_files.py` tries."""

from pathlib import Path

import broken_files
import pytest

from sweetspot.commands.main import main
from sweetspot.errors import logged

CASES = list(broken_files.cases())


def test_there_are_many() -> None:
    assert len(CASES) > 1500
    assert len({case.name.partition(":")[0] for case in CASES}) == 4


@pytest.mark.parametrize("case", CASES[::11], ids=lambda case: case.name[:60])
def test_a_broken_file_is_refused_in_a_line_or_read_rightly(case: broken_files.Case, tmp_path: Path) -> None:
    assert broken_files.outcome(case, tmp_path) in ("refused", "read")


def test_a_defect_is_a_line_that_names_the_saved_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(path: Path) -> None:
        raise ZeroDivisionError("a defect\nof two lines")

    monkeypatch.setattr("sweetspot.campaign.configfile.read_configuration", broken)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert main(["plan"]) == 70
    said = capsys.readouterr().err
    (saved,) = tmp_path.iterdir()
    assert said == (
        "sweetspot: error: unexpected ZeroDivisionError: a defect. This is a defect of sweetspot; report it with its "
        f"traceback: {saved}\n"
    )
    assert saved.read_text().startswith("Traceback (most recent call last):")
    assert saved.read_text().endswith("ZeroDivisionError: a defect\nof two lines\n")


def test_a_defect_is_reported_even_if_nothing_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sweetspot.campaign.configfile.read_configuration", lambda path: 1 / 0)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "nowhere"))
    assert main(["plan"]) == 70
    assert "its traceback: none, as it cannot be saved (No such file or directory)" in capsys.readouterr().err


def test_a_defect_in_a_step_of_the_workflow_is_a_line_and_its_traceback_in_the_log(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "step.log"
    with pytest.raises(SystemExit) as ended, logged(str(log)):
        raise ZeroDivisionError("a defect")
    assert ended.value.code == 70
    assert capsys.readouterr().err == "", "a run shows the log's last line"
    assert log.read_text().endswith(f"report it with its traceback: {log}\n")
    assert log.read_text().splitlines()[-1].startswith("error: unexpected ZeroDivisionError: a defect.")
    assert "Traceback (most recent call last):" in log.read_text()


@pytest.mark.parametrize("name", ["n" * 5000, "d/" * 3000, "a directory", "file/below"])
def test_a_place_where_nothing_can_be_is_a_line(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a directory").mkdir()
    Path("file").touch()
    for arguments in (["plan", "--configfile", name], ["model", name]):
        assert main(arguments) == 1
        said = capsys.readouterr().err
        assert said.startswith("sweetspot: error: ")
        assert said.count("\n") == 1
        assert len(said) < 1000
