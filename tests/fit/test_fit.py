"""Fitting: known coefficients come back, bad designs invent nothing."""

import itertools
from typing import Any

import numpy as np
import polars as pl
import pytest

from energies import BATCHES, GRID, TRUTH, measured, spot_of
from sweetspot.errors import SweetspotError
from sweetspot.fit.choice import choose
from sweetspot.fit.fit import fit_table
from sweetspot.fit.heldout import HeldOut
from sweetspot.fit.solve import Points
from sweetspot.predict.laws import LAWS, per_token


def values(fit: dict[str, Any]) -> dict[str, float]:
    return {name: term["value"] for name, term in fit["terms"].items()}


@pytest.mark.parametrize("law", TRUTH)
def test_exact_energies_give_the_coefficients_back(fitted: Any, law: str) -> None:
    group = fitted(measured(law, batches=BATCHES if LAWS[law].has_batch_terms else (8,)))
    (fit,) = group["laws"][law]
    if not LAWS[law].needs_experts:  # y and z are nearly one function of the batch
        assert values(fit) == pytest.approx(TRUTH[law], rel=0.01)  # what the priors pull
    assert fit["in_sample_mape_percent"] < 0.01
    if LAWS[law].predicts:  # a baseline never does: its predictions may fall where energies cannot
        assert group["law"] == law  # and the law that made the table is the one chosen


@pytest.mark.parametrize("law", ["steps-5", "steps-8"])
@pytest.mark.parametrize("seed", range(5))
def test_noisy_energies_give_them_back_within_their_errors(fitted: Any, law: str, seed: int) -> None:
    (fit,) = fitted(measured(law, batches=BATCHES if law == "steps-8" else (8,), noise=0.02, seed=seed))["laws"][law]
    for name, term in fit["terms"].items():
        if not term["at_bound"]:
            assert abs(term["value"] - TRUTH[law][name]) < 4 * term["standard_error"], name
    assert fit["relative_residual_sd"] == pytest.approx(0.02, rel=0.25)


def test_the_fit_minimises_relative_errors(fitted: Any) -> None:
    """One cell is off by 50 %. It is the cheapest: absolute weights would not see it, relative ones must."""
    frame = measured("linear", inputs=(64, 512, 4096), outputs=(64, 512, 4096))
    cheapest = (pl.col("input_tokens") == 64) & (pl.col("output_tokens") == 64)
    frame = frame.with_columns(pl.when(cheapest).then(pl.col("energy_j") * 1.5).otherwise("energy_j"))
    (fit,) = fitted(frame)["laws"]["linear"]
    n, m, b = (frame[name].to_numpy().astype(float) for name in ("input_tokens", "output_tokens", "batch"))
    request = frame["energy_j"].to_numpy() / b
    features = np.stack([np.ones_like(n), n, m], axis=1)
    by_hand = np.linalg.lstsq(features / request[:, None], np.ones(len(n)))[0]
    assert list(values(fit).values()) == pytest.approx(by_hand, rel=1e-6)
    assert values(fit)["c0"] != pytest.approx(TRUTH["linear"]["c0"], rel=0.5)


def test_coefficients_at_their_bound_are_marked(fitted: Any) -> None:
    group = fitted(measured(values=TRUTH["steps-5"] | {"t2": -1e-5}))
    (fit,) = group["laws"]["steps-5"]
    term = fit["terms"]["t2"]
    assert (term["value"], term["at_bound"]) == (0.0, True)
    assert 49 - 5 <= fit["degrees_of_freedom"] <= 49
    assert not fit["terms"]["t3"]["at_bound"]
    assert {spot["status"] for spot in group["sweet_spots"]} == {"no interior minimum"}
    (fit,) = fitted(measured("paper-6", values=TRUTH["paper-6"] | {"t5": -20.0}))["laws"]["paper-6"]
    assert (fit["terms"]["t5"]["value"], fit["terms"]["t5"]["at_bound"]) == (pytest.approx(-20, rel=0.01), False)


def test_covariance_is_of_the_terms_in_their_order(fitted: Any) -> None:
    (fit,) = fitted(measured(noise=0.02))["laws"]["steps-5"]
    assert list(fit["terms"]) == [term.name for term in LAWS["steps-5"].terms]
    errors = [term["standard_error"] or 0.0 for term in fit["terms"].values()]
    assert np.sqrt(np.diag(fit["covariance"])) == pytest.approx(errors)


