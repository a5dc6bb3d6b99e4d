"""Do alarms by blocks keep their promise on cameras, whose images are dependent?

    python -m benchmarks.cameras [--baselines 200] [--run 200] [--json out.json]
        [--only 'Markov 30, 20 keys, 3 days']

Each setting draws baselines of cameras anew: their OOD fractions, and a stretch of days. From each
the whole chain is gone through as `nap-stream baseline` does: what looks foreign, kinds of time,
length of blocks, references and a plan, for one false alarm in ``--run`` blocks' time. Then new
streams of the same cameras show whether the mean time between false alarms that this baseline
really has, of the stream and all keys together, is below the one stated. A baseline with no alarm
in four stated times is not; of others the time is estimated from 16, and from 80 where it is less
than four. At most 1 - confidence of the baselines may be below where a key has 40 blocks or more.
Beside it, the same of the monitors of records. What is in the ``--json`` file already is not run
again, so that a run may be broken off, or go on to more baselines. With ``--block-s`` blocks that
are too short show what the choice of their length is for.
"""

import argparse
import json
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from zlib import crc32

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from benchmarks.camera_streams import ALPHA, Autoregressive, Camera, Markov, fleet_shares
from nap_stream.core.block_detectors import block_bets, hits_of, judge_blocks
from nap_stream.core.block_plan import (
    EVENTS,
    GOOD_BLOCKS,
    BlockPlan,
    plan_blocks,
    references_of,
)
from nap_stream.core.blocks import Blocks, block_means, block_sums, coarser, shrunk
from nap_stream.core.bounds import upper_flag_rate
from nap_stream.core.decorrelation import blocks_needed, settle_blocks
from nap_stream.core.foreign import check_ms, foreign_in, odd_parts, without
from nap_stream.core.panes import NO_KEY
from nap_stream.core.sequential import bets_against, initial_state, log_mixture, update
from nap_stream.core.tails import BIN_COUNT
from nap_stream.core.time_kinds import HOUR_MS, MAX_KINDS, find_kinds

FLAG_BINS = 2
SPREAD = 0.02
NIGHT = 2.5
STAGES, NEAR, HORIZON = (2, 8, 40), 4.0, 2
"""Streams of a baseline, more of them where it comes near the stated time; horizon in such."""
STREAM_KEYS = 4_000
"""So many cameras' streams are simulated at once."""
MAX_FOREIGN = 0.02
"""`nap-stream baseline` refuses a baseline with more, unless told otherwise."""
FIRST_DAY_S = 86_400 * 20_000
CALIBRATION_IMAGES = 2_000
RECORD_STREAMS = 20
RECORD_PANES = 20
"""Panes in a block's time that the monitors of records see."""
PANE_S = {1: 20, 3: 60, 14: 300}
"""Short blocks of a baseline of so many days, where records do not depend on each other longer."""
PANES_S = (20, 60, 120, 300, 600, 1_200)


