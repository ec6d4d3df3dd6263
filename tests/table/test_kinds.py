"""Columns as people have them: read rightly, or refused with the cause; never a wrong number without a word."""

import json
import re
import shlex
from pathlib import Path

import pytest

from kinds import BATCH, GPU, HEADER, J_PER_TOKEN, MODEL, WATTS, german, joules, per_token, plain, refusal, text
from sweetspot.table import read as table

M, B, G = MODEL, BATCH, GPU


RUN = 125  # runs of the batch in one measurement
SCOPES = {
    "a run of requests": text(
        "model,batch_size,isl,osl,num_requests,total_energy_j,duration_s,gpu",
        lambda c: [M, B, c.n, c.m, B * RUN, c.e * RUN, c.t * RUN, G],
    ),
    "a run of requests, latency of a batch": text(
        "model,batch_size,isl,osl,num_prompts,energy_j,latency_s,gpu",
        lambda c: [M, B, c.n, c.m, B * RUN, c.e * RUN, c.t, G],
    ),
    "iterations": text(
        "model,batch_size,isl,osl,iterations,total_energy_j,total_time_s,gpu",
        lambda c: [M, B, c.n, c.m, RUN, c.e * RUN, c.t * RUN, G],
    ),
    "means of iterations": text(
        "model,batch_size,isl,osl,num_iters,energy_j,latency_s,gpu", lambda c: [M, B, c.n, c.m, RUN, c.e, c.t, G]
    ),
    "concurrency beside a limit": text(
        "model,max_batch_size,concurrency,isl,osl,energy_j,duration_s,gpu",
        lambda c: [M, 256, B, c.n, c.m, c.e, c.t, G],
    ),
    "sums of tokens, told by joules per token": text(
        "model,batch,total_input_tokens,total_output_tokens,energy_j,joules_per_output_token,gpu",
        lambda c: [M, B, c.n * B, c.m * B, c.e, J_PER_TOKEN, G],
    ),
    "sums of tokens, told by a throughput": text(
        "model,batch,total_input_tokens,total_output_tokens,energy_j,duration_s,output_throughput,power_w,"
        "energy_per_request_j,gpu",
        lambda c: [M, B, c.n * B, c.m * B, c.e, c.t, B * c.m / c.t, WATTS, c.e / B, G],
    ),
    "tokens per joule": text(
        "model,batch,isl,osl,output_tokens_per_joule,gpu", lambda c: [M, B, c.n, c.m, 1 / J_PER_TOKEN, G]
    ),
    "tokens per second and watts": text(
        "model,batch,isl,osl,output tokens/s,power (W),gpu", lambda c: [M, B, c.n, c.m, B * c.m / c.t, WATTS, G]
    ),
    "a throughput of either kind": text(
        "model,batch,isl,osl,energy_j,duration_s,throughput,gpu",
        lambda c: [M, B, c.n, c.m, c.e, c.t, B * (c.n + c.m) / c.t, G],
    ),
    "kWh by size": text(
        "model,batch_size,isl,osl,duration,energy_consumed,gpu_model",
        lambda c: [M, B, c.n, c.m, c.t, c.e / 3.6e6, f"1 x {G}"],
    ),
}


@pytest.mark.parametrize("kind", SCOPES)
def test_the_scope_of_a_column_follows_from_its_neighbours(tmp_path: Path, kind: str) -> None:
    assert joules(tmp_path / "a.csv", SCOPES[kind]) == pytest.approx(J_PER_TOKEN, rel=1e-3)


@pytest.mark.parametrize(
    ("boards", "header", "watts"), [(8, "avg_power_w", 350), (4, "power_per_gpu_w", 350), (4, "total_power_w", 1400)]
)
def test_power_is_of_one_board_or_of_all(tmp_path: Path, boards: int, header: str, watts: float) -> None:
    content = text(f"model,batch,isl,osl,tp,duration_s,{header},gpu", lambda c: [M, B, c.n, c.m, boards, c.t, watts, G])
    assert joules(tmp_path / "a.csv", content) == pytest.approx(J_PER_TOKEN * boards)


