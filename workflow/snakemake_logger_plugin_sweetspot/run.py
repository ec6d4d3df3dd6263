"""A run as it goes on: its stages, its failures, and the summary at its end."""

import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from snakemake_interface_logger_plugins.common import LogEvent

from snakemake_logger_plugin_sweetspot.cells import Cells
from snakemake_logger_plugin_sweetspot.screen import Line, Screen
from sweetspot.campaign import survey
from sweetspot.campaign.campaign import Campaign

_STAGES = {"resolve_architecture": "architectures", "build_engine": "engines", "offline_plan": "offline plan"}
_STAGES |= {name: name for name in ("measure", "collect", "fit", "validate", "figures", "report")}
_UNSEEN = ("all", "default", "plan")  # as long as they do not fail
_READ_S = 1.0  # between two looks at the journals
_SHARE = 0.1  # of the visits between two lines in a file
_REASONS = 3  # that the summary shows

Format = Callable[[logging.LogRecord], str]


@dataclass
class Stage:
    """The jobs of a rule."""

    label: str
    total: int
    done: int = 0
    running: set[int] = field(default_factory=set)
    started_s: float | None = None
    ended_s: float | None = None


@dataclass(frozen=True)
class Job:
    """What Snakemake told of a job when it started."""

    rule: str
    wildcards: Mapping[str, Any]
    output: tuple[str, ...]

    def __str__(self) -> str:
        """The stage, and what tells the job from its others."""
        parts = [f"batch {value}" if name == "batch" else str(value) for name, value in self.wildcards.items()]
        return " ".join([_STAGES.get(self.rule, self.rule), *parts])


