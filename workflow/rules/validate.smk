rule validate:
    input:
        "<out>/measurements.parquet",
    output:
        errors="<out>/validation.csv",
        predictions="<out>/predictions.parquet",
    log:
        "<logs>/validate.log",
    conda:
        "../../envs/analysis.yaml"
    params:
        code=code("validate.py"),
    script:
        "../scripts/validate.py"
