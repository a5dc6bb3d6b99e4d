"""What a calibration holds of its model, in terms that survive JSON. Nothing here loads torch.

Where the prior and the head are in a forward pass, what its output is, and how it is computed.
"""

from dataclasses import dataclass, field, replace
from typing import Any, Literal

from nap_stream.settings.schema import CompileMode, OutputKind, Precision

AGREEMENT = 0.995
"""Share of the sample for which the predicted class must be that of plain float32."""


@dataclass(frozen=True, slots=True)
class FunctionCall:
    """One call of a torch function during a forward pass.

    ``call`` counts from 0 the calls of ``function`` whose first argument has as many dimensions
    as this one's.
    """

    function: str
    call: int


@dataclass(frozen=True, slots=True)
class MapLayout:
    """How a map lies in its tensor. The default is (N, C, H, W), one row an image.

    The tensor has so many ``dimensions``; ``channels`` and ``images`` are the axes of these, and
    all others hold positions. The first ``skip`` positions are learned tokens and no part of the
    image (CLS, registers). Of each image there are ``tiles`` rows, side by side, or, where
    ``tiles_first``, those of all images for one tile after another. Their positions are read as
    one map's.
    """

    dimensions: int = 4
    channels: int = 1
    images: int = 0
    skip: int = 0
    tiles: int = 1
    tiles_first: bool = False


@dataclass(frozen=True, slots=True)
class TokenRows:
    """Which tokens an attention prior is of: the rows ``queries``, and patch tokens from ``first``.

    The default is the first token as CLS, and all others as patches.
    """

    queries: tuple[int, ...] = (0,)
    first: int = 1


@dataclass(frozen=True, slots=True)
class FeatureSite:
    """Where the prior is read in a forward pass, in terms that survive JSON.

    ``kind`` says what is read: the map that enters or leaves a module, the map that enters a
    function, or, for ``cls_attention``, the CLS token's attention weights in an
    ``nn.MultiheadAttention``, or, where there is a ``function``, in a call of that
    (``softmax`` or ``scaled_dot_product_attention``); ``elsewhere`` is a map that is sent, H and W
    0 where only its channels' maxima and means are. ``module`` is a dotted name; for a function
    that of the module whose forward pass calls it, the model itself being the empty name. ``call``
    counts from 0: the calls of the module, or all calls of the function on tensors of as many
    dimensions, in one forward pass. ``shape`` is (C, H, W), (C, 1, positions) where these do not
    make a rectangle, for attention (heads, 1, patch tokens).

    ``layout`` says how a map lies, ``tokens`` whose attention is read. ``also`` are other maps
    that reach the logits beside this one: NAP is over the channels of all.

    ``traced`` is the function that takes the map first: how it is read in a compiled module,
    where hooks are not called. It follows from the rest, and so takes no part in equality.
    """

    kind: Literal["module_input", "module_output", "function_input", "cls_attention", "elsewhere"]
    module: str
    function: str | None
    call: int
    shape: tuple[int, int, int]
    traced: FunctionCall | None = field(default=None, compare=False)
    layout: MapLayout = MapLayout()
    tokens: TokenRows = TokenRows()
    also: tuple["FeatureSite", ...] = ()

    def __str__(self) -> str:
        return " and ".join(part.described() for part in self.parts)

    def described(self) -> str:
        """The place for people, without the other maps."""
        size = "x".join(str(side) for side in self.shape)
        if self.kind == "elsewhere":
            maxima = f"maxima and means of {self.shape[0]} channels"
            return f"sent with the logits, {size if self.positions else maxima}"
        if self.kind == "cls_attention":
            place = f"{self.function}() in {self.module}" if self.function else self.module
            return f"CLS attention of {place}, call {self.call}, {size}"
        if self.kind == "function_input":
            owner = f" in {self.module}" if self.module else ""
            return f"input of {self.function}(){owner}, call {self.call}, {size}{self._laid_out()}"
        side = "input" if self.kind == "module_input" else "output"
        return f"{side} of {self.module}, call {self.call}, {size}{self._laid_out()}"

    def _laid_out(self) -> str:
        layout = self.layout
        words = {(4, 1): "", (4, 3): "channels last"}
        found = [words.get((layout.dimensions, layout.channels), "tokens")]
        found += [f"{layout.tiles} rows an image"] if layout.tiles > 1 else []
        said = ", ".join(word for word in found if word)
        return f" ({said})" if said else ""

    @property
    def parts(self) -> tuple["FeatureSite", ...]:
        """All places that are read, this one first."""
        return (replace(self, also=()), *self.also) if self.also else (self,)

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


