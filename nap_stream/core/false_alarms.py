"""How many false alarms are bearable, in an operator's words and in records.

Both forms come to one number, the average run length A in records. A detector whose probability
of a false alarm within T records is at most T / A, for every T, has an average run length of at
least A / 2 whatever its law, and of A where it is an e-detector; and a probability of at most
delta within T records where A = T / delta. `nap_stream.core.sequential` and
`nap_stream.core.bounds` say why theirs are of that kind.
"""

import re

DEFAULT_FALSE_ALARMS = "one per 30 days at 50 images/s"
EXAMPLES = f'"{DEFAULT_FALSE_ALARMS}" or "probability 0.01 in 7 days at 50 images/s"'

_UNITS = {"hour": 1, "day": 24, "week": 7 * 24, "year": 365 * 24}
_NUMBER = r"[0-9]+(?:\.[0-9]+)?"
_TIME = rf"(?P<count>{_NUMBER}\s+)?(?P<unit>hour|day|week|year)s?"
_RATE = rf"(?P<rate>{_NUMBER})\s*(?:image|record)s?\s*(?:/\s*s|per\s+second)"
_SHAPES = (
    re.compile(rf"one\s+(?:per|in|every)\s+{_TIME}\s+at\s+{_RATE}", re.IGNORECASE),
    re.compile(
        rf"probability\s+(?P<probability>{_NUMBER}(?:e-[0-9]+)?)\s+(?:in|over)\s+{_TIME}\s+at\s+{_RATE}",
        re.IGNORECASE,
    ),
)
_SHORTEST = 100.0
_LONGEST = 1e15


def parse_false_alarms(text: str) -> float:
    """Give the average run length in records that a sentence asks for.

    "one per 30 days at 50 images/s" is 30 * 86,400 * 50 records; "probability 0.01 in 7 days at
    50 images/s" is 7 * 86,400 * 50 / 0.01.

    Raises:
        ValueError: It is no such sentence, or out of range; says what is expected.
    """
    parts = _parts(text)
    hours = float(parts["count"] or 1) * _UNITS[parts["unit"].lower()]
    records = hours * 3_600 * float(parts["rate"])
    probability = float(parts.get("probability") or 1)
    if not 0 < probability <= 1:
        raise ValueError(f"expected a probability in (0, 1], got {probability:g}")
    run_length = records / probability
    if not _SHORTEST <= run_length <= _LONGEST:
        raise ValueError(f"expected {_SHORTEST:g} to {_LONGEST:g} records, got {run_length:g}")
    return run_length


def records_per_second(text: str) -> float:
    """Give the rate that such a sentence names.

    Raises:
        ValueError: It is no such sentence.
    """
    return float(_parts(text)["rate"])


def _parts(text: str) -> dict[str, str]:
    for shape in _SHAPES:
        if found := shape.fullmatch(text.strip()):
            return found.groupdict()
    raise ValueError(f"expected {EXAMPLES}, got {text!r}")
