"""How steady the machine is while a benchmark runs: a fixed piece of work, timed before and after each section.

Other machines on the same host do not show in this machine's processor times, but they slow this work down. A row that
misses its bar while the machine was unsteady is measured once more, and the table says so.
"""

import hashlib
import statistics
import time
from collections.abc import Callable, Iterable, Mapping

from experiments.bench.measure import Row

STEADY = 0.05  # the spread of the reference up to which a missed bar counts
_TIMES = 5  # how often the reference is timed, before and after


def reference() -> float:
    """Seconds that the same work takes each time: a hash over 32 MB, which no cache holds, about 30 ms."""
    begin = time.perf_counter()
    hashlib.sha256(bytes(32_000_000)).digest()
    return time.perf_counter() - begin


def spread(before: list[float], after: list[float]) -> float:
    """How far the slowest of the two medians and the ordinary fluctuation lie above the fastest time, as a share.

    Returns:
        the median distance of all times from their minimum, or the distance between the two medians, whichever is
        larger, divided by the minimum.
    """
    least = min(before + after)
    drift = abs(statistics.median(before) - statistics.median(after))
    return max(statistics.median(before + after) - least, drift) / least


def measured(
    sections: Mapping[str, Callable[[int], Iterable[Row]]],
    rounds: int,
    timed: Callable[[], float] = reference,
) -> list[Row]:
    """Measure the rows of each section; a section that misses a bar on an unsteady machine is measured once more.

    Args:
        sections: functions from the number of rounds to rows, by name.
        rounds: how often each program has its turn.
        timed: the reference; returns seconds.
    """

    def once(section: Callable[[int], Iterable[Row]]) -> tuple[list[Row], float]:
        before = [timed() for _ in range(_TIMES)]
        rows = list(section(rounds))
        noise = spread(before, [timed() for _ in range(_TIMES)])
        return [row._replace(noise=noise) for row in rows], noise

    found = []
    for section in sections.values():
        rows, noise = once(section)
        if noise > STEADY and not all(row.ok for row in rows):
            again, _ = once(section)
            rows = [
                new if old.ok else new._replace(note=f"measured twice; before: {old.ratio:.3g}, noise {noise:.0%}")
                for old, new in zip(rows, again, strict=True)
            ]
        found += rows
    return found
