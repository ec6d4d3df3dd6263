"""What a run shows: one line per stage, failures at once with their reason, a summary; in a file and on a terminal."""

import fcntl
import os
import pty
import re
import shutil
import signal
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from checkouts import Checkout

STAGES = ("architectures", "engines", "measure", "collect", "fit", "validate", "figures", "report")
ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def on_terminal(checkout: Checkout, *arguments: str, stop_at: str = "") -> tuple[int, str]:
    """Exit status and everything shown on a terminal of 100 columns; Ctrl-C is typed once `stop_at` matches."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
    environment = {**os.environ, "TERM": "xterm-256color"}
    command = [sys.executable, "-m", "snakemake", "--profile", "local", *arguments]
    run = subprocess.Popen(
        command, cwd=checkout.path, env=environment, stdout=slave, stderr=slave, start_new_session=True
    )
    os.close(slave)
    shown = b""
    while True:
        try:
            part = os.read(master, 1 << 16)
        except OSError:  # nobody holds the other end any more
            break
        shown += part
        if stop_at and re.search(stop_at, ESCAPE.sub("", shown.decode(errors="ignore"))):
            os.killpg(run.pid, signal.SIGINT)
            stop_at = ""
        if not part:
            break
    os.close(master)
    return run.wait(timeout=60), shown.decode()


def unmeasured(checkout: Checkout, block: str) -> None:
    """Take a block's rows and journal away, and what was made of them."""
    for kind in ("measurements", "journal"):
        for path in checkout.out.glob(f"{kind}/{block}/*.jsonl*"):
            path.unlink()
    (checkout.out / "measurements.parquet").unlink()


def test_a_file_holds_a_line_per_stage_and_a_summary(checkout: Checkout) -> None:
    checkout.configure(batches=[1, 8, 32, 64])
    said = checkout.run()
    assert "\x1b" not in said
    assert "\r" not in said
    lines = said.splitlines()
    for stage in STAGES[1:]:
        assert len([line for line in lines if re.match(rf"{stage} .* in \d+ s$", line)]) == 1, said
    assert re.search(r"^measure +48 of 48 cells  [\d.]+ MJ so far, in", said, re.M), "those of an earlier run, too"
    assert len(lines) < 40
    assert '{"' not in said, "no job as JSON"
    summary = said.split("tiny: finished after ")[1]
    assert summary.startswith(tuple("0123456789"))
    assert "48 of 48 cells" in summary.splitlines()[0]
    assert "SIMULATED" in summary.splitlines()[0]
    findings = (checkout.out / "findings.txt").read_text()
    assert findings.strip() in summary
    assert "held-out" in findings
    assert "page: results/tiny/report.html" in summary
    (log,) = re.findall(r"Snakemake's own log: (\S+)", summary)
    assert "rule measure:" in (checkout.path / log).read_text()
    assert len(summary.splitlines()) <= 10
    again = checkout.run()
    assert "tiny: Nothing to be done" in again
    assert findings.strip() in again


def test_what_is_skipped_is_said_with_its_reason(checkout: Checkout) -> None:
    checkout.configure(select=["opt-1.3b"], output_tokens=[64, 128, 512, 4096])
    said = checkout.run("--until", "measure")
    assert "6 cells skipped: 6 of positions: input + output tokens exceed the model's 2048 positions" in said
    assert "held-out" not in said, "the findings of another grid"


def test_a_failed_job_is_a_line_with_its_reason_and_its_log(checkout: Checkout) -> None:
    checkout.configure(engine={"name": "vllm"}, gpu="NVIDIA H100 80GB HBM3", batches=[1, 8], campaign="real")
    done = checkout.snakemake()
    said = done.stdout + done.stderr
    assert done.returncode == 1
    failures = [line for line in said.splitlines() if line.startswith("FAILED ")]
    assert len(failures) == 4, "each at once, once"
    assert {re.match(r"FAILED engines (\S+) batch \d: error: the package vllm", line)[1] for line in failures} == {
        "opt-1.3b",
        "llama-3.2-1b",
    }
    for model in ("opt-1.3b", "llama-3.2-1b"):
        assert f"log: results/real/logs/engine/{model}/bs8.log" in said
    assert '{"' not in said
    assert "Traceback" not in said
    assert "real: stopped after" in said
    assert "4 jobs failed" in said


def test_a_job_that_is_killed_is_a_failure_with_the_last_words_of_its_log(checkout: Checkout, tmp_path: Path) -> None:
    unmeasured(checkout, "opt-1.3b/bs8")
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho 'loading the engine' >&2\nkill -9 $$\n")
    python.chmod(0o755)
    checkout.configure(engine={"name": "simulated", "python": str(python)})
    done = checkout.snakemake("--until", "measure")
    said = done.stdout + done.stderr
    assert done.returncode == 1
    assert re.search(r"^FAILED measure opt-1.3b batch 8 grid-\S+: loading the engine$", said, re.M), said
    assert "30 of 36 cells" in said.split("stopped after")[1]
    assert '{"' not in said


