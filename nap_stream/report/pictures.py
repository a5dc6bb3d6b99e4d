"""The pictures of a report: kept images, read from where they are kept, and made small.

No bytes of an image reach the page as they came: what is shown is encoded anew.
"""

import base64
import io
import re

from PIL import Image

from nap_stream.decode.image import decode_image
from nap_stream.decode.picture import Refusal
from nap_stream.errors import InputDataError
from nap_stream.report.gather import Pictures
from nap_stream.scored_log.evidence import evidence_path, find_evidence
from nap_stream.scored_log.stores import SegmentStore
from nap_stream.settings.schema import LimitSettings

SIDE = 160
"""Pixels of the longer side."""
_SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)


def kept_in(store: SegmentStore, limits: LimitSettings) -> Pictures:
    """Small pictures of the images in ``<root>/<day on which each was scored, UTC>/<SHA-256>``."""

    def picture(sha256: str, scored_ms: int) -> str:
        path = evidence_path(scored_ms, sha256)
        # What stands in a row's place of a digest came with the log.
        is_digest = _SHA256.fullmatch(sha256) is not None
        data = find_evidence(store, path, limits.max_image_bytes) if is_digest else None
        if data is None:
            raise InputDataError("the image is not kept", path)
        return thumbnail(data, limits)

    return picture


def thumbnail(data: bytes, limits: LimitSettings) -> str:
    """An image as a small one within a ``data:`` address.

    Raises:
        InputDataError: It cannot be decoded.
    """
    found = decode_image(data, limits, at_least=(SIDE, SIDE))
    if isinstance(found, Refusal):
        raise InputDataError(found.error)
    image = Image.fromarray(found.pixels.permute(1, 2, 0).numpy())
    image.thumbnail((SIDE, SIDE))
    encoded = io.BytesIO()
    image.save(encoded, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(encoded.getvalue()).decode()}"
