"""How soon each detector sees a drift of the flag rate, and what more certainty costs in delay.

Also what twice as many calibration images would buy.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from nap_stream.clock import Progress
from nap_stream.core.alert_state import Detector
from nap_stream.core.conformal import Rule, flag_rank
from nap_stream.core.detection import (
    Delay,
    DetectionPlan,
    flags_delay,
    scores_delay,
    unscored_delay,
    window_delay,
)
from nap_stream.core.tails import TAIL_EVENTS, FlagRateLaw, Sides, TailEvent
from nap_stream.planning.request import (
    PlanRequest,
    ask,
    firing_limit,
    of_half_the_false_alarms,
    searched_windows,
    usual_windows,
)


def of_twice_the_images(request: PlanRequest) -> PlanRequest:
    """Ask the same of twice the images in each group, with the ranks that they would have.

    A tail that a group was too small for is then tested, if its size was all that it lacked.
    """
    facts, sides = request.facts, request.sides
    rule = Rule(facts.alpha, sides)
    sizes = [2 * law.size for law in facts.flag_rate_laws]
    doubled = replace(
        facts,
        size=2 * facts.size,
        flag_rate_laws=tuple(FlagRateLaw(rule.flag_rank(size), size) for size in sizes),
        tail_laws=tuple(
            _upper_laws(event, laws, sides) if event.upper else _lower_laws(event, sizes, sides)
            for event, laws in zip(TAIL_EVENTS, facts.tail_laws, strict=True)
        ),
    )
    return ask(request.drift, doubled, sides)


def _lower_laws(event: TailEvent, sizes: list[int], sides: Sides) -> tuple[FlagRateLaw, ...]:
    ranks = [_rank_outside(event, size, sides) for size in sizes]
    if min(ranks) < 1:
        return ()
    return tuple(FlagRateLaw(rank, size) for rank, size in zip(ranks, sizes, strict=True))


def _upper_laws(
    event: TailEvent, laws: tuple[FlagRateLaw, ...], sides: Sides
) -> tuple[FlagRateLaw, ...]:
    """Tied scores keep the share of ranks that they have: see `nap_stream.core.conformal`."""
    doubled = set()
    for law in laws:
        size, outside = 2 * law.size, law.size + 1 - law.flag_rank
        is_tied = outside < _rank_outside(event, law.size, sides)
        rank = 2 * outside if is_tied else _rank_outside(event, size, sides)
        doubled.add(FlagRateLaw(size + 1 - rank, size))
    return tuple(sorted(doubled))


def _rank_outside(event: TailEvent, size: int, sides: Sides) -> int:
    """How many of the ranks of untied scores lie outside the upper tail, or in the lower one."""
    ends = 1 if sides is Sides.ONE else 2
    return ends * flag_rank(event.edge / ends, size)


FACTORS = (1.5, 2.0, 3.0, 5.0)
"""The drifts that are looked at, as multiples of the base rate of flags."""
HIGHEST_RATE = 0.95
UNSCORED_SHARES = (1.0, 0.5, 0.1)
"""How many of the images become unreadable: all, as after a firmware change, or a part of them."""


@dataclass(frozen=True, slots=True)
class DetectorDelays:
    """A detector, the threshold at which it fires, and its delays for `Expectation.rates`.

    For the rolling window ``asked_records`` is the size that was asked for, ``window_records`` the
    size of a full one in whole panes, and ``threshold`` a count of flags, more than the window's
    records where it never fires. For an e-detector both sizes are null, and ``threshold`` is that
    of its statistic.
    """

    detector: Detector
    asked_records: int | None
    window_records: int | None
    threshold: float
    delays: tuple[Delay, ...]


@dataclass(frozen=True, slots=True)
class BestWindow:
    """The window, of those that were tried, that sees a drift first; null where none does."""

    window_records: int | None
    delay: Delay | None


@dataclass(frozen=True, slots=True)
class Price:
    """What a change of the request does: the delays of the e-detector and of the window."""

    change: str
    flag_rate: float
    sequential: tuple[Delay, ...]
    window: tuple[Delay, ...]


@dataclass(frozen=True, slots=True)
class UnscoredDelay:
    """How many images come until the alert unscored-images, where ``share`` has no scores."""

    share: float
    delay: Delay


@dataclass(frozen=True, slots=True)
class Expectation:
    """Delays for drifts from the base rate to ``rates``, which are ``factors`` times as high.

    ``unscored`` are those of images without scores; empty where the settings leave that out.
    """

    base_rate: float
    factors: tuple[float, ...]
    rates: tuple[float, ...]
    detectors: tuple[DetectorDelays, ...]
    best_windows: tuple[BestWindow, ...]
    prices: tuple[Price, ...]
    unscored: tuple[UnscoredDelay, ...] = ()


def expect(
    request: PlanRequest, windows: tuple[int, ...], *, streams: int, seed: int, advance: Progress
) -> Expectation:
    """Simulate all delays, each over ``streams`` streams.

    ``windows`` are the sizes of rolling windows to look at beside the configured one; empty for
    the usual ones.
    """
    base = request.facts.alpha
    rates = tuple(max(base, min(HIGHEST_RATE, base * factor)) for factor in FACTORS)
    work = _Work(request.pane_records, base, rates, streams, seed, advance)
    plan = request.plan
    sizes = sorted({plan.window_records, *(windows or usual_windows(plan.window_records))})
    searched = searched_windows(plan.window_records)
    work.steps = len(rates) * (len(sizes) + 1 + bool(plan.tail_rates) + len(searched) + 2 * (1 + 2))
    detectors = [_window(plan, size, work) for size in sizes]
    detectors.append(_e_detector(Detector.OOD_SEQUENTIAL, flags_delay, plan, work))
    if plan.tail_rates:
        detectors.append(_e_detector(Detector.SCORE_SHIFT, scores_delay, plan, work))
    best, prices = _best_windows(plan, searched, work), _prices(request, work)
    advance(work.done, work.done)
    return Expectation(
        base, FACTORS, rates, tuple(detectors), best, prices, _unscored(request, streams, seed)
    )


def _unscored(request: PlanRequest, streams: int, seed: int) -> tuple[UnscoredDelay, ...]:
    """Each takes a few panes: it does not count as a step."""
    watched = request.drift.unscored
    if watched is None:
        return ()
    return tuple(
        UnscoredDelay(
            share,
            unscored_delay(
                watched.bound,
                share,
                request.plan.run_length,
                pane_records=request.pane_records,
                generator=np.random.default_rng([seed, number]),
                runs=streams,
            ),
        )
        for number, share in enumerate(UNSCORED_SHARES)
    )


@dataclass(slots=True)
class _Work:
    pane_records: int
    base: float
    rates: tuple[float, ...]
    streams: int
    seed: int
    advance: Progress
    steps: int = 0
    done: int = 0
    known: dict[tuple[str, float, float, int], tuple[Delay, ...]] = field(default_factory=dict)

    def of(self, simulate: Callable[..., Delay], plan: DetectionPlan) -> tuple[Delay, ...]:
        """Simulate a detector at every drift, from the same seed, so that plans compare well."""
        delays = []
        name = (simulate.__name__, plan.flag_rate, plan.detector_run_length, plan.window_records)
        if name in self.known:
            return self.known[name]
        for number, rate in enumerate(self.rates):
            generator = np.random.default_rng([self.seed, number])
            delays.append(
                simulate(
                    plan,
                    self.base,
                    rate,
                    pane_records=self.pane_records,
                    generator=generator,
                    runs=self.streams,
                )
            )
            self.done += 1
            self.advance(min(self.done, self.steps), self.steps)
        self.known[name] = tuple(delays)
        return self.known[name]


def _window(plan: DetectionPlan, size: int, work: _Work) -> DetectorDelays:
    resized = replace(plan, window_records=size)
    records, limit = firing_limit(resized, work.pane_records)
    return DetectorDelays(Detector.OOD_WINDOW, size, records, limit, work.of(window_delay, resized))


def _e_detector(
    name: Detector, simulate: Callable[..., Delay], plan: DetectionPlan, work: _Work
) -> DetectorDelays:
    return DetectorDelays(name, None, None, plan.detector_run_length, work.of(simulate, plan))


def _best_windows(
    plan: DetectionPlan, searched: tuple[int, ...], work: _Work
) -> tuple[BestWindow, ...]:
    tried = [_window(plan, size, work) for size in searched]
    best = []
    for number in range(len(work.rates)):
        seen = [
            (typical, found.window_records, found.delays[number])
            for found in tried
            if (typical := found.delays[number].typical) is not None
        ]
        found = min(seen, key=lambda each: each[0], default=None)
        best.append(BestWindow(None, None) if found is None else BestWindow(found[1], found[2]))
    return tuple(best)


def _prices(request: PlanRequest, work: _Work) -> tuple[Price, ...]:
    changes = (
        ("as asked for", request),
        ("half as many false alarms", of_half_the_false_alarms(request)),
        ("twice as many calibration images", of_twice_the_images(request)),
    )
    prices = []
    for change, changed in changes:
        plan = changed.plan
        sequential, window = work.of(flags_delay, plan), work.of(window_delay, plan)
        prices.append(Price(change, plan.flag_rate, sequential, window))
    return tuple(prices)
