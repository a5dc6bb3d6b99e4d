"""The state of a drift monitor, for a checkpoint: a document, and exact arrays by name."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter
from safetensors.numpy import load as decode
from safetensors.numpy import save as encode

from nap_stream.core.alert_state import Firing
from nap_stream.core.panes import PANE_ARRAYS, PaneBuffer, PaneCounts
from nap_stream.drift.block_alerts import BlocksDocument
from nap_stream.drift.evidence import EvidenceState
from nap_stream.drift.records import FiringKey
from nap_stream.drift.unscored import UnscoredDocument, in_order
from nap_stream.records import STATUSES, Status

_DOCUMENT = "document"
_OPEN = "open."
_IMAGES = "images"


@dataclass(frozen=True, slots=True)
class StateDocument:
    """What a monitor knows, but for its arrays.

    ``identity`` is a digest of all that must be the same for a state to mean the same.
    ``partitions`` are (topic, number, end of what has been taken, watermark). ``open`` are the
    parts of open panes: (start of the pane, number of the partition, entries in the arrays, keys).
    ``untimely_records`` counts implausible timestamps. ``keys`` and ``keys_firing`` are null where
    keys have no monitors. ``statuses`` are the columns of the images of open panes; none of them
    and no ``unscored`` in a checkpoint from before images without scores were watched. ``blocks``
    are null unless they decide. The names are those of the checkpoint's format.
    """

    identity: str
    partitions: list[tuple[str, int, int | None, int | None]]
    closed_until_ms: int | None
    late_records: int
    untimely_records: int
    firing: Firing | None
    open: list[tuple[int, int, int, tuple[str, ...]]]
    evidence: EvidenceState
    keys: tuple[str, ...] | None = None
    keys_firing: list[FiringKey] | None = None
    statuses: tuple[Status, ...] = ()
    unscored: UnscoredDocument | None = None
    blocks: BlocksDocument | None = None


@dataclass(frozen=True, slots=True, eq=False)
class MonitorState:
    """A document, and exact arrays by name."""

    document: StateDocument
    arrays: Mapping[str, NDArray[Any]]


_DOCUMENTS = TypeAdapter(StateDocument)


def encode_state(state: MonitorState) -> bytes:
    """Write a state, exact to the bit, as a safetensors file; its document is an array too."""
    tree = _DOCUMENTS.dump_python(state.document, mode="json")
    if state.document.blocks is None:
        # As before there were blocks.
        del tree["blocks"]
    text = json.dumps(tree, separators=(",", ":")).encode()
    arrays = {**state.arrays, _DOCUMENT: np.frombuffer(text, dtype=np.uint8)}
    return encode({name: np.ascontiguousarray(array) for name, array in arrays.items()})


def decode_state(content: bytes, identity: str) -> MonitorState | None:
    """Read a state; None where it is of another identity. Nothing in it is executed.

    Raises:
        SafetensorError: It is no safetensors file.
        ValueError: Its document is none.
        KeyError: It lacks a part.
        TypeError: Its document is of another kind.
    """
    arrays = decode(content)
    tree = json.loads(arrays.pop(_DOCUMENT).tobytes())
    if tree["identity"] != identity:
        return None
    return MonitorState(_DOCUMENTS.validate_python(tree), arrays)


def arrays_of_open(buffer: PaneBuffer) -> dict[str, NDArray[Any]]:
    """Give what is in open panes as arrays: `open_parts` and `open_images` read them."""
    held = buffer.open_parts()
    arrays = {}
    for name in PANE_ARRAYS:
        parts = [getattr(counts, name) for _, _, counts in held]
        arrays[f"{_OPEN}{name}"] = np.concatenate(parts) if parts else np.zeros(0, np.int64)
    rows = [np.append(images, start_ms) for start_ms, images in buffer.open_images()]
    arrays[_IMAGES] = np.array(rows, dtype=np.int64).reshape(-1, len(STATUSES) + 1)
    return arrays


def open_parts(state: MonitorState) -> list[tuple[int, int, PaneCounts]]:
    """Give the parts of open panes, as (start of the pane, number of the partition, counts)."""
    parts, position = [], 0
    for start_ms, number, entries, keys in state.document.open:
        cut = slice(position, position + entries)
        columns = {name: state.arrays[f"{_OPEN}{name}"][cut] for name in PANE_ARRAYS}
        parts.append((start_ms, number, PaneCounts(**columns, keys=keys)))
        position += entries
    return parts


def open_images(state: MonitorState) -> list[tuple[int, NDArray[np.int64]]]:
    """Give the images of open panes, as (start of the pane, images by status)."""
    if not state.document.statuses:
        return []
    rows = state.arrays[_IMAGES]
    return in_order(rows[:, :-1], state.document.statuses, rows[:, -1])
