"""How a forward pass is computed: its precision, its memory format, and whether it is compiled.

What a device can do, and what makes a module run so. The CUDA branches have not been run on a GPU.
"""

import copy
import platform
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from itertools import chain
from typing import Literal

import torch
from torch import nn

from nap_stream.errors import CalibrationError, ModelError
from nap_stream.model.facts import (
    UNKNOWN,
    Execution,
    HeadSite,
    Speeds,
)
from nap_stream.model.sites import submodule, unwrapped
from nap_stream.settings.schema import CompileMode, ModelSettings, Precision
from nap_stream.text import described

_REDUCED: dict[Precision, torch.dtype] = {"bfloat16": torch.bfloat16, "float16": torch.float16}
_CAST_ONCE = frozenset(
    {nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d}
    | {nn.Linear}
)
"""Subclasses may compute with their weights before autocast sees them, and stay as they are."""
_AMPERE = 8
_IMAGE_DIMENSIONS = 4
_MODES = {"default": "default", "max-autotune": "max-autotune-no-cudagraphs"}
"""CUDA graphs would write each batch's outputs over those of the one before."""


def reduced_type(execution: Execution) -> torch.dtype | None:
    """The 16-bit type of autocast; None where there is none."""
    return None if execution.precision == "unknown" else _REDUCED.get(execution.precision)


def require_execution(
    calibrated: Execution, settings: ModelSettings, speeds: Speeds | None = None
) -> None:
    """Refuse settings that ask for another execution than the calibration was made in.

    ``speeds`` is what was measured for it: what was to be compiled, and could not be, runs eager.

    Raises:
        CalibrationError: Precision, memory format or compilation differ, or nobody knows them: the
            calibration is of a model that runs elsewhere.
    """
    if calibrated == UNKNOWN:
        raise CalibrationError(
            "the calibration was made of the outputs of a model that runs elsewhere",
            settings.where,
            "Set model.elsewhere, or calibrate this model on images",
        )
    asked = {
        "precision": None if settings.precision == "auto" else settings.precision,
        "channels_last": settings.channels_last,
        "compile": None if settings.compile == "off" else settings.compile,
    }
    if speeds is not None and speeds.has_failed(replace(calibrated, compile=settings.compile)):
        del asked["compile"]
    differing = [
        f"model.{name} is {value}, not {getattr(calibrated, name)}"
        for name, value in asked.items()
        if value not in {None, getattr(calibrated, name)}
    ]
    if differing:
        raise CalibrationError(
            f"the calibration was made in another execution ({calibrated}): {'; '.join(differing)}",
            "model",
            "Calibrate anew with this configuration, or leave these out: a run takes what the "
            "calibration says",
        )


def configured(settings: ModelSettings) -> Execution:
    """What settings ask for without a calibration: plain float32 where they leave it open."""
    return Execution(
        "float32" if settings.precision == "auto" else settings.precision,
        bool(settings.channels_last),
        settings.compile,
    )


def precisions_of(device: torch.device) -> tuple[Precision, ...]:
    """The precisions that are worth measuring on a device, float32 first."""
    if device.type == "cuda":
        every: tuple[Precision, ...] = ("float32", "tf32", "bfloat16", "float16")
        return tuple(one for one in every if not _why_not(one, device))
    if device.type == "cpu" and torch.ops.mkldnn._is_mkldnn_bf16_supported():  # noqa: SLF001  torch's own query has no public name
        return ("float32", "bfloat16")
    return ("float32",)


def require_precision(precision: Precision | Literal["unknown"], device: torch.device) -> None:
    """Refuse a precision that a device does not have.

    Raises:
        ModelError: Says what to do.
    """
    problem = _why_not(precision, device)
    if problem:
        raise ModelError(
            f"the precision {precision} cannot be computed here: {problem}",
            f"host {platform.node()}, device {device}",
            "Run on a machine that can, or calibrate on this one with model.precision: auto",
        )