def test_several_batches(fitted: Any) -> None:
    group = fitted(measured("steps-8", batches=BATCHES, noise=0.02))
    assert group["law"] == "steps-8"
    assert group["batches"] == list(BATCHES)
    assert [fit["batch"] for fit in group["laws"]["steps-8"]] == [None]
    assert [fit["batch"] for fit in group["laws"]["steps-5"]] == list(BATCHES)
    assert {spot["batch"] for spot in group["sweet_spots"]} == set(BATCHES)
    assert len(group["sweet_spots"]) == len(BATCHES) * len(GRID)


def test_batches_that_follow_no_batch_law_keep_their_own_coefficients(fitted: Any) -> None:
    parts = [
        measured(batches=(batch,), values={**TRUTH["steps-5"], "t0": t0})
        for batch, t0 in ((1, 1.0), (8, 3.0), (32, 0.5))
    ]
    assert fitted(pl.concat(parts))["law"] == "steps-5"


def test_a_law_that_covers_every_cell_goes_before_one_that_does_not(fitted: Any) -> None:
    group = fitted(pl.concat([measured(batches=(1,)), measured(cells=[(512, 512, 32)])]))
    assert "skipped" in group["laws"]["steps-5"][1]
    assert group["law"] == "steps-8"


def test_the_simpler_law_is_chosen_where_it_is_as_good(fitted: Any) -> None:
    group = fitted(measured("linear", noise=0.02, seed=3))
    assert group["law"] == "steps-5"
    assert "MAPE" in group["chosen_because"]


def test_a_law_that_a_scheme_cannot_judge_does_not_win_by_that(as_table: Any) -> None:
    """By 5-fold three are as good. Leaving lengths out judges two of them, worse than one that 5-fold drops."""
    points = Points.of(as_table(measured()).frame.with_columns(waves=pl.lit(1.0), experts=None, experts_per_token=None))
    nothing, noise = np.full(len(points), np.nan), np.linspace(-1, 1, len(points))

    def folds(percent: float, cells: int = 49) -> list[HeldOut]:
        wrong = 1 + (percent + 0.3 * noise) / 100
        predicted = np.where(np.arange(len(points)) < cells, points.target * wrong, np.nan)
        return [HeldOut("all", np.ones(len(points), dtype=bool), predicted, nothing, nothing, {})]

    def of(five_fold: float, lengths: list[HeldOut]) -> dict[str, list[HeldOut]]:
        return {
            "5-fold": folds(five_fold),
            "leave-one-length-out": lengths,
            "leave-one-batch-out": [],
            "leave-one-model-out": [],
        }

    held_out = {
        "steps-5": of(4.0, folds(8.0)),
        "steps-8": of(4.05, folds(8.2, cells=20)),
        "experts-10": of(4.09, folds(0.0, cells=0)),
        "skewed-9": of(6.0, folds(6.0)),
    }
    fits = {name: [{"batch": None, "terms": [term.name for term in LAWS[name].terms]}] for name in held_out}
    name, because = choose(fits, held_out, points)
    assert name == "steps-5"
    assert "leave-one-length-out 8 % (lowest: skewed-9 6 %)" in because
    del held_out["steps-5"], fits["steps-5"]
    name, because = choose(fits, held_out, points)
    assert name == "steps-8"
    assert "over 20 of 49 cells (lowest: skewed-9 6" in because
    assert "over the 20 cells that both predict" in because


def test_six_cells(fitted: Any) -> None:
    group = fitted(measured("wilkins", inputs=(64, 512, 2048), outputs=(128, 1024), noise=0.01))
    assert group["law"] == "steps-5"
    assert group["cells"] == 6
    assert "leave-one-cell-out" in group["chosen_because"]
    assert all(fit.get("degrees_of_freedom", 1) >= 1 for fits in group["laws"].values() for fit in fits)


def test_a_law_with_priors_needs_two_cells_and_a_baseline_one_more_than_it_has_coefficients(fitted: Any) -> None:
    cells = list(itertools.product((64, 512, 2048), (128, 1024, 4096), (8,)))
    laws = fitted(measured(cells=cells[:3]))["laws"]
    assert "skipped" not in laws["steps-5"][0]
    assert "needs more than 3 cells" in laws["linear"][0]["skipped"]
    assert "skipped" not in fitted(measured(cells=cells[1:5]))["laws"]["linear"][0]


