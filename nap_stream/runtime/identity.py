"""Which worker it is."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Identity:
    """Which worker this is.

    ``name`` is stable over restarts and is the static member of the consumer group;
    ``incarnation`` counts the restarts.
    """

    name: str
    incarnation: int