QUESTIONS = {
    "power of two boards": (
        text("model,batch,isl,osl,tp,duration_s,avg_power_w,gpu", lambda c: [M, B, c.n, c.m, 2, c.t, 350, G]),
        {J_PER_TOKEN, 2 * J_PER_TOKEN},
    ),
    "sums over the batch or not": (
        text("model,batch,total_input_tokens,total_output_tokens,energy_j", lambda c: [M, B, c.n * B, c.m * B, c.e]),
        {J_PER_TOKEN, J_PER_TOKEN / B},
    ),
    "two batches": (
        text("model,batch_size,concurrency,isl,osl,energy_j,gpu", lambda c: [M, 1, B, c.n, c.m, c.e, G]),
        {J_PER_TOKEN, J_PER_TOKEN * B},
    ),
    "a small run": (
        text(
            "model,batch_size,isl,osl,num_requests,total_energy_j,duration_s,gpu",
            lambda c: [M, B, c.n, c.m, 2 * B, c.e * 2, c.t * 2, G],
        ),
        {J_PER_TOKEN, 2 * J_PER_TOKEN},
    ),
    "decimal or thousands": (
        "model;batch;input_tokens;output_tokens;energy_j\nm;1;128;128;1.024\nm;1;256;128;2.048\n",
        {0.012, 12},
    ),
}


@pytest.mark.parametrize("kind", QUESTIONS)
def test_what_only_a_person_can_know_is_asked_and_each_answer_works(tmp_path: Path, kind: str) -> None:
    content, values = QUESTIONS[kind]
    message = refusal(path := tmp_path / "a.csv", content)
    offered = re.findall(r"((?:--(?:map|decimal) \S+ )+)\(([\d.e-]+) J per output token\)", message)
    assert len(offered) >= len(values), message
    found = set()
    for options, said in offered:
        words = shlex.split(options)
        maps = dict(words[i + 1].split("=") for i in range(0, len(words), 2) if words[i] == "--map")
        decimal = next((words[i + 1] for i in range(0, len(words), 2) if words[i] == "--decimal"), "")
        rows = table.read([path], maps, decimal=decimal)
        assert per_token(rows) == pytest.approx(float(said), rel=0.01)
        found.add(float(said))
    assert all(any(one == pytest.approx(value, rel=0.01) for one in found) for value in values)


CONTRADICTIONS = {
    "joules per token": (
        text(
            "model,batch,input_tokens,output_tokens,energy_j,energy_per_output_token_j,gpu",
            lambda c: [M, B, c.n, c.m, c.e, J_PER_TOKEN * B, G],
        ),
        ("energy_j, energy_per_output_token_j disagree by a factor of 8",),
    ),
    "power": (
        text(
            "model,batch,input_tokens,output_tokens,energy_j,avg_power_w,duration_s,gpu",
            lambda c: [M, B, c.n, c.m, c.e / B, WATTS, c.t, G],
        ),
        ("disagree by a factor of 8", "--map energy_j=energy_per_request_j (0.5 J per output token)"),
    ),
    "sums under plain names": (
        text(
            "model,batch,input_tokens,output_tokens,energy_j,joules_per_token,gpu",
            lambda c: [M, B, c.n * B, c.m * B, c.e, J_PER_TOKEN, G],
        ),
        ("--map input_tokens=batch_input_tokens --map output_tokens=batch_output_tokens (0.5 J per output token)",),
    ),
    "a limit for a batch": (
        text("model,max_batch_size,isl,osl,energy_j,gpu", lambda c: [M, 256, c.n, c.m, c.e, G]),
        ("max_batch_size is a limit of the engine", "--set batch=NUMBER"),
    ),
    "two columns of one name": (text((*HEADER, "energy_j "), lambda c: [*plain(c), 5]), ("line 1", "'energy_j'")),
    "point and comma": (
        text(HEADER, lambda c: [M, B, c.n, c.m, f"{c.e + 0.5:.1f}".replace(".", ","), c.t, G], ";"),
        ("energy_j is", "with a decimal comma", "duration_s is", "with a decimal point"),
    ),
    "points that separate thousands": (
        text(HEADER, lambda c: [M, B, f"{c.n:,}".replace(",", "."), c.m, c.e + 0.25, c.t, G]),
        ("input_tokens is 2.048 in one row and 64 in another", "write 2048"),
    ),
    "a field too many": (text(HEADER).replace(f",{G}\n", f",{G},extra\n", 3), ("line 2: 8 fields",)),
    "one result of a benchmark": (json.dumps({"a": 1}), ("batch",)),
}


