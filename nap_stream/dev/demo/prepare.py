"""Before the stream: a trained model, its calibration, image files."""

from dataclasses import dataclass

import torch
from safetensors.torch import save_file

from nap_stream.calibration.artifact import write_calibration
from nap_stream.calibration.calibration import Calibration
from nap_stream.calibration.run import CalibrationRequest, calibrate
from nap_stream.clock import Clock
from nap_stream.core.judging import Rule
from nap_stream.dev.demo.configuration import ALPHA
from nap_stream.dev.demo.digits import load_splits
from nap_stream.dev.demo.display import Display
from nap_stream.dev.demo.folder import DemoFolder
from nap_stream.dev.demo.network import accuracy, train
from nap_stream.dev.demo.stream import Phase, plan_stream, write_digits, write_stream
from nap_stream.settings import LimitSettings
from nap_stream.settings_loader import load_model_settings, load_scoring_settings

CALIBRATION_BATCH = 50


@dataclass(frozen=True, slots=True)
class Input:
    """The stream that will be sent, phase by phase."""

    phases: tuple[Phase, ...]

    @property
    def names(self) -> list[str]:
        """Of all images, in sending order."""
        return [image.name for phase in self.phases for image in phase.images]

    @property
    def sizes(self) -> list[int]:
        """Images of each phase."""
        return [len(phase.images) for phase in self.phases]


def make_model_and_images(folder: DemoFolder, seed: int, display: Display) -> Input:
    """Deal out the digits, write them as files, train the network and save it."""
    splits = load_splits(seed)
    phases = plan_stream(splits.stream, seed)
    write_digits(splits.training, folder.images / "training")
    write_digits(splits.calibration, folder.images / "calibration")
    write_stream(phases, folder.images / "stream", folder.stream)
    counts = " / ".join(f"{len(s):,}" for s in (splits.training, splits.calibration, splits.stream))
    display.step(f"handwritten digits dealt out: {counts} to train, calibrate, stream")
    network = train(splits.training.pixels, splits.training.label, seed)
    held_out = accuracy(network, splits.calibration.pixels, splits.calibration.label)
    save_file(network.state_dict(), folder.weights)
    display.step(f"small CNN trained: {held_out:.1%} of the calibration digits told right")
    return Input(phases)


def make_calibration(folder: DemoFolder, display: Display, clock: Clock) -> Calibration:
    """Calibrate the configured model on its held-out digits, as `nap-stream calibrate` does."""
    request = CalibrationRequest(
        model=load_model_settings(folder.config, environ={}),
        scoring=load_scoring_settings(folder.config, environ={}),
        images=folder.images / "calibration",
        fit_images=folder.images / "training",
        rule=Rule(ALPHA),
        weight=None,
        batch_size=CALIBRATION_BATCH,
        limits=LimitSettings(),
    )
    calibration = calibrate(
        request,
        device=torch.device("cpu"),
        clock=clock,
    )
    write_calibration(calibration, folder.calibration)
    low, high = calibration.flag_rate_interval
    display.step(
        f"calibrated on {calibration.size} held-out digits: flags at p <= {calibration.alpha:g}, "
        f"true flag rate {low:.1%} to {high:.1%} ({calibration.document.flag_rate_confidence:.0%})"
    )
    return calibration