@dataclass(frozen=True, slots=True)
class LogitsHook:
    """A forward hook that makes a module return logits (N, K).

    ``path`` is where the model's numbers stand in what it returns, empty for the whole of it;
    ``kind`` is what they are.
    """

    path: tuple[str, ...]
    kind: OutputKind | None

    def __call__(self, _module: Any, _args: tuple[Any, ...], output: Any) -> Any:
        """Return the logits; what is no matrix of numbers as it is."""
        from nap_stream.model.output import as_logits, picked  # noqa: PLC0415  it loads torch

        return as_logits(picked(output, self.path), self.kind)


AS_IT_IS = LogitsHook((), None)
"""Of a model that returns logits alone."""


@dataclass(frozen=True, slots=True)
class Execution:
    """How a model's forward pass is computed. The default is plain float32.

    ``precision`` is that of convolutions and matrix products: ``bfloat16`` and ``float16`` by
    ``torch.autocast``, ``tf32`` float32 with CUDA's TF32 kernels, which ``float32`` switches off.
    It is ``unknown`` of a model that runs elsewhere. ``channels_last`` is the memory format of
    weights and images. ``compile`` is a mode of ``torch.compile``, or ``off``.
    """

    precision: Precision | Literal["unknown"] = "float32"
    channels_last: bool = False
    compile: CompileMode = "off"

    def __str__(self) -> str:
        if self.precision == "unknown":
            return "a precision that is not known here"
        compiled = "" if self.compile == "off" else f", compiled ({self.compile})"
        return f"{self.precision}, {self.memory_format}{compiled}"

    @property
    def memory_format(self) -> str:
        """For people: ``channels_last`` or ``contiguous``."""
        return "channels_last" if self.channels_last else "contiguous"


UNKNOWN = Execution("unknown")
"""How a model computes that runs elsewhere."""


@dataclass(frozen=True, slots=True)
class MeasuredExecution:
    """What was measured of one execution.

    ``images_per_s`` is of the forward pass alone, ``agreement`` the share of the sample with the
    same predicted class as in plain float32, ``p_value_change`` the largest change of a p-value
    from there. Null where ``problem`` says why there is nothing.
    """

    execution: Execution
    images_per_s: float | None = None
    agreement: float | None = None
    p_value_change: float | None = None
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Speeds:
    """The executions that were measured, plain float32 first.

    On ``images`` calibration images in batches of ``batch_size``, on the ``device`` of that name,
    with so many threads of torch on the CPU.
    """

    device: str
    images: int
    batch_size: int
    torch_threads: int
    rows: tuple[MeasuredExecution, ...]

    def warnings(self, chosen: Execution) -> tuple[str, ...]:
        """What people are to be warned of, of the execution that was chosen."""
        found = [
            f"the model runs without torch.compile, which is configured: {row.problem}"
            for row in self.rows
            if row.problem and row.execution.compile != "off"
        ]
        agreement = next((row.agreement for row in self.rows if row.execution == chosen), None)
        if agreement is not None and agreement < AGREEMENT:
            found.append(
                f"in {chosen}, which is configured, the predicted class is that of float32 for "
                f"{agreement:.1%} of {self.images} images only; model.precision: auto asks for "
                f"{AGREEMENT:.1%}"
            )
        return tuple(found)

    def has_failed(self, execution: Execution) -> bool:
        """Whether an execution was tried and could not be taken."""
        return any(row.problem and row.execution == execution for row in self.rows)
