"""The settings of a model that runs elsewhere: messages hold its outputs."""

from typing import Self

from pydantic import Field, field_validator, model_validator

from nap_stream.settings.values import ExistingPath, Section


class ElsewhereSettings(Section):
    """A model that runs elsewhere, as in Triton, KServe or TensorRT. docs/outputs.md has more."""

    name: str = Field(min_length=1, max_length=300)
    """Its name and version there. A calibration is for this name: give each version another."""
    head: ExistingPath | None = None
    """A .safetensors or torch file with its last linear layer, which the scores react, ash, scale,
    dice, fdbd and nci take."""
    head_layer: str = ""
    """The layer's dotted name in that file, as fc. Empty where the file holds weight and bias."""
    calibrated_on_images: bool = False
    """Take a calibration that this program made from images, with the same model loaded here. That
    it is the same, with the same preprocessing, cannot be checked."""

    @field_validator("name")
    @classmethod
    def _is_a_name(cls, value: str) -> str:
        if not value.strip():
            raise ValueError("it is blank: give the model's name and version")
        return value

    @model_validator(mode="after")
    def _a_layer_of_a_file(self) -> Self:
        if self.head_layer and self.head is None:
            raise ValueError("head_layer names a layer in the file head, and there is none")
        return self
