"""The requests of a service: how many there are of each length. Standard library only."""

import functools
import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sweetspot.errors import SweetspotError

_MOST_PAIRS = 2000
_BUCKETS = (1.05, 1.1, 1.2, 1.3)  # relative widths; the narrowest that leaves few enough pairs is used


@dataclass(frozen=True)
class Workload:
    """`lengths` has (input tokens, output tokens, number of requests); `notes` lists what was assumed about them."""

    lengths: tuple[tuple[int, int, int], ...]
    notes: tuple[str, ...] = ()

    @property
    def requests(self) -> int:
        """How many requests there are."""
        return sum(count for _, _, count in self.lengths)

    @property
    def input_tokens(self) -> int:
        """Mean prompt length, rounded."""
        return max(1, round(sum(n * count for n, _, count in self.lengths) / self.requests))

    @property
    def output_tokens(self) -> int:
        """Mean reply length, rounded."""
        return max(1, round(sum(m * count for _, m, count in self.lengths) / self.requests))

    @property
    def is_mix(self) -> bool:
        """Whether the requests have different lengths."""
        return len(self.lengths) > 1


def of_pair(input_tokens: int, output_tokens: int) -> Workload:
    """A workload of equal requests. Raises SweetspotError for a length below 1."""
    for name, value in zip(("--input-tokens", "--output-tokens"), (input_tokens, output_tokens), strict=True):
        if not 1 <= value < 2**31:
            raise SweetspotError(f"{name} {value}: give a whole number of at least 1")
    return Workload(((input_tokens, output_tokens, 1),))


def of_counts(counts: Mapping[tuple[int, int], int]) -> Workload:
    """A workload from the number of requests by (input tokens, output tokens); many different pairs are merged."""
    lengths = [(n, m, count) for (n, m), count in counts.items() if count]
    return Workload(tuple(sorted(lengths))) if len(lengths) <= _MOST_PAIRS else _bucketed(lengths)


def _bucketed(lengths: Sequence[tuple[int, int, int]]) -> Workload:
    """Merge similar lengths at their mean, so that even a day's log is evaluated at once.

    Terms linear in the lengths are preserved; quadratic ones lose at most w²/12 in a bucket of relative width w:
    under 1 % at the widest. A length near a limit is judged by its bucket's mean.
    """
    for width in _BUCKETS:
        sums: dict[tuple[int, int], list[int]] = defaultdict(lambda: [0, 0, 0])
        bucket = functools.cache(lambda length, width=width: int(math.log(length, width)))
        for n, m, count in lengths:
            own = sums[bucket(n), bucket(m)]
            own[:] = own[0] + n * count, own[1] + m * count, own[2] + count
        if len(sums) <= _MOST_PAIRS:
            break
    merged = Counter[tuple[int, int]]()
    for inputs, outputs, count in sums.values():
        merged[round(inputs / count), round(outputs / count)] += count
    note = f"{len(lengths):,} length pairs merged into {len(merged):,}: lengths within {width - 1:.0%} of each other"
    return Workload(tuple(sorted((n, m, count) for (n, m), count in merged.items())), (note,))
