rule fit:
    input:
        "<out>/measurements.parquet",
    output:
        "<out>/predictor.json",
    log:
        "<logs>/fit.log",
    conda:
        "../../envs/analysis.yaml"
    params:
        code=code("fit.py"),
    script:
        "../scripts/fit.py"
