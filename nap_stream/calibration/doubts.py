"""Whether images and model belong together: sentences for people where they seem not to."""

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from nap_stream.calibration.reading import Reading, ScoredImages
from nap_stream.core.judging import Group
from nap_stream.core.score_specs import BaseScore

SKILL = 0.2
"""A share this much of the way from guessing to certainty; below it a model and its images do
not belong together."""


def mean_confidence(scored: ScoredImages) -> float:
    """The mean probability of the predicted class; MSP must be among the values."""
    return float(scored.values[BaseScore.MSP].mean(dtype=np.float64))


def accuracy(scored: ScoredImages, class_names: tuple[str, ...]) -> float | None:
    """The share of right predictions, where every label is a class name."""
    numbers = {name: number for number, name in enumerate(class_names)}
    if not all(label in numbers for label in scored.labels):
        return None
    truth = np.array([numbers[label] for label in scored.labels if label is not None])
    return float(np.mean(truth == scored.class_id))


def skill_doubts(scored: ScoredImages, class_names: tuple[str, ...]) -> Iterator[str]:
    """In-distribution images on which the model is hardly better than guessing."""
    classes = len(class_names)
    low = 1 / classes + SKILL * (1 - 1 / classes)
    doubt = "are these images what the model was trained on, and is the preprocessing its own?"
    for what, share in (
        ("accuracy", accuracy(scored, class_names)),
        ("mean confidence", mean_confidence(scored)),
    ):
        if share is not None and share < low:
            yield f"{what} {share:.3f} is near that of guessing ({1 / classes:.3f}): {doubt}"


def undecodable_doubts(what: str, read: Reading | ScoredImages) -> Iterator[str]:
    """Images that could not be decoded."""
    if read.undecodable:
        yield (
            f"{read.undecodable} of {read.undecodable + len(read)} {what} cannot be decoded; "
            f"first {read.first_problem}"
        )


def copy_doubts(copies: int, images: int) -> Iterator[str]:
    """Images that are byte for byte some that are fitted on."""
    if copies:
        yield (
            f"{copies} of {images} images are copies of images that are fitted on, so that new "
            "images will score lower: give images of another recording to fit on"
        )


def tie_doubts(
    scores: NDArray[np.float64], class_id: NDArray[np.int64], groups: Iterable[Group]
) -> Iterator[str]:
    """Thresholds that stand at the lowest of several equal scores: little can be below."""
    for group in groups:
        own = scores if group.class_id is None else scores[class_id == group.class_id]
        tied = int((own == own.min()).sum())
        if tied > 1 and group.lower == own.min():
            whose = "" if group.class_id is None else f" of class {group.class_id}"
            yield (
                f"{tied} of {group.size} calibration scores{whose} tie at the lowest, and the "
                "threshold stands there: fewer images are flagged than alpha says. Are many of "
                "the images copies of each other?"
            )


def one_class_doubts(scored: ScoredImages, class_names: tuple[str, ...]) -> Iterator[str]:
    """Images that are all predicted as one class."""
    if len(class_names) > 1 and len(np.unique(scored.class_id)) == 1:
        yield f"all images are predicted as one class, number {scored.class_id[0]}"
