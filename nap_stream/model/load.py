"""From the settings to a model that is ready to score.

The factory is imported and called, its weights are loaded, and a probing forward pass finds where
the prior and the features are read. Then the model gets the precision and the memory format that
it runs in (`nap_stream.model.execution`).
"""

import copy
import os
import platform
from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import chain
from typing import Self

import structlog
import torch
from torch import nn
from torch.nn import functional

from nap_stream.core.base_scores import BaseScores
from nap_stream.core.score_specs import Head
from nap_stream.errors import FeatureMapError, GpuUnavailableError, ModelError
from nap_stream.fetched import fetched
from nap_stream.model.elsewhere import ElsewhereModel
from nap_stream.model.execution import (
    compiled,
    computing,
    convert,
    float32_kernels,
    reduced_type,
    require_precision,
    set_float32_kernels,
    slowness,
    twin,
)
from nap_stream.model.factory import build, class_names_of, importable
from nap_stream.model.facts import AS_IT_IS, Execution, FeatureSite, HeadSite, LogitsHook
from nap_stream.model.find import Probe, choose_site, probe
from nap_stream.model.forward import (
    BatchScores,
    Forward,
    refuse_training,
    require_logits,
    run_forward,
    score_forward,
)
from nap_stream.model.found_preprocessing import doubts, resolved
from nap_stream.model.onnx_model import OnnxModel
from nap_stream.model.preprocessing import Normaliser, input_size
from nap_stream.model.sites import head_parameters, is_compiled, unwrapped
from nap_stream.model.trial import TRIAL_IMAGES, logits_of, trial_batch
from nap_stream.model.weights import fingerprint, state_of
from nap_stream.settings.schema import ModelSettings, PreprocessingSettings
from nap_stream.text import described

_PLAIN = Execution()
MAX_FETCHED_BYTES = 2**36
"""Of weights in an object store."""


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A classifier in eval mode, without gradients, on its device.

    ``class_names`` are in order of the logits. ``fingerprint`` is SHA-256 in hexadecimal
    digits, of the weights as they were loaded. ``feature_site`` is where the prior is read,
    ``head`` the linear module whose output is the logits, None where there is none.

    ``execution`` is how it computes. ``input_dtype`` is what the module takes. ``float32_head``,
    the head's weight and bias, is there where the precision is reduced: 16-bit logits would make
    scores tie. ``batch_size`` is the one shape that a compiled module is for, None elsewhere.

    ``output`` is what makes logits of what the module returns; a hook does it where something is to
    be done. ``notes`` are sentences about what was done to load it. ``is_fixed`` says that it
    computes in its own precision and memory format.
    """

    module: nn.Module
    device: torch.device
    preprocessing: PreprocessingSettings
    normalise: Normaliser
    class_names: tuple[str, ...]
    fingerprint: str
    feature_site: FeatureSite
    head: HeadSite | None
    input_dtype: torch.dtype = torch.float32
    execution: Execution = _PLAIN
    float32_head: tuple[torch.Tensor, torch.Tensor] | None = None
    batch_size: int | None = None
    output: LogitsHook = AS_IT_IS
    notes: tuple[str, ...] = ()
    is_fixed: bool = False

    @property
    def has_features(self) -> bool:
        """Whether a forward pass gives features: the head's input, or the means of a map."""
        return self.head is not None or self.feature_site.kind != "cls_attention"

    def linear_head(self) -> Head | None:
        """The last linear layer, as base scores take it; None where there is none."""
        if self.head is None:
            return None
        weight, bias = head_parameters(self.module, self.head)
        return Head(weight.cpu().numpy(), bias.cpu().numpy())

    def forward(self, batch: torch.Tensor) -> Forward:
        """Run the model once on a batch (N, 3, H, W) of its input size.

        The batch is uint8 pixels, which are normalised, or floating-point, what the model takes.
        Pixels of either memory format are laid out as the model wants them.
        A compiled model runs on batches of its own size: the last one is padded with zeros, and
        what they give is cut off.

        Raises:
            ModelError: See `run_forward`.
            FeatureMapError: See `run_forward`.
        """
        size = self.batch_size
        if size is None:
            return self._pass(batch)
        parts = [self._padded_pass(part, size) for part in torch.split(batch, size)]
        return parts[0] if len(parts) == 1 else Forward.join(parts)

    def _padded_pass(self, batch: torch.Tensor, size: int) -> Forward:
        missing = size - len(batch)
        if not missing:
            return self._pass(batch)
        padding = batch.new_zeros((missing, *batch.shape[1:]))
        return self._pass(torch.cat((batch, padding))).first(len(batch))

    def _pass(self, batch: torch.Tensor) -> Forward:
        images = batch.to(self.device)
        last = self.execution.channels_last
        if not images.is_floating_point():
            layout = torch.channels_last if last else torch.contiguous_format
            images = self.normalise(images, layout)
        elif last:
            # A user's own input is left as it is, where its memory format does not matter.
            images = images.contiguous(memory_format=torch.channels_last)
        images = images.to(self.input_dtype)
        site, classes = self.feature_site, len(self.class_names)
        with computing(self.execution, self.device):
            seen = run_forward(self.module, site, self.head, images, classes=classes)
        if self.float32_head is None or seen.features is None:
            return seen
        with torch.inference_mode(), float32_kernels(self.device, tf32=False):
            return replace(seen, logits=functional.linear(seen.features, *self.float32_head))

    def scores(self, seen: Forward, base_scores: BaseScores) -> BatchScores:
        """The scores of one of its forward passes, without CUDA's TF32 kernels."""
        with float32_kernels(self.device, tf32=False):
            return score_forward(seen, base_scores)

    def under(self, execution: Execution) -> "LoadedModel":
        """Return the same model under another execution, but for compiling; this one stays.

        It was loaded in plain float32. Tensors that both compute with are shared.

        Raises:
            ModelError: The module cannot be copied, or fails so.
        """
        return _switched(self, twin(self.module), replace(execution, compile="off"))

    def compiled(self, batch_size: int) -> Self:
        """Compile the model for batches of one size, and run it once: minutes at most.

        Where that is impossible (no C++ compiler, a site that only a hook can read), the model
        itself, without a ``batch_size`` and with a warning in the log: the numbers are the same but
        for rounding.
        """
        mode = self.execution.compile
        height, width = input_size(self.preprocessing)
        try:
            found = replace(self, module=compiled(self.module, mode), batch_size=batch_size)
            found.forward(torch.zeros(batch_size, 3, height, width, dtype=torch.uint8))
        except Exception as error:  # noqa: BLE001  the compiler raises what it likes
            structlog.get_logger().warning(
                "model_not_compiled", mode=mode, reason=described(error), running="as it is"
            )
            return self
        return found

    def replica(self) -> Self:
        """Return the same model for another thread: objects of its own, the same tensors.

        Raises:
            ModelError: The model is compiled or cannot be copied, or it computes in TF32, which
                torch keeps for the whole process. Use one thread.
        """
        shared = "a model under torch.compile" if is_compiled(self.module) else ""
        if self.execution.precision == "tf32":
            shared = "torch's choice of TF32"
        if shared:
            raise ModelError(
                f"{shared} is for one thread at a time",
                f"the model, a {type(unwrapped(self.module)).__name__}",
            )
        return replace(self, module=twin(self.module))


