rule fit:
    input:
        rows="<out>/measurements.parquet",
        architectures=expand("<out>/architectures/{model}.json", model=CAMPAIGN.models),
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
