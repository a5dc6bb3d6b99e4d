"""The settings of the drift monitor: what it promises, and what it counts."""

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from nap_stream.core.alert_state import (
    DEFAULT_FALSE_ALARMS,
    parse_false_alarms,
    promised_hours,
)
from nap_stream.records import Status
from nap_stream.settings.values import PositiveSeconds, Probability, Section

MAX_WINDOW_RECORDS = 10_000_000


class KeySettings(Section):
    """One monitor for each key: a camera, a line, a site."""

    by: str = Field(default="key", pattern=r"^(key|header:.{1,200})$")
    """What names it: key, the message's key (of an Arrow batch: the image's), or header:NAME, which
    must stand in log.headers."""
    max_keys: Annotated[int, Field(gt=0, le=1_000_000)] = 100_000
    """Keys that are remembered. Beyond them the longest silent are forgotten, active ones last."""
    max_firing: Annotated[int, Field(gt=0, le=1_000)] = 20
    """Alerts of keys that may fire at once. Of any more, only the number is reported."""
    one_per_pane: bool = False
    """Count only a key's first record in each pane of drift.pane_ms: frames of one camera that
    follow each other closely are not independent."""


class UnscoredSettings(Section):
    """When too many images have no scores: what cannot be read has no part in any other verdict."""

    bound: Annotated[float, Field(ge=0.0001, le=0.9)] = 0.01
    """The highest share of images without scores that is in order. The alert unscored-images has
    the run length of `false_alarms` for itself, as long as the share is no higher."""
    ignored: tuple[Status, ...] = (Status.TOMBSTONE,)
    """Statuses that count neither as images nor as failures. A message without a value is a
    deletion marker in a compacted topic, and no image."""

    @field_validator("ignored")
    @classmethod
    def _of_failures(cls, value: tuple[Status, ...]) -> tuple[Status, ...]:
        if Status.OK in value:
            raise ValueError("images with the status ok cannot be ignored")
        if set(value) >= set(Status) - {Status.OK}:
            raise ValueError("every status is ignored: set drift.unscored to null instead")
        return value


class DriftSettings(Section):
    """When the stream has drifted."""

    false_alarms: str | None = None
    """How many false alarms are tolerated, as in "one per 30 days at 50 images/s" (the default) or
    "probability 0.01 in 7 days at 50 images/s". This or expected_run_length."""
    expected_run_length: Annotated[float, Field(ge=100, le=1e15)] | None = None
    """The same as one number of records A: a false alarm within T records has a probability of at
    most T / A."""
    confidence: Annotated[float, Field(ge=0.5, le=0.9999)] = 0.95
    """Share of calibrations, over the draw of their images, for which that holds."""
    window_records: Annotated[int, Field(gt=0, le=MAX_WINDOW_RECORDS)] = 1_000
    """Records of the rolling window."""
    pane_ms: Annotated[int, Field(gt=0, le=86_400_000)] = 1_000
    """Width of the event-time panes in which records are counted: verdicts come at their ends."""
    resolve_probability: Probability = 0.05
    """The rolling window no longer fires when its count would not be surprising at this level."""
    idle_partition_s: PositiveSeconds = 10.0
    """A partition that has been silent for this long no longer holds the watermark back."""
    keys: KeySettings | None = None
    """Monitors of single keys beside that of the stream; null for none."""
    blocks: Literal["auto", "off"] = "auto"
    """auto: where the calibration holds a baseline (`nap-stream baseline`), its blocks decide, and
    the detectors of single records are shown beside. off: single records decide."""
    unscored: UnscoredSettings | None = UnscoredSettings()
    """The alert of images that have no scores; null for none."""
    stale_after_s: PositiveSeconds = 60.0
    """An OOD fraction whose newest image is older than this is shown as of its time."""

    @field_validator("false_alarms")
    @classmethod
    def _readable(cls, value: str | None) -> str | None:
        if value is not None:
            parse_false_alarms(value)
        return value

    @model_validator(mode="after")
    def _one_promise(self) -> Self:
        if self.false_alarms is not None and self.expected_run_length is not None:
            raise ValueError("give false_alarms or expected_run_length, not both")
        return self

    @property
    def one_per_pane(self) -> bool:
        """Whether a key's first record alone counts in each pane."""
        return self.keys is not None and self.keys.one_per_pane

    @property
    def run_length(self) -> float:
        """The average run length between false alarms that is asked for, in records."""
        if self.expected_run_length is not None:
            return self.expected_run_length
        return parse_false_alarms(self.false_alarms or DEFAULT_FALSE_ALARMS)

    def run_time_ms(self, records: int, span_ms: int) -> int:
        """The same as a time in milliseconds, as it is asked for.

        Where it is asked for in records, they come at the rate of ``records`` in ``span_ms``
        milliseconds, pauses included.
        """
        if self.expected_run_length is not None:
            return round(self.expected_run_length / records * span_ms)
        return round(promised_hours(self.false_alarms or DEFAULT_FALSE_ALARMS) * 3_600_000)
