"""Which topics a monitor reads: one, several, or all that fit a pattern."""

import re
from collections.abc import Iterable
from dataclasses import dataclass


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
