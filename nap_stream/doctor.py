"""Checks of an installation, each with what to do about a failure."""

import importlib.metadata
import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum

import torch
from packaging.requirements import Requirement

from nap_stream.calibration.artifact import load_calibration
from nap_stream.calibration.calibration import require_fingerprint, require_scoring
from nap_stream.errors import NapStreamError
from nap_stream.kafka.client import connect, create_topics, topics_missing
from nap_stream.model.execution import require_execution, require_precision, slowness
from nap_stream.model.load import load_model
from nap_stream.monitor.actors import cluster_resources
from nap_stream.scored_log.stores import check_store, store_at
from nap_stream.settings.schema import Settings


class Outcome(StrEnum):
    """How a check went."""

    OK = "ok"
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check found, what to do where it failed, and what is doubtful where it did not."""

    check: str
    outcome: Outcome
    detail: str
    action: str = ""
    warnings: tuple[str, ...] = ()


def examine(
    settings: Settings | None, *, address: str | None, make_topics: bool
) -> Iterator[Finding]:
    """Check versions, crc32c and GPUs; with settings also Kafka, the log and the calibration.

    ``address`` is of a Ray cluster, None for Ray on this machine. With ``make_topics``, topics that
    are missing are created.

    Yields:
        A finding for each check, as soon as it is made.
    """
    yield _finding("versions", _versions)
    yield _finding("crc32c", _crc32c)
    yield _finding("GPU, torch", lambda: _torch_gpus(settings))
    yield _finding("GPU, Ray", lambda: _ray_gpus(settings, address))
    if settings is None:
        for check in ("broker", "topics", "log root", "calibration", "execution"):
            yield Finding(check, Outcome.SKIPPED, "needs --config")
        return
    yield (broker := _finding("broker", lambda: _broker(settings)))
    if broker.outcome is Outcome.OK:
        yield _finding("topics", lambda: _topics(settings, make_topics=make_topics))
    else:
        yield Finding("topics", Outcome.SKIPPED, "needs the broker")
    yield _finding("log root", lambda: _log_root(settings))
    yield (calibration := _finding("calibration", lambda: _calibration(settings)))
    if calibration.outcome is Outcome.OK:
        yield _finding("execution", lambda: _execution(settings, address))
    else:
        yield Finding("execution", Outcome.SKIPPED, "needs the calibration")


class _CheckFailedError(NapStreamError):
    """A check that found something wrong by itself."""

    def __init__(self, problem: str, action: str) -> None:
        super().__init__(problem, "", action)


def _finding(name: str, check: Callable[[], str | Finding]) -> Finding:
    try:
        found = check()
        return Finding(name, Outcome.OK, found) if isinstance(found, str) else found
    except NapStreamError as error:
        place = f"{error.where}: " if error.where else ""
        return Finding(name, Outcome.FAILED, f"{place}{error.problem}", error.action)


def _versions() -> str:
    found = []
    for requirement in map(Requirement, importlib.metadata.requires("nap-stream") or ()):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        version = importlib.metadata.version(requirement.name)
        if not requirement.specifier.contains(version, prereleases=True):
            raise _CheckFailedError(
                f"{requirement.name} is {version}, needed is {requirement.specifier}",
                f"pip install '{requirement.name}{requirement.specifier}'",
            )
        found.append(f"{requirement.name} {version}")
    return f"Python {platform.python_version()}, " + ", ".join(found)


def _crc32c() -> str:
    try:
        import crc32c  # noqa: PLC0415  a missing extension is what this check is about
    except ImportError as error:
        raise _CheckFailedError(
            "not there: checksums in pure Python read 9 MB/s", "pip install 'kafka-python[crc32c]'"
        ) from error
    return "compiled, in hardware" if crc32c.hardware_based else "compiled, in software"


def _wanted_gpus(settings: Settings | None) -> float:
    return (settings.worker.num_gpus or 0.0) * settings.worker.count if settings else 0.0


def _torch_gpus(settings: Settings | None) -> str:
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    wanted = _wanted_gpus(settings)
    if wanted > 0 and count == 0:
        raise _CheckFailedError(
            f"worker.num_gpus asks for GPUs, torch {torch.__version__} sees none",
            "Install the driver and a CUDA build of torch, or set worker.num_gpus: 0",
        )
    names = ", ".join(torch.cuda.get_device_name(number) for number in range(count))
    return names or "none: the model runs on the CPU"


def _ray_gpus(settings: Settings | None, address: str | None) -> str:
    has, wanted = cluster_resources(address), _wanted_gpus(settings)
    gpus, cpus = has.get("GPU", 0.0), has.get("CPU", 0.0)
    if gpus < wanted:
        raise _CheckFailedError(
            f"the workers ask for {wanted:g} GPUs, Ray has {gpus:g}",
            "Ask for fewer workers or smaller fractions, or add nodes",
        )
    return f"{gpus:g} GPUs, {cpus:g} CPUs"


def _broker(settings: Settings) -> str:
    connect(settings.kafka)
    return f"{', '.join(settings.kafka.bootstrap_servers)} answers"


def _topics(settings: Settings, *, make_topics: bool) -> str:
    names = (settings.kafka.topic, settings.alerts.topic, settings.dead_letters.topic)
    missing = topics_missing(settings.kafka, names)
    if not missing:
        return f"{', '.join(names)} are there"
    if not make_topics:
        raise _CheckFailedError(
            f"missing: {', '.join(missing)}",
            "Create them, or run `nap-stream doctor --config FILE --create-topics`",
        )
    create_topics(settings.kafka, missing)
    return f"created {', '.join(missing)}"


def _log_root(settings: Settings) -> str:
    check_store(store_at(settings.log.root))
    return f"{settings.log.root} is writable and creates files exclusively"


def _calibration(settings: Settings) -> Finding:
    calibration = load_calibration(settings.calibration)
    loaded = load_model(settings.model, torch.device("cpu"))
    require_fingerprint(calibration, loaded)
    require_scoring(calibration, settings.scoring)
    detail = f"{settings.calibration} fits the model {loaded.fingerprint[:12]}"
    return Finding("calibration", Outcome.OK, detail, warnings=calibration.document.warnings)


def _execution(settings: Settings, address: str | None) -> Finding:
    """Whether the device of a worker can compute as the calibration says."""
    execution = load_calibration(settings.calibration).document.execution
    require_execution(execution, settings.model)
    gpus = settings.worker.num_gpus
    if gpus is None:
        gpus = cluster_resources(address).get("GPU", 0.0)
    device = torch.device("cuda" if gpus > 0 else "cpu")
    if device.type == "cuda" and not torch.cuda.is_available():
        detail = f"{execution}, on GPUs of other machines: not checked from here"
        return Finding("execution", Outcome.OK, detail)
    require_precision(execution.precision, device)
    slow = slowness(execution, device)
    detail = f"{execution}, on {device.type}"
    return Finding("execution", Outcome.OK, detail, warnings=(slow,) if slow else ())
