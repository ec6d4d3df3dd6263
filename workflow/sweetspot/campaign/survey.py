"""Cost and progress of a campaign: cells, jobs, GPU hours and joules, from its journals and the simulator.

It only reads, so it is safe to call while jobs run.
"""

import functools
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from math import nan
from pathlib import Path
from statistics import fmean
from typing import Any

from sweetspot import engines
from sweetspot.campaign.campaign import Campaign
from sweetspot.engines.simulated import SimulatedEngine
from sweetspot.files import read_object
from sweetspot.measure import journal, pace, rows, session
from sweetspot.measure.journal import Cell, Place
from sweetspot.sensors.simulated import SimulatedGpu
from sweetspot.table.files import shortened

_SHOWN = 8  # items of a list before the rest is counted
_SEGMENT_PASSES = 4096  # coarse, so that estimating thousands of cells takes no seconds
Job = tuple[str, int, str]  # model, batch, block


@dataclass
class Cost:
    """GPU time in s and energy in J."""

    time_s: float = 0.0
    energy_j: float = 0.0

    def add(self, other: "Cost", times: int = 1) -> None:
        """Add another cost, so many times."""
        self.time_s += times * other.time_s
        self.energy_j += times * other.energy_j

    def __str__(self) -> str:
        """GPU hours and joules, for display."""
        return f"{_number(self.time_s / 3600)} GPU h, {joules(self.energy_j)}"


Simulator = Callable[[Cell, int | None], Cost]
"""The estimated cost of a visit of a cell (its number; None: of the anchor cell) as the protocol plans it."""


@dataclass
class Survey:
    """Progress of a campaign, or of some of its jobs, according to its journals.

    `visited` is the cost of the visits made so far and `simulated` the simulator's estimate for the same visits;
    `spent` adds building and loading engines to `visited`. `left_cost` is simulated.
    """

    campaign: Campaign
    done: int = 0
    spent: Cost = field(default_factory=Cost)
    visited: Cost = field(default_factory=Cost)
    simulated: Cost = field(default_factory=Cost)
    left: dict[Job, int] = field(default_factory=dict)  # cells
    left_cost: dict[Job, Cost] = field(default_factory=dict)
    loads_s: list[float] = field(default_factory=list)
    builds_s: dict[tuple[str, int], float] = field(default_factory=dict)  # by model and batch
    again: int = 0  # cells left that were measured with other settings
    again_cost: Cost = field(default_factory=Cost)
    invalid: Counter[str] = field(default_factory=Counter)  # cells without a valid row, by reasons

    def estimate(self, jobs: Iterable[Job] | None = None) -> Cost:
        """Expected cost of the jobs left, or of some, from the simulator scaled by the cost of measured visits."""
        total, jobs = Cost(), list(self.left if jobs is None else jobs)
        for job in jobs:
            total.add(self.left_cost[job])
        if self.simulated.time_s:
            total.time_s *= self.visited.time_s / self.simulated.time_s
            total.energy_j *= self.visited.energy_j / self.simulated.energy_j
        total.time_s += len(jobs) * (fmean(self.loads_s) if self.loads_s else self.campaign.config.protocol.idle_s)
        if self.builds_s:
            unbuilt = {job[:2] for job in jobs} - self.builds_s.keys()
            total.time_s += len(unbuilt) * fmean(self.builds_s.values())
        return total


def survey(campaign: Campaign, unfinished: bool = False) -> Survey:
    """Survey all jobs, or the `unfinished` ones, which a run of the workflow would do: their rows are not written yet.

    A campaign with `rows` in its configuration has nothing to measure.
    """
    found = Survey(campaign)
    groups: dict[tuple[str, int], list[Job]] = {}
    for job in campaign.jobs if campaign.config.rows is None else ():
        if not (unfinished and campaign.places[job].rows.exists()):
            groups.setdefault(job[:2], []).append(job)
    for (model, batch), members in groups.items():
        _survey_group(found, model, batch, members)
    return found


def headline(found: Survey) -> str:
    """One line for the workflow's log; empty if nothing is left to measure."""
    if not found.left:
        return ""
    return f"To measure: {_left(found)}{simulated_label(found.campaign)}."


