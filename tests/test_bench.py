import pytest

from nap_stream.bench import LineRate, advice
from nap_stream.settings.schema import PreprocessingSettings, Settings
from tests.support.summaries import settings


def line(*, model: float, decode: float = 0.0, log: float = 0.0) -> LineRate:
    return LineRate(100.0, {"messages": 0.0, "decode": decode, "model": model, "log": log})


@pytest.fixture
def monitor() -> Settings:
    return settings(kafka={"topic": "images"})


def test_a_line_that_is_as_fast_as_its_model_wants_a_faster_model(monitor: Settings) -> None:
    assert "precision" in advice(monitor, line(model=0.97, decode=0.03), forward=105, feed=900)


def test_a_line_that_waits_for_the_log_wants_larger_segments(monitor: Settings) -> None:
    said = advice(monitor, line(model=0.4, log=0.5, decode=0.1), forward=200, feed=900)
    assert "log.segment_max_age_s" in said


def test_a_line_that_waits_for_decoding_wants_threads_and_scaled_decoding(
    monitor: Settings,
) -> None:
    waits = line(model=0.4, decode=0.6)
    scaled = monitor.model_copy(
        update={
            "model": monitor.model.model_copy(
                update={"preprocessing": PreprocessingSettings(scaled_decoding=True)}
            )
        }
    )
    assert "model.preprocessing.scaled_decoding" in advice(monitor, waits, forward=900, feed=100)
    assert "scaled_decoding" not in advice(scaled, waits, forward=900, feed=100)
    assert "worker.decode_threads" in advice(scaled, waits, forward=900, feed=100)


def test_a_line_whose_parts_share_the_processors_wants_more_of_them(monitor: Settings) -> None:
    """Though its scoring threads are never idle: they are slower than the model alone."""
    said = advice(monitor, line(model=1.0), forward=150, feed=900)
    assert "share the same processors" in said
    assert "worker.num_cpus" in said
