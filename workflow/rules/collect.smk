rule collect:
    input:
        plan=BLOCKS,
        blocks=CAMPAIGN.tables(),
    output:
        "<out>/measurements.parquet",
    log:
        "<logs>/collect.log",
    conda:
        "../../envs/analysis.yaml"
    params:
        cells=CAMPAIGN.cells_of_tables(),
        code=code("collect.py"),
    script:
        "../scripts/collect.py"
