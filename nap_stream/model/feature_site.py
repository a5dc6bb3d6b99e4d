"""Where a model's Neural Activation Prior and its penultimate features are read."""

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, slots=True)
class FunctionCall:
    """One call of a torch function during a forward pass.

    ``call`` counts from 0 the calls of ``function`` whose first argument has as many dimensions
    as this one's.
    """

    function: str
    call: int


@dataclass(frozen=True, slots=True)
class FeatureSite:
    """Where the prior is read in a forward pass, in terms that survive JSON.

    ``kind`` says what is read: the map (N, C, H, W) that enters or leaves a module, the map that
    enters a function, or, for ``cls_attention``, the CLS token's attention weights in an
    ``nn.MultiheadAttention``. ``module`` is a dotted name; for ``function_input`` that of the
    module whose forward pass calls ``function``, the model itself being the empty name. ``call``
    counts from 0: the calls of the module, or all calls of the function on 4-D tensors, in one
    forward pass. ``shape`` is (C, H, W), for attention (heads, 1, patch tokens).

    ``traced`` is the function that takes the map first: how it is read in a compiled module,
    where hooks are not called. It follows from the rest, and so takes no part in equality.
    """

    kind: Literal["module_input", "module_output", "function_input", "cls_attention"]
    module: str
    function: str | None
    call: int
    shape: tuple[int, int, int]
    traced: FunctionCall | None = field(default=None, compare=False)

    def __str__(self) -> str:
        size = "x".join(str(side) for side in self.shape)
        if self.kind == "function_input":
            owner = f" in {self.module}" if self.module else ""
            return f"input of {self.function}(){owner}, call {self.call}, {size}"
        if self.kind == "cls_attention":
            return f"CLS attention of {self.module}, call {self.call}, {size}"
        side = "input" if self.kind == "module_input" else "output"
        return f"{side} of {self.module}, call {self.call}, {size}"

    @property
    def positions(self) -> int:
        """H * W, or the number of patch tokens."""
        return self.shape[1] * self.shape[2]


@dataclass(frozen=True, slots=True)
class HeadSite:
    """The ``nn.Linear`` whose output is the model's output.

    ``module`` is its dotted name, empty where it is the model itself; ``shape`` is
    (classes, D) of its weight. ``call`` counts its own calls in a forward pass from 0,
    ``traced_call`` all calls of ``linear`` on 2-D tensors.
    """

    module: str
    shape: tuple[int, int]
    call: int = 0
    traced_call: int = 0
