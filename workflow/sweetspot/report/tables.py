"""The tables of the report, each as text with units, or None where there is nothing to show."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import polars as pl

from sweetspot.fit.heldout import SCHEMES
from sweetspot.measure.protocol import Protocol
from sweetspot.predict.laws import FORMS, LAWS
from sweetspot.report import words
from sweetspot.report.results import Results, chosen_fits, coverage, of_chosen_law
from sweetspot.report.words import Group, listed, number, percent, tokens
from sweetspot.table.schema import CELL, GROUP
from sweetspot.vocabulary import LEVEL, ONE_GPU, UNSPECIFIED

_ROLES = {
    "paper-6": "the paper's",
    "wilkins": "baseline",
    "linear": "baseline",
    "tdp-time": "baseline",
    "across-models": "for unseen models",
}
_SHORT = {  # for a narrow table, which must not break at a hyphen
    "in-sample": "in‑sample",
    "5-fold": "held‑out 5‑fold",
    "leave-one-length-out": "held‑out length",
    "leave-one-batch-out": "held‑out batch",
    "leave-one-model-out": "held‑out model",
}


@dataclass(frozen=True)
class Table:
    """A table of text. The first `text` columns are words, the others numbers; `strong` rows stand out."""

    caption: str
    head: list[str]
    rows: list[list[str]]
    text: int = 1
    strong: tuple[int, ...] = ()


def provenance(results: Results) -> Table:
    """What was run and on what."""
    rows, means, predictor, campaign = results.rows, results.means, results.predictor, results.campaign
    facts: list[tuple[str, Any]] = [
        ("Campaign", campaign.get("campaign")),
        ("Source of the rows", _distinct(rows, "source")),
        ("Rows", f"{rows.height:,}, {int(rows['valid'].sum()):,} of them valid"),
        ("Cells with a valid row", f"{means.height:,}"),
        ("Models", str(rows["model"].n_unique())),
        ("Input tokens", listed(sorted(set(rows["input_tokens"])))),
        ("Output tokens", listed(sorted(set(rows["output_tokens"])))),
        ("Batches (equal requests in flight)", listed(sorted(set(rows["batch"])))),
        ("GPU", _distinct(rows, "gpu")),
        ("GPU driver", _distinct(rows, "driver_version")),
        ("Engine", _distinct(rows, "engine")),
        ("Engine version", _distinct(rows, "engine_version")),
        ("Precision", _distinct(rows, "precision")),
        ("Parallelism", _distinct(rows, "parallelism")),
        ("Weights", _distinct(rows, "weights")),
        ("Temperature", _span(rows, "temperature_c", "°C")),
        ("SM clock", _span(rows, "sm_clock_mhz", "MHz")),
        ("Idle power, context and weights loaded", _span(rows, "idle_w", "W")),
        ("Random seed", campaign.get("config", {}).get("seed")),
        ("Fitted by", predictor.get("created_by")),
        ("Run by", f"sweetspot {campaign.get('sweetspot_version')}" if campaign else None),
        ("Python", campaign.get("python")),
        ("Platform", campaign.get("platform")),
    ]
    shown = [[name, str(value)] for name, value in facts if value not in (None, "")]
    return Table("Provenance", ["what", "value"], shown, text=2)


def measured_on(results: Results) -> str:
    """One line: GPU, engine, precision, parallelism, models, batches, and the numbers of cells and repetitions."""
    rows, means = results.rows, results.means
    facts = [
        _distinct(rows, "gpu"),
        " ".join(filter(None, (_distinct(rows, "engine"), _distinct(rows, "engine_version")))),
        _distinct(rows, "precision"),
        _distinct(rows, "parallelism"),
        f"{rows['model'].n_unique()} models" if rows["model"].n_unique() > 1 else listed(rows["model"].unique()),
        f"batch {listed(sorted(set(rows['batch'])))}",
        f"{means.height:,} cells",
        f"{rows.height:,} repetitions, {rows.height - int(rows['valid'].sum()):,} of them invalid",
    ]
    return " · ".join(fact for fact in facts if fact)


def architectures(campaign: Mapping[str, Any]) -> Table | None:
    """The models of the campaign and where their dimensions come from."""
    rows = [
        [str(model.get(key, "–")) for key in ("name", "family", "attention", "precision", "source")]
        + [f"{number(model['parameters'] / 1e9)} × 10⁹" if model.get("parameters") else "–"]
        + [str(model.get(key, "–")) for key in ("layers", "hidden", "heads", "kv_heads")]
        for model in campaign.get("models", [])
    ]
    head = ["model", "family", "attention", "precision", "source of its dimensions", "parameters"]
    head += ["layers", "hidden size", "heads", "KV heads"]
    return Table("Models", head, rows, text=5) if rows else None


def protocol(campaign: Mapping[str, Any]) -> Table | None:
    """The numbers of the measurement protocol, with what they mean."""
    values: Mapping[str, Any] = campaign.get("config", {}).get("protocol", {})
    meaning = {field.name: str(field.metadata.get("description", "")) for field in fields(Protocol)}
    rows = [[key, meaning.get(key, "").replace("`", ""), str(value)] for key, value in values.items()]
    return Table("Measurement protocol", ["setting", "meaning", "value"], rows, text=2) if rows else None


def coefficients(group: Group) -> Table | None:
    """Coefficients of the chosen law with their standard errors and units."""
    fits = chosen_fits(group)
    if not fits:
        return None
    law = LAWS[group["law"]]
    caption = (
        f"Coefficients of {law.name}: {law.formula.replace('^2', '²')} (E in J per output token, ± standard error)"
    )
    head = ["term", "multiplies", "meaning", "unit"]
    head += ["value" if fit["batch"] is None else f"batch {fit['batch']}" for fit in fits]
    rows = []
    for term in law.terms:
        values = [_coefficient(fit, term.name) for fit in fits]
        rows.append([term.name, term.multiplies, term.meaning, FORMS[term.form].unit, *values])
    return Table(caption, head, rows, text=4)


def sweet_spots(group: Group) -> Table | None:
    """m* by input length and batch, or why there is none."""
    spots = {(spot["input_tokens"], spot["batch"]): spot for spot in group.get("sweet_spots", [])}
    if not spots:
        return None
    batches, inputs = sorted({batch for _, batch in spots}), sorted({n for n, _ in spots})
    rows = [[f"{n:,}", *(_spot(spots.get((n, batch))) for batch in batches)] for n in inputs]
    head = ["input tokens", *(f"batch {batch}" for batch in batches)]
    caption = "Sweet spots m*, output tokens, with the plateau within 1 % (in brackets: outside the measured replies)"
    if any(spot["status"] == "not identified" for spot in spots.values()):
        caption += ". Not identified: the measured cells do not determine it"
    return Table(caption, head, rows, text=0)


def latency(results: Results) -> Table | None:
    """Errors of the latency laws, for each model."""
    of = {"ttft": "time to first token", "tpot": "time per further token"}
    which = {"mean": "mean", "p95": "95th percentile"}
    shown = {f"{what}_{one}_s": f"{of[what]}, {which[one]}" for what in of for one in which}
    held_out = ("5-fold", "leave-one-length-out", "leave-one-batch-out")
    rows = []
    for group, name in zip(results.groups, results.names, strict=True):
        for latency_name, words_ in shown.items():
            if fit := group.get("latency", {}).get(latency_name):
                errors = [fit["in_sample_mape_percent"], *(fit["held_out_mape_percent"][scheme] for scheme in held_out)]
                rows.append([name, words_, *map(percent, errors)])
    head = ["model", "latency", *(scheme_words(scheme) for scheme in ("in-sample", *held_out))]
    return Table("Latency laws: MAPE over cell means", head, rows, text=2) if rows else None


def accuracy_overview(results: Results) -> Table | None:
    """Mean MAPE over the models by law and scheme: the chosen laws, the paper's form, the baselines."""
    errors = results.validation.filter(pl.col("mape_percent").is_not_null())
    schemes = _present(errors)
    chosen = of_chosen_law(errors, results.groups)
    covered = coverage(of_chosen_law(results.validation, results.groups)).filter(pl.col("scheme") == "5-fold")
    shown = [law for law in dict.fromkeys([*_ROLES, *errors["law"]]) if law in _ROLES or law not in LAWS]
    parts = [(f"{law} ({_ROLES.get(law, 'baseline')})", errors.filter(pl.col("law") == law)) for law in shown]
    rows = []
    most = sum(bool(group.get("law")) for group in results.groups)
    for name, part in [("chosen law", chosen), *parts]:
        values = [part.filter(pl.col("scheme") == scheme)["mape_percent"].to_list() for scheme in schemes]
        if any(values):  # the law across models needs several models
            rows.append([name, *(_mean(v, most).replace(" %", "") for v in values)])
    if not schemes or not chosen.height:
        return None
    caption = f"MAPE in %, mean of {most} models" if most > 1 else "MAPE in %"
    caption += f" (the paper's 13: {words.PAPER_MAPE_PERCENT}, scheme not known to us)"
    if covered.height:
        held = covered["coverage_percent"].to_list()
        caption += f"; {LEVEL} intervals cover {number(sum(held) / len(held))} % of held-out cells (5-fold)"
    return Table(caption, ["law", *(_SHORT[scheme] for scheme in schemes)], rows, strong=(0,))


