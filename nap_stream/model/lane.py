"""From images of the model's input size to their scores, on a device, batch by batch.

A lane stages its batches in pinned memory, and copies and scores them in a CUDA stream of its own:
of two lanes in two threads, one copies while the other computes. Nothing waits for the device but
what brings a batch's scores to the CPU. On a CPU the same lane has plain memory and no stream.

`CudaTransport` has not been run on a GPU: there was none.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import structlog
import torch

from nap_stream.core.base_scores import BaseScores
from nap_stream.errors import DeviceMemoryError
from nap_stream.model.device_decode import device_decoder
from nap_stream.model.forward import BatchScores
from nap_stream.model.load import LoadedModel, OnePassScorer
from nap_stream.model.preprocessing import input_size
from nap_stream.records import EncodedJpeg

Image = torch.Tensor | EncodedJpeg
"""uint8 (3, H, W) of the model's input size, or a JPEG of any."""
OnCpu = Callable[[EncodedJpeg], torch.Tensor | None]
"""Decodes on the CPU what the device cannot; None where nothing can."""
DecodeJpegs = Callable[[Sequence[bytes]], Sequence[torch.Tensor | None]]
"""JPEGs → uint8 (3, H, W) each on the device; None for those that it cannot decode."""
ScoreBatch = Callable[[torch.Tensor], BatchScores]
"""uint8 (N, 3, H, W) on the device → scores on the CPU."""


class CpuTransport:
    """How batches get to a device: here to the CPU itself, where the batch is the buffer.

    All else about a lane is the same on every device.
    """

    def buffer(self, shape: tuple[int, ...]) -> torch.Tensor:
        """Memory of the CPU from which `to_device` copies, uint8."""
        return torch.empty(shape, dtype=torch.uint8)

    def active(self) -> AbstractContextManager[Any]:
        """While the block runs, its thread launches work in the lane's own order."""
        return nullcontext()

    def to_device(self, staged: torch.Tensor) -> torch.Tensor:
        """Begin to copy a part of the buffer; returns at once. Later work of the lane waits."""
        return staged

    def wait_for_copy(self) -> None:
        """Return once the last copy has left the buffer."""

    def wait_for_all(self) -> None:
        """Return once nothing of the lane is under way."""

    def free_cache(self) -> None:
        """Give memory of the device back that is kept for later."""


