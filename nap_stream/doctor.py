"""Checks of an installation, each with what to do about a failure."""

import importlib.metadata
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import TypeVar

import torch
from packaging.requirements import Requirement

from nap_stream.calibration.artifact import load_calibration
from nap_stream.calibration.calibration import (
    Calibration,
    require_fingerprint,
    require_scoring,
)
from nap_stream.clock import SystemClock
from nap_stream.drift.block_alerts import block_watch, keys_stored_otherwise
from nap_stream.errors import NapStreamError
from nap_stream.fetched import is_address, shown
from nap_stream.kafka.client import connect, create_topics, endings, topics_missing, topics_read
from nap_stream.kafka.tokens import login_words
from nap_stream.messages.reader import open_reader
from nap_stream.model.execution import require_execution, require_precision, slowness
from nap_stream.model.load import LoadedModel
from nap_stream.model.preprocessing import input_size
from nap_stream.monitor.session import cluster_resources
from nap_stream.monitor.worker import load_to_check
from nap_stream.pipeline.outputs import KnownOutputs, known_outputs, output_decoder
from nap_stream.preview import ImageSeen, look_at, look_at_outputs
from nap_stream.records import Message, Status
from nap_stream.scored_log.proof.note import KEY, read_signer
from nap_stream.scored_log.stores import check_store, store_at
from nap_stream.settings.load import UncalibratedSettings
from nap_stream.settings.log import hidden_keys
from nap_stream.settings.schema import Settings
from nap_stream.source.peek import peek
from nap_stream.text import duration

CHECKS = (
    *("versions", "crc32c", "GPU, torch", "GPU, Ray", "broker", "topics", "log root"),
    *("model", "calibration", "execution", "messages"),
)
"""All checks, in their order."""
MESSAGES = 10
"""Messages of the topic that are looked at."""
T = TypeVar("T")


class Outcome(StrEnum):
    """How a check went. What is ``not yet`` there is made by the next step of setting up."""

    OK = "ok"
    FAILED = "failed"
    NOT_YET = "not yet"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check found, what to do where it failed, and what is doubtful where it did not.

    ``images`` are of the newest messages of the topic.
    """

    check: str
    outcome: Outcome
    detail: str
    action: str = ""
    warnings: tuple[str, ...] = ()
    images: tuple[ImageSeen, ...] = ()


def examine(
    settings: Settings | None, *, address: str | None, make_topics: bool, config: str = "FILE"
) -> Iterator[Finding]:
    """Check versions, crc32c and GPUs; with settings also Kafka, the log and the model.

    The calibration may be missing, see `load_uncalibrated_settings`. ``address`` is of a Ray
    cluster, None for Ray on this machine. With ``make_topics``, topics that are missing are
    created. ``config`` names the file of the settings in what is advised.

    Yields:
        A finding for each of `CHECKS`, as soon as it is made.
    """
    yield _finding("versions", _versions)
    yield _finding("crc32c", _crc32c)
    yield _finding("GPU, torch", lambda: _torch_gpus(settings))
    resources = _attempt("GPU, Ray", lambda: cluster_resources(address))
    if isinstance(resources, Finding):
        yield resources
        resources = {}
    else:
        has = resources
        yield _finding("GPU, Ray", lambda: _ray_gpus(settings, has))
    if settings is None:
        for check in CHECKS[CHECKS.index("broker") :]:
            yield Finding(check, Outcome.SKIPPED, "needs --config")
        return
    yield (broker := _finding("broker", lambda: _broker(settings)))
    if broker.outcome is Outcome.OK:
        yield _finding("topics", lambda: _topics(settings, make_topics=make_topics))
    else:
        yield Finding("topics", Outcome.SKIPPED, "needs the broker")
    yield _finding("log root", lambda: _log_root(settings))
    calibration = _calibration(settings, config)
    answers = broker.outcome is Outcome.OK
    if settings.model.elsewhere is not None:
        yield from _of_elsewhere(settings, calibration, answers=answers)
        return
    yield from _of_model(settings, calibration, _device(settings, resources), answers=answers)


def _of_model(
    settings: Settings,
    calibration: Calibration | Finding,
    device: torch.device | None,
    *,
    answers: bool,
) -> Iterator[Finding]:
    """What rests on the model: itself, the calibration, the execution, and the topic's messages."""
    runs_on = device or torch.device("cpu")
    loaded = _attempt("model", lambda: _load(settings, calibration, runs_on))
    if isinstance(loaded, Finding):
        yield loaded
        model = None
    else:
        model = loaded
        yield Finding("model", Outcome.OK, _described(model), warnings=model.notes)
    if isinstance(calibration, Finding):
        yield calibration
        yield Finding("execution", Outcome.SKIPPED, "needs the calibration")
    elif model is None:
        yield Finding("calibration", Outcome.SKIPPED, "needs the model")
        yield Finding("execution", Outcome.SKIPPED, "needs the model")
    else:
        known = model, calibration
        yield (fits := _finding("calibration", lambda: _fits(settings, *known)))
        if fits.outcome is Outcome.OK:
            yield _finding("execution", lambda: _execution(settings, calibration, device))
        else:
            yield Finding("execution", Outcome.SKIPPED, "needs the calibration")
    if answers:
        yield _finding("messages", lambda: _messages(settings, model))
    else:
        yield Finding("messages", Outcome.SKIPPED, "needs the broker")


