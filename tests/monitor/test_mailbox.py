"""What goes between who asks for a reload and the driver."""

from typing import Any

import pytest

from nap_stream.clock import ManualClock
from nap_stream.errors import ConfigError, ReloadError
from nap_stream.monitor.mailbox import (
    KEPT,
    POLL_S,
    Answer,
    Mailbox,
    ReloadRequest,
    Stage,
    await_answer,
)
from nap_stream.text import MAX_NAME

BACK_S = 100.0


NONE: list[Any] = [("a", None), (1, "b"), ("a", "b" * (MAX_NAME + 1)), ("a" * 65, "b"), ("", "b")]


@pytest.mark.parametrize("request_", [*[ReloadRequest(*each) for each in NONE], None, "a"])
def test_what_is_no_request_is_refused(request_: Any) -> None:
    mailbox = Mailbox()
    with pytest.raises((ReloadError, AttributeError)):
        mailbox.ask(request_)
    assert mailbox.exchange({}) == ()


def test_only_so_many_wait_while_no_driver_looks() -> None:
    mailbox = Mailbox()
    for number in range(KEPT):
        mailbox.ask(ReloadRequest(f"r{number}", "x"))
    with pytest.raises(ReloadError, match="requests wait"):
        mailbox.ask(ReloadRequest("one more", "x"))
    mailbox.ask(ReloadRequest("r0", "x"))
    assert len(mailbox.exchange({})) == KEPT


def waiting(*answers: Answer | type[Exception] | None, timeout_s: float = 600) -> Answer:
    """What comes of answers that are given one after the other, the last for good."""
    left = list(answers)

    def poll() -> Answer | None:
        answer = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(answer, type):
            raise answer
        return answer

    seen: list[Answer] = []
    found = await_answer(poll, ManualClock(), timeout_s, seen.append, back_within_s=BACK_S)
    assert seen[-1] == found
    return found


CHECKING, IN_FORCE = (Answer(stage, "x.yaml") for stage in (Stage.CHECKING, Stage.IN_FORCE))
AWAY = [LookupError] * int(BACK_S / POLL_S / 2)


def test_whoever_waits_hears_the_last_word() -> None:
    assert waiting(None, CHECKING, CHECKING, None, IN_FORCE) == IN_FORCE


def test_a_coordinator_that_is_replaced_is_waited_for() -> None:
    assert waiting(CHECKING, *AWAY, IN_FORCE) == IN_FORCE
    assert waiting(LookupError, CHECKING, IN_FORCE) == IN_FORCE


def test_a_monitor_that_ends_is_told() -> None:
    with pytest.raises(ReloadError, match="ended before it answered"):
        waiting(CHECKING, LookupError)
    with pytest.raises(LookupError):
        waiting(LookupError)


def test_a_refusal_is_an_error_that_says_why() -> None:
    refused = Answer(Stage.REFUSED, "x.yaml", error=("too big", "x.yaml", "Make it small"))
    with pytest.raises(ReloadError, match="goes on as before: too big") as caught:
        waiting(CHECKING, refused)
    assert (caught.value.where, caught.value.action) == ("x.yaml", "Make it small")
    assert not isinstance(caught.value, ConfigError), "that would be a mistake in the call"


def test_who_is_overtaken_is_not_told_that_nothing_has_changed() -> None:
    other = ("another reload took the place of this one", "", "See `nap-stream history`")
    with pytest.raises(ReloadError, match=r"^another reload took") as caught:
        waiting(CHECKING, Answer(Stage.OVERTAKEN, "x.yaml", error=other))
    assert caught.value.action == other[2]


def test_without_an_answer_the_wait_ends() -> None:
    with pytest.raises(ReloadError, match="no answer in 60 s, the last word was: checking"):
        waiting(CHECKING, timeout_s=60)
    with pytest.raises(ReloadError, match="the last word was: none"):
        waiting(None, timeout_s=60)