def _why_not(precision: Precision | Literal["unknown"], device: torch.device) -> str:
    if precision == "unknown":
        return "nobody knows what it is"
    if device.type == "cuda":
        if precision == "tf32" and torch.cuda.get_device_capability(device)[0] < _AMPERE:
            return "the GPU is older than Ampere"
        if precision == "bfloat16" and not torch.cuda.is_bf16_supported(including_emulation=False):
            return "the GPU has no bfloat16"
    elif precision == "tf32":
        return "TF32 is of NVIDIA GPUs"
    elif precision == "float16" and not torch.ops.mkldnn._is_mkldnn_fp16_supported():  # noqa: SLF001  torch's own query has no public name
        return "the processor has no float16 kernels"
    return ""


def slowness(execution: Execution, device: torch.device) -> str:
    """What is to be warned of where a device computes an execution slowly; empty elsewhere."""
    if execution.precision != "bfloat16" or device.type != "cpu" or _cpu_has_bfloat16():
        return ""
    return (
        "the calibration is for bfloat16, which this processor has no instructions for: it is "
        "slow here. Calibrate on this machine, or run on one like that of the calibration"
    )


def _cpu_has_bfloat16() -> bool:
    if platform.machine() not in {"x86_64", "AMD64"}:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())  # noqa: SLF001  torch's own query has no public name
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()  # noqa: SLF001  likewise


def set_float32_kernels(device: torch.device, *, tf32: bool) -> None:
    """Let CUDA compute float32 by TF32 kernels in this process, or not; elsewhere nothing."""
    if device.type == "cuda":
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = tf32


@contextmanager
def float32_kernels(device: torch.device, *, tf32: bool) -> Iterator[None]:
    """Let CUDA compute float32 by TF32 kernels while the block runs, or not; elsewhere nothing.

    torch keeps this for the whole process. Without it cuDNN takes TF32 for convolutions.
    """
    if device.type != "cuda":
        yield
        return
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    set_float32_kernels(device, tf32=tf32)
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


@contextmanager
def computing(execution: Execution, device: torch.device) -> Iterator[None]:
    """While the block runs, modules compute in an execution's precision on a device."""
    with ExitStack() as stack:
        stack.enter_context(float32_kernels(device, tf32=execution.precision == "tf32"))
        if (dtype := reduced_type(execution)) is not None:
            stack.enter_context(torch.autocast(device.type, dtype))
        yield


def convert(module: nn.Module, execution: Execution, head: HeadSite | None) -> None:
    """Give a module the weights that an execution computes with, in its memory format.

    The weights of convolutions and linear layers are cast to its 16-bit type, as autocast would
    at each pass. The head's stay as they are, for the float32 logits. Tensors are replaced and
    never changed: other modules may share them. ``module`` is in evaluation mode.
    """
    kept = None if head is None else submodule(module, head.module)
    dtype = reduced_type(execution)
    layout = torch.channels_last if execution.channels_last else torch.contiguous_format
    for part in unwrapped(module).modules():
        cast = dtype if type(part) in _CAST_ONCE and part is not kept else None
        for name, before in list(part.named_parameters(recurse=False)):
            after = before.detach()
            if cast is not None and after.dtype == torch.float32:
                after = after.to(cast)
            if after.ndim == _IMAGE_DIMENSIONS:
                after = after.contiguous(memory_format=layout)
            if after.data_ptr() != before.data_ptr():
                setattr(part, name, nn.Parameter(after, requires_grad=False))


def twin(module: nn.Module) -> nn.Module:
    """Copy a module's own objects, so that it can be hooked by itself; its tensors are shared.

    Raises:
        ModelError: It cannot be copied.
    """
    shared = {id(tensor): tensor for tensor in chain(module.parameters(), module.buffers())}
    try:
        return copy.deepcopy(module, dict(shared))
    except Exception as error:
        raise ModelError(
            f"the module cannot be copied ({described(error)})",
            f"the model, a {type(unwrapped(module)).__name__}",
        ) from error


def compiled(module: nn.Module, mode: CompileMode) -> nn.Module:
    """Wrap a module for ``torch.compile`` on inputs of one shape. Its first call compiles it."""
    wrapped = torch.compile(module, mode=_MODES[mode], dynamic=False)
    assert isinstance(wrapped, nn.Module)
    return wrapped
