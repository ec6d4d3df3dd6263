"""Names and numbers that tables, laws and pages share."""

SELECTORS = ("gpu", "engine", "precision")  # with the model, they make a group: rows that one law may describe
UNSPECIFIED = "unspecified"  # the value of a column that the table lacks

CONFIDENCE = 0.95  # of every interval
LEVEL = f"{100 * CONFIDENCE:g} %"

LATENCIES = tuple(f"{what}_{statistic}_s" for what in ("ttft", "tpot") for statistic in ("mean", "p50", "p95", "p99"))
"""Columns of a row: time to first token and time per output token after it, in s, over the requests of a batch."""

ON_ROOFLINE = "simulated"
ON_MEASURED_KERNELS = "simulated-kernels"
SIMULATED = {  # sources of simulated rows, each with the label of everything made from them
    ON_ROOFLINE: "SIMULATED",
    ON_MEASURED_KERNELS: "SIMULATED (kernel times measured by NVIDIA, power modelled)",
}
