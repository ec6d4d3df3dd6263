"""Where a run is shown: lines that are redrawn in colours on a terminal, plain lines in a file."""

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, TextIO

if TYPE_CHECKING:
    from rich.live import Live
    from rich.table import Table

_STYLES = {"failed": "red", "done": "green", "runs": "bold", "waits": "dim"}


class Line(NamedTuple):
    """A stage: its name, how much is done, notes, and whether it "waits", "runs", is "done" or has "failed"."""

    label: str
    done: str
    notes: str
    state: str


class Screen:
    """A terminal or a file."""

    def __init__(self, stream: TextIO, no_colour: bool) -> None:
        """On `stream`; a terminal that cannot redraw is a file."""
        self._stream = stream
        self.redraws = stream.isatty() and os.environ.get("TERM") not in (None, "", "dumb")
        self._console: Any = None
        self._live: Live | None = None
        if self.redraws:
            from rich.console import Console

            self._console = Console(file=stream, force_terminal=True, no_color=no_colour or None, highlight=False)

    def say(self, text: str, style: str = "") -> None:
        """A text that stays, above the lines that are redrawn."""
        if self._console is not None:
            self._console.print(text, style=style or None, markup=False, emoji=False)
        else:
            self._print(text)

    def write(self, line: Line) -> None:
        """A stage as a line that stays."""
        self._print(f"{line.label:<14} {line.done:>18}  {line.notes}".rstrip())

    def begin(self, lines: Callable[[], list[Line]]) -> None:
        """Redraw these lines from now on, if this is a terminal."""
        if self._console is not None:
            from rich.live import Live

            self._live = Live(
                get_renderable=lambda: _table(lines()),
                console=self._console,
                refresh_per_second=4,
                redirect_stdout=False,
                redirect_stderr=False,
            )
            self._live.start(refresh=True)

    def end(self) -> None:
        """Leave the lines as they are."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _print(self, text: str) -> None:
        print(text, file=self._stream, flush=True)


def _table(lines: list[Line]) -> "Table":
    from rich.table import Table

    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True, justify="right")
    table.add_column(no_wrap=True, overflow="ellipsis")
    for line in lines:
        table.add_row(line.label, line.done, line.notes, style=_STYLES[line.state])
    return table
