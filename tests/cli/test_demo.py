import importlib.util
from importlib.machinery import ModuleSpec

import pytest

from nap_stream.cli import demo
from nap_stream.errors import ConfigError


def test_is_content_where_all_is_installed() -> None:
    demo.require_demo_extra()


def test_names_what_is_missing_and_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec

    def find(name: str) -> ModuleSpec | None:
        return None if name in {"sklearn", "matplotlib"} else real(name)

    monkeypatch.setattr(demo, "find_spec", find)

    with pytest.raises(ConfigError) as caught:
        demo.require_demo_extra()

    assert str(caught.value) == (
        "the demo needs packages that are not installed: matplotlib, scikit-learn. "
        "pip install 'nap-stream[demo]'"
    )