def _of_elsewhere(
    settings: Settings, calibration: Calibration | Finding, *, answers: bool
) -> Iterator[Finding]:
    """What can be told of a model that runs elsewhere: its calibration, and its messages."""
    yield Finding(
        "model",
        Outcome.OK,
        f"{settings.model.origin} runs elsewhere: nothing is loaded, and its weights, "
        "preprocessing and precision are not known here",
    )
    known = None
    if isinstance(calibration, Finding):
        yield calibration
    else:
        found = _attempt("calibration", lambda: _known(settings, calibration))
        if isinstance(found, Finding):
            yield found
        else:
            known = found
            yield _fits_outputs(settings, calibration, known)
    yield Finding("execution", Outcome.SKIPPED, "the model runs elsewhere")
    if answers:
        yield _finding("messages", lambda: _messages(settings, None, known))
    else:
        yield Finding("messages", Outcome.SKIPPED, "needs the broker")


def _known(settings: Settings, calibration: Calibration) -> KnownOutputs:
    require_scoring(calibration, settings.scoring)
    return known_outputs(calibration, settings.model)


def _fits_outputs(settings: Settings, calibration: Calibration, known: KnownOutputs) -> Finding:
    """What the calibration expects of messages, and what is doubtful about it."""
    document, shapes = calibration.document, known.shapes
    features = "no features" if shapes.features is None else f"{shapes.features:,} features"
    made = "made from images: that the model is the same cannot be checked"
    if document.model.elsewhere is not None:
        made = "made from its outputs"
    detail = (
        f"{shown(settings.calibration)} fits {settings.model.origin}, {made}; "
        f"{shapes.widths[0]:,} logits, {features}, map {known.model.feature_site}"
    )
    return Finding("calibration", Outcome.OK, detail, warnings=_doubts(settings, calibration))


def _doubts(settings: Settings, calibration: Calibration) -> tuple[str, ...]:
    """What is to be said of a calibration, and of its baseline beside the log's keys."""
    hidden = hidden_keys(settings.log.keys)
    return (*calibration.document.warnings, *keys_stored_otherwise(calibration.facts, hidden))


class _CheckFailedError(NapStreamError):
    """A check that found something wrong by itself."""

    def __init__(self, problem: str, action: str) -> None:
        super().__init__(problem, "", action)


def _finding(name: str, check: Callable[[], str | Finding]) -> Finding:
    found = _attempt(name, check)
    return Finding(name, Outcome.OK, found) if isinstance(found, str) else found


