"""A calibration on disk: a folder of ``calibration.json`` and ``scores.safetensors``."""

import json
import platform
import secrets
import shutil
from functools import cache
from importlib import metadata
from pathlib import Path
from types import MappingProxyType
from typing import Any

from numpy.typing import NDArray
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load, save

from nap_stream.calibration.calibration import Calibration
from nap_stream.calibration.document import CalibrationDocument, Envelope
from nap_stream.errors import CalibrationError
from nap_stream.fetched import fetched
from nap_stream.files import sync_folder, write_durably

_FORMAT = "nap-stream calibration"
_VERSION = 6
_VERSIONS = (3, 4, 5, _VERSION)
_DOCUMENT = "calibration.json"
_SCORES = "scores.safetensors"
_MAX_FETCHED_BYTES = 2**30
_CALIBRATE = "Make one with `nap-stream calibrate`"
_DISTRIBUTIONS = ("nap-stream", "torch", "torchvision", "pillow", "numpy", "scipy")


def load_calibration(folder: Path) -> Calibration:
    """Read a calibration, bit for bit as it was written; ``folder`` may be an address.

    Raises:
        ScoredLogError: The object store that holds it is away; it is retriable.
        CalibrationError: There is none, it is damaged, or its version is unknown, or it cannot be
            fetched.
    """
    with fetched(folder, CalibrationError, max_bytes=_MAX_FETCHED_BYTES) as local:
        return _load(local)


def _load(folder: Path) -> Calibration:
    path = folder / _DOCUMENT
    try:
        text = path.read_bytes()
        scores = (folder / _SCORES).read_bytes()
    except FileNotFoundError as error:
        missing = Path(str(error.filename)).name
        raise CalibrationError(
            f"there is no calibration: {missing} is missing", str(folder), _CALIBRATE
        ) from error
    except OSError as error:
        raise CalibrationError(
            f"the calibration cannot be read ({error.strerror})", str(folder)
        ) from error
    envelope = _parse(text, path)
    try:
        fields = {name: getattr(envelope, name) for name in CalibrationDocument.model_fields}
        calibration = Calibration(CalibrationDocument(**fields), _arrays(scores))
    except ValueError as error:
        raise _damaged(str(error), folder) from error
    if calibration.fingerprint != envelope.fingerprint:
        raise _damaged(f"{_DOCUMENT} does not have the fingerprint that it states", folder)
    return calibration


def require_free(folder: Path, *, force: bool = False) -> None:
    """Refuse a folder that `write_calibration` would refuse, before there is anything to write.

    Raises:
        CalibrationError: Something else is there, or a calibration and ``force`` is false, or the
            folder cannot be read.
    """
    if not folder.exists():
        return
    try:
        names = {entry.name for entry in folder.iterdir()} if folder.is_dir() else None
    except OSError as error:
        raise CalibrationError(
            f"the folder cannot be read ({error.strerror})", str(folder), "Choose a new folder"
        ) from error
    if names == set():
        return
    if names is None or not names <= {_DOCUMENT, _SCORES}:
        raise CalibrationError(
            "this is not a folder of a calibration alone, so it is left as it is",
            str(folder),
            "Choose a new folder",
        )
    if not force:
        raise CalibrationError(
            "there is a calibration already", str(folder), "Choose a new folder, or use --force"
        )


def write_calibration(calibration: Calibration, folder: Path, *, force: bool = False) -> None:
    """Write a calibration, so that a half-written one never stands under the folder's name.

    The folder is made, with its parents; it may exist if it is empty. ``force`` replaces a
    calibration that is there. For a moment there is none.

    Raises:
        CalibrationError: Something else is there, or the folder cannot be written.
    """
    folder = folder.resolve()
    require_free(folder, force=force)
    document = {
        "format": _FORMAT,
        "version": _VERSION,
        "fingerprint": calibration.fingerprint,
        **calibration.document.model_dump(mode="json"),
    }
    text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    token = secrets.token_hex(4)
    new = folder.with_name(f".{folder.name}.{token}.new")
    try:
        new.mkdir(parents=True)
        write_durably(new / _DOCUMENT, text.encode())
        write_durably(new / _SCORES, save(dict(calibration.arrays)))
        sync_folder(new)
        _move(new, folder, aside=folder.with_name(f".{folder.name}.{token}.old"))
        sync_folder(folder.parent)
    except OSError as error:
        raise CalibrationError(
            f"the calibration cannot be written ({error.strerror})",
            str(folder),
            "Choose a folder that can be written",
        ) from error
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _move(new: Path, folder: Path, *, aside: Path) -> None:
    """Give ``new`` its final name; what had it goes, or comes back where that fails."""
    if not folder.exists():
        new.rename(folder)
        return
    folder.rename(aside)
    try:
        new.rename(folder)
    except OSError:
        aside.rename(folder)
        raise
    shutil.rmtree(aside)


def _parse(text: bytes, path: Path) -> Envelope:
    try:
        tree = json.loads(text)
    except ValueError as error:
        raise _damaged(f"{path.name} is not JSON ({error})", path.parent) from error
    except RecursionError as error:
        raise _damaged(f"{path.name} is nested too deeply", path.parent) from error
    version = tree.get("version") if isinstance(tree, dict) else None
    if not isinstance(tree, dict) or tree.get("format") != _FORMAT:
        raise CalibrationError(
            f"this is not a {_FORMAT}", str(path), "Name the folder that `calibrate` wrote"
        )
    if type(version) is not int or version not in _VERSIONS:
        raise CalibrationError(
            f"the calibration has version {version!r}, this program reads versions "
            f"{_VERSIONS[0]} to {_VERSION}",
            str(path),
            "Use the nap-stream that wrote it, or calibrate anew",
        )
    try:
        return Envelope.model_validate(tree)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(map(str, first["loc"]))
        raise _damaged(f"{path.name}: {key}: {first['msg']}", path.parent) from error


def _arrays(data: bytes) -> dict[str, NDArray[Any]]:
    try:
        return load(data)
    except SafetensorError as error:
        raise ValueError(f"{_SCORES}: {error}") from error
    except KeyError as error:
        # What safetensors raises for a dtype that numpy does not have, such as BF16.
        raise ValueError(f"{_SCORES} holds the dtype {error}, which is not read") from error


def _damaged(how: str, folder: Path) -> CalibrationError:
    return CalibrationError(
        f"the calibration is damaged: {how}", str(folder), "Restore it, or calibrate anew"
    )


@cache  # it reads a file for each distribution
def versions() -> MappingProxyType[str, str]:
    """Which software makes a result: versions by distribution, and of Python.

    "unknown" where one is not installed as a distribution.
    """
    found = {"python": platform.python_version()}
    for name in _DISTRIBUTIONS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "unknown"
    return MappingProxyType(found)