KnownModel = LoadedModel | ElsewhereModel
"""What calibration knows of a model, wherever it runs."""


class OnePassScorer:
    """Score batches with one forward pass each. For one thread at a time.

    ``base_scores`` are computed beside NAP; they are for the model's device.
    """

    def __init__(self, loaded: LoadedModel, base_scores: BaseScores) -> None:
        self._loaded, self._base_scores = loaded, base_scores
        self._size = input_size(loaded.preprocessing)

    def __call__(self, batch: torch.Tensor) -> BatchScores:
        """Score preprocessed images: uint8 (N, 3, H, W), as `preprocess` gives each; on any device.

        Raises:
            ValueError: The batch has another dtype or shape.
            ModelError: See `run_forward`.
            FeatureMapError: See `run_forward`.
        """
        if batch.dtype != torch.uint8 or batch.shape[1:] != (3, *self._size):
            raise ValueError(
                f"expected a uint8 batch of shape (N, 3, {self._size[0]}, {self._size[1]}), "
                f"got {batch.dtype} of {tuple(batch.shape)}"
            )
        return self._loaded.scores(self._loaded.forward(batch), self._base_scores)


def choose_device(num_gpus: float) -> torch.device:
    """The device of a worker that has ``num_gpus`` GPUs from Ray.

    Raises:
        GpuUnavailableError: If GPUs are asked for and torch sees none.
    """
    if num_gpus == 0:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise GpuUnavailableError(
            f"worker.num_gpus is {num_gpus:g}, but torch {torch.__version__} sees no GPU",
            f"host {platform.node()}, CUDA_VISIBLE_DEVICES="
            f"{os.environ.get('CUDA_VISIBLE_DEVICES', '(not set)')}",
            "Install a CUDA build of torch and the driver, or set worker.num_gpus: 0",
        )
    return torch.device("cuda")


