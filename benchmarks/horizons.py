"""Is an average run length (ARL) that of the detector, or a reading of the horizon?

Records divided by alarms estimate an ARL where alarms come at a constant rate. A detector that
alarms early or never has no such rate: the longer its streams are watched, the larger the quotient.
One that alarms late has an ARL all the same: where the rate grows, it lies between the mean of the
run lengths cut at the horizon and the quotient, which meet when most streams have alarmed.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from benchmarks.run_lengths import Estimate, average_run_length, rounded

UNSTABLE = "no stable ARL"
FACTOR = 1.5
"""By which the quotient may differ between the horizon and its first half, or from the mean of the
run lengths cut at the horizon."""
LEVEL = 0.05
"""Of the test whether the rates of alarms in the two halves differ."""
FEW_ALARMS = 10
"""With fewer nothing is said."""


@dataclass(frozen=True, slots=True)
class Law:
    """How the first alarms of in-distribution streams spread over the horizon.

    Attributes:
        streams: How many were watched.
        horizon: For how many records each, at most.
        soon: What counts as early, in records.
        early: Share of streams that alarm within ``soon`` records.
        never: Share of streams without an alarm within the horizon.
        half: ARL by the first half of the horizon, in records; infinity without an alarm.
        stable: Whether the whole horizon's is known but for `FACTOR`; None if alarms are too few.
    """

    streams: int
    horizon: int
    soon: int
    early: float
    never: float
    half: float
    stable: bool | None

    def __str__(self) -> str:
        return {True: "yes", False: UNSTABLE, None: "too few alarms to tell"}[self.stable]


def law(run_lengths: NDArray[np.int64], horizon: int, soon: int) -> Law:
    """See `Law`; from first alarms, int64 (S,), `NEVER` beyond the horizon."""
    half = average_run_length(run_lengths, horizon // 2).mean
    return Law(
        len(run_lengths),
        horizon,
        soon,
        float((run_lengths <= soon).mean()),
        float((run_lengths > horizon).mean()),
        half,
        _is_stable(run_lengths, horizon, half),
    )


def print_laws(rows: list[dict[str, Any]]) -> None:
    """Print a line for each row of `benchmarks.peers`, of which there is one at least."""
    laws = [Law(**row["law"]) for row in rows]
    print(
        f"First alarms on in-distribution flags. {UNSTABLE}: records divided by alarms differ by "
        f"more than a factor of {FACTOR:g} between the horizon and its first half, and the rates "
        f"of alarms in its halves differ too (level {LEVEL:g}). What stands for an ARL is a "
        f"reading of the horizon then. Excepted is a peer whose rate grows, if all but "
        f"{1 - 1 / FACTOR:.0%} of its streams alarm.\n"
    )
    print(
        f"| peer | parameter | streams | alarm within {laws[0].soon:,} | horizon | none within it "
        f"| ARL by its first half | ARL | stable |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for row, found in zip(rows, laws, strict=True):
        print(_line(row, found))
    print(flush=True)


def _line(row: dict[str, Any], found: Law) -> str:
    size = f", {int(row['size']):,} images" if row["size"] else ""
    columns = (
        f"{row['name']}{size}",
        row["parameter"],
        f"{found.streams:,}",
        f"{found.early:.0%}",
        f"{found.horizon:,}",
        f"{found.never:.0%}",
        rounded(found.half),
        str(Estimate(**row["run_length"])),
        str(found),
    )
    return f"| {' | '.join(columns)} |"


def _is_stable(run_lengths: NDArray[np.int64], horizon: int, half: float) -> bool | None:
    alarms = int((run_lengths <= horizon).sum())
    if alarms < FEW_ALARMS:
        return None
    whole = average_run_length(run_lengths, horizon).mean
    if whole / half <= FACTOR and (half / whole <= FACTOR or len(run_lengths) <= FACTOR * alarms):
        return True
    first = np.minimum(run_lengths, horizon // 2).sum()
    share = float(first / np.minimum(run_lengths, horizon).sum())
    before = int((run_lengths <= horizon // 2).sum())
    return False if binomtest(before, alarms, share).pvalue < LEVEL else None
