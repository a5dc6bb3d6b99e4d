"""nap-stream rebaseline: a change of one key is accepted for good."""

from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from nap_stream.cli.options import log_store, progress_bar, show_warnings, tell_pruned, time_ms
from nap_stream.clock import SystemClock
from nap_stream.errors import ConfigError
from nap_stream.fetched import shown
from nap_stream.settings.load import load_settings

if TYPE_CHECKING:
    from nap_stream.core.time_kinds import TimeKinds
    from nap_stream.drift.records import BaselineFacts
    from nap_stream.records import Acceptance
    from nap_stream.scored_log.stores import SegmentStore
    from nap_stream.settings.schema import Settings

SHOWN_KEYS = 5
WEEK_MS = 7 * 86_400_000


def rebaseline(
    config: Annotated[
        Path,
        typer.Option("--config", "-c", help="The YAML file of the monitor that is to accept it."),
    ],
    key: Annotated[str, typer.Option(help="The key whose change is accepted, such as a camera.")],
    since: Annotated[
        str,
        typer.Option(
            "--from",
            metavar="TIME",
            help="Since when it is so: ISO 8601 (UTC), or 90m, 6h, 2d ago.",
        ),
    ],
    by: Annotated[str, typer.Option(help="Who accepts it.")],
    reason: Annotated[str, typer.Option(help="Why: what was changed.")],
    log: Annotated[
        str | None,
        typer.Option(
            "--log", metavar="ROOT", help="The root of another scored log than that of --config."
        ),
    ] = None,
) -> None:
    """Accept a known change of one key, such as a camera that was moved, for good.

    Its alert ends with the reason "accepted". The monitor then knows nothing of the key: it learns
    a baseline of its own, 50 blocks of each kind of time, and until it has, NOTHING watches the
    key. The output says about when that is. What was accepted is an event beside the log, so that
    a replay gives the same alerts, and history shows it.

    \b
    Examples:
      nap-stream rebaseline -c monitor.yaml --key camera-7 --from 2026-05-28T10:00 --by Ann
        --reason "line 3 was retooled"
    """
    from nap_stream.calibration.artifact import load_calibration
    from nap_stream.scored_log.acceptances import write_acceptance

    settings, clock = load_settings(config), SystemClock()
    baseline = load_calibration(settings.calibration).facts.baseline
    _require_blocks(settings, baseline)
    assert baseline is not None
    store = log_store(None, str(settings.log.root) if log is None else log)
    from_ms, now_ms = time_ms("--from", since, clock), clock.now_ms()
    if from_ms > now_ms:
        raise ConfigError(f"{since} is not over yet", "--from", "Accept what has happened")
    key = _stored_key(settings, key)
    _require_key(store, settings, key, from_ms)
    acceptance = write_acceptance(
        store, new_acceptance(settings.kafka.topic, key, from_ms, now_ms, by=by, reason=reason)
    )
    console = Console(soft_wrap=True, highlight=False, markup=False)
    if from_ms < baseline.until_ms:
        _warn(baseline)
    _tell(acceptance, baseline, console)


def new_acceptance(
    topic: str, key: str, from_ms: int, now_ms: int, *, by: str, reason: str
) -> "Acceptance":
    """Make an acceptance that takes effect when every monitor at work knows of it.

    Event times may be ahead of the clock, by so much at most that they are credible.
    """
    from nap_stream.records import Acceptance
    from nap_stream.scored_log.acceptances import NOTICE_MS
    from nap_stream.scored_log.summary import MAX_CLOCK_SKEW_MS

    effective_ms = now_ms + MAX_CLOCK_SKEW_MS + NOTICE_MS
    return Acceptance(0, topic, key, from_ms, effective_ms, now_ms, by, reason)


def _require_blocks(settings: "Settings", baseline: "BaselineFacts | None") -> None:
    """Refuse what would change nothing: where single records decide, nothing can begin anew."""
    if baseline is None:
        raise ConfigError(
            "the calibration holds no baseline, so that single records decide, whose measure is "
            "the calibration images",
            shown(settings.calibration),
            "Make one with `nap-stream baseline`",
        )
    if settings.drift.blocks == "off" or settings.drift.keys is None:
        name = "drift.keys" if settings.drift.keys is None else "drift.blocks"
        raise ConfigError("no blocks of keys are watched", name, f"Set {name}")


def _stored_key(settings: "Settings", key: str) -> str:
    """A key as alerts have it, given in clear or so."""
    from nap_stream.core.panes import key_text
    from nap_stream.settings.log import hidden_keys

    hidden = hidden_keys(settings.log.keys)
    by = "key" if settings.drift.keys is None else settings.drift.keys.by
    return key_text(hidden.of_stored(by, key.encode())) if hidden.hides else key


