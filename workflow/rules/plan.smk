rule plan:
    input:
        CAMPAIGN.config.models,
        [str(model.path) for model in CAMPAIGN.models.values()],
    output:
        cells="<out>/plan.csv",
        campaign="<out>/campaign.json",
    log:
        "<logs>/plan.log",
    conda:
        "../../envs/analysis.yaml"
    params:
        config=CAMPAIGN.config.model_dump_json(),
        code=code("plan.py"),
    script:
        "../scripts/plan.py"
