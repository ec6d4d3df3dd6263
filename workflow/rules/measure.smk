# Expensive: no code digest here, or an edited comment would measure a study again. What the rows depend on is the job;
# a change of what the procedure means is a new protocol version (see Protocol.version). The engine may be deleted or
# rebuilt for longer cells without measuring again, hence ancient(). The journal is no output: Snakemake would delete it.
rule measure:
    input:
        architecture="<out>/architectures/{model}.json",
        engine=ancient("<out>/engines/{model}/bs{batch}"),
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
        "{CAMPAIGN.python} -m sweetspot.session measure --job {params.job:q} --architecture {input.architecture} "
        "--engine {input.engine} --journal {OUT}/journal/{wildcards.model}/bs{wildcards.batch}/{wildcards.block}.jsonl "
        "--output {output} 2> {log}"
