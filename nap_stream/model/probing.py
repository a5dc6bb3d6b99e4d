"""One probing forward pass: what pools, flattens and attends where, and which head ends it."""

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from nap_stream.model.cls_token import cls_alone_decides
from nap_stream.model.compiled import plain_name, run_eagerly, unwrapped
from nap_stream.model.feature_site import FeatureSite, HeadSite
from nap_stream.model.head import find_head
from nap_stream.model.recorder import Recorder


@dataclass(frozen=True, slots=True)
class Probe:
    """What one forward pass showed.

    ``end`` is where the last map goes into a global pooling, or is flattened into a linear
    function, with no other map of more than one position after it; None where there is no such
    place. ``poolings`` are the inputs of all global poolings in order. ``maps`` are the inputs
    and outputs of modules that are maps of more than one position, in order. ``attentions`` are
    the self-attentions whose CLS row can be read; ``cls_alone_decides`` says that of the last
    one's output the first token alone reaches the model's output. ``head`` is the linear module
    whose output is the model's.
    """

    output: Any
    end: FeatureSite | None
    poolings: tuple[FeatureSite, ...]
    maps: tuple[FeatureSite, ...]
    attentions: tuple[FeatureSite, ...]
    cls_alone_decides: bool
    head: HeadSite | None
    modules: tuple[str, ...]


def probe(model: nn.Module, batch: torch.Tensor) -> Probe:
    """Run the model on a batch (N, 3, H, W) and note its pooling calls, maps and head.

    A compiled model is run without compilation. Where there is attention and no last map, three
    more passes tell whether the CLS token alone decides.
    """
    plain = unwrapped(model)
    names = {module: plain_name(name) for name, module in plain.named_modules()}
    recorder = Recorder(names)
    with torch.inference_mode(), run_eagerly(model):
        with ExitStack() as hooks, recorder:
            for module in names:
                for handle in (
                    module.register_forward_pre_hook(recorder.entered, with_kwargs=True),
                    module.register_forward_hook(recorder.left),
                ):
                    hooks.callback(handle.remove)
            output = plain(batch)
        attentions = tuple(recorder.attentions)
        head = find_head(recorder.linears, output)
        is_asked = recorder.end is None and bool(attentions)
        return Probe(
            output=output,
            end=recorder.end,
            poolings=tuple(recorder.poolings),
            maps=tuple(recorder.maps),
            attentions=attentions,
            cls_alone_decides=is_asked and cls_alone_decides(plain, attentions[-1], head, batch),
            head=head,
            modules=tuple(name for name in names.values() if name),
        )
