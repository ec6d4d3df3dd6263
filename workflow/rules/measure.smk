# Expensive: no code digest here, or an edited comment would measure a study again. What the rows depend on is the job;
# a change of what the procedure means is a new protocol version (see Protocol.version). Journal and raw samples are no
# outputs, since Snakemake deletes outputs: with the journal a job that runs again, for a longer grid or a rebuilt engine,
# measures only cells that are not in it. (No ancient() on the engine: Snakemake then overlooks a changed job whose
# engine is rebuilt.)
rule measure:
    input:
        architecture="<out>/architectures/{model}.json",
        engine="<out>/engines/{model}/bs{batch}",
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
        directory=out,
    shell:
        "$SWEETSPOT_PYTHON -m sweetspot.session measure --job {params.job:q} --directory {params.directory:q} "
        "--block {wildcards.block} 2> {log:q}"
