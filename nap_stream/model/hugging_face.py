"""Image classifiers of Hugging Face's transformers: of a configuration, or of a folder.

Nothing is downloaded, no code of a folder is run, and weights are read from safetensors alone.
"""

import importlib
import json
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from torch import nn

from nap_stream.errors import ModelError
from nap_stream.text import described, encodable, listed

Loaded = tuple[nn.Module, tuple[str, ...] | None, Mapping[str, Any]]
"""The module, its class names, and what of its configuration decides what it computes."""

_PACKAGE = "transformers"
_NAME = "pretrained_model_name_or_path"
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
_WHEREABOUTS = frozenset({"_name_or_path", "transformers_version", "dtype", "torch_dtype"})
"""Of a configuration, what computes nothing."""
_SAVE = "Save it with model.save_pretrained(FOLDER), and name the folder in model.weights"
_WHOLE = frozenset({".onnx", ".pt", ".pt2", ".ts", ".pth"})
_LISTED = 3


def require_there(path: Path, where: str) -> None:
    """Refuse a path of a model's file or folder where nothing is.

    Raises:
        ModelError: Says what was looked for and what is there, with the closest name.
    """
    if path.exists():
        return
    folder = path.absolute().parent
    if not folder.is_dir():
        while not folder.parent.is_dir():
            folder = folder.parent
        problem = f"there is no {path.name}, and no folder {folder}"
    else:
        close = get_close_matches(path.name, [one.name for one in folder.iterdir()], n=1)
        hint = f"; the closest is {encodable(close[0])}" if close else ""
        problem = f"there is no {path.name} in {folder}, which {_holds(folder)}{hint}"
    raise ModelError(
        problem,
        where,
        "Check the path: in a configuration file it is relative to that file's folder",
    )


def _holds(folder: Path) -> str:
    names = sorted(encodable(one.name) for one in folder.iterdir())
    return f"holds {listed(names)}" if names else "is empty"


def is_own(factory: str) -> bool:
    """Whether a factory is one of transformers."""
    return factory.partition(":")[0].partition(".")[0] == _PACKAGE


def called(factory: Callable[..., Any], kwargs: Mapping[str, Any], where: str) -> Loaded:
    """Call from_config or from_pretrained of a class of transformers, or the class itself.

    A ``config`` that is a mapping becomes a configuration of its ``model_type``; one that is a path
    is read from there.

    Raises:
        ModelError: A remote name or remote code is asked for, or transformers raises.
    """
    _refuse_remote_code(kwargs.get("trust_remote_code"), where)
    if getattr(factory, "__name__", "") == "from_pretrained":
        rest = {key: value for key, value in kwargs.items() if key != _NAME}
        return _pretrained(factory, Path(str(kwargs.get(_NAME, ""))), rest, where)
    arguments = dict(kwargs)
    try:
        if "config" in arguments:
            arguments["config"] = _config_of(arguments["config"], where)
        elif "model_type" in arguments:
            arguments = {"config": _config_of(arguments, where)}
        module = factory(**arguments)
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(
            f"the factory raised {described(error)} (arguments given: {', '.join(kwargs)})",
            where,
            "Give model.kwargs.config with a model_type, as in a folder's config.json",
        ) from error
    return _described(module, where)


def from_folder(folder: Path) -> Loaded:
    """Load an image classifier from a folder of save_pretrained.

    Raises:
        ModelError: The folder is none, or needs code of its own, or its weights do not fit; or
            transformers is not installed.
    """
    where = f"model.weights = {folder}"
    if not (folder / "config.json").is_file():
        models = [one for one in sorted(folder.iterdir()) if one.suffix in _WHOLE]
        name = f"Name the file, as in model.weights: {models[0]}. Or save" if models else "Save"
        raise ModelError(
            f"the folder has no config.json, so that it is no whole model; it {_holds(folder)}",
            where,
            f"{name}{_SAVE.removeprefix('Save')}",
        )
    try:
        transformers = importlib.import_module(_PACKAGE)
    except ImportError as error:
        raise ModelError(
            f"transformers cannot be imported ({described(error)})",
            where,
            "pip install transformers",
        ) from error
    factory = transformers.AutoModelForImageClassification.from_pretrained
    return _pretrained(factory, folder, {}, where)


