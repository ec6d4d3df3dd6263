rule collect:
    input:
        plan=BLOCKS,
        blocks=[
            f"<out>/measurements/{model}/bs{batch}/{block}.jsonl"
            for model, batch, block in CAMPAIGN.jobs
        ],
    output:
        "<out>/measurements.parquet",
    log:
        "<logs>/collect.log",
    conda:
        "../../envs/analysis.yaml"
    params:
        cells=[len(cells) for cells in CAMPAIGN.jobs.values()],
        code=code("collect.py"),
    script:
        "../scripts/collect.py"
