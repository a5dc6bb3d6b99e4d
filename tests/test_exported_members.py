import nap_stream


def test_the_public_names_are_these_and_are_there() -> None:
    assert nap_stream.__all__ == ["NapStreamError", "Settings", "__version__", "load_settings"]
    assert all(hasattr(nap_stream, name) for name in nap_stream.__all__)
