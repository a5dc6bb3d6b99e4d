"""Choosing where the prior is read, from what a probing forward pass showed. Never a guess."""

from difflib import get_close_matches

from nap_stream.errors import FeatureMapError
from nap_stream.model.feature_site import FeatureSite
from nap_stream.model.probing import Probe

_LISTED_CANDIDATES = 8
_ADVICE = "Name a module in model.feature_layer"


def choose_site(seen: Probe, feature_layer: str | None) -> FeatureSite:
    """Choose where the Neural Activation Prior is read, or take what the user names.

    The choice is the map that enters the last global pooling; without one, the last map that is
    flattened into a linear module (VGG, AlexNet; arXiv 1409.1556); without one, the last block's
    CLS attention, if the CLS token alone reaches the output (ViT; arXiv 2010.11929).

    Args:
        seen: What the probing pass showed.
        feature_layer: A module's dotted name: its output is the map, or its input where it
            pools, so that its output has no positions left. Of an ``nn.MultiheadAttention`` its
            CLS attention is read.

    Raises:
        FeatureMapError: There is no such place; lists the candidates with their shapes.
    """
    if feature_layer is not None:
        return _named(seen, feature_layer)
    if seen.end is not None and seen.end.positions > 1:
        return seen.end
    last = seen.end or (seen.poolings[-1] if seen.poolings else None)
    if last is not None and last.positions == 1:
        raise FeatureMapError(
            f"the last map before the classifier has one position only ({last}): "
            "its maximum is its mean",
            "model.preprocessing.crop",
            "Use a larger input",
        )
    if seen.cls_alone_decides:
        return seen.attentions[-1]
    raise FeatureMapError(f"{_problem(seen)}; {_candidates(seen)}", "model.feature_layer", _ADVICE)


def _problem(seen: Probe) -> str:
    maps = [site for site in seen.poolings if site.positions > 1]
    if maps:
        return f"the last global pooling ({maps[-1]}) is not the end of the feature maps"
    if seen.attentions:
        return (
            f"more than the first token of the last self-attention ({seen.attentions[-1]}) reaches "
            "the output, so that there is no CLS token"
        )
    return (
        "the model has no global average or maximum pooling over a 4-D map, flattens no map of a "
        "convolution into a linear function, and has no self-attention that can be read"
    )


def _named(seen: Probe, layer: str) -> FeatureSite:
    where = f"model.feature_layer = {layer!r}"
    if layer not in seen.modules:
        close = get_close_matches(layer, seen.modules, n=3)
        hint = f"; did you mean {' or '.join(close)}?" if close else ""
        raise FeatureMapError(f"the model has no module of this name{hint}", where, _ADVICE)
    own = [site for site in (*seen.attentions, *seen.maps) if site.module == layer]
    outputs = [site for site in own if site.kind == "module_output"]
    if not own:
        raise FeatureMapError(
            f"neither the output nor the input of this module is a floating-point map (N, C, H, W) "
            f"with more than one position; {_candidates(seen)}",
            where,
            _ADVICE,
        )
    return (outputs or own)[-1]


def _candidates(seen: Probe) -> str:
    outputs = [site for site in seen.maps if site.kind == "module_output"]
    if not outputs:
        return "no module was seen to yield such a map"
    listed = ", ".join(
        f"{site.module} ({'x'.join(map(str, site.shape))})"
        for site in outputs[-_LISTED_CANDIDATES:]
    )
    return f"the last maps are the outputs of: {listed}"
