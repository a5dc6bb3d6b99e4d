"""Numbers as people say them."""

_UNITS = ((86_400.0, "days"), (3_600.0, "h"), (60.0, "min"), (1.0, "s"))
_DIGITS = 3


def count(number: float) -> str:
    """Three digits of a number of records, such as 7,650; of small ones the whole number."""
    digits = len(str(round(abs(number))))
    return f"{round(number, min(0, _DIGITS - digits)):,.0f}"


def percent(share: float) -> str:
    """Three digits of a share in per cent, such as 5.97 %."""
    return f"{share * 100:.3g} %"


def duration(seconds: float) -> str:
    """A time in its largest unit, such as 2.6 min."""
    for size, name in _UNITS:
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {name}"
    return f"{seconds:.2g} s"


def factor(ratio: float) -> str:
    """Three digits of a ratio, such as 1.5 or 73,900."""
    return count(ratio) if ratio >= 10**_DIGITS else f"{ratio:.{_DIGITS}g}"
