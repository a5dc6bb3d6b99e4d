"""Building the module that settings name: a factory's, or a whole model in a file or folder."""

import hashlib
import importlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nap_stream.errors import ModelError
from nap_stream.fetched import fetched, shown
from nap_stream.model import exported, hugging_face, scripted
from nap_stream.model.exported import is_exported, load_exported
from nap_stream.model.onnx_model import load_onnx
from nap_stream.model.scripted import is_torchscript, load_torchscript
from nap_stream.model.sites import unwrapped
from nap_stream.model.weights import load_weights
from nap_stream.settings.schema import ModelSettings
from nap_stream.text import described

_MAX_NAMES_BYTES = 2**24


@dataclass(frozen=True, slots=True)
class Built:
    """A module with its weights, on the CPU.

    ``class_names`` are those that come with the model, null where none do. ``identity`` is what
    beside settings and state dict decides what it computes. ``notes`` are sentences about what
    was done to load it. ``is_fixed`` says that it computes in its own precision and memory format.
    """

    module: nn.Module
    class_names: tuple[str, ...] | None = None
    identity: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    is_fixed: bool = False


def build(settings: ModelSettings) -> Built:
    """Import and call the factory and load its weights, or read the whole model.

    What it imports must be `importable`.

    Raises:
        ModelError: One of it fails, or it is no model that can be read.
    """
    if settings.factory is None:
        assert settings.weights is not None
        return _whole(settings, settings.weights)
    built = _called(settings, settings.factory)
    if settings.weights is None:
        return built
    return replace(built, notes=load_weights(unwrapped(built.module), settings.weights))


def _whole(settings: ModelSettings, path: Path) -> Built:
    hugging_face.require_there(path, f"model.weights = {path}")
    if path.is_dir():
        module, names, identity = hugging_face.from_folder(path)
        return Built(module, names, identity)
    if path.suffix == ".onnx":
        return Built(load_onnx(path, settings.output, settings.feature_layer), is_fixed=True)
    if is_torchscript(path):
        return Built(load_torchscript(path), identity=_bytes_of(path))
    if is_exported(path):
        return Built(load_exported(path), identity=_bytes_of(path))
    raise ModelError(
        "without model.factory, expected a whole model there, and it is none that can be read",
        f"model.weights = {path}",
        "Name the callable that builds the model in model.factory, where this file holds weights "
        "alone. A whole model is a folder of save_pretrained, a TorchScript archive, a .pt2 file "
        "of torch.export, or an .onnx file",
    )


def _bytes_of(path: Path) -> Mapping[str, Any]:
    """What the graph in a file computes, as far as it is no weights."""
    with path.open("rb") as file:
        return {"file": hashlib.file_digest(file, "sha256").hexdigest()}


def _called(settings: ModelSettings, name: str) -> Built:
    where = settings.where
    factory = _import_factory(name, where)
    if hugging_face.is_own(name):
        module, names, identity = hugging_face.called(factory, settings.kwargs, where)
        return Built(module, names, identity)
    try:
        module = factory(**settings.kwargs)
    except Exception as error:
        given = ", ".join(settings.kwargs) or "none"
        raise ModelError(
            f"the factory raised {described(error)} (arguments given: {given})",
            where,
            "Check model.kwargs",
        ) from error
    if isinstance(module, torch.jit.ScriptModule):
        return Built(scripted.watchable(module, where))
    if isinstance(module, torch.export.ExportedProgram):
        return Built(exported.watchable(module.module(), where))
    if not isinstance(module, nn.Module):
        raise ModelError(
            f"the factory returned {type(module).__name__}, expected a torch.nn.Module",
            where,
            "Name a callable that builds the model",
        )
    return Built(module)


@contextmanager
def importable(folders: Sequence[Path]) -> Iterator[None]:
    """Put folders first on ``sys.path``, as Python does with a script's own folder."""
    added = [str(folder.resolve()) for folder in folders]
    sys.path[:0] = added
    try:
        yield
    finally:
        for folder in added:
            sys.path.remove(folder)


def _import_factory(name: str, where: str) -> Any:
    module_name, _, attribute = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise ModelError(
            f"{module_name} cannot be imported ({described(error)})",
            where,
            "Install it, or name its folder in model.python_path",
        ) from error
    try:
        factory = reduce(getattr, attribute.split("."), module)
    except AttributeError as error:
        what = f"{module_name} has no {attribute!r}"
        raise ModelError(what, where, "Write package.module:name") from error
    if not callable(factory):
        raise ModelError(
            f"it is {type(factory).__name__}, which cannot be called",
            where,
            "Name a callable that builds the model",
        )
    return factory


def class_names_of(
    settings: ModelSettings, own: tuple[str, ...] | None, classes: int
) -> tuple[str, ...]:
    """The class names that settings give; else the model's own, or numbers.

    Raises:
        ModelError: Their file cannot be read, or there are not as many as classes.
    """
    names, where = settings.class_names, "model.class_names"
    if settings.class_names_file is not None:
        where = f"model.class_names_file = {shown(settings.class_names_file)}"
        try:
            with fetched(settings.class_names_file, ModelError, max_bytes=_MAX_NAMES_BYTES) as file:
                text = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ModelError(f"the file cannot be read ({described(error)})", where) from error
        names = tuple(line.strip() for line in text.rstrip().splitlines())
    if names is None and own is not None and len(own) == classes:
        return own
    if names is None:
        return tuple(str(number) for number in range(classes))
    if len(names) != classes:
        raise ModelError(
            f"there are {len(names)} class names, and the model has {classes} logits",
            where,
            "Give one name for each logit, in their order",
        )
    return names
