"""What every stage shares: the campaign, where its files go, and the digest of a stage's code."""

import inspect
import shlex
from functools import cache
from pathlib import Path

from snakemake.logging import logger
from snakemake.exceptions import WorkflowError
from sweetspot import plan, slurm
from sweetspot.campaign import Campaign
from sweetspot.errors import SweetspotError
from sweetspot.journal import key
from sweetspot.provenance import source_hash

CONFIG_FILE = (
    ", ".join(map(str, workflow.overwrite_configfiles)) or "config/config.yaml"
)

try:
    CAMPAIGN = Campaign(config, CONFIG_FILE)
    CAMPAIGN.check_writable()
except SweetspotError as error:
    sys.exit(f"error: {error}")

if workflow.is_main_process:
    found = plan.survey(CAMPAIGN, plan.unfinished(CAMPAIGN))
    if plan.headline(found):
        logger.info(plan.headline(found))
    if plan.warning(found):
        logger.warning(plan.warning(found))

OUT = str(CAMPAIGN.directory)
# Not a parameter of a rule: another path to the same Python is no reason to run anything again.
os.environ.update(SWEETSPOT_PYTHON=CAMPAIGN.python)


# Its name changes with the set of blocks, and it is a target: so a changed grid is seen without Snakemake's records.
BLOCKS = f"{OUT}/.blocks/{key({'blocks': list(CAMPAIGN.jobs)})}"


pathvars:
    out=OUT,
    logs=f"{OUT}/logs",


wildcard_constraints:
    model="[^/]+",
    batch=r"\d+",
    block="[^/]+",


def ask_slurm(settings):
    """Have the Slurm plugin ask a command that knows, where that is the executor."""
    if hasattr(settings, "status_command"):
        try:
            command, why = slurm.status_command(
                settings.status_command, settings.init_seconds_before_status_checks
            )
        except SweetspotError as error:
            raise WorkflowError(str(error))
        if why:
            logger.info(why)
        settings.status_command = command


def code(script):
    """Digest of a cheap rule's code, as a parameter: an edit that can change its result runs it again."""
    return source_hash(Path(LIBRARY) / "scripts" / script)


def architecture_source(wildcards):
    return str(CAMPAIGN.models[wildcards.model].path)


def engine_job(wildcards):
    return in_shell(CAMPAIGN.engine_job(wildcards.model, int(wildcards.batch)))


def in_shell(job, *more):
    """The job and the campaign's directory as arguments: in one parameter, for each costs a large study a second."""
    return shlex.join(["--job", job, "--directory", OUT, *more])


class Untracked:
    """A parameter of a type that Snakemake does not record: its change is no reason to run. Made when first used."""

    def __init__(self, make):
        self.make = cache(make)

    def __str__(self):
        return self.make()


def measure_job(wildcards):
    place = wildcards.model, int(wildcards.batch), wildcards.block
    return Untracked(
        lambda: in_shell(CAMPAIGN.measure_job(*place), "--block", place[2])
    )


def to_measure(wildcards):
    """What a block needs while its rows are missing; afterwards nothing that happens to an engine concerns them."""
    model, batch, block = wildcards.model, wildcards.batch, wildcards.block
    if os.path.exists(f"{OUT}/measurements/{model}/bs{batch}/{block}.jsonl"):
        return []
    return [f"{OUT}/architectures/{model}.json", f"{OUT}/engines/{model}/bs{batch}"]


# Snakemake asks for their signatures several times a job, and to work one out takes longer than the function.
for function in (measure_job, to_measure):
    function.__signature__ = inspect.signature(function)
