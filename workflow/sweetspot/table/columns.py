"""Maps the columns of a table to ours: common headers, the units they state, `--map` and `--set`."""

import difflib
import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import polars as pl

from sweetspot.errors import SweetspotError
from sweetspot.parallelism import Parallelism
from sweetspot.table.batch_energy import folded, whole_batch
from sweetspot.table.files import renamed
from sweetspot.table.schema import CELL, GROUP, Row
from sweetspot.vocabulary import UNSPECIFIED

_COLUMNS = Row.to_schema().columns
_REQUIRED = [name for name, column in _COLUMNS.items() if "default" not in (column.metadata or {})]
SETTABLE = [*GROUP, "batch", "source"]
_KEPT = ("_file", "_row")

# Unambiguous headers, folded.
_ALIASES = {
    "model": ("modelname", "modelid", "llm", "llmname"),
    "batch": ("batchsize", "bs", "maxbatchsize"),
    "input_tokens": (
        *("nin", "inputlen", "inputlength", "inputseqlen", "inputsequencelength", "numinputtokens", "ninputtokens"),
        *("prompttokens", "promptlen", "promptlength", "numprompttokens", "isl", "tauin", "inputsize"),
    ),
    "output_tokens": (
        *("nout", "outputlen", "outputlength", "outputseqlen", "outputsequencelength", "numoutputtokens"),
        *("noutputtokens", "completiontokens", "numcompletiontokens", "generatedtokens", "numgeneratedtokens"),
        *("newtokens", "maxnewtokens", "osl", "tauout", "outputsize"),
    ),
    "energy_j": ("energy", "totalenergy", "joules", "energyjoules", "totalenergyj", "totalenergyjoules", "gpuenergyj"),
    "duration_s": (
        *("duration", "durationsec", "durationseconds", "latencys", "latencysec", "latencyseconds", "runtimes"),
        *("times", "timesec", "timeseconds", "elapseds", "elapsedseconds", "totaltimes", "e2elatencys"),
    ),
    "gpu": ("gpuname", "gpumodel", "gputype", "hardware", "accelerator", "device", "devicename"),
    "engine": ("backend", "framework", "inferenceengine", "servingengine", "inferenceframework"),
    "precision": ("dtype", "datatype", "weightprecision", "weightsdtype"),
    "repetition": ("rep", "repeat", "replicate", "trial"),
    "experts": ("numexperts", "nexperts", "numlocalexperts"),
    "experts_per_token": ("numexpertspertok", "numexpertspertoken", "expertspertok", "activeexperts"),
}
# Ambiguous headers: suggested in error messages, never used without --map.
_HINTS = {
    "batch": ("concurrency", "numrequests", "numprompts"),
    "input_tokens": ("n", "in", "input", "prompt"),
    "output_tokens": ("m", "out", "output", "completion"),
    "energy_j": ("j", "energyconsumed", "gpuenergy"),
}
# Folded headers of set-ups: rows with different values are not repetitions of one measurement.
_BOARDS = (
    *("ngpu", "ngpus", "numgpus", "gpucount", "gpus", "tp", "tpsize", "tensorparallel", "tensorparallelsize"),
    *("pp", "ppsize", "pipelineparallel", "pipelineparallelsize", "dp", "ep"),
)
_SETUPS = (*_BOARDS, "task", "dataset", "quantization")
_BASES = {
    "energy_j": ("energy", "totalenergy", "gpuenergy"),
    "duration_s": ("duration", "latency", "runtime", "time", "elapsed", "totaltime", "e2elatency"),
}
_UNITS = {
    "energy_j": {"wh": 3600.0, "kwh": 3.6e6, "kj": 1e3, "mJ": 1e-3, "MJ": 1e6},
    "duration_s": {"ms": 1e-3, "min": 60.0},
}


def named(
    raws: Sequence[tuple[Path, pl.DataFrame]], rename: Mapping[str, str], constants: Mapping[str, str]
) -> tuple[list[pl.DataFrame], list[str]]:
    """Each file's frame with our column names and units, and notes on what was renamed or converted.

    Applies `rename` (theirs to ours), then unambiguous headers for columns still missing, then `constants` (one value
    for every row). Raises SweetspotError if a required column is missing or several columns could be it.
    """
    for ours, value in constants.items():
        if ours not in SETTABLE:
            raise SweetspotError(f"--set {ours}={value}: only {', '.join(SETTABLE)} can be the same in every row")
    frames = []
    said: dict[str, None] = {}
    for (path, _), mapped in zip(raws, renamed(raws, rename), strict=True):
        theirs, notes = _found(path, mapped, rename, constants)
        said |= dict.fromkeys(notes)
        frame = mapped.rename({column: ours for ours, column in theirs.items() if column != ours})
        for ours, column in (theirs | {ours: there for there, ours in rename.items() if ours in _UNITS}).items():
            _check_millijoules(path, column)
            factor, unit = _factor(ours, column)
            if factor != 1 and ours in frame.columns:
                number = pl.col(ours).cast(pl.Float64, strict=False) * factor
                # A value that is not a number stays, so that its row is reported.
                text = pl.col(ours).cast(pl.String)
                frame = frame.with_columns(pl.coalesce(number.cast(pl.String), text).alias(ours))
                said[f"{column} is in {unit} by its name: multiplied by {factor:g} for {ours}"] = None
        for ours, value in constants.items():
            if ours in frame.columns:
                raise SweetspotError(
                    f"{path}: --set {ours}={value}, but there is already a column {ours!r}; remove one of them"
                )
            frame = frame.with_columns(pl.lit(value).alias(ours))
        frame, notes = whole_batch(path, frame)
        said |= dict.fromkeys(notes)
        _check_missing(path, frame)
        frames.append(frame)
    return frames, list(said)


