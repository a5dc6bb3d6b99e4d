"""What `benchmarks.throughput` compares the line with, and its models: nothing of nap_stream.

Each task runs in a process of its own, which has torch to itself and leaves its answer as JSON:

    python -m benchmarks.throughput_peers TASK.json RESULT.json

The models have random weights. Their normalisation layers are given the statistics of photos, and
their head ten directions of the features, so that they decide as a trained model does.
"""

import json
import multiprocessing
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn
from torch.nn import functional
from torchvision import models

PRECISIONS = ("float32", "float32 channels_last", "bfloat16 channels_last")
MIDDLE = 0.8
"""Share of the rows that a rate is taken of: what starts and ends is left out."""
_BATCH = 32
_WARM_UP_BATCHES = 2
_DECIDING_CLASSES = 10
_DECIDING_DIMENSIONS = 8
_PREPARED_ON = 128
_ROWS_A_FILE = 10_000
_IDLE_MS = 3_000
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class FreeNet(nn.Module):
    """A model that costs next to nothing: it looks at a part of the pixels, and has a map of 8 x 8.

    Args:
        side: Of its input, in pixels; a multiple of 8.
    """

    def __init__(self, side: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 4, stride=side // 8)
        self.relu = nn.ReLU()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(16, _DECIDING_CLASSES)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Give logits, float32 (N, 10), of pixels (N, 3, side, side)."""
        logits: torch.Tensor = self.fc(self.pool(self.relu(self.conv(pixels))).flatten(1))
        return logits


@dataclass(frozen=True, slots=True)
class Network:
    """A classifier and its input. ``factory`` is what the settings of nap-stream name."""

    factory: str
    kwargs: dict[str, Any]
    resize: int | None
    crop: int

    def build(self) -> nn.Module:
        """Build it with random weights, the same each time, in evaluation mode."""
        torch.manual_seed(0)
        if self.factory.endswith("FreeNet"):
            return FreeNet(**self.kwargs).eval()
        module: nn.Module = getattr(models, self.factory.partition(":")[2])(**self.kwargs)
        return module.eval()


_FREE = "benchmarks.throughput_peers:FreeNet"
NETWORKS = {
    "resnet18": Network("torchvision.models:resnet18", {}, 256, 224),
    "mobilenet_v3_large": Network("torchvision.models:mobilenet_v3_large", {}, 256, 224),
    "free224": Network(_FREE, {"side": 224}, 256, 224),
    "free32": Network(_FREE, {"side": 32}, None, 32),
}


def main() -> None:
    task = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    result = _TASKS[task.pop("task")](**task)
    Path(sys.argv[2]).write_text(json.dumps(result), encoding="utf-8")


def middle_rate(times_s: NDArray[np.float64]) -> tuple[float, float, float]:
    """Rows a second in the middle `MIDDLE` of the rows, and when that began and ended.

    ``times_s`` are the times at which the rows were scored, in any order, seconds, shape (N,).
    """
    ordered = np.sort(times_s)
    skipped = round(len(ordered) * (1 - MIDDLE) / 2)
    first, last = float(ordered[skipped]), float(ordered[-skipped - 1])
    if last <= first:
        raise ValueError(f"{len(ordered)} rows were scored at one time: take more images")
    return (len(ordered) - 2 * skipped - 1) / (last - first), first, last


def prepare(network: str, photos: str, weights: str, decided: str, keep: int) -> dict[str, Any]:
    """Make a network decide, write its state dict, and the images on which it decides clearest.

    ``photos`` and ``decided`` are Parquet files with the column ``image``; ``keep`` images are
    kept. Rounding flips a class where two are alike, and with random weights far more are.
    """
    description = NETWORKS[network]
    table = pq.read_table(photos, columns=["image"])
    files = table["image"].to_pylist()
    pixels = [preprocessed(data, description) for data in files]
    model = description.build()
    _settle_normalisation(model, torch.stack(pixels[:_PREPARED_ON]))
    head = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    seen: list[torch.Tensor] = []
    hook = head.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    with torch.inference_mode():
        for batch in _batches(pixels):
            model(batch)
        hook.remove()
        features = torch.cat(seen)
        _settle_head(head, features)
        best = head(features).topk(2, dim=1)
    torch.save(model.state_dict(), weights)
    margin = best.values[:, 0] - best.values[:, 1]
    kept = margin.argsort(descending=True)[:keep].sort().values.tolist()
    pq.write_table(table.take(kept), decided)
    return {"classes": len(best.indices[:, 0].unique())}


def forward(
    *,
    network: str,
    weights: str,
    processes: int,
    threads: int,
    batches: int,
    device: str,
    precisions: Sequence[str] = PRECISIONS,
) -> dict[str, float]:
    """Images a second of the forward pass alone, in batches of 32, by precision."""
    context = multiprocessing.get_context("spawn")
    barrier, answers = context.Barrier(processes), context.Queue()
    batches = max(1, batches // processes)
    arguments = (network, weights, threads, batches, device, precisions)
    workers = [
        context.Process(target=_forward_process, args=(*arguments, barrier, answers))
        for _ in range(processes)
    ]
    for worker in workers:
        worker.start()
    found = [answers.get(timeout=600) for _ in workers]
    for worker in workers:
        worker.join()
    images = processes * batches * _BATCH
    return {
        name: images / (max(one[name][1] for one in found) - min(one[name][0] for one in found))
        for name in precisions
    }


@dataclass(frozen=True, slots=True)
class Stream:
    """A topic of ``images`` images, the network that scores them, and a folder for its rows."""

    bootstrap: str
    topic: str
    images: int
    network: str
    weights: str
    out: str
    device: str = "cpu"


def plain_loop(stream: Stream) -> dict[str, Any]:
    """One process that consumes, decodes, scores and writes, two torch threads, float32."""
    from kafka import KafkaConsumer  # noqa: PLC0415  other tasks need no Kafka

    images = stream.images
    score = _Energy(stream.network, stream.weights, stream.device, threads=2)
    consumer = KafkaConsumer(
        stream.topic,
        bootstrap_servers=stream.bootstrap,
        group_id=None,
        auto_offset_reset="earliest",
        enable_auto_commit=False,
        max_partition_fetch_bytes=8 * 2**20,
        consumer_timeout_ms=_IDLE_MS,
    )
    columns: list[dict[str, Any]] = []
    times: list[float] = []
    waiting: list[Any] = []
    for message in consumer:
        waiting.append(message)
        if len(waiting) + len(times) < images and len(waiting) < _BATCH:
            continue
        scored = score({"value": [one.value for one in waiting]})
        scored |= {
            name: [getattr(one, name) for one in waiting] for name in ("partition", "offset")
        }
        columns.append(scored)
        times += scored["scored_time"].tolist()
        waiting = []
        if len(columns) * _BATCH >= _ROWS_A_FILE or len(times) >= images:
            tables = [pa.table(one) for one in columns]
            pq.write_table(pa.concat_tables(tables), f"{stream.out}/{len(times):012}.parquet")
            columns = []
        if len(times) >= images:
            break
    consumer.close()
    return {"rows": len(times), "rate": middle_rate(np.array(times))[0]}


def ray_data(stream: Stream) -> dict[str, Any]:
    """Ray Data reads Kafka and maps batches in two actors of a torch thread, float32."""
    import ray  # noqa: PLC0415  other tasks need no Ray

    # Readers wait for the network: they are given CPUs beside the actors'.
    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False)
    try:
        ray.data.DataContext.get_current().enable_progress_bars = False
        read = ray.data.read_kafka(stream.topic, bootstrap_servers=stream.bootstrap, num_cpus=0.5)
        scored = read.select_columns(["partition", "offset", "value"]).map_batches(
            _Energy,
            fn_constructor_args=(stream.network, stream.weights, stream.device, 1),
            batch_size=_BATCH,
            concurrency=2,
            num_cpus=1,
            num_gpus=0 if stream.device == "cpu" else 0.5,
        )
        scored.write_parquet(stream.out)
    finally:
        ray.shutdown()
    times = pq.read_table(stream.out, columns=["scored_time"])["scored_time"].to_numpy()
    return {"rows": len(times), "rate": middle_rate(times)[0], "asked": stream.images}


def cpu_beside_rows(network: str, weights: str, photos: str, images: int) -> dict[str, Any]:
    """Seconds of CPU an image, of decoding by each decoder at hand and of the forward pass."""
    torch.set_num_threads(1)
    description = NETWORKS[network]
    files = pq.read_table(photos, columns=["image"])["image"].to_pylist()[:images]
    model = _loaded(network, weights)
    decoders: dict[str, Callable[[bytes], object]] = {
        "Pillow": lambda data: preprocessed(data, description)
    }
    if find_spec("simplejpeg") is not None:
        simplejpeg = import_module("simplejpeg")
        decoders["simplejpeg"] = lambda data: torch.from_numpy(simplejpeg.decode_jpeg(data))
    batch = torch.stack([preprocessed(data, description) for data in files[:_BATCH]])
    with torch.inference_mode():
        model(_normalised(batch))
        started = time.process_time()
        for _ in range(200):
            model(_normalised(batch))
        forward_s = (time.process_time() - started) / (200 * _BATCH)
    found = {}
    for name, decode in decoders.items():
        started = time.process_time()
        for data in files:
            decode(data)
        found[name] = (time.process_time() - started) / len(files)
    return {"decode": found, "forward": forward_s}


def preprocessed(data: bytes, network: Network) -> torch.Tensor:
    """Decode with Pillow, resize and crop as torchvision does: uint8, shape (3, crop, crop)."""
    pixels = torch.from_numpy(np.array(Image.open(BytesIO(data)).convert("RGB"))).permute(2, 0, 1)
    if network.resize is not None:
        short = min(pixels.shape[1:])
        sides = [network.resize * side // short for side in pixels.shape[1:]]
        pixels = functional.interpolate(
            pixels[None], sides, mode="bilinear", antialias=True, align_corners=False
        )[0]
    top, left = ((side - network.crop) // 2 for side in pixels.shape[1:])
    return pixels[:, top : top + network.crop, left : left + network.crop].contiguous()


class _Energy:
    """From messages' values to pytorch-ood's energy: the work of the peers."""

    def __init__(self, network: str, weights: str, device: str, threads: int) -> None:
        energy = import_module("pytorch_ood.detector").EnergyBased
        torch.set_num_threads(threads)
        self._network = NETWORKS[network]
        self._model, self._device = _loaded(network, weights).to(device), device
        self._score = energy(self._model).score

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        pixels = torch.stack([preprocessed(data, self._network) for data in batch.pop("value")])
        with torch.inference_mode():
            logits = self._model(_normalised(pixels.to(self._device))).cpu()
            energy = self._score(logits)
        return batch | {
            "class_id": logits.argmax(1).numpy(),
            "energy": energy.numpy(),
            "scored_time": np.full(len(logits), time.time()),
        }


def _forward_process(  # noqa: PLR0917  Process passes by position
    network: str,
    weights: str,
    threads: int,
    batches: int,
    device: str,
    precisions: Sequence[str],
    barrier: Any,
    answers: Any,
) -> None:
    torch.set_num_threads(threads)
    found = {}
    side = NETWORKS[network].crop
    for precision in precisions:
        model = _loaded(network, weights).to(device)
        pixels = torch.rand(_BATCH, 3, side, side, device=device)
        if "channels_last" in precision:
            model = model.to(memory_format=torch.channels_last)
            pixels = pixels.contiguous(memory_format=torch.channels_last)
        halved = precision.startswith("bfloat16")
        if halved:  # once; autocast would do it in each pass
            for module in model.modules():
                if isinstance(module, nn.Conv2d | nn.Linear):
                    module.to(torch.bfloat16)
        with torch.inference_mode(), torch.autocast(device, torch.bfloat16, enabled=halved):
            for _ in range(_WARM_UP_BATCHES):
                model(pixels)
            _finish(device)
            barrier.wait()
            started = time.monotonic()
            for _ in range(batches):
                model(pixels)
            _finish(device)
            found[precision] = (started, time.monotonic())
        barrier.wait()
    answers.put(found)


def _finish(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


def _loaded(network: str, weights: str) -> nn.Module:
    model = NETWORKS[network].build()
    model.load_state_dict(torch.load(weights, weights_only=True))
    return model


def _normalised(pixels: torch.Tensor) -> torch.Tensor:
    mean, std = (
        torch.tensor(values, device=pixels.device).reshape(1, 3, 1, 1) for values in (_MEAN, _STD)
    )
    return pixels.float().div_(255).sub_(mean).div_(std)


def _batches(pixels: Sequence[torch.Tensor]) -> Iterator[torch.Tensor]:
    for start in range(0, len(pixels), _BATCH):
        yield _normalised(torch.stack(list(pixels[start : start + _BATCH])))


def _settle_normalisation(model: nn.Module, pixels: torch.Tensor) -> None:
    """Give batch normalisation the statistics of these images, as training would."""
    layers = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None
        layer.train()
    with torch.no_grad():
        model(_normalised(pixels))
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
        layer.eval()


def _settle_head(head: nn.Linear, features: torch.Tensor) -> None:
    """Have ten classes decide, each by a direction of the features' main components."""
    mean = features.mean(0)
    _, spread, components = torch.linalg.svd(features - mean, full_matrices=False)
    kept = min(_DECIDING_DIMENSIONS, len(spread))
    scale = len(features) ** 0.5 / spread[:kept].clamp_min(1e-6)
    directions = torch.randn(head.out_features, kept)
    directions /= directions.norm(dim=1, keepdim=True)
    directions[:_DECIDING_CLASSES] *= 4
    weight = (directions * scale) @ components[:kept]
    head.weight.data.copy_(weight)
    head.bias.data.copy_(-weight @ mean)


_TASKS: dict[str, Callable[..., dict[str, Any]]] = {
    "prepare": prepare,
    "forward": forward,
    "plain_loop": lambda **task: plain_loop(Stream(**task)),
    "ray_data": lambda **task: ray_data(Stream(**task)),
    "cpu_beside_rows": cpu_beside_rows,
}

if __name__ == "__main__":
    main()
