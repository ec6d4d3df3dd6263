"""Keeps rows of different set-ups apart: they are not repetitions of one measurement."""

import numpy as np
import polars as pl
from scipy.stats import f as fisher

from sweetspot.table.readings import BOARDS
from sweetspot.table.schema import CELL, COLUMNS, GROUP
from sweetspot.table.words import folded, meanings
from sweetspot.vocabulary import UNSPECIFIED

_SETUPS = ("dp", "ep", "task", "dataset", "quantization")
_MOST_VALUES = 20  # of another column that may name a set-up; more are times, counters or results
_EXPLAINED, _CHANCE = 0.5, 1e-4  # least share of the scatter within cells, and largest probability that it is chance
_ROWS, _FAR, _LEAST = 3, 10.0, 0.03  # of a mode: fewest rows, distance in standard deviations within modes, relative


def apart(frame: pl.DataFrame) -> tuple[pl.DataFrame, list[str]]:
    """Give each set-up its own engine name, and notes on it.

    A set-up is told by a column that names boards or tasks, or by any that explains the scatter of the energies within
    the cells of a group, as a clock or a power limit does. Our own tables record what a campaign kept the same.
    """
    notes = []
    ours = "energy_j_per_gpu" in frame.columns
    for name in [name for name, kind in frame.schema.items() if not kind.is_nested() and not name.startswith("_")]:
        if ours and name == "gpus":
            continue  # it repeats what `parallelism` says
        named_so = folded(name) in _SETUPS or any(one.quantity in BOARDS for one in meanings(name))
        if not named_so and (ours or name in COLUMNS):
            continue
        cells = frame.filter("valid").group_by(*GROUP, *CELL).agg(_values=pl.col(name).n_unique())
        mixed = cells.filter(pl.col("_values") > 1).select(*GROUP).unique()
        share = 0.0
        if not named_so:
            shares = [_explained(frame.filter(is_among(frame, mixed[[i]])), name) for i in range(mixed.height)]
            mixed, share = mixed.filter(pl.Series(shares, dtype=pl.Float64) > 0), max(shares, default=0.0)
        if not mixed.height:
            continue
        value = pl.concat_str(pl.lit(f"{name}="), pl.col(name).cast(pl.String).fill_null("unknown"))
        engine = pl.when(pl.col("engine") == UNSPECIFIED).then(value).otherwise(pl.col("engine") + " " + value)
        frame = frame.with_columns(engine=pl.when(is_among(frame, mixed)).then(engine).otherwise("engine"))
        why = f", which explain {share:.0%} of the scatter within cells" if share else ""
        notes.append(f'cells have several values of {name}{why}: each is kept apart, as engine "… {name}=…"')
    return frame, notes


def is_among(frame: pl.DataFrame, groups: pl.DataFrame) -> pl.Series:
    """Which rows are of one of the groups."""
    marked = groups.select(*GROUP, _among=True)
    return frame.join(marked, on=GROUP, how="left", nulls_equal=True, maintain_order="left")["_among"].fill_null(False)


def _explained(frame: pl.DataFrame, name: str) -> float:
    """The share of the energies' scatter within cells that a column explains; 0 if that may be chance.

    A one-way analysis of variance of the logarithms of the energies, after the mean of each cell.
    """
    log, cell = pl.col("energy_j").log(), [*GROUP, *CELL]
    rows = frame.filter("valid").filter(pl.len().over(cell) > 1)
    rows = rows.select(*cell, off=log - log.mean().over(cell), value=pl.col(name).cast(pl.String).fill_null(""))
    values, cells = rows["value"].n_unique(), rows.select(cell).n_unique()
    freedom = rows.height - cells - values + 1
    total = float((rows["off"] ** 2).sum())
    if not 2 <= values <= _MOST_VALUES or freedom < 1 or total <= 0:
        return 0.0
    between = float(rows.group_by("value").agg(part=pl.len() * pl.col("off").mean() ** 2)["part"].sum())
    ratio = between / (values - 1) / max((total - between) / freedom, 1e-300)
    chance = fisher.sf(ratio, values - 1, freedom)
    return between / total if between > _EXPLAINED * total and chance < _CHANCE else 0.0


def two_modes(frame: pl.DataFrame) -> list[str]:
    """A doubt about the first cell whose repetitions lie around two energies, if there is one."""
    cells = frame.filter("valid").group_by(*GROUP, *CELL, maintain_order=True).agg(pl.col("energy_j").sort().log())
    for row in cells.filter(pl.col("energy_j").list.len() >= 2 * _ROWS).iter_rows(named=True):
        logs = np.array(row["energy_j"])
        split = int(np.argmax(np.diff(logs))) + 1
        low, high = logs[:split], logs[split:]
        within = np.sqrt((len(low) * low.var() + len(high) * high.var()) / (len(logs) - 2))
        if min(len(low), len(high)) >= _ROWS and high.mean() - low.mean() > max(_LEAST, _FAR * within):
            return [
                f"batch {row['batch']}, {row['input_tokens']} -> {row['output_tokens']} tokens: {len(low)} rows lie "
                f"around {np.exp(low.mean()):.4g} J and {len(high)} around {np.exp(high.mean()):.4g} J: two set-ups "
                "that no column tells apart?"
            ]
    return []
