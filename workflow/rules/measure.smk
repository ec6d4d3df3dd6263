# Expensive: no code digest here, or an edited comment would measure a study again. What the rows depend on is the job,
# and the name of the block holds its digest: rows of another job are another file. So a measurement runs when its file
# is missing and for no other reason, also where results were moved or copied without Snakemake's records. A change of
# what the procedure means is a new protocol version (see Protocol.version). Journal and raw samples are no outputs,
# since Snakemake deletes outputs: with the journal a job measures only cells that are not in it.
rule measure:
    input:
        to_measure,
    output:
        "<out>/measurements/{model}/bs{batch}/{block}.jsonl",
    log:
        "<logs>/measure/{model}/bs{batch}/{block}.log",
    conda:
        "../../envs/engine.yaml"
    resources:
        gpu=CAMPAIGN.gpus_per_job,
    params:
        job=measure_job,
    shell:
        "$SWEETSPOT_PYTHON -m sweetspot.measure.session measure {params.job} 2> {log:q}"
