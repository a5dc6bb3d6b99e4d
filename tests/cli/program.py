"""The program as users call it, within the test's own process."""

import sys
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from nap_stream.cli import main
from tests.support.logs import kept_logging


@dataclass(frozen=True)
class Ended:
    """How a call ended."""

    exit_code: int
    out: str
    err: str


Call = Callable[..., Ended]


def call(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Ended:
    """Run ``nap-stream`` with these arguments."""
    monkeypatch.setattr(sys, "argv", ["nap-stream", *arguments])
    # Wide enough that no line of a table or an error is broken.
    monkeypatch.setenv("COLUMNS", "500")
    capfd.readouterr()
    with kept_logging(), pytest.raises(SystemExit) as caught:
        main()
    sys.stdout.flush()
    out, err = capfd.readouterr()
    code = caught.value.code
    return Ended(code if isinstance(code, int) else int(code is not None), out, err)
