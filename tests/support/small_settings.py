"""Settings of the small networks."""

from typing import Any

import torch

from nap_stream.model.load import LoadedModel, load_model
from nap_stream.settings.schema import ModelSettings, PreprocessingSettings
from tests.support.small_models import SIZE

CPU = torch.device("cpu")
PREPROCESSING = PreprocessingSettings(resize=SIZE, crop=SIZE)
PLAIN: dict[str, Any] = {"precision": "float32", "channels_last": False}
"""Of a model of which `calibrate` has nothing to measure: quick, and the same each time."""


def small_settings(name: str = "by_name", **changes: Any) -> ModelSettings:
    """Settings of a factory of `tests.support.small_models`; ``SmallNet`` if it is `by_name`."""
    kwargs = {"name": "SmallNet"} if name == "by_name" else {}
    return ModelSettings(
        factory=f"tests.support.small_models:{name}",
        **({"kwargs": kwargs, "preprocessing": PREPROCESSING} | PLAIN | changes),
    )


def load_small(network: str, **changes: Any) -> LoadedModel:
    """Load one of the small networks."""
    return load_model(small_settings(kwargs={"name": network}, **changes), CPU)
