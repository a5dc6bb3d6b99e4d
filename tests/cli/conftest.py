import pytest

from tests.cli.program import Call, Ended, call


@pytest.fixture
def nap(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Call:
    def run(*arguments: object) -> Ended:
        return call([str(argument) for argument in arguments], monkeypatch, capfd)

    return run
