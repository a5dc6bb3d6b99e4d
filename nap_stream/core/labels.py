"""What labels of images tell: accuracy, the worst classes, class names in another order.

Where labels are not the class names, nothing here is taken for an accuracy.
"""

import difflib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtrc

from nap_stream.text import bounded, printable

WORST = 10
"""Classes that a calibration names."""
_MOST = 0.5
"""Share of a class's images that must be predicted as another for its name to be doubted."""
_CHANCE = 0.001
"""The probability that a network which guesses predicts so many as one class."""
_SHOWN = 3
_NAMES_SHOWN = 20


@dataclass(frozen=True, slots=True)
class ClassSeen:
    """How the images of one label were predicted.

    ``right`` of ``images`` are predicted as their own class. ``taken_for`` is the other class that
    the most of them, ``taken``, are predicted as; null where there is none.
    """

    name: str
    images: int
    right: int
    taken_for: str | None
    taken: int


@dataclass(frozen=True, slots=True)
class Labelled:
    """How often each label was predicted as each class, by the class names' numbers.

    ``counts`` are by label, then by predicted class; ``names`` the class names, in order of the
    logits.
    """

    names: tuple[str, ...]
    counts: Mapping[int, Counter[int]]

    @classmethod
    def of(
        cls, labels: Sequence[str | None], class_id: NDArray[np.int64], names: tuple[str, ...]
    ) -> "Labelled | None":
        """Of images whose labels are all class names; None where one is not.

        ``class_id`` are the predicted classes, int64 (n,).
        """
        numbers = {name: number for number, name in enumerate(names)}
        counts: dict[int, Counter[int]] = {}
        for label, predicted in zip(labels, class_id.tolist(), strict=True):
            number = None if label is None else numbers.get(label)
            if number is None:
                return None
            counts.setdefault(number, Counter())[predicted] += 1
        return cls(names, counts)

    @property
    def images(self) -> int:
        """How many there are."""
        return sum(count.total() for count in self.counts.values())

    @property
    def accuracy(self) -> float:
        """The share of right predictions, of at least one image."""
        return sum(count[number] for number, count in self.counts.items()) / self.images

    @property
    def taken_for(self) -> dict[int, int]:
        """The classes whose names stand at another's place, and which that is.

        Most of the images of such a class are predicted as one other, and the images of that one
        as a third, or as the first. A network may be wrong about a class; it is not wrong about
        two in exchange.
        """
        mostly = {
            number: to
            for number, count in self.counts.items()
            if (to := _mostly(count, len(self.names))) is not None
        }
        takers = Counter(mostly.values())
        moved = {number: to for number, to in mostly.items() if to != number and takers[to] == 1}
        # A chain of names ends where it began, or in a class without images.
        while loose := [number for number, to in moved.items() if to in self.counts.keys() - moved]:
            for number in loose:
                del moved[number]
        ends = set(moved.values())
        return {number: to for number, to in moved.items() if number in ends or to in moved}

    @property
    def accuracy_as_taken(self) -> float:
        """The share of right predictions were the names of `taken_for` put right."""
        taken = self.taken_for
        right = sum(count[taken.get(number, number)] for number, count in self.counts.items())
        return right / self.images

    def worst(self) -> tuple[ClassSeen, ...]:
        """The classes with the smallest share of right predictions, at most `WORST`.

        Without those of which every image is right.
        """
        seen = [self._seen(number) for number in sorted(self.counts)]
        wrong = [one for one in seen if one.right < one.images]
        return tuple(sorted(wrong, key=lambda one: (one.right / one.images, one.name))[:WORST])

    def _seen(self, number: int) -> ClassSeen:
        count = self.counts[number]
        others = Counter({to: images for to, images in count.items() if to != number})
        taken_for, images = others.most_common(1)[0] if others else (None, 0)
        return ClassSeen(
            name=self.names[number],
            images=count.total(),
            right=count[number],
            taken_for=None if taken_for is None else self.names[taken_for],
            taken=images,
        )

    def swap_warnings(self) -> Iterator[str]:
        """Class names that stand in another order than the logits."""
        taken = self.taken_for
        if not taken:
            return
        shown = sorted(taken, key=lambda number: -self.counts[number][taken[number]])[:_SHOWN]
        told = [
            f"{_quoted(self.names[number])} is predicted as {_quoted(self.names[taken[number]])} "
            f"in {self.counts[number][taken[number]] / self.counts[number].total():.0%} of "
            f"{self.counts[number].total()} images"
            for number in shown
        ]
        more = f", and so on for {len(taken) - len(shown)} more" if len(taken) > len(shown) else ""
        yield (
            f"class names look swapped: {', '.join(told)}{more}. With names put right the "
            f"accuracy is {self.accuracy_as_taken:.3f}, not {self.accuracy:.3f}: put "
            f"model.class_names in order of the logits{self._right_order(taken)}"
        )

    def _right_order(self, taken: Mapping[int, int]) -> str:
        if len(self.names) > _NAMES_SHOWN or set(taken) != set(taken.values()):
            return ""
        names = dict(enumerate(self.names)) | {to: self.names[of] for of, to in taken.items()}
        return f": {', '.join(printable(bounded(names[number])) for number in range(len(names)))}"