def apart(frame: pl.DataFrame) -> tuple[pl.DataFrame, list[str]]:
    """Keep rows of different set-ups apart by giving each its own engine name; also returns notes.

    Two GPU counts or two tasks in one cell are not repetitions of one measurement.
    """
    notes = []
    columns = [name for name in frame.columns if folded(name) in _SETUPS and not _is_said(frame, name)]
    for name in [name for name in columns if not frame[name].dtype.is_nested()]:
        cells = frame.filter("valid").group_by(*GROUP, *CELL).agg(_values=pl.col(name).n_unique())
        mixed = cells.filter(pl.col("_values") > 1).select(GROUP).unique().with_columns(_mixed=True)
        if not mixed.height:
            continue
        value = pl.concat_str(pl.lit(f"{name}="), pl.col(name).cast(pl.String).fill_null("unknown"))
        named = pl.when(pl.col("engine") == UNSPECIFIED).then(value).otherwise(pl.col("engine") + " " + value)
        marked = frame.join(mixed, on=GROUP, how="left", nulls_equal=True, maintain_order="left")
        frame = marked.with_columns(engine=pl.when("_mixed").then(named).otherwise("engine")).drop("_mixed")
        notes.append(f'cells have several values of {name}: each is kept apart, as engine "… {name}=…"')
    return frame, notes


def tells_boards(frame: pl.DataFrame) -> bool:
    """Whether a column other than `parallelism` says on how many GPUs each row ran."""
    return any(folded(column) in _BOARDS and not _is_said(frame, column) for column in frame.columns)


def boards(frame: pl.DataFrame) -> pl.Series:
    """The number of GPUs of each row by its `parallelism`; 1 if that is not understood, as in rows set aside."""
    counts = {}
    for label in frame["parallelism"].unique():
        with suppress(SweetspotError):
            counts[label] = Parallelism.parse(label).gpus
    return frame["parallelism"].replace_strict(counts, default=1, return_dtype=pl.Int64)


def _is_said(frame: pl.DataFrame, column: str) -> bool:
    """Whether a column only repeats what `parallelism` says, as `gpus` does in our own tables."""
    return column == "gpus" and "energy_j_per_gpu" in frame.columns


def _found(
    path: Path, frame: pl.DataFrame, rename: Mapping[str, str], constants: Mapping[str, str]
) -> tuple[dict[str, str], list[str]]:
    """Our columns that `frame` has under another name, as ours to theirs, and notes on them."""
    spare = [column for column in frame.columns if column not in _COLUMNS and column not in _KEPT]
    theirs: dict[str, str] = {}
    for ours in _COLUMNS:
        if ours in frame.columns or ours in constants:
            continue
        found = [column for column in spare if folded(column) == folded(ours)] or [
            column for column in spare if folded(column) in _ALIASES.get(ours, ()) or _factor(ours, column)[0] != 1
        ]
        if len(found) > 1 and ours in _REQUIRED:
            raise SweetspotError(
                f"{path}: {' and '.join(found)} could all be {ours}; choose one with --map "
                + shlex.quote(f"{found[0]}={ours}")
            )
        if len(found) == 1:
            theirs[ours] = found[0]
        elif ours == "energy_j":
            for column in spare:
                _check_millijoules(path, column)
    read = [f"{column} as {ours}" for ours, column in theirs.items() if folded(column) != folded(ours)]
    return theirs, [f"read {', '.join(read)}; change this with --map THEIRS=OURS"] if read else []


def _factor(ours: str, header: str) -> tuple[float, str]:
    """The factor that converts a column to ours if its name states another unit, and that unit."""
    plain = folded(header)
    for unit, factor in _UNITS.get(ours, {}).items():
        if plain in [base + unit.casefold() for base in _BASES[ours]]:
            if unit.casefold() == "mj" and unit not in header:  # mJ and MJ are nine orders apart
                continue
            return factor, unit.replace("wh", "Wh").replace("kj", "kJ")
    return 1.0, ""


def _check_millijoules(path: Path, header: str) -> None:
    if "mJ" not in header and "MJ" not in header and folded(header) in [f"{base}mj" for base in _BASES["energy_j"]]:
        raise SweetspotError(
            f"{path}: column {header} may be millijoules or megajoules; name it energy_mJ or energy_MJ in the file"
        )


def _check_missing(path: Path, frame: pl.DataFrame) -> None:
    missing = [name for name in _REQUIRED if name not in frame.columns]
    if not missing:
        return
    there = [column for column in frame.columns if column not in _KEPT]
    spare = [column for column in there if column not in _COLUMNS]
    remedies = []
    for number, name in enumerate(missing, 1):
        theirs = _likely(name, spare)
        if theirs is None and name in SETTABLE:
            remedies.append(f"--set {name}={'1' if name == 'batch' else 'NAME'}")
        else:
            remedies.append("--map " + shlex.quote(f"{theirs or f'THEIRS_{number}'}={name}"))
    raise SweetspotError(
        f"{path}: column{'s' * (len(missing) > 1)} {', '.join(missing)} missing; there are {', '.join(there)}; "
        f"add {' '.join(remedies)} (--map renames a column of the table, --set gives all rows one value)"
    )


def _likely(name: str, columns: Sequence[str]) -> str | None:
    plain = {folded(column): column for column in columns}
    known = [alias for alias in (*_ALIASES[name], *_HINTS.get(name, ())) if alias in plain]
    close = known or difflib.get_close_matches(folded(name), plain, n=1, cutoff=0.7)
    return plain[close[0]] if close else None
