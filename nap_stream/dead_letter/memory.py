"""Dead letters kept in memory, for tests."""

from nap_stream.errors import BrokerUnavailableError
from nap_stream.records import FailedImage


class MemoryDeadLetters:
    """Keeps dead letters in order; `flush` fails while ``available`` is false."""

    def __init__(self) -> None:
        self.images: list[FailedImage] = []
        self.available = True
        self._sent: list[FailedImage] = []

    def send(self, image: FailedImage) -> None:
        """Hand over an image."""
        self._sent.append(image)

    def flush(self, timeout_s: float) -> None:
        """Keep everything that was sent.

        Raises:
            BrokerUnavailableError: While not ``available``.
        """
        sent, self._sent = self._sent, []
        if not self.available:
            raise BrokerUnavailableError(f"the topic is away, waited {timeout_s:g} s")
        self.images.extend(sent)

    def close(self) -> None:
        """Nothing to release."""