def test_repetitions_are_averaged_and_invalid_rows_left_out(fitted: Any) -> None:
    exact = measured("linear", valid=True)
    low, high = (exact.with_columns(pl.col("energy_j") * factor) for factor in (0.9, 1.1))
    group = fitted(pl.concat([low, high, exact.with_columns(pl.col("energy_j") * 30, valid=False)]))
    assert values(group["laws"]["linear"][0]) == pytest.approx(TRUTH["linear"], rel=1e-6)
    assert (group["cells"], group["rows"]) == (49, 98)


@pytest.mark.parametrize(
    ("frame", "reason"),
    [(measured(valid=False), "every row is marked invalid"), (measured(cells=[(64, 64, 8)]), "needs at least 2 cells")],
)
def test_nothing_to_fit(as_table: Any, frame: pl.DataFrame, reason: str) -> None:
    with pytest.raises(SweetspotError, match=reason):
        fit_table(as_table(frame))


def test_a_group_too_small_does_not_stop_the_others(as_table: Any) -> None:
    small = measured(inputs=(64,), outputs=(64,)).with_columns(model=pl.lit("small"))
    one, two = fit_table(as_table(pl.concat([small, measured()])))["groups"]
    assert (one["model"], one["law"], one["sweet_spots"]) == ("small", None, [])
    assert "no law can be fitted" in one["chosen_because"]
    assert two["law"] == "steps-5"


def silent(fit: dict[str, Any]) -> set[str]:
    """Terms that the cells do not determine."""
    return {name for name, term in fit["terms"].items() if term["from_prior"]}


def test_one_output_length_gives_no_sweet_spot(fitted: Any) -> None:
    group = fitted(measured(outputs=(256,)))
    (fit,) = group["laws"]["steps-5"]
    assert "t2" in silent(fit)
    assert {spot["status"] for spot in group["sweet_spots"]} == {"not identified"}
    assert {spot["output_tokens"] for spot in group["sweet_spots"]} == {None}
    # What the cells cannot tell apart is counted, not lost: the law still reproduces its own cells.
    assert fit["in_sample_mape_percent"] < 0.1


@pytest.mark.parametrize("law", ["paper-6", "steps-5"])
def test_two_output_lengths_give_no_sweet_spot(fitted: Any, law: str) -> None:
    group = fitted(measured(law, outputs=(64, 4096)))
    assert {spot["status"] for spot in group["sweet_spots"]} == {"not identified"}


def test_one_input_length_gives_the_sweet_spot_of_that_length(fitted: Any) -> None:
    values_ = TRUTH["steps-5"] | {"t2": 5e-4}
    group = fitted(measured(inputs=(512,), noise=1e-4, values=values_))
    (spot,) = group["sweet_spots"]
    assert spot["status"] == "interior"
    assert spot["output_tokens"] == pytest.approx(spot_of("steps-5", values_, 512, 8), rel=0.02)


def test_lengths_that_vary_together(fitted: Any) -> None:
    """Equal input and output lengths: n, m and n^2/m are one column, 1 and n/m another."""
    group = fitted(measured(cells=[(length, length, 8) for length in GRID]))
    assert group["laws"]["steps-5"][0]["in_sample_mape_percent"] < 0.1
    assert {spot["output_tokens"] for spot in group["sweet_spots"]} <= {None}


@pytest.mark.parametrize(("law", "batches"), [("steps-5", (8,)), ("steps-8", (1, 8))])
def test_prompt_and_reply_of_one_sum_give_no_sweet_spot(fitted: Any, law: str, batches: tuple[int, ...]) -> None:
    """Each prompt has one reply length, so that only the form of a law tells what grows with the reply."""
    inputs = (128, 256, 512, 768, 1024, 1536, 1920)
    for seed in range(3):
        cells = itertools.product(inputs, batches)
        group = fitted(measured(law, cells=[(n, 2048 - n, b) for n, b in cells], noise=0.01, seed=seed))
        assert {spot["status"] for spot in group["sweet_spots"]} == {"not identified"}


