"""The sweet spot of a fitted law: the reply with the least energy per output token. Standard library only.

The report, `sweetspot advise` and the page find it with this search (explorer.predict.js repeats it line by line), so
the same question has the same answer everywhere.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass

from sweetspot.predict.laws import Law, per_token

PLATEAU = 0.01  # energies per token this close to the least count as equal
_STEPS = 481  # replies tried if the KV cache breaks the law's smooth curve
_REACH = 64.0  # a plateau is followed by up to this factor below and above the sweet spot
_OCTAVES = range(-20, 41)  # of m, searched for a smooth minimum
_HALVINGS = 60


@dataclass(frozen=True)
class SweetSpot:
    """The reply with the least energy per output token, and the range of replies within 1 % of that energy.

    `status` is "interior", "outside measured range", "no interior minimum" or "not identified"; the numbers are None
    for the last two. "no interior minimum": the energy per token falls or rises throughout. "not identified": no term
    of the law grows with the reply, or the measured cells do not determine such a term.
    """

    status: str
    output_tokens: float | None = None
    plateau_low: float | None = None
    plateau_high: float | None = None
    energy_per_output_token_j: float | None = None

    @property
    def reply(self) -> int:
        """The sweet spot in whole tokens. Raises ValueError if there is none."""
        if self.output_tokens is None:
            raise ValueError(self.status)
        return max(1, int(self.output_tokens + 0.5))

    @property
    def plateau(self) -> tuple[int, int] | None:
        """The plateau in whole tokens; None if there is no sweet spot."""
        if self.plateau_low is None or self.plateau_high is None:
            return None
        return int(self.plateau_low + 0.5), int(self.plateau_high + 0.5)

    def as_dict(self) -> dict[str, str | float | None]:
        """For JSON."""
        return asdict(self)


def sweet_spot(
    law: Law,
    values: Mapping[str, float],
    n: float,
    batch: float,
    measured: tuple[float, float],
    waves: Callable[[int], int] | None = None,
    chosen: float = 1.0,
) -> SweetSpot:
    """The sweet spot of `law` with coefficients `values` after a prompt of `n` tokens, `batch` requests in flight.

    `measured`: the shortest and the longest measured reply. `waves`: how many waves the batch runs in if its replies
    have m tokens (None: always one). If it is ever more than one, a longer reply can cost more because the KV cache
    holds fewer requests; then only measured replies are tried. `chosen` is the share of a mixture's experts that
    one token activates.
    """
    low, high = measured
    if waves is not None:
        replies = steps(low, high)
        together = [batch / waves(m) for m in replies]
        if min(together) < batch:
            energies = [per_token(law, values, n, m, b, chosen) for m, b in zip(replies, together, strict=True)]
            return _least(replies, energies)
    spot = _minimum(lambda m: law.slope(values, n, m, batch, chosen))
    if spot is None:
        return SweetSpot("no interior minimum")
    least = per_token(law, values, n, spot, batch, chosen)

    def is_flat(m: float) -> bool:
        return per_token(law, values, n, m, batch, chosen) <= (1 + PLATEAU) * least

    return SweetSpot(
        "interior" if low <= spot <= high else "outside measured range",
        spot,
        _edge(is_flat, spot, max(1.0, spot / _REACH)),
        _edge(is_flat, spot, spot * _REACH),
        least,
    )


def steps(low: float, high: float) -> list[int]:
    """Whole replies from `low` to `high`, evenly spaced on a log scale, without repeats."""
    last = _STEPS - 1
    return sorted({int(low * (high / low) ** (step / last) + 0.5) for step in range(_STEPS)})


def _minimum(slope: Callable[[float], float]) -> float | None:
    """The first minimum over m > 0, by the sign of the slope at m; None if there is none.

    For the paper's law it is m*(n) = sqrt((t1 n^2 + t3 n + t5) / t4) of arXiv 2602.05695.
    """
    for octave in _OCTAVES:
        low, high = 2.0**octave, 2.0 ** (octave + 1)
        if slope(low) < 0 <= slope(high):
            for _ in range(_HALVINGS):
                middle = (low + high) / 2
                low, high = (middle, high) if slope(middle) < 0 else (low, middle)
            return (low + high) / 2
    return None


def _edge(is_flat: Callable[[float], bool], inside: float, outside: float) -> float:
    """The end of a plateau, between `inside` and `outside`."""
    if is_flat(outside):
        return outside
    for _ in range(_HALVINGS):
        middle = (inside + outside) / 2
        inside, outside = (middle, outside) if is_flat(middle) else (inside, middle)
    return inside


def _least(replies: list[int], energies: list[float]) -> SweetSpot:
    best = energies.index(min(energies))
    if best in (0, len(replies) - 1):
        return SweetSpot("no interior minimum")
    most = (1 + PLATEAU) * energies[best]
    first = last = best
    while first > 0 and energies[first - 1] <= most:
        first -= 1
    while last < len(replies) - 1 and energies[last + 1] <= most:
        last += 1
    return SweetSpot("interior", replies[best], replies[first], replies[last], energies[best])
