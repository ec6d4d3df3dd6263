rule figures:
    input:
        measurements="<out>/measurements.parquet",
        predictor="<out>/predictor.json",
        validation="<out>/validation.csv",
        predictions="<out>/predictions.parquet",
        plan="<out>/plan.csv",
        campaign="<out>/campaign.json",
    output:
        directory("<out>/figures"),
    log:
        "<logs>/figures.log",
    conda:
        "../../envs/analysis.yaml"
    params:
        code=code("figures.py"),
    script:
        "../scripts/figures.py"