def _attempt(name: str, make: Callable[[], T]) -> T | Finding:
    """What is made, or why it cannot be."""
    try:
        return make()
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
    return (settings.worker.num_gpus or 0.0) * settings.worker.at_least if settings else 0.0


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


def _ray_gpus(settings: Settings | None, has: Mapping[str, float]) -> str:
    wanted = _wanted_gpus(settings)
    gpus, cpus = has.get("GPU", 0.0), has.get("CPU", 0.0)
    if gpus < wanted and not (settings and settings.worker.autoscaled):
        raise _CheckFailedError(
            f"the workers ask for {wanted:g} GPUs, Ray has {gpus:g}",
            "Ask for fewer workers or smaller fractions, or add nodes",
        )
    return f"{gpus:g} GPUs, {cpus:g} CPUs"


def _broker(settings: Settings) -> Finding:
    certificates = connect(settings.kafka)
    servers = ", ".join(settings.kafka.bootstrap_servers)
    login = login_words(settings.kafka)
    logged_in = (f"logged in by {login}",) if login else ()
    detail = "; ".join((f"{servers} answers", *logged_in, *map(str, certificates)))
    ending = endings(certificates, datetime.now(UTC))
    return Finding("broker", Outcome.OK, detail, warnings=ending)


def _topics(settings: Settings, *, make_topics: bool) -> str:
    names = settings.topics
    missing = topics_missing(settings.kafka, names)
    if not missing:
        found = topics_read(settings.kafka, settings.reads)
        by_pattern = "" if settings.reads.pattern is None else f", read is {', '.join(found)}"
        return f"{', '.join(names)} are there{by_pattern}"
    if not make_topics:
        raise _CheckFailedError(
            f"missing: {', '.join(missing)}",
            "Create them, or run `nap-stream doctor --config FILE --create-topics`",
        )
    create_topics(settings.kafka, missing)
    return f"created {', '.join(missing)}"


def _log_root(settings: Settings) -> str:
    evidence, signed = settings.evidence.root, settings.log.checkpoints
    roots = [settings.log.root] if evidence is None else [settings.log.root, evidence]
    for root in roots:
        check_store(store_at(root))
    said = " and ".join(f"{root} is" for root in roots)
    signer = "" if signed is None else f"; {read_signer(signed.key_file, KEY).name} signs the log"
    hides = "; keys are hidden" if hidden_keys(settings.log.keys).hides else ""
    return f"{said} writable and creates files exclusively{signer}{hides}"


def _calibration(settings: Settings, config: str) -> Calibration | Finding:
    """The calibration, as far as it can be read."""
    folder = settings.calibration
    is_named = not isinstance(settings, UncalibratedSettings) or (
        "calibration" in settings.model_fields_set
    )
    if is_named and (is_address(folder) or folder.exists()):
        return _attempt("calibration", lambda: load_calibration(folder))
    images = "held-out/" if settings.model.elsewhere is None else "outputs/"
    calibrate = f"nap-stream calibrate --model {config} --images {images} --out {folder}"
    if is_named:
        return Finding("calibration", Outcome.NOT_YET, f"there is no {folder}", f"Run {calibrate}")
    detail, action = "the configuration names none", f"Write calibration: {folder.name} into it"
    if not folder.exists():
        action = f"{action}, and run {calibrate}"
    return Finding("calibration", Outcome.NOT_YET, detail, action)


def _device(settings: Settings, resources: Mapping[str, float]) -> torch.device | None:
    """Where a worker computes; None where that is a GPU of another machine."""
    gpus = settings.worker.num_gpus
    if gpus is None:
        gpus = resources.get("GPU", 0.0)
    if gpus > 0:
        return torch.device("cuda") if torch.cuda.is_available() else None
    return torch.device("cpu")


def _load(
    settings: Settings, calibration: Calibration | Finding, device: torch.device
) -> LoadedModel:
    known = calibration if isinstance(calibration, Calibration) else None
    return load_to_check(settings.model, known, device)


