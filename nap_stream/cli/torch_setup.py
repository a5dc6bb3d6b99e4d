"""How a command uses torch: imported only by commands that run the model."""

from typing import TYPE_CHECKING

import torch

from nap_stream.runtime.worker import choose_device

if TYPE_CHECKING:
    from nap_stream.cli.calibrate import Device


def choose_torch(device: "Device", threads: int | None) -> torch.device:
    """Give the device, and set the number of threads where one is given.

    Raises:
        GpuUnavailableError: CUDA is asked for and torch sees none.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    return choose_device(0 if device.value == "cpu" else 1)
