"""Latencies of requests: from the times of every request in a window to the columns of a row."""

from collections.abc import Iterable, Sequence
from statistics import fmean, quantiles

from sweetspot.engines import BatchRun

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
    spreads_s = [_spread_s(batch) for batch in batches if batch.requests and batch.waves == 1]
    return {**_summary("ttft", ttft_s), **_summary("tpot", tpot_s), "start_spread_s": _mean(spreads_s)}


def _summary(name: str, values_s: Sequence[float]) -> dict[str, float | None]:
    cuts = quantiles(values_s, n=100, method="inclusive") if len(values_s) > 1 else list(values_s) * 99
    percentiles = {f"{name}_p{share}_s": cuts[share - 1] if cuts else None for share in _PERCENTILES}
    return {f"{name}_mean_s": _mean(values_s), **percentiles}


def _spread_s(batch: BatchRun) -> float:
    arrivals_s = [one.arrival_s for one in batch.requests]
    return max(arrivals_s) - min(arrivals_s)


def _mean(values: Iterable[float]) -> float | None:
    known = list(values)
    return fmean(known) if known else None