def simulated_label(campaign: Campaign) -> str:
    """What must stand beside numbers of a simulated campaign; empty for a measured one."""
    if not engines.is_simulated(campaign.config.engine.name):
        return ""
    return " (SIMULATED: not the hours and joules of a real GPU)"


def left_out(campaign: Campaign) -> str:
    """Which models of the table `select` leaves out; empty if none."""
    if not campaign.left_out:
        return ""
    names = shortened(campaign.left_out, ", ", _SHOWN)
    return f"Not measured, because `select` does not name them: {names} of {campaign.config.models}."


def warning(found: Survey) -> str:
    """What will be measured again, and why; empty if nothing will."""
    if not found.again:
        return ""
    changes = _changes(found.campaign)
    return (
        f"{found.again} cells that are measured already will be MEASURED AGAIN, because settings changed"
        f"{': ' + ', '.join(changes) if changes else ''}. They took {found.again_cost}. To keep them, restore the "
        "settings; the old rows stay in the journal either way."
    )


def as_text(found: Survey) -> str:
    """The whole survey, for display."""
    campaign, cells = found.campaign, found.campaign.cells
    if campaign.config.rows is not None:
        return f"campaign {campaign.config.campaign}: rows come from {campaign.config.rows}; nothing is measured"
    skipped = Counter(f"{cell.model}: {cell.reason}" for cell in cells if cell.status == "skipped")
    lines = [
        f"campaign {campaign.config.campaign} on {campaign.gpu_name}, engine {campaign.config.engine.name}"
        f"{simulated_label(campaign)}",
        f"cells: {len(cells)} of {_counted(len(campaign.models), 'model')} in "
        f"{_counted(len(campaign.config.batches), 'batch', 'es')}; {len(cells) - skipped.total()} to run in "
        f"{_counted(len(campaign.jobs), 'job')}, {skipped.total()} skipped",
        *filter(None, [left_out(campaign)]),
        f"done:  {_counted(found.done, 'cell')}, {found.spent}",
        f"left:  {_left(found)}" if found.left else "left:  nothing",
    ]
    if len({model for model, *_ in found.left}) > 1 or any(campaign.gpus_of_job(job[0]) > 1 for job in found.left):
        lines += [_of_model(found, model) for model in campaign.models if any(job[0] == model for job in found.left)]
    if found.left and campaign.gpu:
        longest = max(found.left, key=lambda job: found.left_cost[job].time_s)
        cost = found.estimate([longest])
        hours = cost.time_s / 3600 / campaign.gpus_of_job(longest[0])
        lines.append(f"       longest job: {_name(longest)}, about {_number(hours)} h")
    if found.again:
        lines += ["", f"warning: {warning(found)}"]
    for title, counts in (("skipped", skipped), ("without a valid repetition", found.invalid)):
        lines += _list(title, [f"{_counted(count, 'cell')} of {what}" for what, count in counts.items()])
    last = {job: _last_line(campaign, job) for job in found.left}
    running = [job for job in last if journal.is_claimed(campaign.places[job], _cells(campaign, job))]
    lines += _list("running; the last line of each log", [f"{_name(job)}: {last[job]}" for job in running])
    ended = [
        f"{_name(job)}: {text}{_of_slurm(campaign, job)}" for job, text in last.items() if text and job not in running
    ]
    lines += _list("started but not done; the last line of each log", ended)
    return "\n".join(lines)


def _of_model(found: Survey, model: str) -> str:
    """What is left of a model, for display, with the GPUs of each of its jobs if those are several."""
    jobs, gpus = [job for job in found.left if job[0] == model], found.campaign.gpus_of_job(model)
    cost = f", about {found.estimate(jobs)}" if found.campaign.gpu else ""
    each = f", {gpus} GPUs each" if gpus > 1 else ""
    cells = _counted(sum(found.left[job] for job in jobs), "cell")
    return f"       {model}: {cells} in {_counted(len(jobs), 'job')}{each}{cost}"


