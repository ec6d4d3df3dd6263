rule figures:
    input:
        measurements="<out>/measurements.parquet",
        predictor="<out>/predictor.json",
        validation="<out>/validation.csv",
        predictions="<out>/predictions.parquet",
        plan="<out>/plan.csv",
        campaign="<out>/campaign.json",
    output:
        report(
            directory("<out>/figures"),
            patterns=["{figure}.png"],
            category="Figures",
            labels={"figure": "{figure}"},
            caption="../report/figure.rst",
        ),
    log:
        "<logs>/figures.log",
    conda:
        "../../envs/analysis.yaml"
    params:
        code=code("figures.py"),
    script:
        "../scripts/figures.py"
