"""The exception whose message users read, and how a workflow step reports it."""

import contextlib
import sys
import traceback
from collections.abc import Iterator


class SweetspotError(Exception):
    """A problem the user can solve: the message says what is wrong, where, and what to do. No traceback is shown."""


class UnfitMachine(SweetspotError):
    """No cell can be measured here until somebody changes the machine: its packages, driver, GPU or permissions."""

    reason = "machine_unfit"


class OutOfMemory(SweetspotError):
    """The GPU ran out of memory. Only the cell in which it happened is affected."""


@contextlib.contextmanager
def logged(log: str) -> Iterator[None]:
    """Send standard output and error to the file `log`; a SweetspotError ends the process with its message alone.

    The message also goes to the real standard error, where Snakemake shows it. Any other exception is a defect: its
    traceback goes to the log and it is re-raised.
    """
    with open(log, "w") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        try:
            yield
            return
        except SweetspotError as error:
            message = f"error: {error}"
            print(message, file=file)
        except Exception:
            traceback.print_exc()
            raise
    print(message, file=sys.stderr)
    sys.exit(1)


def first_line(error: Exception) -> str:
    """What an error says, in one line."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
