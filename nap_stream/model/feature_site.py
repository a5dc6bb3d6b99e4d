"""Where a model's pre-pooling feature map passes."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class FeatureSite:
    """Where the pre-pooling feature map passes, in terms that survive JSON.

    ``module`` is a dotted name; for ``function_input`` that of the module whose forward pass
    calls ``function``, the model itself being the empty name. ``call`` counts from 0: the calls
    of the module, or all calls of the function on 4-D tensors, in one forward pass. ``shape``
    is (C, H, W).
    """

    kind: Literal["module_input", "module_output", "function_input"]
    module: str
    function: str | None
    call: int
    shape: tuple[int, int, int]

    def __str__(self) -> str:
        size = "x".join(str(side) for side in self.shape)
        if self.kind == "function_input":
            owner = f" in {self.module}" if self.module else ""
            return f"input of {self.function}(){owner}, call {self.call}, {size}"
        side = "input" if self.kind == "module_input" else "output"
        return f"{side} of {self.module}, call {self.call}, {size}"
