from collections import namedtuple
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from nap_stream.errors import ModelError
from nap_stream.model.output import OutputFacts, as_logits, kind_warnings, logits_hook, wrong_kind
from nap_stream.settings.schema import OutputKind

IMAGES = 40
RANDOM = torch.Generator().manual_seed(0)
LOGITS = torch.randn(IMAGES, 5, generator=RANDOM) * 4
TWO = LOGITS[:2]
Pair = namedtuple("Pair", ["features", "logits"])  # noqa: PYI024  people return them


@dataclass
class Answer:
    cls: torch.Tensor
    boxes: torch.Tensor


def hook_of(output: Any, path: str | None = None, kind: OutputKind | None = None) -> Any:
    return logits_hook(output, path, kind, images=2, where="model")


MAP = torch.zeros(2, 3, 4, 4)


@pytest.mark.parametrize(
    ("output", "path", "found"),
    [
        (TWO, None, None),
        ((TWO, MAP), None, ("0",)),
        ([MAP, TWO], None, ("1",)),
        ({"logits": TWO, "features": TWO}, None, ("logits",)),
        ({"scores": TWO, "n": 3, "map": MAP}, None, ("scores",)),
        ((MAP, {"a": [TWO]}), None, ("1", "a", "0")),
        (Pair(TWO, TWO), None, ("logits",)),
        (Answer(TWO, MAP), None, ("cls",)),
        ({"out": Answer(TWO, TWO)}, "out.cls", ("out", "cls")),
        ((TWO, TWO), "1", ("1",)),
        ((TWO, TWO), "-1", ("-1",)),
        ({0: TWO, 1: TWO}, "1", ("1",)),
        ({"ids": torch.zeros(2, 3, dtype=torch.int64), "x": TWO}, None, ("x",)),
    ],
)
def test_where_the_logits_stand(output: Any, path: str | None, found: Any) -> None:
    hook = hook_of(output, path)
    assert (None if hook is None else hook.path) == found
    if hook is not None:
        assert hook(None, (), output) is TWO


