"""Shared by all stages: the campaign, its file locations, and the digest of a stage's code."""

import inspect
import shlex
from functools import cache
from pathlib import Path

from snakemake.logging import logger
from snakemake.exceptions import WorkflowError
from snakemake.utils import update_config
from sweetspot.campaign import slurm, survey
from sweetspot.campaign.campaign import Campaign
from sweetspot.campaign.configfile import read_configuration
from sweetspot.errors import SweetspotError, reported
from sweetspot.files import key
from sweetspot.campaign.digest import source_hash

CONFIG_FILES = workflow.overwrite_configfiles or ["config/config.yaml"]
CONFIG_FILE = ", ".join(map(str, CONFIG_FILES))

try:
    # Snakemake reads YAML 1.1, in which 0100 is 64 and the last of two equal keys wins, so it does not decide. A
    # workflow that uses this one as a module brings its settings along.
    if not workflow.modifier.skip_configfile:
        config.clear()
        for file in CONFIG_FILES:
            update_config(config, read_configuration(Path(file)))
        update_config(config, workflow.config_settings.config)
    CAMPAIGN = Campaign(config, CONFIG_FILE)
    CAMPAIGN.check_writable()
except Exception as error:
    sys.exit(reported(error)[0])

# Snakemake asks for --cores, which does not cover GPUs; the profiles do. Options such as --dry-run need no profile.
if (
    workflow.is_main_process
    and workflow.resource_settings.cores is None
    and not [
        option
        for option in sys.argv[1:]
        if option.startswith("-") and not option.startswith("--config")
    ]
):
    sys.exit(
        "error: say where to run: `snakemake --profile local` on this machine, `snakemake --profile slurm` on a "
        "cluster (edit profiles/slurm/config.yaml first); add --dry-run to see what would run"
    )


def say(text):
    """Tell the user, also where Snakemake's own words go to its log only."""
    logger.info(text, extra={"sweetspot": {"campaign": CAMPAIGN}})


if workflow.is_main_process:
    found = survey.survey(CAMPAIGN, unfinished=True)
    for line in (survey.headline(found), survey.left_out(CAMPAIGN)):
        say(line)
    if survey.warning(found):
        logger.warning(survey.warning(found))

# On one machine, as many measuring jobs run at a time as its GPUs allow; each takes GPUs that no other job has.
if workflow.is_main_process and workflow.nodes is None and CAMPAIGN.needs_gpus:
    if "gpu" not in workflow.global_resources:
        workflow.register_resource("gpu", CAMPAIGN.gpus_here())

OUT = str(CAMPAIGN.directory)
# Not a parameter, since another path to the same Python must not rerun anything.
os.environ.update(SWEETSPOT_PYTHON=CAMPAIGN.python)


# A target whose name changes with the set of blocks, so that a changed grid is noticed without Snakemake's records.
BLOCKS = f"{OUT}/.blocks/{key({'blocks': list(CAMPAIGN.jobs)})}"


pathvars:
    out=OUT,
    logs=f"{OUT}/logs",


wildcard_constraints:
    model="[^/]+",
    batch=r"\d+",
    block="[^/]+",


def ask_slurm(settings):
    """If the executor is Slurm, have its plugin query job states with a command that works here."""
    if hasattr(settings, "status_command"):
        try:
            command, why = slurm.status_command(
                settings.status_command, settings.init_seconds_before_status_checks
            )
        except SweetspotError as error:
            raise WorkflowError(str(error))
        if why:
            say(why)
        settings.status_command = command


def code(script):
    """Digest of a cheap rule's code, as a parameter, so that an edit that can change its result reruns it."""
    return source_hash(Path(LIBRARY) / "scripts" / script)


def architecture_source(wildcards):
    return str(CAMPAIGN.models[wildcards.model].path)


def engine_job(wildcards):
    return in_shell(CAMPAIGN.engine_job(wildcards.model, int(wildcards.batch)))


def in_shell(job, *more):
    """The job and the campaign's directory as arguments, in one parameter: each one costs a large study a second."""
    return shlex.join(["--job", job, "--directory", OUT, *more])


class Untracked:
    """A parameter of a type that Snakemake does not record, so a change reruns nothing. Computed on first use."""

    def __init__(self, make):
        self.make = cache(make)

    def __str__(self):
        return self.make()


def measure_job(wildcards):
    place = wildcards.model, int(wildcards.batch), wildcards.block
    return Untracked(
        lambda: in_shell(CAMPAIGN.measure_job(*place), "--block", place[2])
    )


def gpus_of_job(wildcards):
    return CAMPAIGN.gpus_of_job(wildcards.model)


def to_measure(wildcards):
    """A block's inputs while its rows are missing; once they exist, changes to an engine must not remake them."""
    model, batch, block = wildcards.model, wildcards.batch, wildcards.block
    if os.path.exists(f"{OUT}/measurements/{model}/bs{batch}/{block}.jsonl"):
        return []
    return [f"{OUT}/architectures/{model}.json", f"{OUT}/engines/{model}/bs{batch}"]


# Snakemake inspects their signatures several times per job, which takes longer than calling them.
for function in (gpus_of_job, measure_job, to_measure):
    function.__signature__ = inspect.signature(function)
