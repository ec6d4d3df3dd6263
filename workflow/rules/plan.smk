rule plan:
    input:
        CAMPAIGN.config.models,
        [str(model.path) for model in CAMPAIGN.models.values()],
    output:
        cells="<out>/plan.csv",
        campaign="<out>/campaign.json",
        blocks=BLOCKS,
    log:
        "<logs>/plan.log",
    conda:
        "../../envs/analysis.yaml"
    params:
        plan=CAMPAIGN.digest(),
    script:
        "../scripts/plan.py"
