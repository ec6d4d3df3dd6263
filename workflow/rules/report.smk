rule report:
    input:
        measurements="<out>/measurements.parquet",
        predictor="<out>/predictor.json",
        validation="<out>/validation.csv",
        predictions="<out>/predictions.parquet",
        plan="<out>/plan.csv",
        campaign="<out>/campaign.json",
    output:
        page=report(
            "<out>/report.html",
            category="Energy of inference",
            caption="../report/page.rst",
        ),
        findings="<out>/findings.txt",
    log:
        "<logs>/report.log",
    conda:
        "../../envs/analysis.yaml"
    params:
        code=code("report.py"),
    script:
        "../scripts/report.py"