def _present(validation: pl.DataFrame) -> list[str]:
    return [scheme for scheme in SCHEMES if scheme in set(validation["scheme"])]


def _mean(mapes: Sequence[float], most: int) -> str:
    """The mean, with the number of models if that is not all of them."""
    if not mapes:
        return "–"
    return percent(sum(mapes) / len(mapes)) + (f" ({len(mapes)} of {most})" if len(mapes) < most else "")


def accuracy_of(validation: pl.DataFrame, law: str | None) -> Table | None:
    """MAPE of one group by law and scheme."""
    present = _present(validation)
    mape = {(row["law"], row["scheme"]): row["mape_percent"] for row in validation.iter_rows(named=True)}
    laws = [name for name in LAWS if any((name, scheme) in mape for scheme in present)]
    rows = [[name, *(percent(mape.get((name, scheme))) for scheme in present)] for name in laws]
    head = ["law", *(scheme_words(scheme) for scheme in present)]
    strong = (laws.index(law),) if law in laws else ()
    return Table("MAPE by law and scheme", head, rows, strong=strong) if rows else None


def accuracy_notes(validation: pl.DataFrame) -> list[str]:
    """Notes on the errors given for one group, such as cells that no fit could predict."""
    given = validation.filter(pl.col("mape_percent").is_not_null(), pl.col("law") != "tdp-time")
    rows = given.filter(pl.col("note").cast(pl.String).fill_null("") != "").iter_rows(named=True)
    return [f"{row['law']}, {scheme_words(row['scheme'])}: {row['note']}" for row in rows]


