"""The one exception a user is meant to read, and how a workflow step shows it."""

import contextlib
import sys
import traceback
from collections.abc import Iterator


class SweetspotError(Exception):
    """Something the user can put right: the message says what is wrong, where, what to do. No traceback is shown."""


class OutOfMemory(SweetspotError):
    """The GPU's memory does not suffice. It spoils the cell it happened in, and no other."""


@contextlib.contextmanager
def logged(log: str) -> Iterator[None]:
    """Send standard output and error to the file `log`; a SweetspotError ends the process with its message alone.

    The message is in the log and on the real standard error, where Snakemake's user sees it. Other exceptions are
    defects: their traceback goes to the log and the caller.
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
