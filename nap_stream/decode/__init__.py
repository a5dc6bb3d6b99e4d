"""From bytes to uint8 pixels. A bad image is a row, not a crash."""

from nap_stream.decode.image import Picture, Refusal, decode_image
from nap_stream.decode.message import ARROW_STREAM, iter_decoded

__all__ = ["ARROW_STREAM", "Picture", "Refusal", "decode_image", "iter_decoded"]