class Run:
    """One run of the workflow."""

    def __init__(self, stream: TextIO, no_colour: bool, said: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
        """Begin with what the workflow has `said` so far: texts, and the campaign that they are about."""
        self._screen = Screen(stream, no_colour)
        self._start_s = time.monotonic()
        self._lock = threading.RLock()
        self._over = threading.Event()
        self._campaigns: list[Campaign] = []
        self._stages: dict[str, Stage] | None = None
        self._jobs: dict[int, Job] = {}
        self._failed: dict[int, Job] = {}
        self._exceptions: list[str] = []  # of failed jobs, whose error comes next
        self._is_broken = False
        self._warned = set[str]()
        self._cells: list[Cells] = []
        self._read_s = self._shown = 0.0
        self._first: tuple[float, int] | None = None  # when this run saw its first new visit, and the visits then
        for text, about in said:
            self._say(text, about)

    def take(self, record: logging.LogRecord, event: Any, text_of: Format) -> None:
        """Show what a record says, if users want to know it while they wait."""
        with self._lock:
            if event == LogEvent.RUN_INFO:
                self._begin(record.stats)  # type: ignore[attr-defined]
            elif event == LogEvent.JOB_INFO:
                self._start(record)
            elif event == LogEvent.JOB_FINISHED:
                self._finish(record.job_id)  # type: ignore[attr-defined]
            elif event == LogEvent.JOB_ERROR:
                if not record.indent:  # type: ignore[attr-defined]  # else of a group, which is reported as a whole
                    self._fail([vars(record)], [])
            elif event == LogEvent.GROUP_ERROR:
                self._fail(record.job_error_info, record.aux_logs)  # type: ignore[attr-defined]
            elif event == LogEvent.ERROR and record.exception == "RuleException":  # type: ignore[attr-defined]
                self._exceptions.append(text_of(record))
            elif hasattr(record, "sweetspot"):
                self._say(text_of(record), record.sweetspot)
            elif "gpu" in (resources := getattr(record, "provided_resources", None) or {}):
                self._screen.say(f"GPUs of this machine for jobs: {resources['gpu'].value}")
            elif record.levelno >= logging.ERROR and not self._is_echo(record, event):
                self._is_broken = True
                self._screen.say(text_of(record), "red")
            elif record.levelno == logging.WARNING and (text := text_of(record)) not in self._warned:
                self._warned.add(text)
                self._screen.say(text, "yellow")

    def end(self) -> None:
        """End the display and sum up."""
        self._over.set()
        with self._lock:
            self._read(all_groups=True)
            self._screen.end()
            for text in self._exceptions:
                self._is_broken = True
                self._screen.say(text, "red")
            took = duration(time.monotonic() - self._start_s)
            unfinished = bool(self._failed) or self._is_broken
            for campaign in self._campaigns if self._stages is not None or not unfinished else ():
                self._sum_up(campaign, took, unfinished)

    def _say(self, text: str, about: Mapping[str, Any]) -> None:
        if (campaign := about.get("campaign")) is not None and campaign not in self._campaigns:
            self._campaigns.append(campaign)
        if text:
            self._screen.say(text)

    def _is_echo(self, record: logging.LogRecord, event: Any) -> bool:
        """Whether Snakemake only says once more that jobs have failed."""
        if event == LogEvent.ERROR:
            return bool(self._failed) and record.exception == "WorkflowError"  # type: ignore[attr-defined]
        return bool(self._failed) and record.module == "job_scheduler"

    def _begin(self, stats: Mapping[str, int]) -> None:
        order = [*_STAGES, *(rule for rule in stats if rule not in _STAGES)]
        self._stages = {
            rule: Stage(_STAGES.get(rule, rule), stats[rule])
            for rule in order
            if rule in stats and rule not in (*_UNSEEN, "total")
        }
        if "measure" in self._stages:
            self._cells = [Cells(campaign) for campaign in self._campaigns]
        self._screen.begin(self._lines)
        if not self._screen.redraws:
            threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        """Write how far the measurements are from time to time, where nothing is redrawn."""
        while not self._over.wait(_READ_S):
            with self._lock:
                self._read()
                share = self._share()
                if self._stages and self._shown + _SHARE <= share < 1:
                    self._shown = share
                    self._screen.write(self._line(self._stages["measure"]))

    def _start(self, record: logging.LogRecord) -> None:
        about: Any = record
        self._failed.pop(about.jobid, None)  # it is tried again
        self._jobs[about.jobid] = job = Job(about.rule_name, about.wildcards or {}, tuple(about.output))
        if (stage := (self._stages or {}).get(job.rule)) is not None:
            stage.started_s = stage.started_s or time.monotonic()
            stage.running.add(about.jobid)

    def _finish(self, number: int) -> None:
        job = self._jobs.get(number)
        self._failed.pop(number, None)
        if job is None or (stage := (self._stages or {}).get(job.rule)) is None:
            return
        stage.running.discard(number)
        stage.done += 1
        if stage.done == stage.total:
            stage.ended_s = time.monotonic()
            if job.rule == "measure":
                self._read(all_groups=True)
            if not self._screen.redraws:
                self._screen.write(self._line(stage))

    def _fail(self, errors: Sequence[Mapping[str, Any]], logs: Sequence[str]) -> None:
        """Say why jobs have failed: in their own words, or in those of the scheduler."""
        exception = self._exceptions.pop(0) if self._exceptions else ""
        said = [(error, last_words(error["log"])) for error in errors]
        # A group's jobs fail together; those without an error of their own have only waited for it.
        told = [error for error, last in said if last.startswith("error: ")] or errors[:1]
        for error, last in said:
            job = self._jobs.get(error["jobid"]) or Job(error["rule_name"], {}, ())
            self._failed[error["jobid"]] = job
            if (stage := (self._stages or {}).get(job.rule)) is not None:
                stage.running.discard(error["jobid"])
            if error not in told:
                continue
            reason = " ".join(part for part in (error["rule_msg"], last) if part)
            # Snakemake's exception holds the whole command; it is only needed if the job has said nothing.
            reason = reason or exception.replace(error["shellcmd"] or "\0", job.rule) or "it said nothing"
            self._screen.say(f"FAILED {job}: {reason.strip()}", "red")
            if places := [*error["log"], *logs]:
                self._screen.say(f"       log: {', '.join(places)}", "red")

    def _read(self, all_groups: bool = False) -> None:
        """Look at the journals of jobs that run."""
        now_s = time.monotonic()
        stage = (self._stages or {}).get("measure")
        if stage is None or not (all_groups or (stage.running and now_s - self._read_s >= _READ_S)):
            return
        self._read_s, before = now_s, self._visits()
        jobs = self._jobs.values() if all_groups else [self._jobs[number] for number in stage.running]
        for cells in self._cells:
            for group in {group for job in jobs for path in job.output if (group := cells.group_of(path))}:
                cells.read(group)
        if self._first is None and self._visits() > before:
            self._first = now_s, self._visits()

    def _visits(self) -> int:
        return sum(cells.visits for cells in self._cells)

    def _share(self) -> float:
        return self._visits() / max(1, sum(cells.all_visits for cells in self._cells))

    def _lines(self) -> list[Line]:
        """The stages, as the screen redraws them."""
        with self._lock:
            self._read()
            return [self._line(stage) for stage in (self._stages or {}).values()]

    def _line(self, stage: Stage) -> Line:
        count, notes = f"{stage.done} of {stage.total}", []
        now_s = time.monotonic()
        left_s = None
        if stage.started_s is not None and 0 < stage.done < stage.total:
            left_s = (now_s - stage.started_s) / stage.done * (stage.total - stage.done)
        if stage.label == "measure" and self._cells:
            done, total = (sum(getattr(cells, name) for cells in self._cells) for name in ("done", "total"))
            count, left_s = f"{done} of {total} cells", None
            if stage.ended_s is None:
                notes.append(f"{100 * self._share():.0f} %")
            if self._first and (made := self._visits() - self._first[1]):
                rest = sum(cells.all_visits for cells in self._cells) - self._visits()
                left_s = (now_s - self._first[0]) / made * rest
            notes.append(f"{survey.joules(sum(cells.energy_j for cells in self._cells))} so far")
        if stage.ended_s is not None and stage.started_s is not None:
            notes.append(f"in {duration(stage.ended_s - stage.started_s)}")
        elif left_s is not None and stage.running:
            notes.append(f"{duration(left_s)} left")
        failed = sum(_STAGES.get(job.rule, job.rule) == stage.label for job in self._failed.values())
        if failed:
            notes.append(f"{failed} failed")
        state = "failed" if failed else "done" if stage.ended_s else "runs" if stage.running else "waits"
        return Line(stage.label, count, ", ".join(notes), state)

    def _sum_up(self, campaign: Campaign, took: str, unfinished: bool) -> None:
        """About ten lines on what a campaign has found and what it lacks."""
        name, found = campaign.config.campaign, survey.survey(campaign)
        done = f"{found.done} of {sum(map(len, campaign.jobs.values()))} cells, {found.spent}" if found.done else ""
        if self._stages is None:
            head = f"{name}: Nothing to be done: every result is there" + (f" ({done})" if done else "")
        else:
            head = f"{name}: {'stopped' if unfinished else 'finished'} after {took}" + (f"; {done}" if done else "")
        self._screen.say(f"{head}{survey.simulated_label(campaign)}", "red" if unfinished else "green")
        page, findings = campaign.directory / "report.html", campaign.directory / "findings.txt"
        is_new = not unfinished and page.exists() and (self._stages is None or "report" in self._stages)
        if is_new and findings.exists():
            self._screen.say(findings.read_text().strip())
        skipped = Counter(cell.reason for cell in campaign.cells if cell.status == "skipped")
        for title, counts in (("skipped", skipped), ("without a valid repetition", found.invalid)):
            shown = [f"{count} of {reason}" for reason, count in counts.most_common(_REASONS)]
            rest = ["and others (`sweetspot plan` lists them)"] * (len(counts) > _REASONS)
            if shown:
                self._screen.say(f"{counts.total()} cells {title}: {'; '.join([*shown, *rest])}", "yellow")
        if unfinished:
            jobs = "1 job" if len(self._failed) == 1 else f"{len(self._failed)} jobs"
            more = f"{jobs} failed; the reasons are above. " if self._failed else ""
            self._screen.say(f"{more}What was measured is kept: run the same command again to go on.", "red")
        elif is_new:
            self._screen.say(f"page: {page}", "green")
        for log in _logs_of_snakemake():
            self._screen.say(f"Snakemake's own log: {log}")


def duration(seconds: float) -> str:
    """A length of time as people say it: "45 s", "12 min", "3 h 05 min"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


def last_words(logs: Sequence[str]) -> str:
    """What a job's own log says last: its error, else its last line; empty if there is none."""
    for log in logs[:1]:
        with suppress(OSError):
            lines = Path(log).read_text(errors="replace").strip().splitlines()
            errors = [number for number, line in enumerate(lines) if line.startswith("error: ")]
            return "\n".join(lines[errors[-1] if errors else -1 :])
    return ""


def _logs_of_snakemake() -> list[str]:
    handlers = logging.getLogger("snakemake.logging").handlers
    files = [handler.baseFilename for handler in handlers if isinstance(handler, logging.FileHandler)]
    return [os.path.relpath(file) for file in files]
