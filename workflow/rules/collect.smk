rule collect:
    input:
        CAMPAIGN.tables(),
    output:
        "<out>/measurements.parquet",
    log:
        "<logs>/collect.log",
    conda:
        "../../envs/analysis.yaml"
    params:
        code=code("collect.py"),
    script:
        "../scripts/collect.py"
