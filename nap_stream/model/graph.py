"""A forward pass as a graph of calls: its nodes, and names of functions by what they do."""

from dataclasses import dataclass, field

from nap_stream.model.facts import FeatureSite
from nap_stream.model.layout import Layout
from nap_stream.model.sites import LinearCall

ADAPTIVE_POOLINGS = frozenset(
    {"adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_max_pool1d", "adaptive_max_pool2d"}
)
ATTENTIONS = frozenset({"softmax", "scaled_dot_product_attention"})
ACTIVATIONS = frozenset(
    {"relu", "relu6", "silu", "gelu", "hardswish", "mish", "leaky_relu", "elu", "selu", "celu"}
    | {"prelu", "rrelu", "hardtanh", "sigmoid", "tanh", "hardsigmoid", "log_sigmoid", "softsign"}
    | {"softplus", "threshold", "softshrink", "hardshrink", "tanhshrink", "special_expit"}
)
REDUCTIONS = frozenset(
    {"mean", "sum", "amax", "max", "logsumexp", "nanmean", "norm", "std", "var", "median"}
)
PICKING = frozenset(
    {"getitem", "select", "narrow", "split", "chunk", "unbind", "tensor_split", "index_select"}
)


@dataclass(frozen=True, slots=True)
class Node:
    """One tensor of the pass, and the call that made it.

    ``name`` is the function's, plain; ``reads`` where its first argument, the node ``source``, is
    read. ``positional`` says that the tensor has positions of the image, ``learned`` that a
    weight has been applied, ``activated`` that an activation has, ``weighing`` that it holds the
    weights of an attention and no features. ``reduced`` are the axes
    that a reduction took. ``operands`` are how many of its arguments are tensors of more than one
    element. ``taken`` are the tokens that a picking call left, by their numbers in its source.
    """

    name: str
    reads: FeatureSite | None
    source: int | None
    parents: tuple[int, ...]
    shape: tuple[int, ...]
    layout: Layout | None
    positional: bool
    learned: bool
    activated: bool
    weighing: bool = False
    operands: int = 1
    reduced: frozenset[int] = frozenset()
    taken: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Attention:
    """A call of attention: of ``queries`` tokens over ``keys`` tokens, made at a node."""

    site: FeatureSite
    node: int
    queries: int
    keys: int


@dataclass(slots=True)
class Trace:
    """What one pass showed.

    ``end`` is the node of the logits, None where the way to them was lost. ``maps`` are the inputs
    and outputs of modules with the nodes of their tensors, in order. ``attentions`` are all calls
    of attention whose rows can be computed. ``linears`` are all calls of linear modules.
    """

    nodes: list[Node] = field(default_factory=list)
    end: int | None = None
    maps: list[tuple[FeatureSite, int]] = field(default_factory=list)
    attentions: list[Attention] = field(default_factory=list)
    linears: list[LinearCall] = field(default_factory=list)

    def upstream(self, node: int) -> set[int]:
        """All nodes that one depends on, and itself."""
        seen: set[int] = set()
        waiting = [node]
        while waiting:
            index = waiting.pop()
            if index not in seen:
                seen.add(index)
                waiting.extend(self.nodes[index].parents)
        return seen
