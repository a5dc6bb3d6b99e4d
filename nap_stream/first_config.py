"""A first monitor.yaml: what is asked, what the topic and the model tell, and the file itself.

The file says of each value whether it was given, found or guessed.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any, TypeVar

import torch
import yaml

from nap_stream.core.panes import key_text
from nap_stream.errors import ConfigError, NapStreamError
from nap_stream.files import publish
from nap_stream.first_model import (
    FROM_MODEL,
    KnownNames,
    KnownPreprocessing,
    known_preprocessing,
    names_of_folders,
    names_of_imagenet,
)
from nap_stream.model.found_preprocessing import KEYS
from nap_stream.model.load import LoadedModel, load_model
from nap_stream.model.preprocessing import input_size
from nap_stream.preview import ImageSeen, look_at
from nap_stream.records import Message, Status
from nap_stream.settings.load import load_kafka_settings, load_model_settings
from nap_stream.settings.schema import LimitSettings, PreprocessingSettings
from nap_stream.source.peek import Peeked, peek
from nap_stream.text import bounded, printable

MESSAGES = 10
"""Messages of the topic that are looked at."""
_SHOWN_NAMES = 5
_INLINE_NAMES = 30
"""Class names that stand in the file itself; more go into a file of their own."""
_TRANSPORT_HEADERS = frozenset({"content-type", "content-encoding", "traceparent", "tracestate"})
_CALIBRATE = "nap-stream calibrate --model {config} --images held-out/ --out calibration/"
_LARGE = 2
"""Times the size that an image is resized to: then it can be decoded to a part of its sides."""


T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Asked:
    """What a person knows: where the messages are, and what the model is.

    ``factory`` is package.module:name; null where ``weights`` is a whole model. ``images`` are
    labelled ones, whose sub-folders may be the classes.
    """

    bootstrap_servers: str
    topic: str
    factory: str | None
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    weights: Path | None = None
    class_names_file: Path | None = None
    images: Path | None = None


@dataclass(frozen=True, slots=True)
class Learnt:
    """What the topic and the model told; a problem where they did not.

    ``drift_key`` is a value for drift.keys.by, empty where nothing repeats. ``headers`` are the
    names that were seen. ``names`` is null where the classes have none.
    """

    peeked: Peeked | None
    topic_problem: str
    images: tuple[ImageSeen, ...]
    preprocessing: KnownPreprocessing | None
    loaded: LoadedModel | None
    model_problem: str
    names: KnownNames | None
    drift_key: str
    headers: tuple[str, ...]


def learn(asked: Asked, out: Path) -> Learnt:
    """Look at the topic and at the model, by a configuration that stands where ``out`` will.

    Secrets and what else a cluster needs come from the environment, as with every command.

    Raises:
        ConfigError: What was asked for cannot stand in a configuration.
    """
    with _draft({"kafka": _kafka_section(asked)}, out) as path:
        kafka = _plainly(load_kafka_settings, path)
        peeked, topic_problem = _attempt(lambda: peek(kafka, MESSAGES), path)
    messages = () if peeked is None else peeked.messages
    images = look_at(messages, LimitSettings(), PreprocessingSettings(), None)
    with _draft({"model": _model_section(asked, out.parent, None)}, out) as path:
        bare = _plainly(load_model_settings, path)
        # What is wrong with a model that cannot be built is told where it is loaded.
        known, _ = _attempt(lambda: known_preprocessing(bare), path)
    known = known or _by_size(images)
    with _draft({"model": _model_section(asked, out.parent, known)}, out) as path:
        settings = _plainly(load_model_settings, path)
        loaded, model_problem = _attempt(lambda: load_model(settings, torch.device("cpu")), path)
    if loaded is not None:
        images = look_at(messages, LimitSettings(), settings.preprocessing, loaded)
    return Learnt(
        peeked=peeked,
        topic_problem=topic_problem,
        images=tuple(images),
        preprocessing=known,
        loaded=loaded,
        model_problem=model_problem,
        names=_names(asked, loaded),
        drift_key=_drift_key(messages, images),
        headers=tuple(sorted({name for one in messages for name, _ in one.headers})),
    )


def _kafka_section(asked: Asked) -> dict[str, Any]:
    return {"bootstrap_servers": asked.bootstrap_servers, "topic": asked.topic}


@contextmanager
def _draft(tree: Mapping[str, Any], out: Path) -> Iterator[Path]:
    """A file beside ``out``, where the same relative paths hold, for as long as the block runs."""
    with NamedTemporaryFile("w", dir=out.parent, prefix=f".{out.name}.", encoding="utf-8") as file:
        yaml.safe_dump(tree, file, allow_unicode=True)
        file.flush()
        yield Path(file.name)


def _plainly(load: Callable[[Path], T], draft: Path) -> T:
    """Load settings; an error does not name the draft."""
    try:
        return load(draft)
    except ConfigError as error:
        raise ConfigError(error.problem, _key_of(error, draft), error.action) from error


def _by_size(images: Sequence[ImageSeen]) -> KnownPreprocessing | None:
    """Of images that are all of one size, and smaller than the usual input: that size."""
    sizes = {(one.height, one.width) for one in images if one.status is Status.OK}
    usual = input_size(PreprocessingSettings())
    if len(sizes) != 1:
        return None
    height, width = sizes.pop()
    if height is None or width is None or max(height, width) >= min(usual):
        return None
    crop = height if height == width else (height, width)
    return KnownPreprocessing(
        PreprocessingSettings(resize=None, crop=crop),
        f"the images are all of {width} x {height} pixels, and are not resized; mean and std as "
        "for ImageNet",
        is_guess=True,
    )


def _attempt(make: Callable[[], T], draft: Path) -> tuple[T | None, str]:
    """What is made; or null, and why it cannot be."""
    try:
        return make(), ""
    except NapStreamError as error:
        return None, str(type(error)(error.problem, _key_of(error, draft), error.action))


def _key_of(error: NapStreamError, draft: Path) -> str:
    """The place of an error, without the file that was there for a moment."""
    return re.sub(rf"^{re.escape(str(draft))}(:\d+)?(, )?", "", error.where)


def _model_section(asked: Asked, folder: Path, known: KnownPreprocessing | None) -> dict[str, Any]:
    section: dict[str, Any] = {}
    if asked.factory is not None:
        section["factory"] = asked.factory
    if asked.kwargs:
        section["kwargs"] = dict(asked.kwargs)
    if asked.weights is not None:
        section["weights"] = _written(asked.weights, folder)
    if asked.class_names_file is not None:
        section["class_names_file"] = _written(asked.class_names_file, folder)
    if known is not None:
        section["preprocessing"] = known.written
    return section


def _written(path: Path, folder: Path) -> str:
    """A path as it stands in a file of the folder: relative where it lies below."""
    whole, base = path.resolve(), folder.resolve()
    return str(whole.relative_to(base)) if whole.is_relative_to(base) else str(whole)


def _names(asked: Asked, loaded: LoadedModel | None) -> KnownNames | None:
    if asked.class_names_file is not None or loaded is None or names_itself(loaded):
        return None
    classes = len(loaded.class_names)
    if asked.images is not None:
        found = names_of_folders(asked.images, classes)
        if found is not None:
            return found
    return names_of_imagenet(asked.factory, classes)


def names_itself(loaded: LoadedModel) -> bool:
    """Whether the classes of a model that was loaded without names have some."""
    return any(name != str(number) for number, name in enumerate(loaded.class_names))


def _drift_key(messages: Sequence[Message], images: Sequence[ImageSeen]) -> str:
    """What tells cameras apart: keys that repeat, else a header whose values do."""
    if _repeats([image.origin.key for image in images]):
        return "key"
    names = Counter(name for one in messages for name, _ in one.headers)
    for name, count in names.most_common():
        if name.lower() not in _TRANSPORT_HEADERS and count == len(messages):
            values = [dict(one.headers)[name] for one in messages]
            if len(set(values)) > 1 and _repeats(values):
                return f"header:{name}"
    return ""


def _repeats(values: Sequence[bytes | None]) -> bool:
    given = [value for value in values if value]
    return len(given) > 1 and len(given) == len(values) and len(set(given)) < len(given)


def write_config(asked: Asked, learnt: Learnt, out: Path, *, force: bool) -> tuple[Path, ...]:
    """Write the configuration, and beside it a file of many class names.

    Returns:
        What was written.

    Raises:
        ConfigError: A file is there and not ``force``, or it cannot be written.
    """
    names = learnt.names
    files = {}
    if names is not None and len(names.names) > _INLINE_NAMES:
        names_file = out.with_name(f"{out.stem}-classes.txt")
        files[names_file] = "".join(f"{one}\n" for one in names.names)
    files[out] = render(asked, learnt, out)
    require_free(files, force=force)
    for path, text in files.items():
        publish(path, text.encode())
    return tuple(files)


def require_free(paths: Mapping[Path, Any] | Sequence[Path], *, force: bool) -> None:
    """Refuse to overwrite a file, unless by ``force``.

    Raises:
        ConfigError: One is there, or its folder is not.
    """
    for path in paths:
        if path.is_dir() or not path.parent.is_dir():
            raise ConfigError("expected a file in a folder that is there", str(path), "See --out")
        if path.exists() and not force:
            raise ConfigError(
                "there is such a file, which is left as it is", str(path), "Use --force or --out"
            )


def render(asked: Asked, learnt: Learnt, out: Path) -> str:
    """The text of the configuration."""
    sections = (
        [
            "# A first configuration of nap-stream, written by `nap-stream init`.",
            "# Relative paths are taken from this file's folder. Every key: docs/configuration.md.",
        ],
        _kafka_lines(asked, learnt),
        _model_lines(asked, learnt, out),
        [
            "# Not there yet. Make it of images that the model was not trained on:",
            f"#   {_CALIBRATE.format(config=_comment(out.name))}",
            "calibration: calibration",
        ],
        _log_lines(learnt),
        _drift_lines(learnt),
    )
    return "\n\n".join("\n".join(lines) for lines in sections if lines) + "\n"


def _kafka_lines(asked: Asked, learnt: Learnt) -> list[str]:
    lines = ["kafka:", f"  bootstrap_servers: {_yaml(asked.bootstrap_servers)}"]
    lines.append(f"  topic: {_yaml(asked.topic)}")
    lines += [f"  # {_comment(line)}" for line in topic_words(learnt)]
    lines.append("  # start: latest   # begins with new messages; without it, with the oldest ones")
    return lines


def _model_lines(asked: Asked, learnt: Learnt, out: Path) -> list[str]:
    section = _model_section(asked, out.parent, None)
    lines = ["model:", *(f"  {key}: {_yaml(value)}" for key, value in section.items())]
    lines += [f"  # {_comment(line)}" for line in model_words(learnt)]
    lines += _names_lines(learnt, out) if asked.class_names_file is None else []
    known = learnt.preprocessing
    if known is None:
        lines.append("  # Guessed, as for ImageNet: compare it with the preprocessing of training.")
    else:
        by = "Guessed: " if known.is_guess else "By "
        lines.append(f"  # {by}{_comment(known.source)}. Compare it with training.")
    known = known or KnownPreprocessing(PreprocessingSettings(), "", is_guess=True)
    hints = []
    if _are_enlarged(learnt, known.settings):
        hints.append("# The images are smaller than that: is the model made for enlarged ones?")
    if _is_large(learnt, known.settings):
        hints.append("# scaled_decoding: true   # faster for images so large; docs/speed.md")
    if not known.is_guess:
        values = known.settings.model_dump(mode="json")
        lines.append(f"  # {', '.join(f'{key}: {_yaml(values[key])}' for key in KEYS)}")
    if known.written == FROM_MODEL and not hints:
        return [*lines, "  preprocessing: from_model"]
    keys = (f"{key}: {_yaml(value)}" for key, value in known.written.items())
    return [*lines, "  preprocessing:", *(f"    {line}" for line in (*keys, *hints))]


def _are_enlarged(learnt: Learnt, preprocessing: PreprocessingSettings) -> bool:
    height, width = input_size(preprocessing)
    good = [one for one in learnt.images if one.width and one.height]
    return bool(good) and all(
        (one.width or 0) < width and (one.height or 0) < height for one in good
    )


def _is_large(learnt: Learnt, preprocessing: PreprocessingSettings) -> bool:
    resize = preprocessing.resize
    if resize is None:
        return False
    needed = resize if isinstance(resize, int) else max(resize)
    sides = [
        min(one.width, one.height)
        for one in learnt.images
        if one.format == "jpeg" and one.width and one.height
    ]
    return bool(sides) and min(sides) >= _LARGE * needed


def _names_lines(learnt: Learnt, out: Path) -> list[str]:
    if learnt.names is None and learnt.loaded is not None and names_itself(learnt.loaded):
        return [f"  # The model names its classes: {_comment(_first_names(learnt.loaded))}"]
    if learnt.names is None:
        return [
            "  # The classes have no names yet, and show as numbers. In order of the logits:",
            "  # class_names: [first, second]   # or class_names_file: classes.txt, one a line",
        ]
    lines = [f"  # Guessed: {_comment(learnt.names.source)}. In order of the logits."]
    if len(learnt.names.names) > _INLINE_NAMES:
        return [*lines, f"  class_names_file: {_yaml(f'{out.stem}-classes.txt')}"]
    return [*lines, f"  class_names: {_yaml(list(learnt.names.names))}"]


def _log_lines(learnt: Learnt) -> list[str]:
    lines = ["log:", "  root: scored-log"]
    kept = learnt.drift_key.partition(":")[2]
    seen = [name for name in learnt.headers if name.lower() not in _TRANSPORT_HEADERS]
    if kept:
        lines.append(f"  headers: {_yaml([kept])}")
    others = [name for name in seen if name != kept]
    if others:
        shown = _comment(_yaml([*([kept] if kept else []), *others]))
        lines.append(f"  # headers: {shown}   # headers seen, to keep in the log")
    return lines


def _drift_lines(learnt: Learnt) -> list[str]:
    if not learnt.drift_key:
        return [
            "# A monitor for each camera, where its name is the message key:",
            "# drift:",
            "#   keys: {by: key}",
        ]
    what = "the message keys" if learnt.drift_key == "key" else "a header's values"
    return [
        "drift:",
        f"  # Guessed: {what} repeat, as those of cameras do: a monitor for each.",
        f"  keys: {{by: {_yaml(learnt.drift_key)}}}",
    ]


def topic_words(learnt: Learnt) -> list[str]:
    """What the topic told, in sentences."""
    if learnt.peeked is None:
        return [f"The topic could not be looked at: {learnt.topic_problem}"]
    peeked = learnt.peeked
    partitions = "1 partition" if peeked.partitions == 1 else f"{peeked.partitions} partitions"
    if not peeked.messages:
        return [f"The topic is empty ({partitions}): nothing is known of its messages."]
    lines = [f"{partitions}, {peeked.offsets:,} offsets; the newest {len(peeked.messages)} hold:"]
    good = [one for one in learnt.images if one.status is Status.OK]
    if good:
        formats = ", ".join(f"{n} {kind}" for kind, n in Counter(o.format for o in good).items())
        sizes = sorted({(one.width or 0, one.height or 0) for one in good})
        span = " to ".join(f"{w} x {h}" for w, h in dict.fromkeys((sizes[0], sizes[-1])))
        batches = len({(o.origin.partition, o.origin.offset) for o in good if o.origin.index})
        form = f"Arrow batches ({batches}) of images" if batches else "single images"
        lines.append(f"{form}: {formats}, {span} pixels.")
    bad = [one for one in learnt.images if one.status is not Status.OK]
    if bad:
        lines.append(f"{len(bad)} that cannot be read, first {bad[0].status}: {bad[0].error}")
    keys = [one.origin.key for one in learnt.images]
    given = sorted({key_text(key) for key in keys if key})
    if given:
        lines.append(f"Keys: {', '.join(map(bounded, given[:5]))}{' …' if given[5:] else ''}")
    if learnt.headers:
        lines.append(f"Headers: {', '.join(map(bounded, learnt.headers))}")
    return lines


def model_words(learnt: Learnt) -> list[str]:
    """What the model told, in sentences."""
    if learnt.loaded is None:
        return [f"The model could not be loaded: {learnt.model_problem}"]
    loaded = learnt.loaded
    kind = type(loaded.module).__name__
    classes = len(loaded.class_names)
    return [f"{kind}, {classes:,} classes, NAP read at the {loaded.feature_site}", *loaded.notes]


def _first_names(loaded: LoadedModel) -> str:
    more = " …" if loaded.class_names[_SHOWN_NAMES:] else ""
    return ", ".join(map(bounded, loaded.class_names[:_SHOWN_NAMES])) + more


def _comment(text: str) -> str:
    return printable(" ".join(text.split()))


def _yaml(value: Any) -> str:
    """A value on one line, as YAML."""
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=1_000_000)
    with suppress(ValueError):
        text = text[: text.rindex("\n...")]
    return text.strip()