def test_a_step_that_fails_says_so_once(checkout: Checkout) -> None:
    (checkout.out / "predictor.json").write_text("{")
    done = checkout.snakemake()
    said = done.stdout + done.stderr
    assert done.returncode == 1
    assert said.count("error: results/tiny/predictor.json: ") == said.count("FAILED ") > 0


def test_a_mistake_in_the_workflow_is_shown_in_full(checkout: Checkout) -> None:
    with (checkout.path / "Snakefile").open("a") as file:
        file.write('\n\nrule mine:\n    input:\n        "nowhere.txt",\n    output:\n        "mine.txt",\n')
    done = checkout.snakemake("mine.txt")
    assert done.returncode == 1
    assert "MissingInputException in rule mine" in done.stderr
    assert "nowhere.txt" in done.stderr
    assert "finished" not in done.stderr


def test_verbose_brings_the_words_of_snakemake_back(checkout: Checkout) -> None:
    (checkout.out / "report.html").unlink()
    said = checkout.run("--verbose")
    assert "rule report:" in said
    assert "input: results/tiny/measurements.parquet" in said


def test_a_dry_run_shows_jobs_and_cells(checkout: Checkout) -> None:
    checkout.configure(batches=[1, 8, 32, 64])
    said = checkout.run("--dry-run")
    assert "To measure: 12 cells in 2 jobs" in said
    assert re.search(r"^measure +2$", said, re.M)
    assert said.count("Job stats:") == 1
    assert len(said.splitlines()) < 40
    assert "input: results/tiny/measurements.parquet" in checkout.run("--dry-run", "--verbose")


@pytest.mark.parametrize("option", ["--lint", "--unlock", "--list-rules"])
def test_what_is_no_run_speaks_as_ever(checkout: Checkout, option: str) -> None:
    said = checkout.run(option)
    wanted = {"--lint": "good condition", "--unlock": "Unlocked", "--list-rules": "build_engine"}
    assert wanted[option] in said
    assert "finished" not in said


def test_a_terminal_shows_stages_in_colours_and_redraws_them(checkout: Checkout) -> None:
    unmeasured(checkout, "opt-1.3b/bs8")
    status, shown = on_terminal(checkout)
    assert status == 0
    assert "\x1b[32m" in shown
    assert "\x1b[2K" in shown
    plain = ESCAPE.sub("", shown)
    first, last = plain.index("30 of 36 cells"), plain.rindex("36 of 36 cells")
    assert first < last, "what an earlier run has measured counts from the start"
    assert "tiny: finished after" in plain
    assert "page: results/tiny/report.html" in plain
    _, plainer = on_terminal(checkout, "--nocolor")
    assert "\x1b[32m" not in plainer


def test_ctrl_c_leaves_the_terminal_as_it_was(checkout: Checkout) -> None:
    lengths = [64, 128, 256, 512, 1024, 2048, 4096]  # so many cells that it is stopped before it is done
    checkout.configure(
        select=["llama-3.1-8b"], input_tokens=lengths, output_tokens=lengths, batches=[1, 2, 4, 8, 16, 32]
    )
    status, shown = on_terminal(checkout, stop_at=r" [1-9]\d* of 294 cells  \d+ %")
    assert status == 1
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l"), "the cursor is back"
    assert "Traceback" not in shown
    assert "tiny: stopped after" in ESCAPE.sub("", shown)


def test_two_campaigns_show_their_own_cells(checkout: Checkout) -> None:
    own = checkout.path / "other.yaml"
    own.write_text((checkout.path / "config/config.yaml").read_text().replace("tiny", "other").replace("- 32\n", ""))
    said = checkout.run("--configfile", str(own), "--until", "measure")
    assert "24 of 24 cells" in said
    assert "other: finished" in said
    assert "tiny" not in said


def test_a_reader_that_has_seen_enough_does_not_end_the_run(checkout: Checkout) -> None:
    shutil.rmtree(checkout.out / "figures")
    (checkout.out / "report.html").unlink()
    script = f"({sys.executable} -m snakemake --profile local; echo $? > status) 2>&1 | head -n 1"
    done = subprocess.run(["bash", "-c", script], cwd=checkout.path, capture_output=True, text=True)
    assert len(done.stdout.splitlines()) == 1
    assert (checkout.path / "status").read_text() == "0\n"
    assert (checkout.out / "report.html").exists()
