"""What a plain PyTorch script makes of the images. It shares no code with nap_stream."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file
from sklearn.metrics import roc_auc_score, roc_curve
from torchvision import transforms

from tests.support.cifar_models import densenet_bc100

Scores = NDArray[np.float64]
BATCH = 50


@dataclass(frozen=True, slots=True)
class Reading:
    """NAP, energy and predicted class of each image, arrays of shape (N,)."""

    nap: Scores
    energy: Scores
    class_id: NDArray[np.int64]


def read_plain(
    images: Sequence[bytes], weights: Path, mean: Sequence[float], std: Sequence[float]
) -> Reading:
    """Decode, resize and normalise as torchvision's users do on PIL images, and score.

    S_NAP = mean over channels of (max / (mean + 1))^2 of the map that enters global pooling
    (arXiv 2402.18162), here the ReLU of the last batch norm; energy = logsumexp of the logits.
    """
    prepare = transforms.Compose(
        [
            transforms.Resize(32, transforms.InterpolationMode.BILINEAR),
            transforms.CenterCrop(32),
            transforms.ToTensor(),
            transforms.Normalize(mean, std),
        ]
    )
    model = densenet_bc100()
    model.load_state_dict(load_file(weights))
    model.eval()
    maps: list[torch.Tensor] = []
    model.bn1.register_forward_hook(lambda _module, _inputs, output: maps.append(output.relu()))
    logits = []
    with torch.inference_mode():
        for start in range(0, len(images), BATCH):
            batch = images[start : start + BATCH]
            pixels = [prepare(Image.open(io.BytesIO(data)).convert("RGB")) for data in batch]
            logits.append(model(torch.stack(pixels)))
    everything, feature_map = torch.cat(logits), torch.cat(maps)
    ratio = feature_map.amax((2, 3)) / (feature_map.mean((2, 3)) + 1.0)
    return Reading(
        (ratio**2).mean(1).double().numpy(),
        torch.logsumexp(everything, 1).double().numpy(),
        everything.argmax(1).numpy(),
    )


def auroc(inside: Scores, outside: Scores) -> float:
    """Area under the ROC curve; in-distribution is positive, higher = in-distribution."""
    return float(roc_auc_score(_truth(inside, outside), np.concatenate([inside, outside])))


def fpr95(inside: Scores, outside: Scores) -> float:
    """False positive rate where 95 % of the in-distribution images are kept."""
    false, true, _ = roc_curve(
        _truth(inside, outside), np.concatenate([inside, outside]), drop_intermediate=False
    )
    return float(false[np.argmax(true >= 0.95)])


def _truth(inside: Scores, outside: Scores) -> NDArray[np.int64]:
    return np.repeat(np.array([1, 0]), [len(inside), len(outside)])
