from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from nap_stream.errors import ModelError
from nap_stream.model.checkpoint import State
from nap_stream.model.weights import load_weights
from tests.support.small_models import SmallNet, by_name

TRAINED: State = by_name("SmallNet", seed=5).state_dict()
SPARE = torch.zeros(2)


def under(prefix: str) -> State:
    return {prefix + name: tensor for name, tensor in TRAINED.items()}


def is_trained(module: nn.Module) -> bool:
    return all(torch.equal(own, TRAINED[name]) for name, own in module.state_dict().items())


@pytest.mark.parametrize(
    ("saved", "notes"),
    [
        (TRAINED, ()),
        (under("module."), ("the prefix module. was taken off",)),
        (under("model."), ("the prefix model. was taken off",)),
        (under("net."), ("the prefix net. was taken off",)),
        (under("backbone."), ("the prefix backbone. was taken off",)),
        (under("_orig_mod."), ("_orig_mod. of torch.compile",)),
        (under("module._orig_mod."), ("_orig_mod. of torch.compile", "the prefix module. was")),
        (under("model.student."), ("the prefix model.student. was taken off",)),
        (under("model.") | {"loss.weight": SPARE}, ("and loss.weight beside it left out",)),
        (
            {name.replace("features.", "features._orig_mod."): t for name, t in TRAINED.items()},
            ("_orig_mod. of torch.compile",),
        ),
    ],
)
def test_names_with_prefixes(tmp_path: Path, saved: State, notes: tuple[str, ...]) -> None:
    path = tmp_path / "weights.safetensors"
    save_file(saved, path)
    module = SmallNet()
    found = load_weights(module, path)
    assert is_trained(module)
    assert len(found) == len(notes)
    for said, expected in zip(found, notes, strict=True):
        assert expected in said


@pytest.mark.parametrize(
    "key", ["state_dict", "model_state_dict", "model", "net", "ema", "state_dict_ema", "module"]
)
def test_a_state_dict_in_a_checkpoint(tmp_path: Path, key: str) -> None:
    path = tmp_path / "checkpoint.pt"
    optimizer = {"state": {}, "param_groups": [{"lr": 0.1}]}
    torch.save({key: TRAINED, "epoch": 3, "optimizer": optimizer, "lr": SPARE}, path)
    module = SmallNet()
    assert load_weights(module, path) == (f"the weights are those under {key!r} in the file",)
    assert is_trained(module)


def test_a_checkpoint_of_lightning(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    saved = {"state_dict": under("model."), "pytorch-lightning_version": "2.5", "callbacks": {}}
    torch.save(saved, path)
    module = SmallNet()
    assert len(load_weights(module, path)) == 2
    assert is_trained(module)


class Wrapping(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.model = SmallNet()


def test_a_module_that_wraps_what_was_saved(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file(TRAINED, path)
    module = Wrapping()
    assert load_weights(module, path) == ("the prefix model. was put before the weights' names",)
    assert is_trained(module.model)


def two_models(path: Path) -> None:
    torch.save(under("student.") | under("teacher."), path)


def part_of_it_under_a_prefix(path: Path) -> None:
    saved = {f"backbone.{n}" if "features" in n else n: tensor for n, tensor in TRAINED.items()}
    save_file(saved, path)


def another_shape_under_a_prefix(path: Path) -> None:
    save_file({f"module.{n}": t for n, t in SmallNet(classes=5).state_dict().items()}, path)


def two_state_dicts(path: Path) -> None:
    torch.save({"model": TRAINED, "ema": TRAINED}, path)


def an_unknown_key(path: Path) -> None:
    torch.save({"best_so_far": TRAINED, "epoch": 1}, path)


def nothing(path: Path) -> None:
    torch.save({}, path)


def a_whole_module(path: Path) -> None:
    torch.save(SmallNet(), path)


@pytest.mark.parametrize(
    ("save", "message"),
    [
        (two_models, r"begin with student\., teacher\.: save them without, those of the model"),
        (part_of_it_under_a_prefix, r"missing: features.*begin with backbone\.: save them"),
        (another_shape_under_a_prefix, r"begin with module\."),
        (two_state_dicts, r"several state dicts: model, ema.*\['model'\]"),
        (an_unknown_key, r"not tensors: best_so_far, epoch.*\['best_so_far'\]"),
        (nothing, "it is empty"),
        (a_whole_module, r"cannot be read as weights.*state dict saved with torch\.save"),
    ],
)
def test_what_could_be_read_in_more_than_one_way(
    tmp_path: Path, save: Callable[[Path], None], message: str
) -> None:
    path = tmp_path / "weights.pt"
    path = path if save.__name__ not in SAFE else path.with_suffix(".safetensors")
    save(path)
    with pytest.raises(ModelError, match=message) as caught:
        load_weights(SmallNet(), path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


SAFE = {"part_of_it_under_a_prefix", "another_shape_under_a_prefix"}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"model.safetensors": b"{}"}, "the file cannot be read as weights"),
        ({"model.safetensors": b""}, "the file cannot be read as weights"),
        (
            {"model.safetensors.index.json": b'{"weight_map": {"a": "one.safetensors"}}'},
            r"there is no one\.safetensors in .*, which holds model\.safetensors\.index\.json",
        ),
        (
            {
                "model.safetensors.index.json": b'{"weight_map": {"a": "one.safetensors"}}',
                "one.safetensors": b"\xff" * 100,
            },
            "the file cannot be read as weights",
        ),
        ({"model.safetensors.index.json": b'{"weight_map": {}}'}, "it is empty"),
    ],
)
def test_a_damaged_folder(tmp_path: Path, files: dict[str, bytes], message: str) -> None:
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    with pytest.raises(ModelError, match=message):
        load_weights(by_name("SmallNet"), tmp_path)
