"""Which topics a monitor reads: one, several, or all that fit a pattern."""

import re
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

LONGEST = 249
"""Of a topic's name."""
LONGEST_PATTERN = 1_000
MATCH_S = 0.2
"""What one name may take to be looked at. Each new topic is looked at by each worker."""
_KAFKAS = frozenset({"__consumer_offsets", "__transaction_state"})
"""What each commit writes to: whoever reads it finds its own commits there, for ever."""
_FLAGS = re.compile(r"\(\?([aiLmsux]+)\)")


@dataclass(frozen=True, slots=True)
class TopicSelection:
    """The topics of ``names``, or those whose whole name fits ``pattern``.

    Those of ``never`` do not count, nor Kafka's own, `__…`.
    """

    names: tuple[str, ...] = ()
    pattern: str | None = None
    never: frozenset[str] = frozenset()

    def __contains__(self, topic: object) -> bool:
        if self.pattern is None:
            return topic in self.names
        return isinstance(topic, str) and re.match(self.regex, topic) is not None

    def __str__(self) -> str:
        if self.pattern is not None:
            return f"topics like {self.pattern}"
        noun = "topic" if len(self.names) == 1 else "topics"
        return f"{noun} {', '.join(self.names)}"

    @property
    def key(self) -> str:
        """The settings' key that says so."""
        if self.pattern is not None:
            return "kafka.topic_pattern"
        return "kafka.topic" if len(self.names) == 1 else "kafka.topics"

    @property
    def regex(self) -> str:
        """What `re.match` is to find in a topic's name; only where there is a pattern."""
        never = "|".join(map(re.escape, sorted(self.never)))
        own = rf"(?!(?:{never})\Z)" if never else ""
        return rf"(?!__){own}(?:{self.pattern})\Z"

    def among(self, topics: Iterable[str]) -> tuple[str, ...]:
        """Those of ``topics`` that are read, in order."""
        return tuple(sorted(topic for topic in topics if topic in self))


def require_pattern(pattern: str) -> None:
    """Refuse what is no regular expression for a name, or takes very long on one.

    That is tried with names made of the pattern's own letters and words, up to the longest, which
    finds the usual mistakes, as a repeat of a repeat, and not all that there are.

    Raises:
        ValueError: With what to write instead, where that is known.
    """
    try:
        whole = re.compile(pattern)
        if flags := _FLAGS.match(pattern):
            instead = f"(?{flags[1]}:{pattern[flags.end() :]})"
            raise ValueError(f"flags stand in a group with what they are for: write {instead}")
        # Also within what is made of it: `a)|(b` is none there.
        regex = re.compile(TopicSelection((), pattern).regex)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"no regular expression: {error}") from None
    for name in _trials(whole.pattern):
        began_s = time.thread_time()
        regex.match(name)
        if time.thread_time() - began_s > MATCH_S:
            raise ValueError(
                f"it takes very long to find that a name of {len(name)} letters does not fit: "
                "write it with fewer repeats, and none within another, as in (a+)+"
            )


def require_names(topic: str, topics: tuple[str, ...], pattern: str | None) -> None:
    """Refuse names that cannot be read side by side, or at all.

    Raises:
        ValueError: With what is wrong.
    """
    if topics and pattern is not None:
        raise ValueError("give topics or topic_pattern, not both")
    if len(set(topics)) < len(topics):
        raise ValueError("topics has a name twice")
    read = () if pattern is not None else topics or (topic,)
    if own := sorted(_KAFKAS.intersection(read)):
        raise ValueError(f"{', '.join(own)} is Kafka's own, and holds no images")


def _trials(pattern: str) -> Iterator[str]:
    """Names that nearly fit, each a little longer: what takes twice as long is found early."""
    words = re.findall(r"[A-Za-z0-9._-]+", pattern)
    for one in sorted({*"".join(words), *words[:20]}, key=len):
        for size in (*range(1, 40), *range(40, LONGEST, 10)):
            # No name ends so, and none that a pattern is for.
            yield (one * size)[:size] + "\n"
