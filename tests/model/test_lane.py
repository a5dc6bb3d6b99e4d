import weakref
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import pytest
import structlog
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from nap_stream.errors import DeviceMemoryError
from nap_stream.model.forward import BatchScores
from nap_stream.model.lane import CpuTransport, Image, Lane, open_lane, share_memory
from nap_stream.model.load import OnePassScorer
from nap_stream.records import EncodedJpeg, Origin, TopicPartition
from tests.support.lanes import decoded, every_base_score, model_on
from tests.support.small_models import SIZE

NETWORKS = ["SmallNet", "ClsNet", "InPlaceNet"]


def plainly_scored(scorer: OnePassScorer, pixels: Sequence[torch.Tensor], size: int) -> BatchScores:
    """Batches stacked anew, one after the other: what a lane must give."""
    parts = [
        scorer(torch.stack([image.contiguous() for image in pixels[start : start + size]]))
        for start in range(0, len(pixels), size)
    ]
    return BatchScores.join(parts)


def assert_equal(found: BatchScores, expected: BatchScores, tolerance: float = 0.0) -> None:
    assert found.class_id.tolist() == expected.class_id.tolist()
    assert list(found.values) == list(expected.values)
    for name, column in expected.values.items():
        np.testing.assert_allclose(found.values[name], column, rtol=tolerance, err_msg=name)


@pytest.mark.parametrize("network", NETWORKS)
def test_scores_are_those_of_the_plain_path_in_order(device: torch.device, network: str) -> None:
    loaded = model_on(device, network)
    base_scores = every_base_score(loaded)
    pixels = decoded(11)

    found = open_lane(loaded, base_scores, batch_size=4)(pixels)

    assert len(found.class_id) == 11
    # Memory formats differ, and with them the order of sums.
    assert_equal(found, plainly_scored(OnePassScorer(loaded, base_scores), pixels, 4), 1e-5)


def test_a_lane_gives_the_same_again_and_again(device: torch.device) -> None:
    loaded = model_on(device)
    lane = open_lane(loaded, every_base_score(loaded), batch_size=4)
    first, second = decoded(9)[:4], decoded(9)[4:]

    before = lane(first)
    lane(second)

    assert_equal(lane(first), before)


class Recording(CpuTransport):
    """A stand-in for a GPU's transport: a copy happens when it is waited for, or when it is used.

    Until then it reads the buffer, as an asynchronous copy does.
    """

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.buffers: list[torch.Tensor] = []
        self._pending: list[tuple[torch.Tensor, torch.Tensor]] = []

    def buffer(self, shape: tuple[int, ...]) -> torch.Tensor:
        self.buffers.append(torch.empty(shape, dtype=torch.uint8))
        return self.buffers[-1]

    def active(self) -> AbstractContextManager[Any]:
        return nullcontext()

    def to_device(self, staged: torch.Tensor) -> torch.Tensor:
        self.calls.append(f"copy {len(staged)}")
        copied = torch.zeros_like(staged)
        self._pending.append((staged, copied))
        return copied

    def wait_for_copy(self) -> None:
        self.calls.append("wait")
        self.arrive()

    def wait_for_all(self) -> None:
        self.calls.append("all")
        self.arrive()

    def free_cache(self) -> None:
        self.calls.append("free")

    def arrive(self) -> None:
        for staged, copied in self._pending:
            copied.copy_(staged)
        self._pending.clear()


class Brightness:
    """A stand-in for the model, of which ``most`` images fit; its score is an image's mean."""

    def __init__(self, transport: Recording | CpuTransport, most: int = 1_000) -> None:
        self.transport, self.most = transport, most
        self.sizes: list[int] = []
        self.kept: list[torch.Tensor] = []

    def __call__(self, batch: torch.Tensor) -> BatchScores:
        self.sizes.append(len(batch))
        if len(batch) > self.most:
            self.kept.append(batch)
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nMore words")
        if isinstance(self.transport, Recording):
            self.transport.arrive()
        mean = batch.float().mean(dim=(1, 2, 3)).numpy()
        return BatchScores(mean.astype(np.int64), {"nap": mean})