def load_model(
    settings: ModelSettings,
    device: torch.device,
    execution: Execution = _PLAIN,
    *,
    batch_size: int | None = None,
) -> LoadedModel:
    """Build the model, load its weights, and find its prior and its head by a probing pass.

    It runs under ``execution``, whatever the settings ask for. Where it does not take
    channels_last, or cannot be compiled, it runs without, and a warning is logged: the numbers are
    the same but for rounding. A compiled model is for ``batch_size`` images, and is compiled and
    run once before this returns; without a size it is not compiled. Weights may lie in an object
    store.

    A factory may return a module under ``torch.compile``: sites and fingerprint are those of the
    module without it. Where ``settings.weights`` is null, the weights are those that the factory
    gives: one that initialises at random gives another fingerprint each time.

    Raises:
        ModelError: The model cannot be imported, built or loaded, fails on its input, returns
            something other than logits (N, classes), or has another number of classes than
            there are names; or this device does not have the precision; or it runs elsewhere.
        FeatureMapError: The pre-pooling map was not found.
        ScoredLogError: The object store that holds its weights is away; it is retriable.
    """
    if settings.elsewhere is not None:
        raise ModelError(
            f"the model {settings.elsewhere.name} runs elsewhere, and this needs it here",
            settings.where,
            "Write a configuration with model.factory or model.weights for that",
        )
    if settings.weights is None:
        return _load(settings, device, execution, batch_size)
    with fetched(settings.weights, ModelError, max_bytes=MAX_FETCHED_BYTES) as weights:
        here = settings.model_copy(update={"weights": weights})
        return _load(here, device, execution, batch_size)


def _load(
    settings: ModelSettings, device: torch.device, execution: Execution, batch_size: int | None
) -> LoadedModel:
    require_precision(execution.precision, device)
    # For the process: what two threads switch back and forth would be neither's.
    set_float32_kernels(device, tf32=execution.precision == "tf32")
    with importable(settings.python_path):
        built = build(settings)
        for note in built.notes:
            structlog.get_logger().warning("weights_renamed", note=note, model=settings.origin)
        module = built.module.eval().requires_grad_(requires_grad=False)
        preprocessing = resolved(settings, module)
        settings = settings.model_copy(update={"preprocessing": preprocessing})
        identity = fingerprint(settings, state_of(module), built.identity)
        module = module.to(device)
        normalise = Normaliser(preprocessing, device, _input_dtype(module))
        batch = trial_batch(normalise, preprocessing)
        hook = logits_of(
            module,
            batch,
            None if built.is_fixed else settings.output,
            settings.output_kind,
            normalise=normalise,
            where=settings.where,
        )
        if hook is not None:
            unwrapped(module).register_forward_hook(hook)
        site, head, output = _sites(module, batch, settings.feature_layer)
    classes = require_logits(output, images=len(batch), where=settings.where).shape[1]
    loaded = LoadedModel(
        module=module,
        device=device,
        preprocessing=preprocessing,
        normalise=normalise,
        class_names=class_names_of(settings, built.class_names, classes),
        fingerprint=identity,
        feature_site=site,
        head=head,
        input_dtype=_input_dtype(module),
        is_fixed=built.is_fixed,
        output=hook or LogitsHook((), settings.output_kind),
        notes=(*built.notes, *doubts(settings, preprocessing, module)),
    )
    if built.is_fixed and replace(execution, compile="off") != _PLAIN:
        raise ModelError(
            f"the model computes as its file says, and not in {execution}",
            settings.where,
            "Leave model.precision and model.channels_last out, or calibrate anew",
        )
    if warning := slowness(execution, device):
        structlog.get_logger().warning("precision_slow_here", advice=warning)
    return _executed(loaded, execution, batch_size)


def _sites(
    module: nn.Module, batch: torch.Tensor, feature_layer: str | None
) -> tuple[FeatureSite, HeadSite | None, object]:
    """Where the prior and the features are read, and what the model returned."""
    if isinstance(module, OnnxModel):
        site, head = module.sites(batch)
        with torch.inference_mode():
            output = module(batch)
        # What a hook makes of the head's output is not linear in the features.
        return site, None if module._forward_hooks else head, output  # noqa: SLF001
    seen = probe(module, batch)
    return choose_site(seen, feature_layer), seen.head, seen.output


def _executed(loaded: LoadedModel, execution: Execution, batch_size: int | None) -> LoadedModel:
    """The loaded model itself under an execution, or what of it is possible."""
    eager = replace(execution, compile="off")
    if eager != _PLAIN:
        try:
            loaded = _switched(loaded, loaded.module, eager)
        except ModelError as error:
            if not eager.channels_last:
                raise
            loaded = _switched(loaded, loaded.module, replace(eager, channels_last=False))
            structlog.get_logger().warning(
                "channels_last_impossible", reason=error.problem, running=str(loaded.execution)
            )
    if execution.compile == "off" or batch_size is None:
        return loaded
    return replace(loaded, execution=execution).compiled(batch_size)


