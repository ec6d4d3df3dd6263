"""Latencies of requests: from the times of every request in a window to the columns of a row."""

from collections.abc import Sequence
from statistics import quantiles

from sweetspot.engines import BatchRun
from sweetspot.sensors.window import mean_of_known

_PERCENTILES = (50, 95, 99)


def columns(batches: Sequence[BatchRun], output_tokens: int) -> dict[str, float | None]:
    """Mean and percentiles over all requests, in s; None if the engine does not tell.

    ttft: time to first token, from the moment the engine received the request; waiting for an earlier wave is not in
    it. tpot: time per output token after the first, the mean over a reply; None for replies of one token.
    start_spread_s: the mean time from a batch's first to its last request, where a batch starts one by one.
    """
    requests = [one for batch in batches for one in batch.requests]
    ttft_s = [one.first_token_s - one.arrival_s for one in requests]
    tpot_s = [(one.last_token_s - one.first_token_s) / (output_tokens - 1) for one in requests if output_tokens > 1]
    arrivals_s = [[one.arrival_s for one in batch.requests] for batch in batches if batch.waves == 1]
    spread_s = mean_of_known(max(of_batch) - min(of_batch) for of_batch in arrivals_s if of_batch)
    return {**_summary("ttft", ttft_s), **_summary("tpot", tpot_s), "start_spread_s": spread_s}


def _summary(name: str, values_s: Sequence[float]) -> dict[str, float | None]:
    cuts = quantiles(values_s, n=100, method="inclusive") if len(values_s) > 1 else list(values_s) * 99
    percentiles = {f"{name}_p{share}_s": cuts[share - 1] if cuts else None for share in _PERCENTILES}
    return {f"{name}_mean_s": mean_of_known(values_s), **percentiles}