def numbered(count: int) -> list[torch.Tensor]:
    """Image i has the value i everywhere."""
    return [torch.full((3, SIZE, SIZE), number, dtype=torch.uint8) for number in range(count)]


def lane_of(model: Brightness, batch_size: int, **changes: Any) -> Lane:
    return Lane(model, model.transport, batch_size=batch_size, size=(SIZE, SIZE), **changes)


def test_one_buffer_is_made_and_used_for_all_batches() -> None:
    transport = Recording()
    lane = lane_of(Brightness(transport), 4)

    scores = [lane(numbered(count)).class_id.tolist() for count in (9, 2, 4)]

    assert scores == [list(range(9)), [0, 1], [0, 1, 2, 3]]
    assert [buffer.shape for buffer in transport.buffers] == [(4, SIZE, SIZE, 3)]


def test_the_buffer_is_not_written_to_while_it_is_copied_from() -> None:
    transport = Recording()
    model = Brightness(transport, most=2)

    assert lane_of(model, 4)(numbered(4)).class_id.tolist() == [0, 1, 2, 3]

    # The copy of the batch that failed still ran when the next one was to be staged.
    assert transport.calls[:5] == ["wait", "copy 4", "free", "wait", "copy 2"]
    assert model.kept[0].float().mean(dim=(1, 2, 3)).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("most", "sizes", "warnings"),
    [
        (8, [8, 8, 3], 0),
        (7, [8, 4, 4, 4, 4, 3], 1),
        (3, [8, 4, *[2] * 9, 1], 2),
        (1, [8, 4, 2, *[1] * 19], 3),
    ],
)
def test_batches_that_do_not_fit_are_halved_for_good(
    most: int, sizes: list[int], warnings: int
) -> None:
    model = Brightness(Recording(), most)
    noted: list[int] = []
    lane = lane_of(model, 8, note_out_of_memory=lambda: noted.append(1))

    with structlog.testing.capture_logs() as logs:
        assert lane(numbered(19)).class_id.tolist() == list(range(19))
        assert model.sizes == sizes
        model.sizes.clear()
        # The smaller size is kept.
        assert lane(numbered(19)).class_id.tolist() == list(range(19))

    assert max(model.sizes) <= most
    assert len(noted) == warnings
    assert [log["event"] for log in logs] == ["out_of_memory"] * warnings
    assert all(log["reason"].partition(". ")[2] == "Tried to allocate 2 GiB" for log in logs)


def test_a_rest_that_does_not_fit_is_halved_from_its_own_size() -> None:
    model = Brightness(Recording(), 2)
    assert lane_of(model, 8)(numbered(3)).class_id.tolist() == [0, 1, 2]
    assert model.sizes == [3, 1, 1, 1]


def test_one_image_that_does_not_fit_says_what_to_do() -> None:
    noted: list[int] = []
    lane = lane_of(Brightness(Recording(), 0), 2, note_out_of_memory=lambda: noted.append(1))
    with pytest.raises(DeviceMemoryError, match="one image does not fit") as caught:
        lane(numbered(2))
    assert "model.preprocessing.crop" in caught.value.action
    assert "worker.batches_in_flight: 1" in caught.value.action
    assert len(noted) == 2


def test_a_compiled_model_keeps_its_size() -> None:
    model = Brightness(Recording(), 2)
    with pytest.raises(DeviceMemoryError, match="a batch of 4 images") as caught:
        lane_of(model, 4, halves=False)(numbered(4))
    assert "worker.batch_size" in caught.value.action
    assert model.sizes == [4]


class Activations:
    """What a forward pass holds on the device."""


def test_the_memory_of_a_batch_that_failed_is_free_before_the_next_try() -> None:
    held: weakref.WeakSet[Activations] = weakref.WeakSet()
    seen: list[int] = []

    class Watched(Recording):
        def free_cache(self) -> None:
            seen.append(len(held))

    class Hungry(Brightness):
        def __call__(self, batch: torch.Tensor) -> BatchScores:
            activations = Activations()
            held.add(activations)
            return super().__call__(batch)

    assert len(lane_of(Hungry(Watched(), 2), 8)(numbered(8)).class_id) == 8
    assert seen == [0, 0]


