rule resolve_architecture:
    input:
        architecture_source,
    output:
        "<out>/architectures/{model}.json",
    log:
        "<logs>/architecture/{model}.log",
    conda:
        "../../envs/analysis.yaml"
    params:
        code=code("resolve_architecture.py"),
    script:
        "../scripts/resolve_architecture.py"
