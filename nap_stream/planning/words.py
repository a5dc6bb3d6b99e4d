"""Numbers as people say them."""

_UNITS = ((86_400.0, "days"), (3_600.0, "h"), (60.0, "min"), (1.0, "s"))
_DIGITS = 3
_SHORTEST_S = 0.001


def count(number: float) -> str:
    """Three digits of a number of records, such as 7,650; of small ones the whole number."""
    digits = len(str(round(abs(number))))
    return f"{round(number, min(0, _DIGITS - digits)):,.0f}"


def duration(seconds: float) -> str:
    """A time in its largest unit, such as 2.6 min."""
    for size, name in _UNITS:
        if seconds >= 2 * size:
            return f"{factor(seconds / size)} {name}"
    return f"{seconds:.2g} s" if seconds >= _SHORTEST_S else "less than 1 ms"


def factor(ratio: float) -> str:
    """Three digits of a ratio, such as 1.5 or 73,900."""
    return count(ratio) if ratio >= 10**_DIGITS - 0.5 else f"{ratio:.{_DIGITS}g}"