def test_chosen_cells_of_a_grid_give_a_sweet_spot(fitted: Any) -> None:
    """Few cells, most prompts with one or two replies, but long and short replies after long and short prompts."""
    pairs = [(0, 0), (0, 6), (6, 0), (6, 6), (3, 0), (3, 6), (0, 3), (6, 3), (1, 4), (2, 2), (4, 1), (5, 5)]
    group = fitted(measured(cells=[(GRID[i], GRID[j], 8) for i, j in pairs]))
    assert group["law"] == "steps-5"
    assert {spot["status"] for spot in group["sweet_spots"]} == {"interior"}
    for spot in group["sweet_spots"]:
        truth = spot_of("steps-5", TRUTH["steps-5"], spot["input_tokens"], 8)
        assert spot["output_tokens"] == pytest.approx(truth, rel=0.01)


@pytest.mark.parametrize("law", ["linear", "wilkins"])
def test_where_the_truth_has_no_sweet_spot_its_set_has_no_end(fitted: Any, law: str) -> None:
    spots = [s for seed in (1, 2, 3) for s in fitted(measured(law, noise=0.02, seed=seed))["sweet_spots"]]
    assert sum(spot["output_tokens_high"] is None for spot in spots) > 0.9 * len(spots)


def test_one_length_and_four_batches(fitted: Any) -> None:
    """The design of public tables: only a + b/B can be learned, and is."""
    group = fitted(measured("steps-8", inputs=(1024,), outputs=(1024,), batches=(1, 16, 32, 64)))
    (fit,) = group["laws"]["steps-8"]
    assert group["law"] == "steps-8"
    assert {"t1", "t3", "w"} <= silent(fit)
    assert not {"v"} & silent(fit)
    assert {spot["status"] for spot in group["sweet_spots"]} == {"not identified"}


def test_what_a_mixture_reads_in_a_step_is_never_negative(fitted: Any) -> None:
    """At one length v and y of a mixture's law are nearly one function of the batch, and errors could part them."""
    batches, errors = (16, 32, 64, 96, 128, 192, 256, 384, 512, 768), (1, -1, -2, 3, 3, 2, 1, -1, -2, -3)
    active = [1 - (1 - 4 / 32) ** batch for batch in batches]
    frame = measured("steps-8", inputs=(1024,), outputs=(2048,), batches=batches).with_columns(
        energy_j=pl.Series(
            [(0.043 * b + 3.8 * a) * 2048 * (1 + 0.03 * e) for b, a, e in zip(batches, active, errors, strict=True)]
        ),
        experts=32,
        experts_per_token=4,
    )
    (fit,) = fitted(frame)["laws"]["experts-10"]
    terms = {name: term["value"] for name, term in fit["terms"].items()}
    assert min(terms.values()) >= 0
    # v, y and z are one function of such batches, and share what one of them cost
    assert terms["v"] + terms["y"] + terms["z"] == pytest.approx(3.8, rel=0.15)


def test_the_sweet_spot_of_the_truth_is_found(fitted: Any) -> None:
    group = fitted(measured(noise=0.005))
    assert group["law"] == "steps-5"
    for spot in group["sweet_spots"]:
        truth = spot_of("steps-5", TRUTH["steps-5"], spot["input_tokens"], 8)
        assert spot["output_tokens"] == pytest.approx(truth, rel=0.1)
        assert spot["status"] == ("interior" if 64 <= spot["output_tokens"] <= 4096 else "outside measured range")
        energy = per_token(LAWS["steps-5"], TRUTH["steps-5"], spot["input_tokens"], spot["output_tokens"], 8)
        assert spot["energy_per_output_token_j"] == pytest.approx(energy, rel=0.02)


def test_a_sweet_spot_beyond_the_measured_lengths_is_marked(fitted: Any) -> None:
    group = fitted(measured(outputs=(64, 96, 128, 192, 256)))
    assert group["sweet_spots"][-1]["output_tokens"] > 256
    assert group["sweet_spots"][-1]["status"] == "outside measured range"


def test_the_order_of_rows_does_not_matter(as_table: Any) -> None:
    frame = measured("steps-8", batches=BATCHES, noise=0.02)
    assert fit_table(as_table(frame)) == fit_table(as_table(frame.sample(fraction=1, shuffle=True, seed=3)))


def test_groups_are_fitted_apart(as_table: Any) -> None:
    parts = [measured(engine=engine, values=TRUTH["steps-5"] | {"t0": t0}) for engine, t0 in (("a", 1.5), ("b", 3.0))]
    found = {group["engine"]: group["laws"]["steps-5"][0] for group in fit_table(as_table(pl.concat(parts)))["groups"]}
    assert values(found["a"])["t0"] == pytest.approx(1.5, rel=1e-3)
    assert values(found["b"])["t0"] == pytest.approx(3.0, rel=1e-3)