def _described(loaded: LoadedModel) -> str:
    height, width = input_size(loaded.preprocessing)
    kind, classes = type(loaded.module).__name__, len(loaded.class_names)
    return f"{kind}, {classes:,} classes, input {width} x {height}, {loaded.feature_site}"


def _fits(settings: Settings, loaded: LoadedModel, calibration: Calibration) -> Finding:
    require_fingerprint(calibration, loaded)
    require_scoring(calibration, settings.scoring)
    decides = block_watch(settings.drift, calibration.facts)
    document = calibration.document
    detail = f"{shown(settings.calibration)} fits the model {loaded.fingerprint[:12]}"
    if document.accuracy is not None:
        detail += f"; accuracy on its images {document.accuracy:.1%}"
    if decides is not None:
        blocks = decides.plan.references
        detail += (
            f"; blocks of {duration(blocks.block_ms)} decide, against those of {len(blocks.known)} "
            "keys and the stream in the baseline"
        )
    # What the check of the model has told is not told twice.
    doubts = _doubts(settings, calibration)
    warnings = tuple(one for one in doubts if one not in loaded.notes)
    return Finding("calibration", Outcome.OK, detail, warnings=warnings)


def _execution(
    settings: Settings, calibration: Calibration, device: torch.device | None
) -> Finding:
    """Whether the device of a worker can compute as the calibration says."""
    execution = calibration.document.execution
    require_execution(execution, settings.model)
    if device is None:
        detail = f"{execution}, on GPUs of other machines: not checked from here"
        return Finding("execution", Outcome.OK, detail)
    require_precision(execution.precision, device)
    slow = slowness(execution, device)
    detail = f"{execution}, on {device.type}"
    return Finding("execution", Outcome.OK, detail, warnings=(slow,) if slow else ())


def _messages(
    settings: Settings, loaded: LoadedModel | None, known: KnownOutputs | None = None
) -> Finding:
    """What the newest messages hold, and what the model predicts for them.

    ``known`` is of a model that runs elsewhere, once it is calibrated.
    """
    topics = topics_read(settings.kafka, settings.reads)
    looked = topics[:MESSAGES]
    found = [peek(settings.kafka.one(topic), MESSAGES // len(looked)) for topic in looked]
    messages = [message for peeked in found for message in peeked.messages]
    empty = [topic for topic, peeked in zip(looked, found, strict=True) if not peeked.messages]
    if not messages:
        are = "is" if len(empty) == 1 else "are"
        detail = f"{', '.join(empty)} {are} empty: send some, and run doctor again"
        return Finding("messages", Outcome.OK, detail)
    rest = f"; {', '.join(empty)} empty" if empty else ""
    if len(topics) > len(looked):
        rest += f"; {len(topics) - len(looked)} more topics were not looked at"
    if settings.model.elsewhere is not None:
        decode = output_decoder(known, settings.limits, (), SystemClock())
        names = None if known is None else known.model.class_names
        return _of_images(messages, look_at_outputs(messages, decode, names), rest)
    # Whoever waits for doctor does not wait for a store or a registry that is away.
    reader = open_reader(settings.messages.model_copy(update={"wait_s": 0.0}), settings.limits)
    with closing(reader) if reader is not None else nullcontext():
        images = look_at(messages, settings.limits, settings.model.preprocessing, loaded, reader)
    return _of_images(messages, images, rest)


def _of_images(messages: Sequence[Message], images: list[ImageSeen], rest: str) -> Finding:
    topics = sorted({message.partition.topic for message in messages})
    unreadable = sum(one.status is not Status.OK for one in images)
    detail = (
        f"{len(images) - unreadable} of {len(images)} images of the newest {len(messages)} "
        f"messages of {', '.join(topics)} can be read{rest}"
    )
    if unreadable < len(images):
        warnings = (f"{unreadable} cannot be read",) if unreadable else ()
        return Finding("messages", Outcome.OK, detail, warnings=warnings, images=tuple(images))
    action = "Is it the right topic? docs/images.md and docs/messages.md say what can be read"
    return Finding("messages", Outcome.FAILED, detail, action, images=tuple(images))