def weight_files(folder: Path) -> tuple[Path, ...]:
    """The safetensors files of a folder's weights.

    Raises:
        ModelError: There are none, or their index cannot be read.
    """
    where = f"model.weights = {folder}"
    single, index = (folder / name for name in _WEIGHTS)
    if single.is_file():
        return (single,)
    if not index.is_file():
        raise ModelError(
            f"the folder has no {_WEIGHTS[0]}: weights are read from safetensors alone",
            where,
            _SAVE,
        )
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{index.name} cannot be read ({described(error)})", where) from error
    inside = [folder / str(name) for name in sorted(names)]
    if any(path.parent != folder for path in inside):
        raise ModelError(f"{index.name} names files outside of the folder", where)
    return tuple(inside)


def _pretrained(
    factory: Callable[..., Any], folder: Path, kwargs: Mapping[str, Any], where: str
) -> Loaded:
    if not folder.name or not folder.is_dir():
        raise ModelError(
            f"{str(folder)!r} is no folder in {Path.cwd()}, and nothing is downloaded",
            where,
            f"{_SAVE}, or give its whole path as model.kwargs.{_NAME}",
        )
    weight_files(folder)
    _refuse_remote_code(_config_json(folder, where).get("auto_map"), where)
    forced = {
        "local_files_only": True,
        "use_safetensors": True,
        "trust_remote_code": False,
        "output_loading_info": True,
        "ignore_mismatched_sizes": True,
    }
    try:
        module, found = factory(str(folder), **{**kwargs, **forced})
    except Exception as error:
        raise ModelError(
            f"the folder cannot be loaded ({described(error)})", where, _SAVE
        ) from error
    wrong = [
        f"{len(found[kind])} {what}: {', '.join(sorted(map(str, found[kind]))[:_LISTED])}"
        for kind, what in (("missing_keys", "missing"), ("mismatched_keys", "of another shape"))
        if found.get(kind)
    ]
    if wrong:
        raise ModelError(
            f"the folder's weights are not those of this classifier, and would be made up at "
            f"random ({'; '.join(wrong)})",
            where,
            "Name the folder of the classifier that was trained, not that of its backbone",
        )
    return _described(module, where)


def _config_json(folder: Path, where: str) -> Mapping[str, Any]:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(
            f"config.json cannot be read ({described(error)})", where, _SAVE
        ) from error
    if not isinstance(config, dict):
        raise ModelError("config.json holds no keys and values", where, _SAVE)
    return config


def _config_of(config: Any, where: str) -> Any:
    transformers = importlib.import_module(_PACKAGE)
    if isinstance(config, str):
        folder = Path(config)
        if not folder.is_dir():
            raise ModelError(
                f"{config!r} is no folder in {Path.cwd()}, and nothing is downloaded",
                where,
                "Give the whole path of a folder of save_pretrained as model.kwargs.config, or a "
                "mapping with a model_type",
            )
        _refuse_remote_code(_config_json(folder, where).get("auto_map"), where)
        return transformers.AutoConfig.from_pretrained(config, local_files_only=True)
    if isinstance(config, Mapping):
        _refuse_remote_code(config.get("auto_map"), where)
        return transformers.AutoConfig.for_model(**config)
    return config


def _refuse_remote_code(asked: Any, where: str) -> None:
    if asked:
        raise ModelError(
            "the model asks for code of its own (trust_remote_code, auto_map), which is not run",
            where,
            "Read that code, put it into a package or into model.python_path, and name a factory "
            "there",
        )


def _described(module: Any, where: str) -> Loaded:
    if not isinstance(module, nn.Module):
        raise ModelError(
            f"the factory returned {type(module).__name__}, expected a torch.nn.Module", where
        )
    config = getattr(module, "config", None)
    if config is None:
        return module, None, {}
    # Numbers of classes are keys in memory and names in a file: JSON makes them one.
    facts = json.loads(json.dumps(config.to_dict(), default=str))
    identity = {key: value for key, value in facts.items() if key not in _WHEREABOUTS}
    return module, _names_of(config), {"class": type(module).__name__, "config": identity}


def _names_of(config: Any) -> tuple[str, ...] | None:
    by_number = getattr(config, "id2label", None) or {}
    names = tuple(str(by_number.get(number, "")) for number in range(len(by_number)))
    are_given = all(names) and any(name != f"LABEL_{n}" for n, name in enumerate(names))
    return names if names and are_given else None
