"""What a run shows: one line per stage, failures at once, and a summary. Snakemake's own words go to its log file.

The profiles select it with `logger: sweetspot`. With --verbose, --quiet, --printshellcmds or --debug-dag Snakemake
speaks for itself. Snakemake imports this package in every job, so everything else is imported when a run begins.
"""

import logging
import sys
from typing import TYPE_CHECKING, Any

from snakemake_interface_logger_plugins.base import LogHandlerBase
from snakemake_interface_logger_plugins.common import LogEvent

if TYPE_CHECKING:
    from snakemake_logger_plugin_sweetspot.run import Run

_BLOCKS = (LogEvent.JOB_INFO, LogEvent.GROUP_INFO, LogEvent.SHELLCMD, LogEvent.WORKFLOW_STARTED)
# Where words come from that only a run begins with: on shared file systems, on how job states are asked for.
_BEFORE_A_RUN = ("snakemake/api.py", "snakemake_executor_plugin")


class LogHandler(LogHandlerBase):
    """Shows Snakemake's events; Snakemake gives it its own filter and formatter."""

    writes_to_stream = True
    writes_to_file = False
    has_filter = False
    has_formatter = False
    needs_rulegraph = False

    def __post_init__(self) -> None:
        """Nothing has happened yet."""
        settings = self.common_settings
        self._stream = sys.stdout if settings.stdout else sys.stderr
        self._own_words = bool(settings.verbose or settings.quiet or settings.printshellcmds or settings.debug_dag)
        self._snakemake: logging.Handler | None = None
        self._run: Run | None = None
        self._said: list[tuple[str, dict[str, Any]]] = []
        self._has_stats = False

    def emit(self, record: logging.LogRecord) -> None:
        """Show a record. A defect in this must not end a measuring run, so it is reported and passed over."""
        try:
            self._show(record)
        except BrokenPipeError:
            raise
        except Exception:
            self.handleError(record)

    def close(self) -> None:
        """End the display, and sum up the run. Called again at exit."""
        run, self._run = self._run, None
        if run is not None:
            run.end()
        super().close()

    def _show(self, record: logging.LogRecord) -> None:
        event = getattr(record, "event", None)
        if self._own_words or self.common_settings.dryrun:
            self._as_snakemake(record, event)
        elif self._run is not None:
            self._run.take(record, event, self.format)
        elif event == LogEvent.WORKFLOW_STARTED:
            from snakemake_logger_plugin_sweetspot.run import Run

            self._run = Run(self._stream, bool(self.common_settings.nocolor), self._said)
        elif hasattr(record, "sweetspot"):
            self._said.append((self.format(record), record.sweetspot))
        elif record.levelno > logging.INFO or not any(source in record.pathname for source in _BEFORE_A_RUN):
            self._as_snakemake(record, event)

    def _as_snakemake(self, record: logging.LogRecord, event: Any) -> None:
        """Show it as Snakemake does; of a dry run, which jobs there are, and not each with all of its files."""
        if not self._own_words:
            repeated = event == LogEvent.RUN_INFO and self._has_stats
            self._has_stats |= event == LogEvent.RUN_INFO
            if event in _BLOCKS or repeated:
                return
        if self._snakemake is None:
            from snakemake.logging import ColorizingTextHandler

            self._snakemake = ColorizingTextHandler(
                nocolor=self.common_settings.nocolor, stream=self._stream, formatter=self.formatter
            )
        self._snakemake.emit(record)
