"""sweetspot: measure, model and predict the energy of LLM inference.

Reads config/config.yaml unless another campaign is given with --configfile. Everything lands in results/<campaign>/.
"""

import os
import sys

# The library of this very checkout serves the workflow and every job, installed or not.
LIBRARY = os.path.join(workflow.basedir, "workflow")
sys.path.insert(0, LIBRARY)
os.environ.update(PYTHONPATH=LIBRARY)

from snakemake.utils import min_version

min_version("9.20")

if not workflow.overwrite_configfiles:

    configfile: "config/config.yaml"


include: "workflow/rules/common.smk"
include: "workflow/rules/plan.smk"
include: "workflow/rules/architecture.smk"
include: "workflow/rules/engine.smk"
include: "workflow/rules/measure.smk"
include: "workflow/rules/collect.smk"
include: "workflow/rules/fit.smk"
include: "workflow/rules/validate.smk"
include: "workflow/rules/figures.smk"
include: "workflow/rules/report.smk"


onstart:
    ask_slurm(workflow.executor_settings)


# Seconds of work with nothing before them: not worth a place in a queue.
localrules:
    all,
    plan,
    resolve_architecture,


# Every result by name: one that is missing is made again, also where the report is there already.
rule all:
    default_target: True
    input:
        BLOCKS,
        "<out>/measurements.parquet",
        "<out>/predictor.json",
        "<out>/validation.csv",
        "<out>/figures",
        "<out>/report.html",
