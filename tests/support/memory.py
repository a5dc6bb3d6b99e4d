"""What a process holds in memory, what a worker may hold, and large images that fill it."""

from pathlib import Path

import numpy as np
from PIL import Image

from nap_stream.settings.schema import Settings
from nap_stream.source.kafka_group import SHARE_BYTES
from tests.support.image_bytes import encoded

MIB = 2**20
WIDTH, HEIGHT = 2_000, 1_500
ALLOCATOR = 1.5
"""glibc does not give all back that is free."""


def rss_bytes(pid: int) -> int:
    """Resident memory of a process, bytes; 0 where it is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    found = [line.split()[1] for line in status.splitlines() if line.startswith("VmRSS:")]
    return int(found[0]) * 1024 if found else 0


def large_jpeg(seed: int) -> bytes:
    """A JPEG of noise, which hardly compresses: 3.5 MB of `WIDTH` x `HEIGHT` pixels."""
    noise = np.random.default_rng(seed).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    return encoded(Image.fromarray(noise), "JPEG", quality=95)


def memory_bound_bytes(settings: Settings, partitions: int, message_bytes: int) -> int:
    """What a worker may hold beyond what it needs without any message, in bytes.

    Args:
        settings: Of the monitor.
        partitions: How many the worker owns.
        message_bytes: The largest message's size.
    """
    worker, kafka = settings.worker, settings.kafka
    fetch = max(kafka.max_fetch_bytes, message_bytes)
    fetched = partitions * max(SHARE_BYTES, message_bytes)
    # The poll that crosses the limit may bring all that is fetched.
    in_hand = worker.max_in_hand_bytes + fetched
    # The connection's buffer, and what is read from it.
    in_transit = 2 * min(fetch, fetched)
    crop = settings.model.preprocessing.crop
    side = crop if isinstance(crop, int) else max(crop)
    decoded = worker.max_in_hand_images * 3 * side * side
    # Pillow's image, its copy in RGB and that as an array: for each thread that decodes.
    decoding = (worker.decode_threads or 1) * 3 * (3 * WIDTH * HEIGHT)
    rows = settings.log.segment_max_bytes
    return round(ALLOCATOR * (in_hand + fetched + in_transit + decoded + decoding + rows))
