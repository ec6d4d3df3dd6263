"""Chooses the command with which Snakemake's Slurm plugin can find out how a job ended on this cluster."""

import subprocess

from sweetspot.errors import SweetspotError

FIRST_LOOK_S = 40  # until the plugin's first status check of a job, if the profile does not say otherwise
_LONGEST_PAUSE_S = 180  # longest time between two status checks of the plugin


def status_command(wanted: str, first_look_s: int) -> tuple[str, str]:
    """`sacct` or `squeue`, and why it is not the `wanted` one ("" if it is).

    The plugin waits forever if its command does not know that a job ended: `sacct` on a cluster without accounting,
    `squeue` if the controller forgets the job before the plugin checks. `first_look_s`: seconds until its first check
    of a job. Raises SweetspotError if neither command works.
    """
    config = _config()
    kind = config.get("AccountingStorageType", "unknown").rpartition("/")[2]
    # Without accounting a finished job is known only as long as the controller remembers it.
    remembered_s = int(config.get("MinJobAge", "0").split()[0])
    # The plugin falls back to sacct if jobs are remembered for less than three times the first check.
    needed_s = max(_LONGEST_PAUSE_S, 3 * first_look_s)
    if wanted == "squeue" and remembered_s > needed_s:
        return wanted, ""
    if kind != "none" and _run("sacct", "--allocations", "--noheader", "--starttime", "now") is not None:
        forgets = (
            f"Slurm's controller forgets jobs {remembered_s} s (MinJobAge) after they end: using sacct for job states."
        )
        return "sacct", "" if wanted == "sacct" else forgets
    if remembered_s > needed_s:
        return "squeue", "This cluster has no accounting: using squeue for job states."
    remedy = f"ask the administrator for slurmdbd or for MinJobAge above {needed_s} s (Slurm's default is 300 s)"
    if remembered_s > _LONGEST_PAUSE_S:
        remedy += f", or set slurm-init-seconds-before-status-checks: {remembered_s // 4} in profiles/slurm/config.yaml"
    raise SweetspotError(
        f"Snakemake cannot find out how a job ended on this cluster and would wait forever: sacct fails "
        f"(AccountingStorageType is {kind}), and the controller forgets jobs {remembered_s} s (MinJobAge) after they "
        f"end; {remedy}"
    )


def partitions() -> list[dict[str, str]]:
    """Name, nodes, GPUs (as Slurm names them; empty without) and time limit of each partition; none if sinfo fails."""
    rows = [line.split("|") for line in (_run("sinfo", "--noheader", "--format=%R|%D|%G|%l") or "").splitlines()]
    return [
        {"name": name, "nodes": nodes, "gpus": "" if gres == "(null)" else gres, "limit": limit}
        for name, nodes, gres, limit in rows
    ]


def _config() -> dict[str, str]:
    """The controller's configuration. Raises SweetspotError if it does not answer."""
    shown = _run("scontrol", "show", "config")
    if shown is None:
        raise SweetspotError(
            "Slurm's controller does not answer (`scontrol show config`): run this on a login node of the cluster, or "
            "use --profile local to run without Slurm"
        )
    pairs = (line.partition("=") for line in shown.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def _run(*command: str) -> str | None:
    """The output of a command; None if it fails or is not installed."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return None if done.returncode else done.stdout
