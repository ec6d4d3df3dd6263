"""`sweetspot predict` without a predictor: the simulated device answers where kernels were measured, and says so."""

import json

import pytest

from simulation import ARCHITECTURES
from sweetspot.commands.main import main
from sweetspot.engines import kernels

LLAMA = ["--architecture", str(ARCHITECTURES / "llama-3.1-8b.json")]
LENGTHS = ["--input-tokens", "1024", "--output-tokens", "1024", "--batch", "16"]
BOARD = ["--gpu", "H100", "--precision", "float16"]


def test_it_answers_with_its_label_and_its_published_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", *LLAMA, *LENGTHS, *BOARD, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["energy_per_request_j"] == pytest.approx(answer["energy_batch_j"] / 16)
    assert answer["energy_per_output_token_j"] == pytest.approx(answer["energy_batch_j"] / 16 / 1024)
    # LLM-Inference-Bench measured 4566.5 J for Llama 3 8B with TensorRT-LLM.
    assert answer["energy_batch_j"] == pytest.approx(4566.5, rel=kernels.HELD_OUT_WORST)
    assert answer["published_mean_error"] == kernels.HELD_OUT_MEAN
    assert main(["predict", *LLAMA, *LENGTHS, *BOARD]) == 0
    text = capsys.readouterr().out
    assert f"per request       {answer['energy_per_request_j']:.4g} J" in text
    assert "SIMULATED (kernel times measured by NVIDIA, power modelled)" in text
    assert f"off by {100 * kernels.HELD_OUT_MEAN:.3g} % on average" in text
    assert "this is no interval" in text


def test_it_says_what_a_request_exceeds(capsys: pytest.CaptureFixture[str]) -> None:
    opt = ["--architecture", str(ARCHITECTURES / "opt-6.7b.json")]
    assert main(["predict", *opt, "--input-tokens", "1900", "--output-tokens", "100", "--batch", "128", *BOARD]) == 0
    assert "waves" in capsys.readouterr().out
    assert main(["predict", *opt, "--input-tokens", "2000", "--output-tokens", "100", *BOARD]) == 1
    assert "more than 2048 exceed the 2048 positions" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ([*LLAMA, *LENGTHS, "--gpu", "L4", "--precision", "float16"], "known on NVIDIA H100 80GB HBM3 in bfloat16"),
        ([*LLAMA, *LENGTHS, "--gpu", "H100", "--precision", "fp8"], "no kernel times for llama-3.1-8b in fp8"),
        ([*LLAMA, *LENGTHS, "--gpu", "TPU", "--precision", "float16"], "on TPU"),
        ([*LLAMA, *LENGTHS], "give --architecture, --gpu and --precision"),
        (["--model", "llama-3.1-8b", *LENGTHS, *BOARD], "--model needs --predictor"),
        ([*LLAMA, *LENGTHS, *BOARD, "--strict"], "neither --engine, --parallelism nor --strict"),
        ([*LLAMA, *LENGTHS[:5], "0", *BOARD], "batch is 0"),
        (
            [*LLAMA, "--input-tokens", "900000", "--output-tokens", "1", *BOARD],
            "more than 131072 exceed",
        ),
    ],
    ids=["board", "precision", "unknown board", "no board", "no architecture", "strict", "no batch", "too long"],
)
def test_what_it_cannot_answer_is_refused(arguments: list[str], part: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", *arguments]) == 1
    assert part in capsys.readouterr().err
