from collections.abc import Sequence

import numpy as np
import pytest

from nap_stream.core.labels import Labelled, label_warnings

NAMES = ("cat", "dog", "owl", "fox")


def labelled(
    predictions: dict[str, Sequence[int]], names: tuple[str, ...] = NAMES
) -> Labelled | None:
    labels = [label for label, found in predictions.items() for _ in found]
    class_id = [number for found in predictions.values() for number in found]
    return Labelled.of(labels, np.array(class_id, np.int64), names)


def swaps(predictions: dict[str, Sequence[int]], names: tuple[str, ...] = NAMES) -> list[str]:
    found = labelled(predictions, names)
    assert found is not None
    return list(found.swap_warnings())


RIGHT: dict[str, Sequence[int]] = {"cat": [0] * 20, "dog": [1] * 20, "owl": [2] * 20}


def test_the_accuracy_and_the_worst_classes() -> None:
    found = labelled({"cat": [0, 0, 0, 1], "dog": [1, 2, 2, 0], "owl": [2]})

    assert found is not None
    assert found.accuracy == 5 / 9
    dog, cat = found.worst()
    assert (dog.name, dog.images, dog.right, dog.taken_for, dog.taken) == ("dog", 4, 1, "owl", 2)
    assert (cat.name, cat.images, cat.right, cat.taken_for, cat.taken) == ("cat", 4, 3, "dog", 1)


def test_of_many_classes_ten_are_named() -> None:
    names = tuple(f"class {number}" for number in range(30))
    found = labelled({name: [0] * 3 for name in names}, names)

    assert found is not None
    assert [one.name for one in found.worst()] == sorted(names[1:])[:10]


def test_labels_that_are_not_all_class_names_give_nothing() -> None:
    assert labelled({"cat": [0], "wolf": [1]}) is None
    assert Labelled.of(["cat", None], np.array([0, 1]), NAMES) is None


def test_names_in_their_order_are_not_doubted() -> None:
    assert swaps(RIGHT) == []


def test_two_names_that_are_swapped_are_told() -> None:
    (warning,) = swaps(RIGHT | {"cat": [1] * 29 + [2], "dog": [0] * 19 + [3]})

    assert warning.startswith("class names look swapped: 'cat' is predicted as 'dog' in 97% of 30")
    assert "'dog' is predicted as 'cat' in 95% of 20 images" in warning
    assert "the accuracy is 0.971, not 0.286" in warning
    assert "put model.class_names in order of the logits" in warning


def test_the_right_order_is_given_where_it_is_known() -> None:
    (warning,) = swaps({"cat": [1] * 20, "dog": [2] * 20, "owl": [0] * 20, "fox": [3] * 20})

    assert warning.endswith("in order of the logits: owl, cat, dog, fox")


def test_names_that_are_all_shifted_by_one() -> None:
    names = tuple(f"class {number}" for number in range(50))
    (warning,) = swaps({name: [number + 1] * 6 for number, name in enumerate(names[:-1])}, names)

    assert "and so on for 46 more" in warning
    assert "the accuracy is 1.000, not 0.000" in warning


@pytest.mark.parametrize(
    "predictions",
    [
        # A class that is weak, and one that takes everything.
        RIGHT | {"dog": [0] * 20},
        {"cat": [1] * 20, "dog": [1] * 20, "owl": [1] * 20},
        # Taken for a class of which there are no images: who knows?
        RIGHT | {"dog": [3] * 20},
        # Taken for one whose own images are scattered.
        RIGHT | {"dog": [2] * 20, "owl": [0, 1, 2, 3] * 5},
        # Too few to tell from chance.
        RIGHT | {"cat": [1] * 3, "dog": [0] * 3},
        # Not most of them.
        {"cat": [1, 0, 2, 3] * 5, "dog": [0, 1, 2, 3] * 5},
    ],
)
def test_a_network_that_errs_is_not_taken_for_names_that_are_swapped(
    predictions: dict[str, Sequence[int]],
) -> None:
    assert swaps(predictions) == []


def test_a_network_of_two_classes_that_guesses_is_not_taken_for_swapped_names() -> None:
    generator = np.random.default_rng(0)
    told = 0
    for _ in range(200):
        found = {name: generator.integers(0, 2, 15).tolist() for name in ("cat", "dog")}
        told += len(swaps(found, ("cat", "dog")))
    assert told == 0


def test_names_from_outside_are_shown_on_one_line() -> None:
    names = ("c\x1b[31mat", "d\nog", "x" * 500)
    predictions: dict[str, Sequence[int]] = {names[0]: [1] * 9, names[1]: [0] * 9}
    (warning,) = swaps(predictions, names)

    assert warning.isprintable()
    assert len(warning) < 1_000


def told(labels: Sequence[str | None], names: tuple[str, ...] = NAMES) -> list[str]:
    return list(label_warnings(labels, np.zeros(len(labels), np.int64), names))


def test_labels_that_are_meant_for_class_names() -> None:
    (warning,) = told(["Cat", "dog"])
    assert "1 of the labels of the images are no class names, such as 'Cat' (is it 'cat'?)" in (
        warning
    )
    (warning,) = told(["cat", "dog", "wolf"])
    assert "such as 'wolf'" in warning
    (warning,) = told(["cat", None, None])
    assert warning == "the accuracy is not known: 2 of 3 images have no label"


def test_folders_of_something_else_are_no_labels() -> None:
    assert told([None, None]) == []
    assert told(["2026-11-01", "2026-11-02"]) == []
    assert told(["camera-1", "camera-2", "camera-3"]) == []


def test_classes_without_names_get_those_of_the_folders() -> None:
    labels = ["nut"] * 20 + ["bolt"] * 20 + ["washer"] * 20
    class_id = np.repeat([2, 0, 1], 20)
    class_id[0] = 1
    (warning,) = label_warnings(labels, class_id, ("0", "1", "2"))

    assert "in order of the logits: bolt, washer, nut. With these" in warning
    assert "the accuracy is 0.983" in warning


def test_folders_that_go_with_no_class_name_no_classes() -> None:
    labels = ["nut"] * 20 + ["bolt"] * 20
    assert list(label_warnings(labels, np.zeros(40, np.int64), ("0", "1"))) == []
    assert list(label_warnings(labels, np.repeat([0, 1], 20), ("0", "1", "2"))) == []