@pytest.mark.parametrize("kind", CONTRADICTIONS)
def test_columns_that_contradict_are_named(tmp_path: Path, kind: str) -> None:
    content, parts = CONTRADICTIONS[kind]
    message = refusal(tmp_path / "a.csv", content)
    assert "cut short" not in message
    for part in ("a.csv", *parts):
        assert part in message


NUMBERS = {
    "decimal comma": (
        lambda c: [M, B, c.n, c.m, f"{c.e:.2f}".replace(".", ","), f"{c.t:.6f}".replace(".", ","), G],
        ";",
    ),
    "German": (lambda c: [M, B, german(c.n, 0), german(c.m, 0), german(c.e), german(c.t, 6), G], ";"),
    "thousands without decimals": (
        lambda c: [M, B, german(c.n, 0), german(c.m, 0), german(c.e, 0), f"{c.t:.6f}".replace(".", ","), G],
        "\t",
    ),
    "American": (lambda c: [M, B, f'"{c.n:,}"', f'"{c.m:,}"', f'"{c.e:,.2f}"', c.t, G], ","),
    "Swiss": (lambda c: [M, B, *(f"{x:,.0f}".replace(",", "’") for x in (c.n, c.m, c.e)), c.t, G], ","),
    "French": (
        lambda c: [
            M,
            B,
            *(f"{x:,.0f}".replace(",", "\u202f") for x in (c.n, c.m, c.e)),
            f"{c.t:.6f}".replace(".", ","),
            G,
        ],
        ";",
    ),
    "units": (lambda c: [M, B, f"{c.n} tokens", f"{c.m} tok", f"{c.e / 3600:.9f} Wh", f"{c.t * 1e3} ms", G], ","),
    "mixed units": (
        lambda c: [M, B, c.n, c.m, f"{c.e / 1e3} kJ" if c.e > 1e3 else f"{c.e} J", f"{c.t:.6f}s", G],
        ",",
    ),
    "whole as floats": (lambda c: [M, f"{B}.0", f"{c.n}.0", f"{c.m}.0", c.e, c.t, G], ","),
}


@pytest.mark.parametrize("kind", NUMBERS)
def test_numbers_are_read_as_written(tmp_path: Path, kind: str) -> None:
    row, separator = NUMBERS[kind]
    content = text([f"{name}" for name in HEADER], row, separator)
    assert joules(tmp_path / "a.csv", content) == pytest.approx(J_PER_TOKEN, rel=1e-5)


UNITS = {
    "Energy [kWh],Duration [ms]": (1 / 3.6e6, 1e3),
    "Energy (mJ),time_ms": (1e3, 1e3),
    "energy_wh,runtime (min)": (1 / 3600, 1 / 60),
    "GPU energy / kJ,elapsed_seconds": (1e-3, 1),
    "energy_mwh,latency_us": (1 / 3.6, 1e6),
    "Wh/request,latency_s": (1 / 3600 / B, 1),
    "joules,time": (1, 1),
    "energy,latency": (1 / 3.6e6, 1),  # without a unit, by size
}


@pytest.mark.parametrize("header", UNITS)
def test_units_of_headers(tmp_path: Path, header: str) -> None:
    joule, second = UNITS[header]
    content = text(f"model,batch,isl,osl,{header},gpu", lambda c: [M, B, c.n, c.m, c.e * joule, c.t * second, G])
    assert joules(tmp_path / "a.csv", content) == pytest.approx(J_PER_TOKEN, rel=1e-5)