def scheme_words(scheme: str) -> str:
    """The name of a scheme, with whether its cells were held out."""
    return "in-sample" if scheme == "in-sample" else f"held-out: {scheme}"


def worst_predicted(results: Results) -> Table | None:
    """The ten cells with the largest errors, by the chosen laws fitted without them."""
    name_of = {
        tuple(group[key] for key in GROUP): name for group, name in zip(results.groups, results.names, strict=True)
    }
    tokens = pl.col("batch") * pl.col("output_tokens")
    worst = results.held_out.with_columns(
        measured=pl.col("energy_j") / tokens, predicted=pl.col("predicted_j") / tokens
    )
    rows = [
        [
            name_of[tuple(row[key] for key in GROUP)],
            *(f"{row[key]:,}" for key in CELL),
            number(row["measured"]),
            number(row["predicted"]),
            percent(row["ape_percent"]),
        ]
        for row in worst.sort("ape_percent", descending=True, maintain_order=True).head(10).iter_rows(named=True)
    ]
    head = ["model", "batch", "input tokens", "output tokens"]
    head += ["measured, J/token", "predicted, J/token", "error"]
    return Table("The ten worst predicted cells (held-out, 5-fold, chosen law)", head, rows) if rows else None


def _distinct(rows: pl.DataFrame, column: str) -> str:
    values = [] if column not in rows.columns else sorted({str(v) for v in rows[column].drop_nulls()} - {UNSPECIFIED})
    return "" if values == [ONE_GPU] else ", ".join(values)


def _span(rows: pl.DataFrame, column: str, unit: str) -> str:
    values = [] if column not in rows.columns else rows[column].drop_nulls().to_list()
    if not values:
        return ""
    low, high = number(min(values)), number(max(values))
    return f"{low} {unit}" if low == high else f"{low} to {high} {unit}"


def _spot(spot: Mapping[str, Any] | None) -> str:
    if spot is None:
        return "–"
    if spot["status"] == "interior":
        return f"{tokens(spot['output_tokens'])}, {tokens(spot['plateau_low'])}–{tokens(spot['plateau_high'])}"
    return f"({tokens(spot['output_tokens'])})" if spot["output_tokens"] else str(spot["status"])


def _coefficient(fit: Mapping[str, Any], name: str) -> str:
    term = fit["terms"][name]
    value, error = term["value"], term["standard_error"]
    if term["from_prior"]:
        return f"{number(value)} (not determined)"
    if term["at_bound"]:
        return f"{number(value)} (at its bound)"
    exponent = math.floor(math.log10(max(abs(value), error)))
    exponent = 0 if -3 <= exponent < 5 else exponent
    decimals = max(0, 1 - math.floor(math.log10(error / 10.0**exponent)))
    text = f"{value / 10.0**exponent:.{decimals}f} ± {error / 10.0**exponent:.{decimals}f}"
    return f"({text}) {number(10.0**exponent, 1).removeprefix('1 ')}" if exponent else text
