import subprocess
import sys

import pytest

import nap_stream
from nap_stream.ood_scorer import OODScorer
from tests.support.waiting import PATIENCE_S


def test_the_public_names_are_these_and_are_there() -> None:
    assert nap_stream.__all__ == [
        "NapStreamError",
        "OODScorer",
        "Settings",
        "__version__",
        "load_settings",
    ]
    assert all(hasattr(nap_stream, name) for name in nap_stream.__all__)
    assert set(nap_stream.__all__) <= set(dir(nap_stream))


def test_the_scorer_is_imported_when_it_is_asked_for() -> None:
    assert nap_stream.OODScorer is OODScorer
    code = (
        "import sys, nap_stream, nap_stream.cli\n"
        "assert 'torch' not in sys.modules\n"
        "from nap_stream import OODScorer\n"
        "assert 'torch' in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=PATIENCE_S)


def test_any_other_name_is_refused() -> None:
    with pytest.raises(AttributeError, match=r"'nap_stream' has no attribute 'Scorer'"):
        _ = nap_stream.Scorer  # type: ignore[attr-defined] # type checkers see it too
