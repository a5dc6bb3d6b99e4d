"""Raw frames: pixels as a camera gives them, without a header that says what they are."""

from typing import Literal

from nap_stream.settings.values import Positive, Section

RawFormat = Literal[
    "mono8",
    "mono10",
    "mono12",
    "mono14",
    "mono16",
    "mono10p",
    "mono12p",
    "mono12packed",
    "rgb8",
    "bgr8",
    "rgba8",
    "bgra8",
    "bayer_rggb8",
    "bayer_grbg8",
    "bayer_gbrg8",
    "bayer_bggr8",
    "bayer_rggb10",
    "bayer_grbg10",
    "bayer_gbrg10",
    "bayer_bggr10",
    "bayer_rggb12",
    "bayer_grbg12",
    "bayer_gbrg12",
    "bayer_bggr12",
    "bayer_rggb16",
    "bayer_grbg16",
    "bayer_gbrg16",
    "bayer_bggr16",
]
"""Names of GenICam's Pixel Format Naming Convention, in lower case, with patterns written out.

Samples of 10 to 16 bits take two bytes, the low one first. Of those that end in p, bits follow
each other from the lowest up. mono12packed is GigE Vision's: two samples in three bytes.
"""


class RawSettings(Section):
    """A message of just so many bytes is one frame of this format, rows without padding."""

    format: RawFormat
    width: Positive
    height: Positive
