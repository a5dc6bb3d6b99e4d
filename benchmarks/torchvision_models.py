"""Where the prior and the head of every torchvision classifier are found, as a Markdown table.

Run: `python -m benchmarks.torchvision_models` for the last table of docs/models.md (needs 8 GB of
memory). Weights are random, since the places do not depend on them. Each model is run as it is
and under the captures: the script stops where the logits differ by a bit, or where the head's
weight times the features is not the logits.
"""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
import torchvision
from torch import nn
from torchvision import models

from nap_stream.errors import FeatureMapError
from nap_stream.model.facts import FeatureSite, HeadSite
from nap_stream.model.find import choose_site, probe
from nap_stream.model.forward import run_forward
from nap_stream.model.sites import head_parameters

CLASSES = 1000
_SIDE = 224
_INCEPTION_SIDE = 299
_INTRODUCTION = """\
## torchvision, model by model

Made by `python -m benchmarks.torchvision_models` with torch {torch} and torchvision {torchvision},
on two random images of the stated side in pixels. The logits were the same, bit for bit, with and
without the captures.

- *Prior*: `module_input` or `function_input`, the map that enters a pooling, or is flattened;
  `cls_attention`, the CLS token's attention in the last block.
- *Shape*: channels x height x width of the map; heads x 1 x patch tokens of the attention.
- *Head*: the `nn.Linear` whose output is the logits, and D, the width of the features that enter
  it. A model without one has the means of its map by channel as features.

| Model | Input | Prior | Where | Shape | Head | D |
|---|---|---|---|---|---|---|"""


@dataclass(frozen=True, slots=True)
class Found:
    """What was found in a model on an input of a side in pixels; the site or why not."""

    name: str
    side: int
    site: FeatureSite | None
    refusal: str
    head: HeadSite | None

    def row(self) -> str:
        """Give its row of the table."""
        head = (f"`{self.head.module}`", str(self.head.shape[1])) if self.head else ("none", "")
        if self.site is None:
            cells = ("refused", self.refusal, "")
        else:
            site = self.site
            where = f"`{site.module}`" if site.module else ""
            if site.function is not None and site.kind == "function_input":
                where = f"`{site.function}()`, call {site.call}"
            cells = (site.kind, where, "x".join(map(str, site.shape)))
        return f"| {' | '.join((self.name, str(self.side), *cells, *head))} |"


def classifiers() -> list[str]:
    """Names of all classifiers of torchvision."""
    return list(models.list_models(module=models))


@contextmanager
def _quick_weights() -> Iterator[None]:
    """Have models take their weights from one block of random numbers.

    To draw 600 million of them takes longer than to run the model.
    """
    block = torch.randn(1_000_003)  # a prime: no two rows of a weight are the same

    def fill(tensor: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        fan_in = tensor[0].numel() if tensor.ndim > 1 else tensor.numel()
        with torch.no_grad():
            for part in torch.split(tensor.view(-1), len(block)):
                torch.mul(block[: len(part)], (2 / fan_in) ** 0.5, out=part)
        return tensor

    drawn = [name for name in dir(nn.init) if name.endswith(("normal_", "uniform_"))]
    filled: dict[str, Any] = dict.fromkeys(drawn, fill)
    with patch.multiple(nn.init, **filled):
        yield


def find(name: str, side: int | None = None) -> Found:
    """Build a classifier with random weights, and find its prior and its head.

    Args:
        name: One of `classifiers`.
        side: Of the images, in pixels; what the classifier was made for by default.

    Raises:
        ArithmeticError: The captures change the logits, or the features do not give them.
    """
    torch.manual_seed(0)
    side = side or (_INCEPTION_SIDE if name == "inception_v3" else _SIDE)
    options: dict[str, Any] = {}
    if name in {"googlenet", "inception_v3"}:
        options["init_weights"] = False
    elif name.startswith("vit"):
        options["image_size"] = side
    with _quick_weights():
        model = models.get_model(name, num_classes=CLASSES, **options).eval()
    pixels = torch.randn(2, 3, side, side)
    seen = probe(model, pixels)
    try:
        site = choose_site(seen, None)
    except FeatureMapError as error:
        return Found(name, side, None, error.problem, seen.head)
    with torch.inference_mode():
        plain = model(pixels)
    forward = run_forward(model, site, seen.head, pixels, classes=CLASSES)
    if not torch.equal(forward.logits, plain) or not forward.nap.isfinite().all():
        raise ArithmeticError(f"{name}: the captures change the logits, or NAP is not finite")
    if seen.head is not None and forward.features is not None:
        weight, bias = head_parameters(model, seen.head)
        again = torch.nn.functional.linear(forward.features, weight, bias)
        if (again - plain).abs().max() > 1e-4 * plain.abs().max():
            raise ArithmeticError(f"{name}: the head's weight times the features is not the logits")
    return Found(name, side, site, "", seen.head)


def rows() -> Iterator[str]:
    """Give the rows of all classifiers, one model in memory at a time."""
    for name in classifiers():
        yield find(name).row()
        gc.collect()


def main() -> None:

    print(_INTRODUCTION.format(torch=torch.__version__, torchvision=torchvision.__version__))
    for row in rows():
        print(row, flush=True)
        print(row, file=sys.stderr)


if __name__ == "__main__":
    main()
