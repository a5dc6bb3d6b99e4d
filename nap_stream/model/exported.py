"""Programs of torch.export, as modules that can be watched; see `nap_stream.model.scripted` too."""

import operator
import os
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import fx, nn

from nap_stream.errors import ModelError
from nap_stream.text import described

QUANTISED = (
    "Give the float32 model that it was made from: nap-stream reads activations, and those of "
    "int8 are other ones"
)
_CHANNELS = 3
_TENSORS_ALONE = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
_TRAINING_ARGUMENT = {"batch_norm": 5, "dropout": 2, "_native_batch_norm_legit": 5}
"""Of operators that behave otherwise in training: where it stands among their arguments."""


def is_exported(path: Path) -> bool:
    """Whether a file is a program of torch.export."""
    if path.suffix == ".pt2" or not zipfile.is_zipfile(path):
        return path.suffix == ".pt2"
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/archive_format") for name in archive.namelist())


def load_exported(path: Path) -> nn.Module:
    """Read a .pt2 file of torch.export, and make a module of it that can be watched.

    Raises:
        ModelError: It cannot be read, is quantised, or was exported in training mode.
    """
    where = f"model.weights = {path}"
    try:
        with _nothing_unpickled():
            program = torch.export.load(path)
    except Exception as error:
        raise ModelError(
            f"the exported program cannot be read ({described(error)})",
            where,
            "Export it with this version of torch",
        ) from error
    return watchable(program.module(), where)


@contextmanager
def _nothing_unpickled() -> Iterator[None]:
    """Let torch.load read tensors alone, whatever it is asked for: a .pt2 file may hold pickles."""
    before = os.environ.get(_TENSORS_ALONE)
    os.environ[_TENSORS_ALONE] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_TENSORS_ALONE]
        else:
            os.environ[_TENSORS_ALONE] = before


def fixed_size(module: nn.Module) -> tuple[int, int] | None:
    """Height and width of the one size of image that a program is for; None where it takes more."""
    graph = getattr(module, "graph", None)
    inputs = [node for node in graph.nodes if node.op == "placeholder"] if graph else []
    shape = getattr(inputs[0].meta.get("val"), "shape", ()) if inputs else ()
    return sides_of(shape)


def sides_of(shape: Sequence[object]) -> tuple[int, int] | None:
    """Height and width of an input's shape of four, where both are numbers."""
    if len(shape) != 4:  # noqa: PLR2004  images
        return None
    is_last = shape[-1] == _CHANNELS and shape[1] != _CHANNELS
    height, width = shape[1:3] if is_last else shape[2:]
    return (height, width) if isinstance(height, int) and isinstance(width, int) else None


def watchable(module: nn.Module, where: str) -> nn.Module:
    """Make a module of a program's graph: plain functions, and linear layers as ``nn.Linear``.

    Raises:
        ModelError: It is quantised, or was exported in training mode.
    """
    assert isinstance(module, fx.GraphModule)
    for node in list(module.graph.nodes):
        if node.op == "call_function" and isinstance(node.target, torch._ops.OpOverload):  # noqa: SLF001  no public name
            _refuse(node, where)
            # The name of a packet is that of the function.
            node.target = node.target.overloadpacket
            if node.target is torch.ops.aten.linear:
                _as_linear(module, node)
    module.graph.eliminate_dead_code()
    # The class that torch.export makes refuses eval().
    plain = fx.GraphModule(module, module.graph)
    for part in plain.modules():
        part.training = False
    return plain


def _refuse(node: fx.Node, where: str) -> None:
    namespace, _, name = str(node.target).partition(".")
    if "quantized" in namespace or "quantize" in name:
        raise ModelError(f"the exported program is quantised ({node.target})", where, QUANTISED)
    place = _TRAINING_ARGUMENT.get(name.partition(".")[0])
    if place is not None and len(node.args) > place and node.args[place] is True:
        raise ModelError(
            f"the program was exported in training mode ({node.target})",
            where,
            "Call model.eval() before torch.export.export",
        )


def _as_linear(module: fx.GraphModule, node: fx.Node) -> None:
    source, weight, *rest = node.args
    bias = rest[0] if rest else None
    if not isinstance(weight, fx.Node) or weight.op != "get_attr":
        return
    owner, _, name = str(weight.target).rpartition(".")
    own_bias = bias is None or (isinstance(bias, fx.Node) and bias.target == f"{owner}.bias")
    if not owner or name != "weight" or not own_bias:
        return
    held = module.get_submodule(owner)
    module.set_submodule(owner, linear_of(held))
    with module.graph.inserting_before(node):
        called = module.graph.call_module(owner, (source,))
    node.replace_all_uses_with(called)
    module.graph.erase_node(node)


def linear_of(held: nn.Module) -> nn.Linear:
    """Return an ``nn.Linear`` with the very weight, and bias if there is one, of a module."""
    weight = operator.attrgetter("weight")(held)
    outputs, inputs = weight.shape
    bias = getattr(held, "bias", None)
    linear = nn.Linear(inputs, outputs, bias=bias is not None, device="meta")
    linear.weight = nn.Parameter(weight.detach(), requires_grad=False)
    if bias is not None:
        linear.bias = nn.Parameter(bias.detach(), requires_grad=False)
    return linear.eval()
