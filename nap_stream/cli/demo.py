"""nap-stream demo."""


def demo() -> None:
    """Placeholder until the demo lands."""