@dataclass(frozen=True, slots=True)
class Setting:
    """What is simulated: the cameras, how many, and how long a baseline."""

    kind: str
    camera: Callable[[float], Camera]
    dwell_s: float
    keys: int
    days: int
    baselines: int

    @property
    def name(self) -> str:
        """As ``--only`` takes it."""
        return f"{self.kind}, {self.keys} keys, {self.days} days"

    @property
    def pane_s(self) -> int:
        """Length of short blocks: no longer than records depend on each other, but for a few."""
        least = max(PANE_S[self.days], min(self.dwell_s, PANES_S[-1]))
        return max(pane for pane in PANES_S if pane <= least)


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of one baseline; ``time`` between its false alarms in blocks, infinity for none.

    ``alarms`` are those of its first streams in ``watched`` blocks. One that is ``foreign`` is
    refused unless ``--max-foreign`` is raised.
    """

    time: float
    alarms: int
    watched: int
    foreign: bool
    block_min: float
    fewest_blocks: int
    kinds: int
    settled: bool


@dataclass(slots=True)
class Results:
    """Of one setting; None is a baseline that is refused, as the stream has too few blocks.

    ``of_records`` is what `_share_of_records` gives.
    """

    outcomes: list[Outcome | None]
    of_records: float | None = None
    cpu_s: float = 0.0

    @property
    def judged(self) -> list[Outcome]:
        """Those that are not refused so."""
        return [each for each in self.outcomes if each is not None]


@dataclass(frozen=True, slots=True)
class Baseline:
    """A baseline that was drawn: its cameras and what it led to."""

    cameras: tuple[Camera, ...]
    plan: BlockPlan
    settled: bool
    foreign: bool
    rng: np.random.Generator


def main() -> None:
    options = _options()
    print(f"`python -m benchmarks.cameras {shlex.join(sys.argv[1:])}`\n", flush=True)
    print(
        "| setting | baselines | block, min | blocks of a key, fewest | kinds | settled | refused "
        "| below the stated time | alarms in a stated time | of records |"
    )
    print("|---|---:|---|---:|---:|---:|---:|---|---:|---:|", flush=True)
    known = _known(options)
    kept = True
    for setting in _settings(options.baselines):
        if options.only and setting.name not in options.only:
            continue
        results = known.setdefault(setting.name, Results([]))
        for _ in _added(setting, results, options):
            if options.json:
                settings = {name: asdict(each) for name, each in known.items()}
                text = json.dumps({"measured": _measured(options), "settings": settings})
                options.json.write_text(text, encoding="utf-8")
        print(_line(setting, results, options.run), flush=True)
        low, _high = _interval(results, options.run)
        few = np.median([each.fewest_blocks for each in results.judged] or [0]) < GOOD_BLOCKS
        kept = kept and bool(few or low <= 1 - options.confidence)
    print(f"\nEach with {GOOD_BLOCKS} blocks keeps it: {'yes' if kept else 'NO'}.")
    raise SystemExit(0 if kept else 1)


def _measured(options: argparse.Namespace) -> dict[str, float | None]:
    """What decides an outcome beside its setting."""
    return {name: getattr(options, name) for name in ("run", "confidence", "seed", "block_s")}


def _known(options: argparse.Namespace) -> dict[str, Results]:
    if options.json is None or not options.json.exists():
        return {}
    found = json.loads(options.json.read_text(encoding="utf-8"))
    if found["measured"] != _measured(options):
        raise SystemExit(f"{options.json} was measured with {found['measured']}: name another file")
    return {
        name: Results(
            [each and Outcome(**each) for each in row["outcomes"]], row["of_records"], row["cpu_s"]
        )
        for name, row in found["settings"].items()
    }


def _settings(baselines: int) -> list[Setting]:
    made = []

    def markov(dwell: float, keys: int, days: int, night: float = 1.0, share: int = 1) -> None:
        kind = f"Markov {dwell:g}" + (", day and night" if night > 1 else "")
        count = max(1, baselines // share)
        camera = partial(Markov, dwell=dwell, night=night)
        made.append(Setting(kind, camera, dwell, keys, days, count))

    for days in PANE_S:
        for dwell in (1, 10, 30, 100, 300, 1_000):
            markov(dwell, 20, days)
        for dwell in (1, 30, 300, 1_000):
            markov(dwell, 1, days)
        for dwell in (10, 100):
            markov(dwell, 20, days, NIGHT)
        for images in (10, 100):
            camera = partial(Autoregressive, images=images)
            made.append(Setting(f"AR(1) {images}", camera, 5 * images, 20, days, baselines))
        markov(30, 1_000, days, share=5)
    return made


def _added(setting: Setting, results: Results, options: argparse.Namespace) -> Iterator[None]:
    """Add what is missing to the results, some baselines at a time."""
    size = max(1, 400 // (setting.keys + 1))
    while len(results.outcomes) < setting.baselines:
        begun = time.process_time()
        done = len(results.outcomes)
        # Each has numbers of its own, whatever is drawn with it.
        rngs = [
            np.random.default_rng((options.seed, crc32(setting.name.encode()), number))
            for number in range(done, min(done + size, setting.baselines))
        ]
        drawn = [_baseline(setting, options, rng) for rng in rngs]
        judged = [each for each in drawn if each is not None]
        outcomes = iter(_outcomes(judged, options.run))
        results.outcomes += [None if each is None else next(outcomes) for each in drawn]
        results.cpu_s += time.process_time() - begun
        yield
    if results.of_records is None and results.judged:
        block_s = 60 * float(np.median([each.block_min for each in results.judged]))
        results.of_records = _share_of_records(setting, block_s, options)
        yield


def _outcomes(baselines: Sequence[Baseline], run: int) -> Iterator[Outcome]:
    if not baselines:
        return
    first = _watched(baselines, STAGES[0], run)
    for one, alarms, watched in zip(baselines, *(each.tolist() for each in first), strict=True):
        yield Outcome(
            _mean_time(one, alarms, watched, run),
            alarms,
            watched,
            one.foreign,
            one.plan.references.block_ms / 60_000,
            one.plan.fewest_blocks,
            one.plan.references.kinds.count,
            one.settled,
        )


def _baseline(
    setting: Setting, options: argparse.Namespace, rng: np.random.Generator
) -> Baseline | None:
    """Draw one and go through the chain; None where the stream has too few blocks of a kind."""
    spread = SPREAD if setting.keys > 1 else 0.0
    cameras = tuple(setting.camera(s) for s in fleet_shares(setting.keys, spread, rng).tolist())
    edges = FIRST_DAY_S + np.arange(0, setting.days * 86_400 + 1, setting.pane_s)
    fine = _blocks(cameras, edges, rng)
    own, foreign = _without_foreign(fine)
    settled = settle_blocks(own)
    length = options.block_s * 1_000 if options.block_s else settled.choice.block_ms
    references = references_of(coarser(fine, length), settled.kinds)
    if references.blind_kinds:
        return None
    run_time_ms = options.run * references.block_ms
    plan = plan_blocks(references, run_time_ms=run_time_ms, confidence=options.confidence)
    return Baseline(cameras, plan, settled.choice.settled, foreign > MAX_FOREIGN, rng)


def _blocks(
    cameras: tuple[Camera, ...], edges: NDArray[np.int64], rng: np.random.Generator
) -> Blocks:
    """The short blocks of a stretch: of each camera and of the stream."""
    bins = np.array([camera.bins(edges, rng) for camera in cameras])
    every = np.concatenate((bins.sum(axis=0, keepdims=True), bins)).reshape(-1, BIN_COUNT)
    names = (NO_KEY, *(f"camera-{number:04}" for number in range(len(cameras))))
    return Blocks(
        np.repeat(np.arange(len(names)), len(edges) - 1),
        np.tile(edges[:-1] * 1_000, len(names)),
        every.sum(axis=1),
        every[:, :FLAG_BINS].sum(axis=1),
        every,
        names,
        int(edges[1] - edges[0]) * 1_000,
    )


def _without_foreign(fine: Blocks) -> tuple[Blocks, float]:
    """What decides the length of blocks, and the largest share of a key that looks foreign."""
    hours = coarser(fine, HOUR_MS)
    least = blocks_needed(fine.block_ms, HOUR_MS)
    kinds, _ = find_kinds(hours.key, hours.middle_ms, block_means(hours), least=least)
    blocks = coarser(fine, check_ms(fine, kinds))
    found = foreign_in(blocks, kinds)
    size = len(blocks.keys)
    records = np.bincount(blocks.key[found.judged], blocks.records[found.judged], size)
    foreign = np.bincount(blocks.key[found.judged], found.records[found.judged], size)
    share = float((foreign / np.maximum(records, 1)).max())
    return without(fine, odd_parts(fine, blocks, found.is_odd)), share


def _mean_time(baseline: Baseline, alarms: int, watched: int, run: int) -> float:
    """The mean time between false alarms of a baseline, in blocks; infinity for no alarm.

    ``alarms`` in ``watched`` blocks are those of the first streams.
    """
    for streams in STAGES[1:]:
        if not alarms or watched / alarms >= NEAR * run:
            break
        found = _watched([baseline], streams, run)
        alarms, watched = int(found[0][0]), int(found[1][0])
    return watched / alarms if alarms else np.inf


def _watched(
    baselines: Sequence[Baseline], streams: int, run: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """How many streams of each baseline alarm, and the blocks until then, int64 (B,) each."""
    keys = sum(len(each.cameras) for each in baselines)
    alarms, watched = np.zeros((2, len(baselines)), dtype=np.int64)
    while streams > 0:
        part = min(streams, max(1, STREAM_KEYS // keys))
        first = _first_alarms([_Judged.of(b, part, HORIZON * run) for b in baselines])
        alarms += (first < HORIZON * run).sum(axis=1)
        watched += np.minimum(first + 1, HORIZON * run).sum(axis=1)
        streams -= part
    return alarms, watched


def _first_alarms(drawn: Sequence["_Judged"]) -> NDArray[np.int64]:
    """The block of the first alarm of each stream, int64 (B, S); as many as there are for none."""
    rates = np.array([one.rates for one in drawn])
    threshold = np.array([one.log_threshold for one in drawn])[:, np.newaxis]
    kinds = np.array([one.kind for one in drawn])
    steps, streams = drawn[0].hits.shape[:2]
    shape = (len(drawn), streams, rates.shape[-2])
    state = initial_state(block_bets(np.full(EVENTS, 0.5)), shape)
    active = np.zeros(shape, dtype=np.bool_)
    first = np.full(shape[:2], steps)
    for step in range(steps):
        after = judge_blocks(
            state,
            rates[np.arange(len(drawn))[:, np.newaxis], kinds[:, step]],
            np.array([one.hits[step] for one in drawn]).astype(np.int64),
            log_threshold=np.broadcast_to(threshold, shape),
            active=active,
            start_ms=step,
        )
        state, active = after.state, after.active
        first = np.where(active.any(axis=-1), np.minimum(first, step), first)
    return first


@dataclass(frozen=True, slots=True, eq=False)
class _Judged:
    """S streams of the cameras of a baseline, block by block, compared with its references.

    They are stretches of one long one. ``hits`` bool (H, S, K + 1, EVENTS), ``kind`` int64 (H, S),
    ``rates`` float64 (MAX_KINDS, K + 1, EVENTS), ``log_threshold`` float64 (K + 1,).
    """

    hits: NDArray[np.bool_]
    kind: NDArray[np.int64]
    rates: NDArray[np.float64]
    log_threshold: NDArray[np.float64]

    @classmethod
    def of(cls, baseline: Baseline, streams: int, blocks: int) -> "_Judged":
        plan = baseline.plan
        references = plan.references
        block_s = references.block_ms // 1_000
        edges = FIRST_DAY_S + 86_400 * 100 + np.arange(streams * blocks + 1) * block_s
        kind = references.kinds.kind_of(edges[:-1] * 1_000 + references.block_ms // 2)
        home = np.arange(len(baseline.cameras) + 1)
        # As the monitors do: (K + 1, kinds), and (K + 1, S H).
        rows = np.stack(
            [plan.rows(home, home < 0, k) for k in range(references.kinds.count)], axis=1
        )
        every = rows[:, kind]
        bins = np.array([camera.bins(edges, baseline.rng) for camera in baseline.cameras])
        records = bins.sum(axis=-1)
        sums = block_sums(bins[..., :FLAG_BINS].sum(axis=-1), bins)
        excess = sums - records[..., np.newaxis] * references.rows.center[every[1:]]
        is_member = references.group_of[1:, kind] >= 0
        stream = (excess * is_member[..., np.newaxis]).sum(axis=0, keepdims=True)
        excess = np.concatenate((stream, excess))
        watched = (records * is_member).sum(axis=0, keepdims=True)
        records = np.concatenate((watched, records))
        statistics = shrunk(excess, records, references.rows.prior[every])
        hits = hits_of(statistics, references.rows.thresholds[every]).astype(np.bool_)
        hits &= (every >= 0)[..., np.newaxis]
        rates = np.full((len(home), MAX_KINDS, EVENTS), 0.5)
        rates[:, : rows.shape[1]][rows >= 0] = plan.rates[rows[rows >= 0]]
        return cls(
            hits.reshape(len(home), streams, blocks, EVENTS).transpose(2, 1, 0, 3),
            kind.reshape(streams, blocks).T,
            np.moveaxis(rates, 1, 0),
            plan.log_threshold(home),
        )


def _share_of_records(setting: Setting, block_s: float, options: argparse.Namespace) -> float:
    """In which share of streams the monitors of records alarm before half the stated time.

    Those of flags, of the stream and each key, with as many calibration images as are usual, for
    the run length in records that the stated time holds. A mean time of at least the stated one
    has at most some 40 % of them so early.
    """
    pane_s = max(10, round(block_s / RECORD_PANES / 10) * 10)
    steps = round(options.run * block_s / 2 / pane_s)
    rng = np.random.default_rng((options.seed, crc32(setting.name.encode())))
    streams = max(2, min(RECORD_STREAMS, 800 // setting.keys))
    edges = FIRST_DAY_S + np.arange(steps + 1) * pane_s
    spread = SPREAD if setting.keys > 1 else 0.0
    flagged, records = [], []
    for _ in range(streams):
        shares = fleet_shares(setting.keys, spread, rng).tolist()
        bins = np.array([setting.camera(share).bins(edges, rng) for share in shares])
        flagged.append(bins[..., :FLAG_BINS].sum(axis=-1))
        records.append(bins.sum(axis=-1))
    x, n = np.moveaxis(np.array(flagged), 2, 0), np.moveaxis(np.array(records), 2, 0)
    rank = int(ALPHA * (CALIBRATION_IMAGES + 1))
    left = (1 - options.confidence) / 2
    bets = bets_against(np.array([upper_flag_rate(rank, CALIBRATION_IMAGES, 1 - left)]))
    per_time = float(n.sum()) / (streams * steps) * (2 * steps)
    log_threshold = np.log(2 * per_time)
    alarmed = np.zeros(streams, dtype=np.bool_)
    of_keys = initial_state(bets, (streams, setting.keys))
    of_stream = initial_state(bets, (streams,))
    for flags, seen in zip(x, n, strict=True):
        at = np.zeros((streams, setting.keys), dtype=np.int64)
        of_keys = update(of_keys, bets, np.maximum(seen, 1), flags[..., np.newaxis], at)
        total = flags.sum(axis=1, keepdims=True)
        of_stream = update(of_stream, bets, seen.sum(axis=1), total, at[:, 0])
        alarmed |= log_mixture(of_keys).max(axis=1) >= log_threshold
        alarmed |= log_mixture(of_stream) >= log_threshold
        if alarmed.all():
            break
    return float(alarmed.mean())


def _interval(results: Results, run: int) -> tuple[float, float]:
    """The 95 % interval of the share of baselines below the stated time (Clopper and Pearson)."""
    judged = results.judged
    below = sum(each.time < run for each in judged)
    found = binomtest(below, max(1, len(judged))).proportion_ci()
    return float(found.low), float(found.high)


def _line(setting: Setting, results: Results, run: int) -> str:
    judged = results.judged
    lengths = sorted({each.block_min for each in judged}) or [0.0]
    shares = np.array(
        [(each.kinds, int(each.settled), int(each.foreign)) for each in judged] or [(0, 0, 0)]
    )
    kinds, settled, _ = shares.mean(axis=0).tolist()
    blind, foreign = len(results.outcomes) - len(judged), int(shares[:, 2].sum())
    refused = [
        f"{number} {why}" for number, why in ((blind, "few"), (foreign, "foreign")) if number
    ]
    low, high = _interval(results, run)
    below = sum(each.time < run for each in judged)
    watched = sum(each.watched for each in judged) / run
    columns = (
        setting.name,
        str(len(judged)),
        " to ".join(f"{each:g}" for each in dict.fromkeys((lengths[0], lengths[-1]))),
        f"{np.median([each.fewest_blocks for each in judged] or [0]):g}",
        f"{kinds:.2g}",
        f"{settled:.0%}",
        ", ".join(refused) or "0",
        f"{below} ({low:.3f} to {high:.3f})",
        f"{sum(each.alarms for each in judged) / max(1.0, watched):.3f}",
        "" if results.of_records is None else f"{results.of_records:.2f}",
    )
    return f"| {' | '.join(columns)} |"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--baselines", type=int, default=200, help="of each setting")
    parser.add_argument("--run", type=int, default=200, help="stated time, in blocks")
    parser.add_argument("--confidence", type=float, default=0.95)
    parser.add_argument("--only", action="append", help="a setting: 'Markov 30, 20 keys, 3 days'")
    parser.add_argument("--block-s", type=int, help="length of blocks, in place of that chosen")
    parser.add_argument("--json", type=Path, help="file of results, to which more are added")
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    main()
