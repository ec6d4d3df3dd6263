# The plan that `sweetspot unattended` runs on a machine with a GPU and nothing else (docs/offline-campaign.md).
rule offline_plan:
    input:
        [f"<out>/architectures/{model}.json" for model in CAMPAIGN.models],
    output:
        "<out>/offline.json",
    log:
        "<logs>/offline.log",
    conda:
        "../../envs/analysis.yaml"
    params:
        plan=CAMPAIGN.digest(),
        code=code("offline.py"),
    script:
        "../scripts/offline.py"
