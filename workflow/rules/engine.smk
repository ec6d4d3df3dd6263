# Expensive: no code digest here. An engine depends only on the job, which Snakemake tracks as a parameter.
rule build_engine:
    input:
        "<out>/architectures/{model}.json",
    output:
        directory("<out>/engines/{model}/bs{batch}"),
    log:
        "<logs>/engine/{model}/bs{batch}.log",
    conda:
        "../../envs/analysis.yaml"
    resources:
        gpu=gpus_of_job,
    params:
        job=engine_job,
    shell:
        "exec $SWEETSPOT_PYTHON -m sweetspot.measure.session build {params.job} 2> {log:q}"
