"""Names and numbers that tables, laws and pages share."""

# With the model, they make a group: rows that one law may describe.
SELECTORS = ("gpu", "engine", "precision", "parallelism")
UNSPECIFIED = "unspecified"  # the value of a column that the table lacks
ONE_GPU = "tp1"  # the parallelism of a model on one GPU, and of a table that does not state it
UNSAID = (UNSPECIFIED, ONE_GPU)  # parts of a group that need no mention

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
