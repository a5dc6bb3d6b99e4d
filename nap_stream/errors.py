"""The errors of nap-stream.

    NapStreamError
    ├── ConfigError                  a setting is wrong, unknown or missing
    ├── ModelError                   the model cannot be imported, built or loaded
    │   └── FeatureMapError          the pre-pooling feature map was not found
    ├── CalibrationError             a calibration cannot be made or read
    │   └── FingerprintMismatchError a calibration belongs to another model
    ├── ReportError                  a report cannot be printed
    ├── ReloadError                  a monitor that runs has not taken new settings
    ├── InputDataError               a folder or file of images is missing, empty or unreadable
    ├── BrokerError                  Kafka said no
    │   ├── BrokerUnavailableError   nobody answers (retriable)
    │   ├── TopicNotFoundError       a topic does not exist
    │   ├── OffsetRangeError         the broker no longer, or not yet, has the offset that is needed
    │   └── TopicReplacedError       the topic is not the one that the chain was made from
    ├── AlertDeliveryError           an alert's destination did not take it (retriable)
    │   └── AlertRefusedError        it will never take this one (not retriable)
    ├── ScoredLogError               the log cannot be written or read (retriable)
    │   ├── LogRootError             the root is not usable (not retriable)
    │   ├── NotAFileError            a folder, pipe or device has a file's name (not retriable)
    │   ├── SegmentConflictError     another writer has published this base offset
    │   ├── EventError               an event beside the rows is damaged, or none (not retriable)
    │   └── ChainBrokenError         a segment or its footer contradicts the chain (not retriable)
    ├── ProofError                   a signed note or export is not what was signed (not retriable)
    │   └── UnknownKeyError          only keys have signed it that were not given
    └── WorkerError                  a worker cannot start or go on (retriable)
        ├── GpuUnavailableError      GPUs are asked for and torch sees none (not retriable)
        ├── DeviceMemoryError        a batch does not fit a GPU's memory
        └── WorkerGaveUpError        restarted as often as allowed (not retriable)

Every error is built from positional strings alone, so that it survives pickling between
processes, and says what was wrong, where, and what to do.
"""

from typing import ClassVar


class NapStreamError(Exception):
    """Base of all errors that nap-stream raises on purpose.

    Args:
        problem: What was wrong, as a sentence without its full stop.
        where: The place: file, key, topic/partition/offset. May be empty.
        action: What the reader can do about it. May be empty.
    """

    retriable: ClassVar[bool] = False

    def __init__(self, problem: str, where: str = "", action: str = "") -> None:
        super().__init__(problem, where, action)
        self.problem = problem
        self.where = where
        self.action = action

    def __str__(self) -> str:
        place = f"{self.where}: " if self.where else ""
        advice = f". {self.action}" if self.action else ""
        return f"{place}{self.problem}{advice}"


class ConfigError(NapStreamError):
    """A setting is wrong, unknown or missing."""


class ModelError(NapStreamError):
    """The model cannot be imported, built or loaded."""


class FeatureMapError(ModelError):
    """The pre-pooling feature map was not found."""


class CalibrationError(NapStreamError):
    """A calibration cannot be made or read."""


class FingerprintMismatchError(CalibrationError):
    """A calibration belongs to another model."""


class ReportError(NapStreamError):
    """A report cannot be printed."""


class ReloadError(NapStreamError):
    """A monitor that runs has not taken new settings."""


class InputDataError(NapStreamError):
    """A folder or file of images is missing, empty or unreadable."""


class BrokerError(NapStreamError):
    """Kafka refused or failed a request."""


class BrokerUnavailableError(BrokerError):
    """No broker answers."""

    retriable = True


class TopicNotFoundError(BrokerError):
    """A topic does not exist."""


class OffsetRangeError(BrokerError):
    """The broker no longer, or not yet, has the offset that is needed."""


class TopicReplacedError(BrokerError):
    """The topic was deleted and made anew: its offsets are not those of the chain."""


class AlertDeliveryError(NapStreamError):
    """A destination did not take an alert. Failures of Kafka that may pass are `BrokerError`."""

    retriable = True


class AlertRefusedError(AlertDeliveryError):
    """A destination will never take this alert, however often it is tried."""

    retriable = False


class ScoredLogError(NapStreamError):
    """The scored log cannot be written or read."""

    retriable = True


class LogRootError(ScoredLogError):
    """The root of the scored log is not usable."""

    retriable = False


class NotAFileError(ScoredLogError):
    """What has a file's name in the scored log is a folder, a pipe or a device."""

    retriable = False


class SegmentConflictError(ScoredLogError):
    """Another writer has published this base offset."""


class EventError(ScoredLogError):
    """An event of the log is damaged, missing, or of another version; or cannot be one."""

    retriable = False


class ChainBrokenError(ScoredLogError):
    """A segment or its footer contradicts the chain."""

    retriable = False


class ProofError(NapStreamError):
    """A signed note or export is malformed, or not what was signed."""


class UnknownKeyError(ProofError):
    """Only keys have signed it that were not given."""


class WorkerError(NapStreamError):
    """A worker cannot start or go on."""

    retriable = True


class GpuUnavailableError(WorkerError):
    """GPUs are asked for and torch sees none."""

    retriable = False


class DeviceMemoryError(WorkerError):
    """A batch that cannot be made smaller does not fit the memory of its device."""


class WorkerGaveUpError(WorkerError):
    """A worker failed as often as it may be restarted."""

    retriable = False
