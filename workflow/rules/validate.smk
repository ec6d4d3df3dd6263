rule validate:
    input:
        rows="<out>/measurements.parquet",
        architectures=expand("<out>/architectures/{model}.json", model=CAMPAIGN.models),
    output:
        errors=report(
            "<out>/validation.csv", category="Tables", caption="../report/errors.rst"
        ),
        predictions="<out>/predictions.parquet",
    log:
        "<logs>/validate.log",
    conda:
        "../../envs/analysis.yaml"
    params:
        code=code("validate.py"),
    script:
        "../scripts/validate.py"
