"""Which rolling windows are looked at beside the configured one: none that cannot be configured."""

from nap_stream.settings import MAX_WINDOW_RECORDS

OTHER_WINDOWS = (0.25, 4.0)
"""Of the configured window: the sizes beside it."""
SEARCHED_WINDOWS = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
SMALLEST_WINDOW = 20


def usual_windows(configured: int) -> tuple[int, ...]:
    """The configured window, and a smaller and a larger one, ascending."""
    return tuple(sorted({configured, *_sizes(configured, OTHER_WINDOWS)}))


def searched_windows(configured: int) -> tuple[int, ...]:
    """Those of which the one that sees a drift first is chosen, ascending."""
    return tuple(sorted(_sizes(configured, SEARCHED_WINDOWS)))


def _sizes(configured: int, shares: tuple[float, ...]) -> set[int]:
    sizes = (max(SMALLEST_WINDOW, round(configured * share)) for share in shares)
    return {min(MAX_WINDOW_RECORDS, size) for size in sizes}