def _survey_group(found: Survey, model: str, batch: int, jobs: list[Job]) -> None:
    campaign = found.campaign
    place, protocol = Place(campaign.directory, model, batch), campaign.config.protocol
    boards = campaign.gpus_of_job(model)
    key = session.key(json.loads(campaign.measure_job(*jobs[0])), campaign.models[model].resolved)
    visits: dict[tuple[Cell, int | None], list[dict[str, Any]]] = {}
    others: dict[Cell, Cost] = {}
    simulated = _simulator(campaign, model, batch)
    if (build_s := _build_s(place)) is not None:
        found.builds_s[model, batch] = boards * build_s
        found.spent.time_s += boards * build_s
    for record in journal.records(place.journals):
        ours = record["key"] == key
        if "load_s" in record and ours:
            found.spent.time_s += boards * record["load_s"]
            found.loads_s.append(boards * record["load_s"])
        if "rows" not in record:
            continue
        cell, took = rows.place(record), cost(record, boards)
        if ours:
            visits.setdefault((cell, record["visit"]), []).append(record)
            found.spent.add(took)
            found.visited.add(took)
            found.simulated.add(simulated(cell, record["visit"]))
        else:
            others.setdefault(cell, Cost()).add(took)
    for job in jobs:
        written, left = campaign.places[job].rows.exists(), 0
        for planned in campaign.jobs[job]:
            cell = planned.input_tokens, planned.output_tokens
            pending = [
                visit
                for visit in range(protocol.visits)
                if not written and not rows.is_finished(visits.get((cell, visit), []), cell, visit, protocol)
            ]
            if pending:
                left += len(pending)
                found.left[job] = found.left.get(job, 0) + 1
                for visit in pending:
                    found.left_cost.setdefault(job, Cost()).add(simulated(cell, visit))
                if cell in others and not any(at == cell for at, _ in visits):
                    found.again += 1
                    found.again_cost.add(others[cell])
            else:
                found.done += 1
                records = (record for visit in range(protocol.visits) for record in visits.get((cell, visit), ()))
                made = [row for record in records for row in record["rows"]]
                if made and not any(row["valid"] for row in made):
                    reasons = sorted({reason for row in made for reason in row["reasons"].split(";") if reason})
                    found.invalid[f"{model} batch {batch}: {', '.join(reasons)}"] += 1
        if left:
            found.left_cost[job].add(_around(campaign, job, left, simulated))


