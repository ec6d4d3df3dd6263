"""What Snakemake's Slurm plugin does not find out by itself: who on this cluster can tell how a job ended."""

import subprocess

from sweetspot.errors import SweetspotError

_LONGEST_PAUSE_S = 180  # between two looks of the plugin at its jobs


def status_command(wanted: str, first_look_s: int) -> tuple[str, str]:
    """`sacct` or `squeue`, and why it is not the one that is `wanted`; no words where it is.

    The plugin waits for ever for jobs whose end the command that it asks does not know: `sacct` on a cluster that keeps
    no accounts, `squeue` where the controller forgets a job before the plugin looks. `first_look_s`: seconds before it
    first looks at a job. Raises SweetspotError where neither can tell.
    """
    config = _config()
    kind = config.get("AccountingStorageType", "unknown").rpartition("/")[2]
    # Without accounts a job that is over is known as long as the controller remembers it.
    remembered_s = int(config.get("MinJobAge", "0").split()[0])
    # The plugin falls back to sacct below three times the first look.
    needed_s = max(_LONGEST_PAUSE_S, 3 * first_look_s)
    if wanted == "squeue" and remembered_s > needed_s:
        return wanted, ""
    if kind != "none" and _run("sacct", "--allocations", "--noheader", "--starttime", "now") is not None:
        forgets = (
            f"The controller forgets jobs {remembered_s} s (MinJobAge) after their end: asking sacct for their states."
        )
        return "sacct", "" if wanted == "sacct" else forgets
    if remembered_s > needed_s:
        return "squeue", "This cluster keeps no accounts: asking squeue for the states of jobs."
    remedy = f"ask the administrator for slurmdbd or for MinJobAge above {needed_s} s (Slurm's default is 300 s)"
    if remembered_s > _LONGEST_PAUSE_S:
        remedy += f", or set slurm-init-seconds-before-status-checks: {remembered_s // 4} in profiles/slurm/config.yaml"
    raise SweetspotError(
        f"nothing on this cluster tells how a job ended: sacct fails (AccountingStorageType is {kind}), and "
        f"the controller forgets jobs {remembered_s} s (MinJobAge) after their end. Snakemake would wait for ever: "
        + remedy
    )


def _config() -> dict[str, str]:
    """The controller's configuration. Raises SweetspotError where it does not answer."""
    shown = _run("scontrol", "show", "config")
    if shown is None:
        raise SweetspotError(
            "Slurm's controller does not answer (`scontrol show config`): run this on a login node of the cluster, or "
            "without Slurm: --profile local"
        )
    pairs = (line.partition("=") for line in shown.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def _run(*command: str) -> str | None:
    """What a command prints; None where it fails or is not there."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return None if done.returncode else done.stdout