class CudaTransport(CpuTransport):
    """To a GPU, in a stream of its own. What is on the device already is waited for once."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._stream.wait_stream(torch.cuda.current_stream(device))
        self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]

    def buffer(self, shape: tuple[int, ...]) -> torch.Tensor:
        """Pinned memory: copies from any other are not asynchronous."""
        return torch.empty(shape, dtype=torch.uint8, pin_memory=True)

    def active(self) -> AbstractContextManager[Any]:
        """The stream."""
        return torch.cuda.stream(self._stream)

    def to_device(self, staged: torch.Tensor) -> torch.Tensor:
        """Copy in the stream."""
        copied = staged.to(self._device, non_blocking=True)
        self._copied.record(self._stream)
        return copied

    def wait_for_copy(self) -> None:
        """Wait for the event behind the copy; there is none before the first."""
        self._copied.synchronize()

    def wait_for_all(self) -> None:
        """Wait for the stream."""
        self._stream.synchronize()

    def free_cache(self) -> None:
        """That of all streams of the process."""
        torch.cuda.empty_cache()


class Lane:
    """Scores images in batches of at most ``batch_size``. For one thread at a time.

    Where a batch does not fit the device's memory, the lane goes on with halves, and keeps the
    smaller size. Without ``halves``, as for a model that is compiled for one size, it does not.
    ``note_out_of_memory`` is called for each batch that did not fit. ``size`` is height and width
    of the model's input. ``decode_jpegs`` decodes the JPEGs among the images.
    """

    def __init__(
        self,
        score_batch: ScoreBatch,
        transport: CpuTransport,
        *,
        batch_size: int,
        size: tuple[int, int],
        halves: bool = True,
        note_out_of_memory: Callable[[], None] = lambda: None,
        decode_jpegs: DecodeJpegs | None = None,
    ) -> None:
        self._score_batch, self._transport = score_batch, transport
        self._decode_jpegs = decode_jpegs
        self._batch_size, self._halves = batch_size, halves
        self._note_out_of_memory = note_out_of_memory
        self._buffer = transport.buffer((batch_size, *size, 3))
        self._black = torch.zeros(3, *size, dtype=torch.uint8)

    def __call__(self, images: Sequence[Image], on_cpu: OnCpu = lambda _: None) -> BatchScores:
        """Score at least one image, in any memory layout, on the CPU.

        ``on_cpu`` is asked for each JPEG that the device cannot decode, again where a batch is
        tried again. One that is not decoded at all gets the scores of a black image.

        Raises:
            DeviceMemoryError: One image alone, or a batch that may not be halved, does not fit.
            ModelError: See `OnePassScorer`, and the errors beside it there.
        """
        found: list[BatchScores] = []
        start = 0
        with self._transport.active():
            while start < len(images):
                batch = images[start : start + self._batch_size]
                scores = self._tried(batch, on_cpu)
                if isinstance(scores, BatchScores):
                    found.append(scores)
                    start += len(batch)
                else:
                    self._halve(len(batch), problem=scores)
        return BatchScores.join(found)

    def _tried(self, images: Sequence[Image], on_cpu: OnCpu) -> BatchScores | str:
        """The scores, or what the allocator said.

        The error itself must be gone before there is another try: its traceback holds the frames
        of the model, and they hold the activations.
        """
        try:
            return self._score(images, on_cpu)
        except torch.OutOfMemoryError as error:
            return str(error).partition("\n")[0]

    def _score(self, images: Sequence[Image], on_cpu: OnCpu) -> BatchScores:
        there = self._decoded(
            {n: image for n, image in enumerate(images) if isinstance(image, EncodedJpeg)}
        )
        here = [image if isinstance(image, torch.Tensor) else self._black for image in images]
        for number, (jpeg, pixels) in there.items():
            if pixels is None and (decoded := on_cpu(jpeg)) is not None:
                here[number] = decoded
        # Before it failed, a try may have begun to copy from the buffer.
        self._transport.wait_for_copy()
        staged = self._buffer[: len(images)]
        # Decoders give interleaved pixels, and so they stay.
        torch.stack([pixels.permute(1, 2, 0) for pixels in here], out=staged)
        batch = self._transport.to_device(staged)
        for number, (_, pixels) in there.items():
            if pixels is not None:
                batch[number].copy_(pixels.permute(1, 2, 0))
        return self._score_batch(batch.permute(0, 3, 1, 2))

    def _decoded(
        self, jpegs: Mapping[int, EncodedJpeg]
    ) -> dict[int, tuple[EncodedJpeg, torch.Tensor | None]]:
        """JPEGs by number, with their pixels on the device, or None."""
        found: Sequence[torch.Tensor | None] = [None] * len(jpegs)
        if jpegs and self._decode_jpegs is not None:
            # nvJPEG may write into memory that is free, but read by what is queued in the stream.
            self._transport.wait_for_all()
            found = self._decode_jpegs([jpeg.data for jpeg in jpegs.values()])
        return dict(zip(jpegs, zip(jpegs.values(), found, strict=True), strict=True))

    def _halve(self, images: int, *, problem: str) -> None:
        self._note_out_of_memory()
        self._transport.free_cache()
        if images == 1 or not self._halves:
            raise _does_not_fit(images, problem)
        self._batch_size = images // 2
        structlog.get_logger().warning(
            "out_of_memory", images=images, batch_size=self._batch_size, reason=problem
        )


def _does_not_fit(images: int, problem: str) -> DeviceMemoryError:
    if images == 1:
        action = (
            "Lower model.preprocessing.crop and calibrate anew, set worker.batches_in_flight: 1, "
            "or let fewer workers share the GPU (worker.num_gpus)"
        )
    else:
        action = (
            "A compiled model has batches of one size: lower worker.batch_size, set "
            "worker.batches_in_flight: 1, or leave model.compile off"
        )
    what = "one image does" if images == 1 else f"a batch of {images} images does"
    return DeviceMemoryError(f"{what} not fit the device's memory ({problem})", "model", action)


def open_lane(
    loaded: LoadedModel,
    base_scores: BaseScores,
    *,
    batch_size: int,
    note_out_of_memory: Callable[[], None] = lambda: None,
) -> Lane:
    """A lane for a model that no other lane has, on its device.

    Raises:
        ConfigError: See `device_decoder`.
    """
    return Lane(
        OnePassScorer(loaded, base_scores),
        CudaTransport(loaded.device) if loaded.device.type == "cuda" else CpuTransport(),
        batch_size=batch_size,
        size=input_size(loaded.preprocessing),
        halves=loaded.batch_size is None,
        note_out_of_memory=note_out_of_memory,
        decode_jpegs=device_decoder(loaded.preprocessing, loaded.device),
    )


def share_memory(
    num_gpus: float,
    device: torch.device,
    limit: Callable[[float], None] = torch.cuda.set_per_process_memory_fraction,
) -> None:
    """Keep torch in this process to its share of a GPU, which Ray counts and does not enforce."""
    if device.type == "cuda" and num_gpus < 1:
        limit(num_gpus)
