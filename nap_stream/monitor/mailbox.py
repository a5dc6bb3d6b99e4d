"""What goes between who asks for a reload and the driver: requests, answers, where they wait.

Knows no Ray: `nap_stream.monitor.session` finds the coordinator that has them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from nap_stream.clock import Clock, Deadline
from nap_stream.errors import ReloadError
from nap_stream.monitor.setup import Change
from nap_stream.text import MAX_NAME

KEPT = 32
"""Answers, for those who have not heard them yet; and requests that wait."""
MAX_ID = 64
POLL_S = 0.5
SEEN_WITHIN_S = 3.0
"""So long a monitor may be away when it is first looked for: it may just be replaced."""


@dataclass(frozen=True, slots=True)
class ReloadRequest:
    """That somebody wants the settings read again: an id of its own, and who, as they say."""

    id: str
    by: str

    def require_sound(self) -> None:
        """Refuse what nobody would ask with: it comes from whoever reaches the cluster.

        Raises:
            ReloadError: What is wrong.
        """
        for value, most in ((self.id, MAX_ID), (self.by, MAX_NAME)):
            if not isinstance(value, str) or not 0 < len(value) <= most:
                raise ReloadError(f"a request needs texts of up to {MAX_ID} and {MAX_NAME} letters")


class Stage(StrEnum):
    """How far a reload is."""

    ASKED = "asked"
    CHECKING = "checking"
    REPLACING = "replacing"
    LOADING = "loading"
    IN_FORCE = "in force"
    UNCHANGED = "unchanged"
    REFUSED = "refused"
    OVERTAKEN = "overtaken"
    """A reload that somebody asked for later took the place of the run that began."""


OVER = frozenset({Stage.IN_FORCE, Stage.UNCHANGED, Stage.REFUSED, Stage.OVERTAKEN})


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of a request. ``source`` is the configuration that the driver reads.

    ``since_ms`` is when what is in force began, milliseconds since the epoch. ``error`` has the
    arguments of a `NapStreamError`.
    """

    stage: Stage
    source: str
    changes: tuple[Change, ...] = ()
    since_ms: int | None = None
    error: tuple[str, str, str] = ("", "", "")
    warnings: tuple[str, ...] = ()


class Mailbox:
    """Where requests wait for the driver, and answers for those who asked. For one thread."""

    def __init__(self) -> None:
        self._asked: dict[str, ReloadRequest] = {}
        self._answers: Mapping[str, Answer] = {}

    def ask(self, request: ReloadRequest) -> Answer | None:
        """Leave a request, unless it was; give the answer so far, None before the driver looks.

        Raises:
            ReloadError: It is none, or too many wait.
        """
        request.require_sound()
        answer = self._answers.get(request.id)
        if answer is None:
            if len(self._asked) >= KEPT and request.id not in self._asked:
                raise ReloadError(f"{KEPT} requests wait", action="Ask again later")
            self._asked[request.id] = request
        return answer

    def exchange(self, answers: Mapping[str, Answer]) -> tuple[ReloadRequest, ...]:
        """Take the driver's answers, and give it what it has not answered."""
        self._answers = answers
        for known in self._asked.keys() & answers.keys():
            del self._asked[known]
        return tuple(self._asked.values())


def await_answer(
    poll: Callable[[], Answer | None],
    clock: Clock,
    timeout_s: float,
    on_answer: Callable[[Answer], None],
    *,
    back_within_s: float,
) -> Answer:
    """Wait until a request is answered for good; ``on_answer`` is shown each word of it.

    ``poll`` leaves the request and gives the answer so far; None for none, also where the
    coordinator is silent. It raises `LookupError` where the monitor is not there, as between two
    runs: one that was there is said to have ended after ``back_within_s``.

    Raises:
        ReloadError: It was refused, or the monitor is gone, or nobody answered in time.
        LookupError: The monitor was never there.
    """
    deadline, told, gone_s, seen = Deadline(clock, timeout_s), None, None, False
    while True:
        try:
            answer, gone_s, seen = poll(), None, True
        except LookupError:
            answer, now_s = None, clock.monotonic()
            gone_s = now_s if gone_s is None else gone_s
            if now_s - gone_s >= (back_within_s if seen else SEEN_WITHIN_S):
                if not seen:
                    raise
                raise ReloadError(
                    f"the monitor ended before it answered, or is away for {back_within_s:g} s",
                    "",
                    "Its driver's log says why",
                ) from None
        if answer is not None and answer.stage is not told:
            told = answer.stage
            on_answer(answer)
            if told is Stage.OVERTAKEN:
                raise ReloadError(*answer.error)
            if told is Stage.REFUSED:
                problem, where, action = answer.error
                raise ReloadError(f"the monitor goes on as before: {problem}", where, action)
            if told in OVER:
                return answer
        if deadline.expired():
            raise ReloadError(
                f"no answer in {timeout_s:g} s, the last word was: {told or 'none'}",
                "",
                "It may still be done: the driver's log and `nap-stream history` tell",
            )
        clock.sleep(POLL_S)