class Synchronising(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the operators that read a tensor's values to go on, for which a device is waited."""

    NAMES = frozenset(
        {"_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "unique"}
    )

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: list[str] = []
        self.operators = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        del types
        self.operators += 1
        name = func.overloadpacket.__name__
        reads_mask = name in {"index", "index_put"} and any(
            part is not None and part.dtype in {torch.bool, torch.uint8} for part in args[1]
        )
        if name in self.NAMES or reads_mask:
            self.found.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("network", NETWORKS)
def test_nothing_on_the_way_to_the_scores_reads_a_value(network: str) -> None:
    loaded = model_on(torch.device("cpu"), network)
    lane = open_lane(loaded, every_base_score(loaded), batch_size=4)
    with Synchronising() as seen:
        lane(decoded(4))
    assert seen.operators > 20
    assert seen.found == []


def test_the_watch_for_reads_sees_them() -> None:
    with Synchronising() as seen:
        values = torch.arange(3)
        assert values[values > 1].sum().item() == 2
    assert seen.found == ["index", "_local_scalar_dense"]


@pytest.mark.parametrize(
    ("num_gpus", "name", "limits"),
    [(0.25, "cuda", [0.25]), (1, "cuda", []), (2, "cuda", []), (0, "cpu", [])],
)
def test_a_fraction_of_a_gpu_is_a_fraction_of_its_memory(
    num_gpus: float, name: str, limits: list[float]
) -> None:
    found: list[float] = []
    share_memory(num_gpus, torch.device(name), found.append)
    assert found == limits


ORIGIN = Origin(TopicPartition("images", 0), 0, 0, None, 0, 0)


class InOrder(Recording):
    """Copies at once, as seen by what is queued behind."""

    def to_device(self, staged: torch.Tensor) -> torch.Tensor:
        copied = super().to_device(staged)
        self.arrive()
        return copied


def a_jpeg(name: bytes) -> EncodedJpeg:
    return EncodedJpeg(name, ORIGIN, "0" * 64, SIZE, SIZE)


def test_jpegs_are_decoded_in_their_batch_and_keep_their_places() -> None:
    transport = InOrder()
    asked: list[Sequence[bytes]] = []

    def decode(jpegs: Sequence[bytes]) -> list[torch.Tensor | None]:
        transport.calls.append("decode")
        asked.append(jpegs)
        values = [None if name == b"bad" else int(name) for name in jpegs]
        return [None if each is None else numbered(200)[each] for each in values]

    lane = lane_of(Brightness(transport), 4, decode_jpegs=decode)
    images: list[Image] = [
        a_jpeg(b"100"),
        *numbered(2),
        a_jpeg(b"101"),
        a_jpeg(b"102"),
        a_jpeg(b"bad"),
    ]

    found = lane(images, lambda jpeg: numbered(31)[-1] if jpeg.data == b"bad" else None)

    assert found.class_id.tolist() == [100, 0, 1, 101, 102, 30]
    assert asked == [[b"100", b"101"], [b"102", b"bad"]]
    # nvJPEG writes at once into what is free: nothing may be under way.
    assert transport.calls == ["all", "decode", "wait", "copy 4", "all", "decode", "wait", "copy 2"]


def test_a_jpeg_that_nothing_decodes_is_a_black_image() -> None:
    lane = lane_of(Brightness(Recording()), 4, decode_jpegs=lambda jpegs: [None] * len(jpegs))
    assert lane([numbered(9)[-1], a_jpeg(b"bad")], lambda _: None).class_id.tolist() == [8, 0]


def test_jpegs_that_do_not_fit_decoded_are_halved() -> None:
    sizes: list[int] = []

    def decode(jpegs: Sequence[bytes]) -> list[torch.Tensor | None]:
        sizes.append(len(jpegs))
        if len(jpegs) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return [numbered(200)[int(name)] for name in jpegs]

    lane = lane_of(Brightness(InOrder()), 4, decode_jpegs=decode)
    assert lane([a_jpeg(b"7"), a_jpeg(b"8"), a_jpeg(b"9")]).class_id.tolist() == [7, 8, 9]
    assert sizes == [3, 1, 1, 1]