def _require_key(store: "SegmentStore", settings: "Settings", key: str, from_ms: int) -> None:
    """Refuse a key that has no record since then: a mistyped one would be accepted in silence."""
    from nap_stream.scored_log.acceptances import MAX_KEY

    if not key:
        raise ConfigError(
            "the whole stream cannot be accepted", "--key", "Make another baseline from what is new"
        )
    tell_pruned(store, settings.reads, from_ms)
    found: set[str] = set()
    with progress_bar(f"looking for {key[:MAX_KEY]!r}", unit="segments") as advance:
        for number, keys in enumerate(_keys_since(store, settings, from_ms)):
            found.update(keys)
            if key in found:
                return
            advance(number + 1, None)
    near = get_close_matches(key, sorted(found), SHOWN_KEYS) or sorted(found)[:SHOWN_KEYS]
    raise ConfigError(
        f"no record has the key {key!r} since then; of {len(found):,} others, the nearest: "
        f"{', '.join(map(repr, near)) or 'none'}",
        "--key, --from",
        "Name a key as alerts show it",
    )


def _keys_since(
    store: "SegmentStore", settings: "Settings", from_ms: int
) -> Iterator[tuple[str, ...]]:
    """The keys of each segment since then."""
    from nap_stream.replay import EventSpan, find_range
    from nap_stream.scored_log.read import stream_partitions
    from nap_stream.scored_log.summary import LAST_OFFSET, summarise_chain, summary_shape

    shape, span = summary_shape(settings), EventSpan(from_ms, None)
    names = stream_partitions(store, settings.kafka.topic, settings.reads)
    for name in names:
        part = find_range(store, name, span, "")
        if part is not None:
            for summary in summarise_chain(store, name, part.start, LAST_OFFSET, shape):
                yield summary.panes.keys


def _warn(baseline: "BaselineFacts") -> None:
    from nap_stream.text import moment, rfc3339

    until = moment(rfc3339(baseline.until_ms))
    sentence = f"the baseline itself goes on to {until}, after --from: it has some of the change"
    show_warnings([sentence], Console(stderr=True))


def watched_again_ms(kinds: "TimeKinds", block_ms: int, from_ms: int) -> int:
    """When a key that learns from ``from_ms`` on has enough blocks of every kind of time.

    All are milliseconds since the epoch. It is so if the key has records in every block, and is
    quiet in them. A kind that no block of a week is of is not waited for.
    """
    import numpy as np

    from nap_stream.core.learned_references import NEEDED_BLOCKS

    first, blocks = -(-from_ms // block_ms), NEEDED_BLOCKS
    while True:
        start_ms = (first + np.arange(blocks, dtype=np.int64)) * block_ms
        kind = kinds.kind_of(start_ms + block_ms // 2)
        places = [np.flatnonzero(kind == each) for each in np.unique(kind)]
        is_week = kinds.count == 1 or blocks * block_ms >= WEEK_MS
        if is_week and min(map(len, places)) >= NEEDED_BLOCKS:
            last = max(int(found[NEEDED_BLOCKS - 1]) for found in places)
            return int(start_ms[last]) + block_ms
        if blocks * block_ms >= 2 * NEEDED_BLOCKS * max(WEEK_MS, block_ms):
            return int(start_ms[-1]) + block_ms
        blocks *= 2


def _tell(acceptance: "Acceptance", baseline: "BaselineFacts", console: Console) -> None:
    from nap_stream.core.learned_references import NEEDED_BLOCKS
    from nap_stream.text import duration, moment, rfc3339

    block_ms, kinds = baseline.blocks.block_ms, baseline.kinds
    watched_ms = watched_again_ms(kinds, block_ms, acceptance.effective_ms)
    each = "" if kinds.count == 1 else f", of each kind of time ({', '.join(kinds.names)})"

    console.print(
        f"accepted as event {acceptance.number}: {acceptance.key} as it is since "
        f"{moment(rfc3339(acceptance.from_ms))}"
    )
    console.print(
        f"It takes effect with the first images from {moment(rfc3339(acceptance.effective_ms))} on "
        "(event time). An alert of it then ends with the reason accepted, and the key learns a "
        "baseline of its own."
    )
    console.print(
        f"Until it has, nothing watches {acceptance.key}: until about "
        f"{moment(rfc3339(watched_ms))} ({NEEDED_BLOCKS} blocks of {duration(block_ms)} each"
        f"{each}), later if it pauses, changes again, or finds no room."
    )
