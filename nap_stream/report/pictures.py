"""The pictures of a report: kept images, read from where they are kept, and made small.

No bytes of an image reach the page as they came: what is shown is encoded anew.
"""

import base64
import io
import re

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from nap_stream.errors import InputDataError
from nap_stream.report.gather import Pictures
from nap_stream.scored_log.evidence import evidence_path, find_evidence
from nap_stream.scored_log.stores import SegmentStore
from nap_stream.settings.schema import LimitSettings, Settings
from nap_stream.show_again import pixels_of

SIDE = 160
"""Pixels of the longer side."""
_SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)


def kept_in(store: SegmentStore, settings: Settings | None = None) -> Pictures:
    """Small pictures of the images in ``<root>/<day on which each was scored, UTC>/<SHA-256>``.

    They are decoded as a monitor's settings say.
    """
    limits = LimitSettings() if settings is None else settings.limits

    def picture(sha256: str, scored_ms: int) -> str:
        path = evidence_path(scored_ms, sha256)
        # What stands in a row's place of a digest came with the log.
        is_digest = _SHA256.fullmatch(sha256) is not None
        data = find_evidence(store, path, limits.max_image_bytes) if is_digest else None
        if data is None:
            raise InputDataError("the image is not kept", path)
        return thumbnail(pixels_of(data, settings))

    return picture


def thumbnail(pixels: NDArray[np.uint8]) -> str:
    """Pixels (H, W, 3) as a small picture within a ``data:`` address."""
    image = Image.fromarray(pixels)
    image.thumbnail((SIDE, SIDE))
    encoded = io.BytesIO()
    image.save(encoded, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(encoded.getvalue()).decode()}"