def test_requests_in_waves_are_batches_of_their_own(fitted: Any) -> None:
    group = fitted(measured("steps-8", batches=BATCHES, capacity=100_000))
    (fit,) = group["laws"]["steps-8"]
    assert values(fit) == pytest.approx(TRUTH["steps-8"], rel=1e-3)
    held = [12 * 8192, 12.5 * 8192, 13 * 8192]
    assert {"total_tokens": 8192, "requests": 12, "tokens": held} in group["kv_capacity"]
    assert min(full["total_tokens"] for full in group["kv_capacity"]) > 100_000 / 128


def test_waves_alone_leave_a_range_of_requests_that_fit(fitted: Any) -> None:
    rows = measured("steps-8", batches=(1, 8, 32), capacity=3 * 8192).drop("in_flight")
    assert rows.filter(pl.col("input_tokens") + pl.col("output_tokens") == 8192)["waves"].to_list() == [1, 3, 11]
    held = fitted(rows)["kv_capacity"][-1]
    assert held == {"total_tokens": 8192, "requests": 3, "tokens": [3 * 8192, 3.5 * 8192, 4 * 8192]}


def test_durations_get_the_same_law(fitted: Any) -> None:
    frame = measured("steps-8", batches=BATCHES).with_columns(duration_s=pl.col("energy_j") / 400)
    (fit,) = fitted(frame)["laws"]["steps-8"]
    assert fit["duration"]["terms"] == pytest.approx({k: v / 400 for k, v in TRUTH["steps-8"].items()}, rel=1e-3)
    assert fitted(frame.drop("duration_s"))["laws"]["steps-8"][0]["duration"] is None
    some = frame.with_columns(pl.when(pl.col("batch") > 1).then("duration_s").alias("duration_s"))
    assert fitted(some)["laws"]["steps-8"][0]["duration"]["terms"] == pytest.approx(fit["duration"]["terms"], rel=1e-3)


def test_the_confidence_set_of_the_sweet_spot_holds_the_truth(fitted: Any) -> None:
    inside = asked = 0
    for seed in range(12):
        for spot in fitted(measured("steps-5", noise=0.02, seed=seed))["sweet_spots"]:
            if spot["status"] == "interior":
                truth = spot_of("steps-5", TRUTH["steps-5"], spot["input_tokens"], 8)
                inside += (spot["output_tokens_low"] or 0) <= truth <= (spot["output_tokens_high"] or np.inf)
                asked += 1
    assert inside / asked > 0.85, (inside, asked)


def test_the_plateau_is_what_costs_one_percent_more_at_most(fitted: Any) -> None:
    group = fitted(measured())
    law, coefficients = LAWS[group["law"]], values(group["laws"][group["law"]][0])
    for spot in group["sweet_spots"]:
        low, high = spot["plateau_low"], spot["plateau_high"]
        assert low < spot["output_tokens"] < high
        for end in (low, high):
            cost = per_token(law, coefficients, spot["input_tokens"], end, 8) / spot["energy_per_output_token_j"]
            assert cost == pytest.approx(1.01, abs=0.0005)


def test_intervals_of_exact_tables_are_finite(fitted: Any) -> None:
    for fits in fitted(measured("linear", inputs=(64, 512), outputs=(64, 128)))["laws"].values():
        assert all(np.isfinite(fit["interval_scale"]) for fit in fits if "skipped" not in fit)


def test_a_full_cache_ends_what_a_longer_reply_saves(fitted: Any) -> None:
    """By brute force: the least energy among the measured replies, with as many waves as the cache makes."""
    group = fitted(measured("steps-8", batches=BATCHES, capacity=100_000))
    checked = 0
    for spot in group["sweet_spots"]:
        n, batch = spot["input_tokens"], spot["batch"]
        replies = np.arange(64, 4097)
        energies = [
            per_token(LAWS["steps-8"], TRUTH["steps-8"], n, m, batch / np.ceil(batch / (100_000 // (n + m))))
            for m in replies.tolist()
        ]
        best = int(np.argmin(energies))
        if batch == 128 and 0 < best < len(replies) - 1:
            assert spot["energy_per_output_token_j"] == pytest.approx(energies[best], rel=0.01)
            checked += 1
    assert checked > 3
