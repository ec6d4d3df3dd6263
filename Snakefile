# The workflow lies in workflow/Snakefile, where the Snakemake catalog looks for it. An include does not bring its
# default target along, so it stands here once more.
include: "workflow/Snakefile"


localrules:
    default,


rule default:
    default_target: True
    input:
        rules.all.input,
