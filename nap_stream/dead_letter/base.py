"""What happens to images that cannot be decoded."""

from typing import Protocol

from nap_stream.records import FailedImage


class DeadLetters(Protocol):
    """Takes what cannot be decoded, as it came, at least once. Used by one thread."""

    def send(self, image: FailedImage) -> None:
        """Hand over an image; `flush` says whether it has arrived.

        One that was handed over before, and that a `flush` which failed left on its way, is not
        sent again: to try again takes no more memory, and doubles as little as can be.

        Raises:
            BrokerError: It was refused at once.
        """
        ...

    def flush(self, timeout_s: float) -> None:
        """Return when everything that was sent has arrived.

        Raises:
            BrokerError: Something has not. To try again, hand all of it over again.
        """
        ...

    def close(self) -> None:
        """Release connections. Safe to call twice."""
        ...


def dead_letter_headers(image: FailedImage) -> list[tuple[str, bytes]]:
    """Why an image is a dead letter, and where it came from."""
    origin = image.origin
    values = {
        "status": image.status.value,
        "error": image.error,
        "topic": origin.partition.topic,
        "partition": str(origin.partition.partition),
        "offset": str(origin.offset),
        "index": str(origin.index),
    }
    return [
        (f"nap-stream-{name}", value.encode("utf-8", "replace")) for name, value in values.items()
    ]
