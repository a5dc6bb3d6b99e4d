"""State dicts as training programs leave them: nested, and under the names of what was around.

What there is but one way to read is read, and it is said how. The rest is refused with the names.
"""

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors.torch import load_file

from nap_stream.errors import ModelError
from nap_stream.model.hugging_face import require_there, weight_files
from nap_stream.model.sites import plain_name
from nap_stream.text import described, listed

State = dict[str, torch.Tensor]
_NESTED = (
    *("state_dict", "model_state_dict", "model", "net", "network", "weights", "params", "module"),
    *("ema", "model_ema", "state_dict_ema", "ema_state_dict", "params_ema"),
)
_SAVE = "Save the one that is meant: torch.save(torch.load(FILE)['{}'], NEW_FILE)"
_LISTED = 3
_COUNTERS = ".num_batches_tracked"


def read_state(path: Path, key: str = "model.weights") -> tuple[State, tuple[str, ...]]:
    """Read the state dict of a file, or of a folder of save_pretrained, by weights_only.

    ``key`` is the setting that names it.

    Returns:
        Tensors by name, and sentences about where in the file they stood.

    Raises:
        ModelError: There is no such file, or it holds no state dict, or several.
    """
    where = f"{key} = {path}"
    require_there(path, where)
    parts = weight_files(path) if path.is_dir() else (path,)
    for part in parts:
        require_there(part, where)
    found: Any = {}
    try:
        for part in parts:
            if part.suffix == ".safetensors":
                found |= load_file(part)
            else:
                found = torch.load(part, map_location="cpu", weights_only=True)
    except Exception as error:
        # What torch says of it advises to unpickle the file.
        is_pickle = isinstance(error, UnpicklingError)
        said = (
            "it holds more than tensors, or is no file of torch" if is_pickle else described(error)
        )
        raise ModelError(
            f"the file cannot be read as weights ({said})",
            where,
            "Expected a .safetensors file, or a state dict saved with torch.save",
        ) from error
    return _unnested(found, where)


def fitted(state: State, expected: Mapping[str, object]) -> tuple[State, tuple[str, ...]]:
    """Rename a state dict's tensors to a module's names, where there is but one way to.

    That is so where the names of one carry a prefix that those of the other lack, as
    ``module.`` of DataParallel, ``_orig_mod.`` of torch.compile or ``model.`` of Lightning.
    ``expected`` is the module's state dict.

    Returns:
        The tensors, renamed or as they were, and sentences about what was done.
    """
    plain = {plain_name(name): tensor for name, tensor in state.items()}
    notes: tuple[str, ...] = ()
    if len(plain) == len(state) and plain.keys() != state.keys():
        state, notes = plain, ("_orig_mod. of torch.compile was taken out of the weights' names",)
    if _fits(state, expected):
        return state, notes
    below = {prefix: _below(state, prefix) for prefix in prefixes_of(state, expected)}
    whole = {prefix: inside for prefix, inside in below.items() if _fits(inside, expected)}
    if len(whole) == 1:
        ((prefix, inside),) = whole.items()
        others = [name for name in state if not name.startswith(prefix)]
        left = f", and {listed(others)} beside it left out" if others else ""
        return inside, (*notes, f"the prefix {prefix} was taken off the weights' names{left}")
    outer = _common_prefix(expected)
    renamed = {outer + name: tensor for name, tensor in state.items()}
    if outer and not whole and _fits(renamed, expected):
        return renamed, (*notes, f"the prefix {outer} was put before the weights' names")
    return state, notes


def prefixes_of(state: Mapping[str, object], expected: Mapping[str, object]) -> tuple[str, ...]:
    """The prefixes under which a state dict has a module's names, the most frequent first."""
    counts = Counter(
        name[: dot.end()]
        for name in state
        for dot in re.finditer(r"\.", name)
        if name[dot.end() :] in expected
    )
    return tuple(sorted(counts, key=lambda prefix: (-counts[prefix], prefix)))


def prefix_advice(state: Mapping[str, object], expected: Mapping[str, object]) -> str:
    """What to do about names with prefixes that cannot be taken off by themselves; or nothing."""
    found = prefixes_of(state, expected)[:_LISTED]
    if not found:
        return ""
    kept = f"if name.startswith({found[0]!r})"
    renamed = f"{{name.removeprefix({found[0]!r}): value for name, value in state.items() {kept}}}"
    which = ", those of the model that is meant" if len(found) > 1 else ""
    return f"Its names begin with {', '.join(found)}: save them without{which}, as in {renamed}"


def _unnested(found: Any, where: str) -> tuple[State, tuple[str, ...]]:
    if not isinstance(found, Mapping):
        raise ModelError(f"the file holds {type(found).__name__}, expected a state dict", where)
    if found and all(isinstance(value, torch.Tensor) for value in found.values()):
        return {str(name): value for name, value in found.items()}, ()
    inner = [name for name in _NESTED if _is_state(found.get(name))]
    if len(inner) == 1:
        state = {str(name): value for name, value in found[inner[0]].items()}
        return state, (f"the weights are those under {inner[0]!r} in the file",)
    if inner:
        raise ModelError(
            f"the file holds several state dicts: {', '.join(inner)}",
            where,
            _SAVE.format(inner[0]),
        )
    others = [str(name) for name, value in found.items() if not isinstance(value, torch.Tensor)]
    what = f"{len(others)} not tensors: {listed(others)}" if others else "it is empty"
    states = [str(name) for name, value in found.items() if _is_state(value)]
    raise ModelError(
        f"the file holds no state dict alone: {what}",
        where,
        _SAVE.format(states[0]) if states else "Save the model's state_dict() alone",
    )


def _is_state(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and len(value) > 0
        and all(isinstance(tensor, torch.Tensor) for tensor in value.values())
    )


def _fits(state: Mapping[str, torch.Tensor], expected: Mapping[str, object]) -> bool:
    needed = {name for name in expected if not name.endswith(_COUNTERS)}
    if not needed <= state.keys() <= expected.keys():
        return False
    return all(getattr(expected[name], "shape", None) == state[name].shape for name in state)


def _below(state: State, prefix: str) -> State:
    return {n.removeprefix(prefix): t for n, t in state.items() if n.startswith(prefix)}


def _common_prefix(names: Mapping[str, object]) -> str:
    """The whole parts that all names begin with."""
    split = [name.split(".")[:-1] for name in names]
    common: list[str] = []
    for parts in zip(*split, strict=False):
        if len(set(parts)) > 1:
            break
        common.append(parts[0])
    return ".".join(common) + "." if common else ""