def _switched(loaded: LoadedModel, module: nn.Module, execution: Execution) -> LoadedModel:
    """Convert a module with a model's weights, and see whether it runs."""
    require_precision(execution.precision, loaded.device)
    where = f"the model, a {type(unwrapped(module)).__name__}, in {execution}"
    head = None
    if reduced_type(execution) is not None:
        if loaded.input_dtype != torch.float32:
            raise ModelError(
                f"its weights are {loaded.input_dtype} already",
                where,
                "Set model.precision: float32, which leaves the model as it is",
            )
        head = None if loaded.head is None else head_parameters(module, loaded.head)
    height, width = input_size(loaded.preprocessing)
    try:
        convert(module, execution, loaded.head)
        switched = replace(loaded, module=module, execution=execution, float32_head=head)
        switched.forward(torch.zeros(TRIAL_IMAGES, 3, height, width, dtype=torch.uint8))
    except Exception as error:
        raise ModelError(
            f"the model fails ({described(error)})",
            where,
            "Set model.precision: float32 and model.channels_last: false, and calibrate anew",
        ) from error
    return switched


def adopt_module(
    module: nn.Module,
    preprocessing: PreprocessingSettings,
    class_names: tuple[str, ...],
    *,
    feature_site: FeatureSite,
    fingerprint: str,
    output: LogitsHook = AS_IT_IS,
    execution: Execution = _PLAIN,
) -> LoadedModel:
    """Make a model of a user's own module, which stays as it is, on its device.

    Of an execution it takes the precision, by autocast, and the memory format of its input.

    It is in evaluation mode; eager, or under ``torch.compile``. ``class_names`` are in order of its
    logits. ``feature_site`` is where the prior was read before. It is taken again where finding
    the map, or naming its module, leads there; otherwise what is found now is taken.
    ``fingerprint`` is that of the model as it was loaded from settings before, ``output`` what made
    logits of what it returned.

    Raises:
        ModelError: The module is in training mode, fails on its input, or returns something
            other than logits (N, classes); or its device does not have the precision.
        FeatureMapError: The pre-pooling map was not found.
    """
    refuse_training(module)
    tensors = chain(module.parameters(), module.buffers())
    device = next((tensor.device for tensor in tensors), torch.device("cpu"))
    require_precision(execution.precision, device)
    normalise = Normaliser(preprocessing, device, _input_dtype(module))
    where = f"the model, a {type(unwrapped(module)).__name__}"
    batch = trial_batch(normalise, preprocessing)
    path = ".".join(output.path) or None
    hook = logits_of(module, batch, path, output.kind, normalise=normalise, where=where)
    if hook is not None:
        module = _hooked_copy(module, hook, where)
    seen = probe(module, batch)
    require_logits(seen.output, images=len(batch), classes=len(class_names), where=where)
    return LoadedModel(
        module=module,
        device=device,
        preprocessing=preprocessing,
        normalise=normalise,
        class_names=class_names,
        fingerprint=fingerprint,
        feature_site=_site_again(seen, feature_site),
        head=seen.head,
        input_dtype=_input_dtype(module),
        output=output,
        execution=replace(execution, compile="off"),
        float32_head=(
            None
            if seen.head is None or reduced_type(execution) is None
            else head_parameters(module, seen.head)
        ),
    )


def _site_again(seen: Probe, before: FeatureSite) -> FeatureSite:
    with suppress(FeatureMapError):
        named = choose_site(seen, before.module)
        if named == before:
            return named
    return choose_site(seen, None)


def _input_dtype(module: nn.Module) -> torch.dtype:
    dtypes = (p.dtype for p in module.parameters() if p.is_floating_point())
    return next(dtypes, torch.float32)


def _hooked_copy(module: nn.Module, hook: LogitsHook, where: str) -> nn.Module:
    """A module of the same parts and tensors whose output is logits; the other stays as it is."""
    if is_compiled(module):
        raise ModelError(
            "the module is under torch.compile, and what it returns is not logits alone",
            where,
            "Give it as it is before torch.compile, or have it return the logits alone",
        )
    copied = copy.copy(module)
    hooks: OrderedDict[int, object] = OrderedDict(vars(module)["_forward_hooks"])
    vars(copied)["_forward_hooks"] = hooks
    copied.register_forward_hook(hook)
    return copied
