"""Models and images for lanes."""

import numpy as np
import torch

from nap_stream.core.base_scores import BaseScores, fit_scores
from nap_stream.core.score_specs import BaseScore, ScoreParameters
from nap_stream.model.load import LoadedModel, load_model
from tests.support.pixel_batches import images
from tests.support.small_models import SIZE
from tests.support.small_settings import small_settings

PARAMETERS = ScoreParameters(knn_k=3, knn_bank_size=10)


def model_on(device: torch.device, network: str = "SmallNet") -> LoadedModel:
    """One of the small networks."""
    return load_model(small_settings(kwargs={"name": network}), device)


def every_base_score(loaded: LoadedModel) -> BaseScores:
    """All base scores, fitted on noise."""
    features = loaded.forward(images(20, (SIZE, SIZE))).features
    assert features is not None
    fits = fit_scores(list(BaseScore), features.cpu().numpy(), PARAMETERS)
    head = loaded.linear_head()
    return BaseScores(list(BaseScore), PARAMETERS, head, fits, loaded.device, centred=True)


def decoded(count: int, size: tuple[int, int] = (SIZE, SIZE)) -> list[torch.Tensor]:
    """Images as decoders give them, uint8 (3, H, W), interleaved but for every third."""
    pixels = np.random.default_rng(7).integers(0, 256, (count, *size, 3), np.uint8)
    found = [torch.from_numpy(image).permute(2, 0, 1) for image in pixels]
    return [image.contiguous() if number % 3 == 2 else image for number, image in enumerate(found)]