def label_warnings(
    labels: Sequence[str | None], class_id: NDArray[np.int64], names: tuple[str, ...]
) -> Iterator[str]:
    """Labels that may be meant for class names and are none, so that no accuracy is known."""
    images = Counter(label for label in labels if label is not None)
    if not images:
        return
    known = images.keys() & set(names)
    strange = sorted(images.keys() - known)
    if known and not strange and images.total() < len(labels):
        without = len(labels) - images.total()
        yield f"the accuracy is not known: {without} of {len(labels)} images have no label"
    elif strange and (known or _alike(strange, names)):
        yield _partly_known(strange, names)
    elif strange and _are_numbers(names) and len(images) == len(names):
        yield from _named_by_labels(labels, class_id, names)


def _partly_known(strange: Sequence[str], names: tuple[str, ...]) -> str:
    alike = _alike(strange, names)
    meant = f" (is it {_quoted(next(iter(alike.values())))}?)" if alike else ""
    first = next(iter(alike), strange[0])
    return (
        f"the accuracy is not known: {len(strange)} of the labels of the images are no class "
        f"names, such as {_quoted(first)}{meant}"
    )


def _named_by_labels(
    labels: Sequence[str | None], class_id: NDArray[np.int64], names: tuple[str, ...]
) -> Iterator[str]:
    """Suggest the labels as class names, where each is mostly one class and no other's."""
    counts: dict[str, Counter[int]] = {}
    for label, predicted in zip(labels, class_id.tolist(), strict=True):
        if label is not None:
            counts.setdefault(label, Counter())[predicted] += 1
    mostly = {
        number: label
        for label, count in counts.items()
        if (number := _mostly(count, len(names))) is not None
    }
    if len(mostly) < len(names):
        return
    right = sum(counts[label][number] for number, label in mostly.items())
    shown = ", ".join(printable(bounded(mostly[number])) for number in range(len(names)))
    if len(names) > _NAMES_SHOWN:
        shown = f"{printable(bounded(mostly[0]))} first"
    yield (
        f"the classes have no names; by the labels of the images they are, in order of the "
        f"logits: {shown}. With these in model.class_names the accuracy is "
        f"{right / len(labels):.3f}"
    )


def _mostly(count: Counter[int], classes: int) -> int | None:
    """The class that most images are predicted as, where that is no chance."""
    number, images = count.most_common(1)[0]
    chance = float(bdtrc(images - 1, count.total(), 1 / classes))
    return number if images >= _MOST * count.total() and chance <= _CHANCE else None


def _alike(strange: Sequence[str], names: Sequence[str]) -> dict[str, str]:
    """Labels that are class names but for case, spaces, or a letter or two."""
    plain = {_plain(name): name for name in names}
    found = {}
    for label in strange[:_NAMES_SHOWN]:
        close = difflib.get_close_matches(_plain(label), plain, n=1, cutoff=0.85)
        if close and not label.isdigit():
            found[label] = plain[close[0]]
    return found


def _plain(name: str) -> str:
    return "".join(c for c in name.casefold() if c.isalnum())


def _are_numbers(names: Sequence[str]) -> bool:
    return all(name == str(number) for number, name in enumerate(names))


def _quoted(name: str) -> str:
    return f"'{printable(bounded(name))}'"
