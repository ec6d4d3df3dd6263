"""Cells that a campaign has measured so far, from the journals that its jobs append to, wherever they run."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sweetspot.campaign import survey
from sweetspot.campaign.campaign import Campaign
from sweetspot.measure import rows, session
from sweetspot.measure.journal import Place


class Cells:
    """Counts of a campaign: `done` of `total` cells, `visits` of `all_visits`, and `energy_j` of all visits so far."""

    def __init__(self, campaign: Campaign) -> None:
        """Read every journal once."""
        groups: dict[tuple[str, int], list[survey.Job]] = {}
        for job in campaign.jobs:
            groups.setdefault(job[:2], []).append(job)
        self._groups = {name: _Group(campaign, jobs) for name, jobs in groups.items()}
        self._of_rows = {str(place.rows): job[:2] for job, place in campaign.places.items()}
        self.total = sum(map(len, campaign.jobs.values()))
        self.all_visits = self.total * campaign.config.protocol.visits

    def group_of(self, output: str) -> tuple[str, int] | None:
        """The model and batch of the job that writes this file; None if no measuring job of the campaign does."""
        return self._of_rows.get(output)

    def read(self, group: tuple[str, int]) -> None:
        """Read what the jobs of a group have appended."""
        self._groups[group].read()

    @property
    def done(self) -> int:
        """Cells whose visits are all made, or whose rows are written."""
        return sum(group.done for group in self._groups.values())

    @property
    def visits(self) -> int:
        """Visits made to these cells."""
        return sum(group.visits for group in self._groups.values())

    @property
    def energy_j(self) -> float:
        """Energy of all visits that the journals hold, in J."""
        return sum(group.energy_j for group in self._groups.values())


class _Group:
    """The cells of a model at a batch, which share journals."""

    def __init__(self, campaign: Campaign, jobs: list[survey.Job]) -> None:
        model = jobs[0][0]
        self._jobs = {campaign.places[job].rows: campaign.jobs[job] for job in jobs}
        self._place = Place(campaign.directory, *jobs[0][:2])
        self._protocol = campaign.config.protocol
        self._boards = campaign.gpus_of_job(model)
        self._key = session.key(json.loads(campaign.measure_job(*jobs[0])), campaign.models[model].resolved)
        self._read: dict[Path, int] = {}  # bytes
        self._records: dict[tuple[Any, Any], list[Mapping[str, Any]]] = {}
        self.done = self.visits = 0
        self.energy_j = 0.0
        self.read()

    def read(self) -> None:
        for path in self._place.journals:
            try:
                with path.open("rb") as file:
                    file.seek(self._read.get(path, 0))
                    lines, whole, _ = file.read().rpartition(b"\n")
            except OSError:  # the file system of a cluster has moments; there will be another look
                continue
            self._read[path] = self._read.get(path, 0) + len(lines) + len(whole)
            for line in lines.split(b"\n"):
                self._take(line)
        counts, visits = [0, 0], range(self._protocol.visits)
        for written, cells in self._jobs.items():
            if written.exists():
                counts = [counts[0] + len(cells), counts[1] + len(cells) * len(visits)]
                continue
            for planned in cells:
                cell = planned.input_tokens, planned.output_tokens
                made = [
                    rows.is_finished(self._records.get((cell, visit), []), cell, visit, self._protocol)
                    for visit in visits
                ]
                counts = [counts[0] + all(made), counts[1] + sum(made)]
        self.done, self.visits = counts

    def _take(self, line: bytes) -> None:
        """A line of a journal; damaged ones are reported by the job."""
        try:
            record = json.loads(line)
            if record["key"] == self._key and "rows" in record:
                self.energy_j += survey.cost(record, self._boards).energy_j
                seen = {**record, "rows": [{"valid": row["valid"]} for row in record["rows"]]}
                self._records.setdefault((rows.place(record), record["visit"]), []).append(seen)
        except (ValueError, KeyError, TypeError, RecursionError):
            return