def _around(campaign: Campaign, job: Job, visits: int, simulated: Simulator) -> Cost:
    """What a job costs beyond loading and its visits: the anchor cell, and idle power at the end."""
    protocol = campaign.config.protocol
    cost, every = Cost(campaign.gpus_of_job(job[0]) * protocol.idle_s), protocol.anchor_every
    if every and 2 * visits >= every:
        lengths = sorted(_cells(campaign, job), key=lambda cell: (sum(cell), cell))
        cost.add(simulated(lengths[len(lengths) // 2], None), 2 + (visits - 1) // every)
    return cost


def _build_s(place: Place) -> float | None:
    """How long the engine took to build; None if there is none."""
    try:
        return float(read_object(place.engine / "engine.json")["build_s"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def simulated_spec(campaign: Campaign, model: str, batch: int, longest: int = 0) -> engines.EngineSpec:
    """The simulated engine for a model and batch of the campaign, whatever its engine is."""
    found, config = campaign.models[model], campaign.config
    return engines.EngineSpec(
        *("simulated", found.architecture, found.precision, "none", campaign.gpu_name, batch, longest, longest),
        config.engine.kv_cache_fraction,
        config.seed,
        board=campaign.board,
        **found.row.parallel,
    )


def _simulator(campaign: Campaign, model: str, batch: int) -> Simulator:
    """The simulator's estimates for one model and batch; nan if there is no data sheet to simulate the GPU with."""
    if campaign.gpu is None:
        return lambda cell, visit: Cost(nan, nan)
    boards, device = campaign.gpus_of_job(model), SimulatedGpu(campaign.gpu, campaign.config.seed)
    engine = SimulatedEngine(simulated_spec(campaign, model, batch), device, _SEGMENT_PASSES)

    @functools.cache
    def ran(cell: Cell) -> tuple[float, float]:
        start_s = device.clock.now()
        engine.run(*cell)
        end_s = device.clock.now()
        return end_s - start_s, boards * device.true_energy_j(start_s, end_s) / (end_s - start_s)

    def simulated(cell: Cell, visit: int | None) -> Cost:
        duration_s, power_w = ran(cell)
        time_s = pace.planned_visit_s(duration_s, visit, campaign.config.protocol)
        return Cost(boards * time_s, time_s * power_w)

    return simulated


def cost(record: Mapping[str, Any], boards: int) -> Cost:
    """GPU time of a visit on so many boards, and its energy: its time times the mean power of its windows."""
    powers_w = [row["power_w"] for row in record["rows"] if row["power_w"] is not None]
    took_s = record.get("took_s") or 0.0  # earlier versions did not record it
    return Cost(boards * took_s, took_s * fmean(powers_w) if powers_w else 0.0)


def _left(found: Survey) -> str:
    basis = "by the simulator"
    if found.simulated.time_s:
        basis += f" times {found.visited.time_s / found.simulated.time_s:.2f}, as for the measured cells"
    if not found.loads_s and not engines.is_simulated(found.campaign.config.engine.name):
        basis += "; plus building and loading engines"
    counts = f"{_counted(sum(found.left.values()), 'cell')} in {_counted(len(found.left), 'job')}"
    if found.campaign.gpu is None:
        return (
            f"{counts}; there is no data sheet of {found.campaign.gpu_name!r} here, so their time and energy are not "
            "known, nor which fit its memory, before they are measured; describe the GPU under `board` to plan them"
        )
    return f"{counts}, about {found.estimate()} ({basis})"


def _changes(campaign: Campaign) -> list[str]:
    """The settings that rows depend on and that changed since the last run; empty if unknown."""
    try:
        last = read_object(campaign.directory / "campaign.json")
        before = _settings(last["config"], last["models"])
    except (OSError, ValueError, KeyError, TypeError):
        return []
    record = campaign.record()
    now = _settings(record["config"], record["models"])
    return [f"{name} {old} -> {now[name]}" for name, old in before.items() if name in now and now[name] != old]


def _settings(config: Mapping[str, Any], models: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The settings that rows depend on, by display name; the path of the engine's Python, for example, is not one."""
    found = {f"protocol.{name}": value for name, value in config["protocol"].items()}
    found |= {f"engine.{name}": config["engine"][name] for name in ("name", "kv_cache_fraction")}
    found |= {name: config.get(name) for name in ("gpu", "board", "seed")}
    for model in models:
        found |= {
            f"{name} of {model['name']}": value for name, value in model.items() if name not in ("name", "source")
        }
    return found


def _last_line(campaign: Campaign, job: Job) -> str:
    """The last line of a job's log, or of its engine's."""
    model, batch, block = job
    logs = campaign.directory / "logs"
    for log in (logs / f"measure/{model}/bs{batch}/{block}.log", logs / f"engine/{model}/bs{batch}.log"):
        try:
            lines = log.read_text(errors="replace").splitlines()
        except OSError:
            continue
        if lines:
            return lines[-1]
    return ""


def _of_slurm(campaign: Campaign, job: Job) -> str:
    """Slurm's reason for ending the job's last attempt, if profiles/slurm made it log one."""
    logs = Path(campaign.config.results, "slurm-logs/rule_measure", "_".join(map(str, job))).glob("*.log")
    newest = max(logs, key=lambda log: log.stat().st_mtime, default=None)
    text = newest.read_text(errors="replace") if newest else ""
    errors = re.findall(r"^slurmstepd\S*: error: (.+)", text, re.M) or re.findall(r"died with <Signals\.(\w+)", text)
    return f" (Slurm: {errors[-1].strip('* ')})" if errors else ""


def _cells(campaign: Campaign, job: Job) -> list[Cell]:
    return [(cell.input_tokens, cell.output_tokens) for cell in campaign.jobs[job]]


def _list(title: str, lines: list[str]) -> list[str]:
    return ["", f"{title}:", "  " + shortened(lines, "\n  ", _SHOWN)] if lines else []


def _name(job: Job) -> str:
    return f"{job[0]} batch {job[1]} {job[2]}"


def _counted(count: int, noun: str, plural: str = "s") -> str:
    return f"{count} {noun}{'' if count == 1 else plural}"


def _number(value: float) -> str:
    return f"{value:.3g}" if value < 1000 else f"{value:,.0f}"


def joules(energy_j: float) -> str:
    """An energy with its unit, for display."""
    for unit, size in (("GJ", 1e9), ("MJ", 1e6), ("kJ", 1e3)):
        if energy_j >= size:
            return f"{_number(energy_j / size)} {unit}"
    return f"{_number(energy_j)} J"
