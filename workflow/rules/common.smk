"""What every stage shares: the campaign, where its files go, and the digest of a stage's code."""

from pathlib import Path

from sweetspot.campaign import Campaign
from sweetspot.errors import SweetspotError
from sweetspot.provenance import source_hash

CONFIG_FILE = (
    ", ".join(map(str, workflow.overwrite_configfiles)) or "config/config.yaml"
)

try:
    CAMPAIGN = Campaign(config, CONFIG_FILE)
    CAMPAIGN.check_writable()
except SweetspotError as error:
    sys.exit(f"error: {error}")

OUT = str(CAMPAIGN.directory)
# Not a parameter of a rule: another path to the same Python is no reason to run anything again.
os.environ.update(SWEETSPOT_PYTHON=CAMPAIGN.python)


pathvars:
    out=OUT,
    logs=f"{OUT}/logs",


wildcard_constraints:
    model="[^/]+",
    batch=r"\d+",
    block="[^/]+",


def code(script):
    """Digest of a cheap rule's code, as a parameter: an edit that can change its result runs it again."""
    return source_hash(Path(LIBRARY) / "scripts" / script)


def architecture_source(wildcards):
    return str(CAMPAIGN.models[wildcards.model].path)


def out(wildcards):
    return OUT


def engine_job(wildcards):
    return CAMPAIGN.engine_job(wildcards.model, int(wildcards.batch))


def measure_job(wildcards):
    return CAMPAIGN.measure_job(wildcards.model, int(wildcards.batch), wildcards.block)
