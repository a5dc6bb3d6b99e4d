"""The settings of evidence: which images are kept, where, and how many bytes of them."""

import re
from pathlib import Path
from typing import Annotated

from pydantic import Field

from nap_stream.settings.values import LogRoot, Positive, Section


class EvidenceSettings(Section):
    """Images that are kept beside the log, for people who look at its rows. Off without a root.

    Kept are flagged images, the most extreme of each hour, and a sample of the rest. Until they are
    scored the bytes of images stay in memory, up to half of worker.max_in_hand_bytes beside it:
    beyond that no image is kept. Those that wait to be written take 64 MiB more at most.
    """

    root: LogRoot | None = None
    """Where they lie, the same for all workers: a folder, or an address as log.root has
    one, apart from log.root. Null keeps none."""
    max_bytes_per_day: Positive = 2**30
    """Of all workers together, by the day (UTC) on which images are scored. Half is for flagged
    images, a quarter for the most extreme ones and a quarter for the sample; what is not yet used
    of each grows through the day, so that a flood at night leaves enough for noon."""
    extremes_per_hour: Annotated[int, Field(ge=0, le=1_000)] = 3
    """Of each partition, by the hour of the newest event time: an image is kept whose p-value is
    among so many smallest ones up to then, flagged or not."""
    sample: Annotated[float, Field(ge=0, le=1)] = 0.001
    """The share of the images that are not flagged. The SHA-256 of an image decides, so that one
    that is scored again is kept again."""
    seed: Annotated[str, Field(max_length=64)] = ""
    """Another one keeps another sample."""


def apart(root: Path | str, other: Path | str) -> bool:
    """Whether neither root lies in the other, wherever links lead."""
    # What is a path and what an address never meet.
    resolved = (each.resolve() if isinstance(each, Path) else each for each in (root, other))
    first, second = (re.sub("/+", "/", f"{each}/") for each in resolved)
    return not (first.startswith(second) or second.startswith(first))
