"""The exception whose message users read, and how a workflow step reports it."""

import contextlib
import re
import sys
import tempfile
import traceback
from collections.abc import Iterator

_ENDLESS = re.compile(r"\S{2000,}")


class SweetspotError(Exception):
    """A problem the user can solve: the message says what is wrong, where, and what to do. No traceback is shown."""


class UnfitMachine(SweetspotError):
    """No cell can be measured here until somebody changes the machine: its packages, driver, GPU or permissions."""

    reason = "machine_unfit"


class OutOfMemory(SweetspotError):
    """The GPU ran out of memory. Only the cell in which it happened is affected."""


def reported(error: Exception, log: str = "") -> tuple[str, int]:
    """The line that tells the user of an exception, and the exit status: 1 if the user can solve it, 70 for a defect.

    The traceback of a defect is printed to standard error if that goes to a file, `log`; otherwise it is saved in a
    file of its own. The line names the file.
    """
    if isinstance(error, SweetspotError):
        return "error: " + _ENDLESS.sub(lambda word: f"{word[0][:100]}...", str(error)), 1
    if isinstance(error, OSError) and error.filename is not None:
        return f"error: {str(error.filename)[:200]}: {error.strerror}", 1
    text, place = "".join(traceback.format_exception(error)).encode(errors="replace").decode(), log
    try:
        if log:
            print(text, file=sys.stderr)
        else:
            with tempfile.NamedTemporaryFile("w", prefix="sweetspot-", suffix=".txt", delete=False) as file:
                place = file.name
                file.write(text)
    except OSError as problem:
        place = f"none, as it cannot be saved ({problem.strerror})"
    said = f"{type(error).__name__}: {first_line(error)[:200]}" if str(error) else type(error).__name__
    return f"error: unexpected {said}. This is a defect of sweetspot; report it with its traceback: {place}", 70


@contextlib.contextmanager
def logged(log: str) -> Iterator[None]:
    """Send standard output and error to the file `log`; an exception ends the process, and `reported` is its last line.

    That line is what a run shows of the failed job.
    """
    with open(log, "w") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        try:
            yield
            return
        except Exception as error:
            message, status = reported(error, log)
            print(message, file=file)
    sys.exit(status)


def first_line(error: Exception) -> str:
    """What an error says, in one line."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
