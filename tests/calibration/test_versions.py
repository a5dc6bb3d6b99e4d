import platform
from importlib import metadata

import pytest

from nap_stream.calibration.artifact import versions


def test_what_computed_a_score_is_named() -> None:
    found = versions()
    assert found.keys() == {
        *("python", "nap-stream", "torch", "torchvision", "pillow", "numpy", "scipy")
    }
    assert found["python"] == platform.python_version()
    assert found["torch"] == metadata.version("torch")
    assert "unknown" not in found.values()


def test_what_is_not_installed_as_a_distribution_is_unknown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = metadata.version

    def without(name: str) -> str:
        if name == "nap-stream":
            raise metadata.PackageNotFoundError(name)
        return whole(name)

    monkeypatch.setattr(metadata, "version", without)
    found = versions()
    assert found["nap-stream"] == "unknown"
    assert found["numpy"] == whole("numpy")
