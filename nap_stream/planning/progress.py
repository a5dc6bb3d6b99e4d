"""How work that takes seconds tells how far it is."""

from collections.abc import Callable

Advance = Callable[[int, int | None], None]
"""Takes what is done, and of how much."""
