"""Tables as strangers have them, and the advice that they get: each piece, followed, gives the right number."""

import json
from pathlib import Path
from typing import Any

import pytest

from kinds import BATCH, CELLS, GPU, HEADER, J_PER_TOKEN, MODEL, WATTS, Cell, joules, per_token, plain, refusal, text
from sweetspot.commands.main import main
from sweetspot.table import read as table

M, B, G = MODEL, BATCH, GPU
SPLIT = "model,batch,isl,osl"


def clock(seconds: float) -> str:
    return f"{seconds // 3600:.0f}:{seconds % 3600 // 60:02.0f}:{seconds % 60:09.6f}"


def columns(header: str, *row: Any) -> str:
    return text(f"{SPLIT},{header},gpu", lambda c: [M, B, c.n, c.m, *(each(c) for each in row), G])


READ = {
    "prefill and decode": columns("prefill_energy_j,decode_energy_j", lambda c: c.e * 0.2, lambda c: c.e * 0.8),
    "prefill and decode in Wh": columns(
        "Prefill energy (Wh),Decode energy (Wh)", lambda c: c.e / 18000, lambda c: c.e / 4500
    ),
    "phases beside their sum": columns(
        "energy_prefill_j,energy_decode_j,energy_j", lambda c: c.e * 0.2, lambda c: c.e * 0.8, lambda c: c.e
    ),
    "boards": columns("gpu0_energy_j,gpu1_energy_j", lambda c: c.e * 0.3, lambda c: c.e * 0.7),
    "hours, minutes, seconds": columns("power_w,duration", lambda c: WATTS, lambda c: clock(c.t)),
    "minutes and seconds": columns("power_w,duration", lambda c: WATTS, lambda c: f"{c.t // 60:.0f}m{c.t % 60:.6f}s"),
    "Wh per thousand tokens": columns("Wh per 1k output tokens", lambda c: J_PER_TOKEN / 3.6),
    "kWh per million tokens": columns("kWh per million output tokens", lambda c: J_PER_TOKEN / 3.6),
    "tokens per second and watt": columns("output tok/s/W", lambda c: 1 / J_PER_TOKEN),
    "German": text(
        ["Modell", "Batchgröße", "Eingabetoken", "Ausgabetoken", "Energie [Wh]", "GPU"],
        lambda c: [M, B, c.n, c.m, f"{c.e / 3600:.9f}".replace(".", ","), G],
        ";",
    ),
    "French": text(
        ["modèle", "lot", "tokens entrée", "tokens sortie", "énergie (J)", "GPU"],
        lambda c: [M, B, c.n, c.m, c.e, G],
        ";",
    ),
    "Markdown": text(("", *HEADER, ""), lambda c: ["", f"**{M}**", *plain(c)[1:], ""], "|").replace(
        "\n", "\n|:-|-:|-:|-:|-:|-:|-|\n", 1
    ),
    "models by case": text(HEADER, lambda c: [M.upper() if c.m == 64 else M, *plain(c)[1:]]).replace(M.upper(), M, 1),
    "a crashed run": text((*HEADER, "State"), lambda c: [*plain(c), "finished"])
    + text((*HEADER, "State"), lambda c: [*plain(c)[:4], c.e * 3, c.t * 3, G, "crashed"]).partition("\n")[2],
    "warm-up": text((*HEADER, "warmup"), lambda c: [*plain(c), False])
    + text((*HEADER, "warmup"), lambda c: [*plain(c)[:4], c.e * 3, c.t * 3, G, True]).partition("\n")[2],
    "an error of measurement": text((*HEADER, "error"), lambda c: [*plain(c), 0.013]),
    "a row of means": text(HEADER) + f"Average,{B},875,848,{9 * J_PER_TOKEN * 848 * B},,{G}\n",
    "JSON rows as lists": json.dumps([[*HEADER], *map(plain, CELLS)]),
    "columns and data": json.dumps({"columns": HEADER, "data": [*map(plain, CELLS)]}),
    "values with units": json.dumps(
        [
            {"model": M, "gpu": G, "batch": B, "input_tokens": c.n, "output_tokens": c.m}
            | {"energy": {"value": c.e / 3600, "unit": "Wh"}}
            for c in CELLS
        ]
    ),
}