@pytest.mark.parametrize(
    ("output", "path", "message"),
    [
        ((TWO, TWO), None, r"tuple \(0: a tensor 2x5 of float32, .*each of 0, 1.*output: 0"),
        ({"a": TWO, "b": TWO}, None, "each of a, b"),
        ({"map": MAP}, None, "none of it may be the logits"),
        (None, None, "returned NoneType"),
        ("text", None, "returned str"),
        ({}, None, "returned dict"),
        ([TWO.long()], None, "int64"),
        ((LOGITS,), None, "none of it"),
        ({"a": TWO}, "b", "no 'b' in it.*model.output|model.output.*no 'b' in it"),
        ((TWO,), "1", "no '1' in it"),
        ((TWO,), "logits", "no 'logits' in it"),
        (TWO, "0", "no '0' in it"),
        ({"a": MAP}, "a", "its a is a tensor 2x3x4x4"),
        (Answer(TWO, TWO), "cls.x", r"no 'cls\.x' in it"),
        ([[[[[TWO]]]]], None, "none of it"),
    ],
)
def test_logits_that_stand_nowhere_or_in_two_places(
    output: Any, path: str | None, message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        hook_of(output, path)


SOFT = LOGITS.softmax(1)
ONE = LOGITS[:, :1]


@pytest.mark.parametrize(
    "output",
    [
        SOFT,
        (LOGITS / 50).softmax(1),
        (LOGITS * 50).softmax(1),
        SOFT.half(),
        SOFT.bfloat16(),
        (torch.randn(IMAGES, 1000, generator=RANDOM) * 1e-3).softmax(1),
        LOGITS.abs() / LOGITS.abs().sum(1, keepdim=True),
        torch.nn.functional.one_hot(LOGITS.argmax(1), 5).float(),
        torch.full((IMAGES, 5), 0.2),
    ],
)
def test_probabilities_are_seen_in_two_images(output: torch.Tensor) -> None:
    with pytest.raises(ModelError, match=r"probabilities in place of logits.*output_kind: prob"):
        hook_of(output[:2])
    assert hook_of(output[:2], kind="logits") is None


@pytest.mark.parametrize("output", [ONE, ONE.sigmoid(), ONE * 0])
def test_one_number_an_image_is_refused(output: torch.Tensor) -> None:
    with pytest.raises(ModelError, match=r"one number an image.*second of two classes"):
        hook_of(output[:2])


def facts_of(output: torch.Tensor) -> OutputFacts:
    parts = [OutputFacts.of(part.float().numpy()) for part in torch.split(output, 16)]
    joined = OutputFacts.join(parts)
    assert joined is not None
    return joined


@pytest.mark.parametrize(
    ("output", "problem"),
    [
        (SOFT, "probabilities in place of logits"),
        (SOFT.half(), "probabilities in place of logits"),
        (SOFT.bfloat16(), "probabilities in place of logits"),
        (LOGITS.sigmoid(), "in [0, 1], as a sigmoid's do"),
        ((LOGITS / 9).sigmoid().half(), "in [0, 1], as a sigmoid's do"),
        (LOGITS / LOGITS.abs().sum(1, keepdim=True), "absolute values sum to one"),
        ((LOGITS * 3).round().clamp(0, 10), "whole numbers, as votes are"),
        ((LOGITS > 0).float(), "whole numbers, as votes are"),
        (SOFT * 100, "as percentages are"),
        ((SOFT * 100).half(), "as percentages are"),
        (SOFT * 0 + 3.5, None),
        (LOGITS / 1e4 + 3.5, None),
        (LOGITS * 0, None),
        (LOGITS, None),
        (LOGITS / 100, None),
        (LOGITS.relu() + 0.5, None),
        (LOGITS.log_softmax(1), None),
        (torch.nn.functional.normalize(LOGITS), None),
        (LOGITS[:3].sigmoid(), None),
        (LOGITS[:3].round(), None),
        (LOGITS.half(), None),
    ],
)
def test_what_images_show_outputs_to_be(output: torch.Tensor, problem: str | None) -> None:
    wrong = wrong_kind(facts_of(output), None)
    assert (wrong is None) == (problem is None)
    if wrong is not None and problem is not None:
        assert problem in wrong.problem
        assert wrong_kind(facts_of(output), "logits") is None


def test_a_kind_that_images_contradict() -> None:
    wrong = wrong_kind(facts_of(LOGITS), "probabilities")
    assert wrong is not None
    assert "do not sum to one" in wrong.problem
    assert wrong_kind(facts_of(SOFT.log()), "probabilities") is None


@pytest.mark.parametrize(
    ("output", "kind"),
    [
        (LOGITS, "probabilities"),
        (LOGITS, "sigmoid"),
        (ONE, "sigmoid"),
        (LOGITS, "log_probabilities"),
    ],
)
def test_a_kind_that_two_images_contradict(output: torch.Tensor, kind: OutputKind) -> None:
    with pytest.raises(ModelError, match=f"model.output_kind is {kind}, and values"):
        hook_of(output[:2], kind=kind)


def test_log_probabilities_and_zeros_are_warned_of() -> None:
    assert ["energy is 0" in said for said in kind_warnings(facts_of(LOGITS.log_softmax(1)))] == [
        True
    ]
    assert ["all logits are 0" in said for said in kind_warnings(facts_of(LOGITS * 0))] == [True]
    assert list(kind_warnings(facts_of(LOGITS))) == []
    assert list(kind_warnings(None)) == []


@pytest.mark.parametrize(
    ("output", "kind"),
    [
        (SOFT, "probabilities"),
        (SOFT.log(), "log_probabilities"),
        (SOFT.double(), "probabilities"),
    ],
)
def test_probabilities_become_logits_of_the_same_softmax(
    output: torch.Tensor, kind: OutputKind
) -> None:
    torch.testing.assert_close(as_logits(output, kind).softmax(1).float(), SOFT)


def test_a_sigmoid_is_taken_off() -> None:
    torch.testing.assert_close(as_logits(LOGITS.double().sigmoid(), "sigmoid"), LOGITS)


@pytest.mark.parametrize(
    ("output", "kind"),
    [
        (ONE, "logits"),
        (ONE.double().sigmoid(), "sigmoid"),
        (ONE.double().sigmoid(), "probabilities"),
        (ONE.double().sigmoid().log(), "log_probabilities"),
    ],
)
def test_one_number_becomes_two_classes(output: torch.Tensor, kind: OutputKind) -> None:
    expected = torch.cat((torch.zeros_like(ONE), ONE), 1)
    torch.testing.assert_close(as_logits(output, kind), expected)


@pytest.mark.parametrize("kind", ["probabilities", "sigmoid"])
def test_certainty_stays_finite(kind: OutputKind) -> None:
    certain = torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    made = as_logits(certain, kind)
    assert torch.isfinite(made).all()
    assert made.argmax(1).tolist() == [1, 0]


def test_measured_by_hand() -> None:
    facts = OutputFacts.of(np.array([[1.0, 3.0], [0.0, -1.0]], np.float32))
    assert (facts.images, facts.classes, facts.lowest, facts.highest) == (2, 2, -1, 3)
    assert (facts.sum_error, facts.magnitude_error, facts.is_whole) == (3, 3, True)
    assert (facts.sums, facts.spread) == ((-1, 4), 4)
    assert facts.log_sum == pytest.approx(np.log(np.exp(1) + np.exp(3)))
