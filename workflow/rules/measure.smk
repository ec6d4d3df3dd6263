# Expensive: no code digest here, or an edited comment would measure a study again. What the rows depend on is the job;
# a change of what the procedure means is a new protocol version (see Protocol.version). The journal is no output, since
# Snakemake deletes outputs: with it a job that runs again, for a longer grid or a rebuilt engine, measures only cells
# that are not in it. (No ancient() on the engine: Snakemake then overlooks a changed job whose engine is rebuilt.)
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
        journal=f"{OUT}/journal/{{model}}/bs{{batch}}/{{block}}.jsonl",
    shell:
        "$SWEETSPOT_PYTHON -m sweetspot.session measure --job {params.job:q} --architecture {input.architecture} "
        "--engine {input.engine} --journal {params.journal} --output {output} 2> {log}"
