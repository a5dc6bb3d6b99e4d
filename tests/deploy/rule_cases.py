"""For each alert of the rules: what makes it fire, and what comes close to it.

A case changes some series of a monitor that is well. `promtool` gets them in its own notation: a
value a minute, ``5x9`` for ten times 5, ``0+60x9`` for a growing one, ``_x9`` for none.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from nap_stream.metrics import WHY_LEFT_OUT, Metrics
from tests.support.summaries import partition

NOW = 7 * 24 * 60 + 300
"""More than a week after the first sample."""
MONITOR = {"job": "nap-stream", "instance": "a:9464"}
ALWAYS = "x600"
"""For as long as a case takes."""


@dataclass(frozen=True)
class Case:
    """``series`` by what stands behind nap_stream_ (or is ``up``); None for no monitor at all.

    ``at`` is when it is looked, in minutes. ``fires`` holds the labels of each alert that fires
    then, but for its name and severity. Where a monitor is not ``alone`` there is a second one
    beside it, which is well. ``step`` is the time between samples and evaluations, in minutes: that
    of an alert's first case is that of all.
    """

    name: str
    at: int
    series: Mapping[str, str] | None
    fires: tuple[Mapping[str, str], ...] = ()
    step: int = 1
    target: Mapping[str, str] = field(default_factory=lambda: MONITOR)
    alone: bool = False


def fires(name: str, at: int, /, series: Mapping[str, str], **labels: str) -> Case:
    return Case(name, at, series, (MONITOR | labels,))


def quiet(name: str, at: int, /, series: Mapping[str, str]) -> Case:
    return Case(name, at, series)


def whole_metrics() -> Metrics:
    """Those of a monitor, with every series that there may be."""
    metrics = Metrics("1")
    metrics.add_sink("kafka")
    metrics.set_partition(partition(0), 20, 1_500)
    metrics.set_watermark(partition(0), 5_000)
    for stage in ("publish", "batch"):
        metrics.observe_stage(stage, 0.1)
    for why in WHY_LEFT_OUT:
        metrics.topics_left_out.labels(why)
    return metrics


def healthy() -> dict[str, str]:
    """Every series of a monitor that is well and scores ten images a second."""
    metrics = whole_metrics()
    for gauge, value in {
        metrics.ood_fraction: 0.05,
        metrics.ood_fraction_bound: 0.12,
        metrics.ood_fraction_expected: 0.06,
        metrics.window_age: 3,
        metrics.window_fill: 1,
        metrics.window_records: 1_000,
        metrics.watermark_delay: 4,
        metrics.unscored_fraction: 0,
        metrics.unscored_fraction_bound: 0.01,
        metrics.workers: 2,
        metrics.workers_expected: 2,
        metrics.keys: 100,
    }.items():
        gauge.set(value)
    series = {
        _short(sample.name, sample.labels): f"{sample.value:g}{ALWAYS}".replace("nan", "NaN")
        for family in metrics.registry.collect()
        for sample in family.samples
        if not sample.name.endswith("_created")
    }
    return series | {
        "up": f"1{ALWAYS}",
        'records_total{status="ok"}': f"600+600{ALWAYS}",
        "images_scored_total": f"600+600{ALWAYS}",
        "last_checkpoint_timestamp_seconds": f"0+60{ALWAYS}",
    }


def _short(name: str, labels: Mapping[str, str]) -> str:
    inside = ",".join(f'{label}="{value}"' for label, value in labels.items())
    return name.removeprefix("nap_stream_") + (f"{{{inside}}}" if inside else "")


OK = 'records_total{status="ok"}'
LAG = 'partition_lag_offsets{topic="images",partition="0"}'
TIME_LAG = 'partition_time_lag_seconds{topic="images",partition="0"}'
REFUSED = 'alerts_refused_total{sink="kafka"}'
FAILED = 'evidence_images_total{outcome="failed"}'
IDLE = {OK: f"600{ALWAYS}", "images_scored_total": f"600{ALWAYS}"}
"""Nothing comes."""
BLOCKS = {"block_seconds": f"3600{ALWAYS}"}
"""A baseline decides."""


def shift(statistic: str, threshold: str = f"2e6{ALWAYS}") -> dict[str, str]:
    """Where the detector of shifted scores stands."""
    return {
        'detector_statistic{detector="score-shift"}': statistic,
        'detector_threshold{detector="score-shift"}': threshold,
    }


def _firing(metric: str, severity: str) -> list[Case]:
    series = f'{metric}{{severity="{severity}"}}'
    return [
        fires("at once", 5, {series: "0x4 1x30"}),
        fires("over the restart of a coordinator", 20, {series: "1x16 stale _x10"}),
        quiet("it has ended", 20, {series: "1x16 0x10"}),
        quiet("the monitor is long gone", 40, {series: "1x16 stale _x30"}),
    ]


LOST, STARTED = "gap_offsets_total", "start_time_seconds"
_GAP = [
    fires("in the first sample", 1, {LOST: "34x30"}),
    fires("in the first sample, and the program runs on", 13, {LOST: "34x99"}),
    fires("it grows", 100, {LOST: "34x98 35x10"}),
    fires("while nothing was scraped", 100, {LOST: "34x20 _x77 35x10"}),
    fires("a coordinator took over", 100, {LOST: "34x98 1x10"}),
    fires("one took over and lost as much", 100, {LOST: "34x200", STARTED: "0x95 5700x10"}),
    quiet("none", 100, {LOST: "0x200"}),
    quiet("long ago", 40, {LOST: "0x14 34x200"}),
    quiet("long ago, in the first sample", 20, {LOST: "34x200"}),
    quiet("long ago, and nothing was scraped then", 30, {LOST: "34x9 _x10 34x200"}),
    quiet("a coordinator took over, and nothing is new", 100, {LOST: "34x98 0x10"}),
]
"""Of what is never in order, within a quarter of an hour."""


def _grew_too(series: str, **labels: str) -> list[Case]:
    """The same within an hour, in short."""
    return [
        fires("in the first sample", 50, {series: "34x99"}, **labels),
        fires("it grows", 70, {series: "34x68 35x10"}, **labels),
        quiet("none", 70, {series: "0x200"}),
        quiet("long ago, in the first sample", 70, {series: "34x200"}),
    ]


def of_job(
    job: str, instance: str, fires: tuple[Mapping[str, str], ...] = (), at: int = 20
) -> Case:
    """A monitor that runs for ten minutes and cannot be scraped then."""
    series = {"up": f"1x10 0{ALWAYS}", 'build_info{version="1"}': f"1x10 stale _{ALWAYS}"}
    return Case(f"{job} {instance}", at, series, fires, target={"job": job, "instance": instance})


def of_topic(series: Mapping[str, str]) -> Case:
    """A target with a label that its series have too, which Prometheus renames then."""
    target = MONITOR | {"topic": "all"}
    fires = (MONITOR | {"exported_topic": "images"},)
    return Case("a target with a topic", 60, series, fires, target=target)


CASES: dict[str, list[Case]] = {
    "NapStreamDriftFiring": _firing("alert_firing", "warning"),
    "NapStreamDriftCritical": _firing("alert_firing", "critical"),
    "NapStreamUnscored": _firing("unscored_alert_firing", "warning"),
    "NapStreamUnscoredCritical": _firing("unscored_alert_firing", "critical"),
    "NapStreamNearBound": [
        fires("nearly there", 30, {"ood_fraction": "0.115x60"}),
        quiet("not long enough", 30, {"ood_fraction": "0.05x25 0.115x60"}),
        quiet("half of the way", 30, {"ood_fraction": "0.09x60"}),
        quiet(
            "it fires", 30, {"ood_fraction": "0.2x60", 'alert_firing{severity="critical"}': "1x60"}
        ),
        quiet("a baseline decides", 30, {"ood_fraction": "0.2x60"} | BLOCKS),
        quiet("nothing comes", 30, {"ood_fraction": "0.115x60"} | IDLE),
        quiet(
            "the window is not full", 30, {"ood_fraction": "0.2x60", "ood_fraction_bound": "NaNx60"}
        ),
    ],
    "NapStreamDetectorRising": [
        fires("two hundredths", 45, shift("5e4x60"), detector="score-shift"),
        quiet("a thousandth", 45, shift("2e3x60")),
        quiet("active", 45, shift("3e6x60") | {'detector_active{detector="score-shift"}': "1x60"}),
        quiet("a low threshold", 45, shift("5e4x60", "9e5x60")),
        quiet("a baseline decides", 45, shift("5e4x60") | BLOCKS),
        quiet("nothing comes", 80, shift("5e4x90") | IDLE),
        quiet("not known", 45, shift("NaNx60", "NaNx60")),
        fires(
            "of blocks",
            45,
            {
                'detector_statistic{detector="blocks"}': "5e4x60",
                'detector_threshold{detector="blocks"}': "2e6x60",
            }
            | BLOCKS,
            detector="blocks",
        ),
    ],
    "NapStreamKeysFiring": [
        fires("one", 5, {"keys_firing": "0x4 1x30"}),
        fires("over the restart of a coordinator", 20, {"keys_firing": "1x16 stale _x10"}),
        quiet("none any more", 20, {"keys_firing": "1x16 0x10"}),
    ],
    "NapStreamManyKeysFiring": [
        fires("six of a hundred", 10, {"keys_active": "6x30"}),
        fires("three of four", 10, {"keys_active": "3x30", "keys": "4x30"}),
        quiet("five of a hundred", 10, {"keys_active": "5x30"}),
        quiet("two of four", 10, {"keys_active": "2x30", "keys": "4x30"}),
        quiet("the only one", 10, {"keys_active": "1x30", "keys": "1x30"}),
        quiet("no keys", 10, {"keys_active": "0x30", "keys": "0x30"}),
    ],
    "NapStreamKeysForgotten": [
        fires("again and again", 90, {"keys_forgotten_total": "0+1x120"}),
        quiet("once", 90, {"keys_forgotten_total": "0x10 1x120"}),
    ],
    "NapStreamKeysNotWatched": [
        fires("for two hours", 120, {"keys_waiting": "3x120"}),
        quiet("for half an hour", 120, {"keys_waiting": "0x90 3x30"}),
    ],
    "NapStreamWindowOld": [
        fires("none is scored", 60, {"window_age_seconds": "0+60x60"}),
        quiet("nothing comes", 60, {"window_age_seconds": "0+60x60"} | IDLE),
        quiet(
            "only tombstones come",
            60,
            {"window_age_seconds": "0+60x60", 'records_total{status="tombstone"}': "0+60x60"}
            | IDLE,
        ),
        quiet("not known", 60, {"window_age_seconds": "NaNx60"}),
    ],
    "NapStreamNoVerdict": [
        fires("half full", 70, {"window_fill_ratio": "0.5x90"}),
        fires(
            "images come once an hour",
            200,
            {"window_fill_ratio": "0.5x300", OK: "0x60 9x60 20x60 31x60"},
        ),
        quiet("it fills", 70, {"window_fill_ratio": "0+0.02x50 1x40"}),
        quiet("a baseline decides", 70, {"window_fill_ratio": "0.5x90"} | BLOCKS),
        quiet("nothing comes", 70, {"window_fill_ratio": "0.5x90"} | IDLE),
    ],
    "NapStreamWatermarkStuck": [
        fires("it stands", 30, {"watermark_delay_seconds": "0+60x60"}),
        quiet("it crawls", 30, {"watermark_delay_seconds": "600+30x60"}),
        quiet("nothing comes", 40, {"watermark_delay_seconds": "0+60x60"} | IDLE),
        quiet("nothing was judged yet", 30, {"watermark_delay_seconds": "NaNx60"}),
    ],
    "NapStreamVerdictsLate": [
        fires("twenty minutes", 30, {"watermark_delay_seconds": "1200x60"}),
        quiet("ten minutes", 30, {"watermark_delay_seconds": "600x60"}),
        quiet("nothing comes", 40, {"watermark_delay_seconds": "0+60x60"} | IDLE),
    ],
    "NapStreamLateRecords": [
        fires("a tenth", 90, {"late_records_total": "0+60x120"}),
        quiet("a hundredth", 90, {"late_records_total": "0+6x120"}),
        quiet("nothing comes", 90, {"late_records_total": "9x120"} | IDLE),
    ],
    "NapStreamUntimelyRecords": [
        fires("a twentieth", 90, {"untimely_records_total": "0+30x120"}),
        quiet("a thousandth", 90, {"untimely_records_total": "0+0.6x120"}),
        quiet("nothing comes", 90, {"untimely_records_total": "9x120"} | IDLE),
    ],
    "NapStreamGap": _GAP,
    "NapStreamAlertRefused": _grew_too(REFUSED, sink="kafka"),
    "NapStreamEventsLost": _grew_too("events_lost_total"),
    "NapStreamEvidenceNotKept": _grew_too(FAILED, outcome="failed"),
    "NapStreamCheckpointFailing": [
        fires("again and again", 40, {"checkpoint_failures_total": "0+2x60"}),
        fires("the store hangs", 40, {"last_checkpoint_timestamp_seconds": "0+60x10 600x60"}),
        fires("none was ever written", 40, {"last_checkpoint_timestamp_seconds": "0x60"}),
        quiet("once", 40, {"checkpoint_failures_total": "0x20 1x60"}),
        quiet("nothing comes", 60, {"last_checkpoint_timestamp_seconds": "0x60"} | IDLE),
    ],
    "NapStreamLogNotSigned": [
        fires("the last one failed", 5, {"signed_checkpoint_failing": "1x30"}),
        quiet("it is made", 5, {"signed_checkpoint_failing": "1x4 0x30"}),
    ],
    "NapStreamAlertsUndelivered": [
        fires(
            "for ten minutes", 15, {'alerts_undelivered{sink="kafka"}': "0x4 2x30"}, sink="kafka"
        ),
        quiet("for a moment", 15, {'alerts_undelivered{sink="kafka"}': "0x12 2x30"}),
    ],
    "NapStreamDown": [
        fires("one of two", 20, {"up": "1x10 0x20", 'build_info{version="1"}': "1x10 stale _x20"}),
        Case(
            "it never answered", 10, {"up": "0x20", 'build_info{version="1"}': "_x20"}, (MONITOR,)
        ),
        fires("something else answers", 10, {'build_info{version="1"}': "_x20"}),
        of_job(
            "vision/nap-stream", "a:9464", ({"job": "vision/nap-stream", "instance": "a:9464"},)
        ),
        of_job("cameras", "b:1", ({"job": "cameras", "instance": "b:1"},)),
        quiet(
            "for three minutes",
            20,
            {"up": "1x17 0x20", 'build_info{version="1"}': "1x17 stale _x20"},
        ),
        Case(
            "another job",
            20,
            {"up": "0x30", 'build_info{version="1"}': "_x30"},
            target={"job": "nap-stream-ray", "instance": "r:1"},
        ),
    ],
    "NapStreamGone": [
        Case("one of two", 60, {"up": "1x6 stale _x18"}, ({"job": "nap-stream"},), step=5),
        Case(
            *("the only one of a job", 60, {"up": "1x6 stale _x18"}, ({"job": "v/nap-stream"},)),
            target={"job": "v/nap-stream", "instance": "a:9464"},
        ),
        quiet("it is away", 60, {"up": "1x6 0x18"}),
        quiet("one that was tried for a moment", 400, {"up": "_x40 1x6 stale _x60"}),
        quiet("more than three hours ago", 350, {"up": "1x24 stale _x60"}),
        Case(
            *("the only one of a job, five hours ago", 420, {"up": "1x24 stale _x60"}),
            ({"job": "v/nap-stream"},),
            target={"job": "v/nap-stream", "instance": "a:9464"},
        ),
        Case(
            *("the only one of a job, more than six hours ago", 490, {"up": "1x24 stale _x80"}),
            target={"job": "v/nap-stream", "instance": "a:9464"},
        ),
    ],
    "NapStreamAbsent": [
        Case("no monitor was ever seen", 10, None, ({},), alone=True),
        Case("it is away", 10, {"up": "0x20", 'build_info{version="1"}': "_x20"}, alone=True),
        Case("of another job", 10, {}, target={"job": "cameras", "instance": "b:1"}, alone=True),
    ],
    "NapStreamWorkersMissing": [
        fires("one of two", 10, {"workers": "1x30"}),
        quiet("for a moment", 10, {"workers": "2x7 1x30"}),
    ],
    "NapStreamWorkersWaiting": [
        fires("for ten minutes", 10, {"workers_waiting": "1x30"}),
        quiet("for a moment", 10, {"workers_waiting": "0x7 1x30"}),
    ],
    "NapStreamTopicLeftOut": [
        fires("refused", 10, {'topics_left_out{why="refused"}': "1x30"}, why="refused"),
        fires("named, and away", 10, {'topics_left_out{why="absent"}': "2x30"}, why="absent"),
        fires("gone lately", 30, {'topics_left_out{why="gone"}': "0x10 1x90"}, why="gone"),
        quiet("gone for long", 90, {'topics_left_out{why="gone"}': "1x90"}),
        quiet("and started anew", 90, {'topics_left_out{why="gone"}': "1x60 _x2 1x60"}),
        quiet("none", 10, {'topics_left_out{why="refused"}': "0x30"}),
    ],
    "NapStreamClockWrong": [
        fires("by an hour", 10, {"clock_skew_seconds": "3600x30"}),
        quiet("by a minute, and for a moment by more", 10, {"clock_skew_seconds": "60x7 90x30"}),
    ],
    "NapStreamWorkersRestarting": [
        fires("in the first sample", 1, {"worker_restarts_total": "4x30"}),
        fires("four within half an hour", 60, {"worker_restarts_total": "9x40 10 11 12 13x60"}),
        quiet("twice", 60, {"worker_restarts_total": "0x40 1 2x60"}),
        quiet("long ago", 60, {"worker_restarts_total": "4x90"}),
    ],
    "NapStreamCoordinatorRestarting": [
        fires("three times", 60, {STARTED: "0x20 1200x9 1800x9 2400x90"}),
        quiet("twice", 60, {STARTED: "0x20 1200x9 1800x90"}),
    ],
    "NapStreamLag": [
        fires("it stays", 60, {LAG: "500000x90"}),
        fires("it grows", 60, {LAG: "0+1000x90"}),
        fires("it falls, for hours still", 60, {LAG: "500000-500x90"}),
        fires("of a stream that is fast, by its times", 60, {LAG: "30000x90", TIME_LAG: "90x90"}),
        of_topic({LAG: "500000x90"}),
        quiet("caught up within an hour", 20, {LAG: "500000-10000x50"}),
        quiet(
            "a second of a fast stream", 60, {LAG: "30000x90", OK: "0+1800000x90", TIME_LAG: "1x90"}
        ),
        quiet("a burst", 50, {LAG: "20x30 500000-15000x30"}),
        quiet("small", 60, {LAG: "900x90"}),
    ],
    "NapStreamStalled": [
        fires("nothing moves", 30, {LAG: "500x90"} | IDLE),
        of_topic({LAG: "500x90"} | IDLE),
        quiet("it moves", 30, {LAG: "500x90"}),
        quiet("scored, and not logged yet", 30, {LAG: "500x90", OK: "600x90"}),
        quiet("nothing waits", 30, {LAG: "1x90"} | IDLE),
    ],
    "NapStreamNoImages": [
        Case("as every week", NOW, {OK: "0+600x504 302400x20"}, (MONITOR,), step=20),
        quiet("nor a week ago", NOW, {OK: "0x40 0+600x100 60000x504"}),
        quiet("they come", NOW, {}),
    ],
}
