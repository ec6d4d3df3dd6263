# Expensive: no code digest here, or an edited comment would remeasure a study. The rows depend on the job, whose digest
# is in the block's name, so rows of another job are another file. A measurement therefore runs only if its file is
# missing, even if results were moved or copied without Snakemake's records. If the procedure changes meaning, raise
# Protocol.version. Journal and raw samples are not outputs, because Snakemake deletes outputs; the journal lets a job
# measure only the cells that are not in it.
rule measure:
    input:
        to_measure,
    output:
        "<out>/measurements/{model}/bs{batch}/{block}.jsonl",
    log:
        "<logs>/measure/{model}/bs{batch}/{block}.log",
    conda:
        "../../envs/analysis.yaml"
    resources:
        gpu=gpus_of_job,
    params:
        job=measure_job,
    shell:
        "exec $SWEETSPOT_PYTHON -m sweetspot.measure.session measure {params.job} 2> {log:q}"
