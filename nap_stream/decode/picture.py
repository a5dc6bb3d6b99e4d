"""What decoding an image gives: a picture, or why there is none."""

from dataclasses import dataclass

import torch

from nap_stream.records import Status

_ERROR_LENGTH = 300


@dataclass(frozen=True, slots=True)
class Picture:
    """A decoded image: ``pixels`` are RGB, uint8, shape (3, height, width), interleaved in memory.

    ``width`` and ``height`` are the file's. The pixels are fewer where it was decoded scaled, and
    turned where its orientation was applied. ``warning`` says what was odd about it, None where
    nothing was; ``is_damaged`` that some of the pixels are not what was encoded.
    """

    pixels: torch.Tensor
    width: int
    height: int
    format: str
    warning: str | None = None
    is_damaged: bool = False


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why bytes are no picture; the size and format where the bytes said them."""

    status: Status
    error: str
    width: int | None = None
    height: int | None = None
    format: str | None = None


class UnreadableError(Exception):
    """An image is refused before it is decoded; ``size`` is width and height, where known."""

    def __init__(self, text: str, status: Status, size: tuple[int, int] | None = None) -> None:
        super().__init__(text)
        self.status, self.size = status, size


def require_pixels(size: tuple[int, int], max_pixels: int) -> None:
    """Refuse an image that declares more pixels than the limit.

    Raises:
        UnreadableError: ``too_large``.
    """
    if size[0] * size[1] > max_pixels:
        raise UnreadableError(
            f"{size[0]} x {size[1]} pixels, more than limits.max_image_pixels = {max_pixels}",
            Status.TOO_LARGE,
            size,
        )


def unsupported(text: str, size: tuple[int, int] | None = None) -> UnreadableError:
    """An image of a kind that is not read."""
    return UnreadableError(text, Status.UNSUPPORTED, size)


def corrupt(text: str, size: tuple[int, int] | None = None) -> UnreadableError:
    """An image that is not whole, or contradicts itself."""
    return UnreadableError(text, Status.CORRUPT, size)


def one_line(text: str) -> str:
    """Text as one printable line of bounded length."""
    return text.encode("unicode_escape").decode("ascii")[:_ERROR_LENGTH]


def describe(error: BaseException) -> str:
    """Give an error's type and text as one printable line of bounded length."""
    return f"{type(error).__name__}: {one_line(str(error))}"[:_ERROR_LENGTH]