@pytest.mark.parametrize("kind", READ)
def test_a_stranger_s_table_is_read(tmp_path: Path, kind: str) -> None:
    path = tmp_path / ("a.json" if READ[kind].startswith(("[", "{")) else "a.md")
    assert joules(path, READ[kind]) == pytest.approx(J_PER_TOKEN, rel=1e-4)


def served(c: Cell, **more: Any) -> dict[str, Any]:
    """A result of `vllm bench serve` of 100 batches."""
    many, seconds = 100 * B, 100 * c.t
    usual = {"model_id": M, "max_concurrency": B, "duration": seconds, "completed": many, "num_prompts": many}
    usual |= {"total_input_tokens": c.n * many, "total_output_tokens": c.m * many, "gpu_energy_j": 100 * c.e}
    return usual | {"request_throughput": many / seconds} | more


@pytest.mark.parametrize("more", [{"failed": 200}, {"num_prompts": 1000}])
def test_a_run_with_failed_requests_is_no_measurement_of_the_others(tmp_path: Path, more: dict[str, int]) -> None:
    message = refusal(tmp_path / "a.json", json.dumps([served(c, **more) for c in CELLS]))
    assert "row 1: it has failed requests, whose energy and time are in its totals" in message


def test_a_concurrency_that_was_not_reached_is_named(tmp_path: Path) -> None:
    few = [served(c, max_concurrency=8 * B, mean_e2el_ms=c.t * 1e3) for c in CELLS]
    assert "disagree by a factor of 8" in refusal(tmp_path / "a.json", json.dumps(few))


def test_the_requests_of_a_run_are_not_its_batch(tmp_path: Path) -> None:
    content = text(
        "model,num_prompts,input_len,output_len,elapsed_time,requests_per_second,power_w,gpu",
        lambda c: [M, 100 * B, c.n, c.m, c.t * 100, B / c.t, WATTS, G],
    )
    assert "--set batch=NUMBER" in refusal(path := tmp_path / "a.csv", content)
    assert per_token(table.read([path], constants={"batch": str(B)})) == pytest.approx(J_PER_TOKEN)


def test_running_totals_of_one_run_are_refused(tmp_path: Path) -> None:
    header = "run_id,emissions,cpu_energy,gpu_energy,ram_energy,energy_consumed,duration"
    content = text(header, lambda c: ["one", 1, 1, c.e / 3.6e6, 1, c.e / 3.6e6, c.t])
    assert "running totals" in refusal(tmp_path / "emissions.csv", content)


def test_a_mean_number_in_flight_is_a_batch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def cost(batch: float, n: int, m: int) -> float:
        return WATTS * (m * (0.01 + 2e-4 * batch) + 2e-5 * batch * n)

    cells = [(b, n, m) for b in (1.4, 3.7, 7.64, 15.3) for n in (64, 512, 2048) for m in (64, 256, 1024)]
    rows = [f"{M},{b},{n},{m},{cost(b, n, m)},{G}" for b, n, m in cells]
    path = tmp_path / "a.csv"
    path.write_text("\n".join(["model,concurrency,input_tokens,output_tokens,energy_j,gpu", *rows]))
    assert main(["fit", str(path), "--out", str(tmp_path)]) == 0
    ask = ["predict", "--predictor", str(tmp_path / "predictor.json"), "--model", M, "--input-tokens", "512"]
    capsys.readouterr()
    assert main([*ask, "--output-tokens", "256", "--batch", "3.7", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["energy_per_request_j"] == pytest.approx(cost(3.7, 512, 256) / 3.7, rel=0.02)
    assert not answer["extrapolates"]
    corner = [*ask[:-1], "2048", "--output-tokens", "1024", "--batch", "15.3", "--strict"]
    assert main(corner) == 0
    content = json.loads((tmp_path / "predictor.json").read_text())
    (tmp_path / "predictor.json").write_text(json.dumps(content | {"created_by": "an editor"}))
    assert main(corner) == 0  # a file that was changed must obey the schema
    path.write_text(path.read_text().replace(",3.7,", ",0.7,"))
    assert "batch is 0.7: must be at least 1" in "\n".join(table.read([path]).notes)
