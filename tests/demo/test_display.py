import io

import pytest
from rich.console import Console

from nap_stream.clock import ManualClock
from nap_stream.demo.display import Display, StreamState
from nap_stream.demo.processes import MonitorView

QUIET = MonitorView(rows=120, partitions=4, ood_fraction=0.05, bound=0.13, firing=False)


def state(view: MonitorView | None = QUIET) -> StreamState:
    return StreamState("digits", 150, 847, view)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


def plain_display(clock: ManualClock) -> tuple[Display, io.StringIO]:
    output = io.StringIO()
    return Display(Console(file=output, width=80), clock), output


def test_each_step_bears_the_seconds_since_the_start(clock: ManualClock) -> None:
    display, output = plain_display(clock)
    clock.advance(12.34)

    display.step("a step")

    assert output.getvalue() == " 12.3 s  a step\n"


def test_without_a_terminal_the_state_is_a_plain_line_every_few_seconds(
    clock: ManualClock,
) -> None:
    display, output = plain_display(clock)

    with display.streaming():
        for _ in range(8):
            display.update(state())
            clock.advance(1)

    lines = output.getvalue().splitlines()
    assert len(lines) == 3
    assert lines[0] == (
        "  0.0 s  digits         150 of 847 sent   120 in the log  OOD  5.0% (bound 13.0%)  quiet"
    )


@pytest.mark.parametrize(
    ("view", "ending"),
    [
        (None, "(no metrics)"),
        (MonitorView(3, 4, None, None, firing=False), "window filling"),
        (MonitorView(3, 4, 0.3, 0.13, firing=True), "OOD 30.0% (bound 13.0%)  FIRING"),
    ],
)
def test_says_what_the_monitor_shows(
    view: MonitorView | None, ending: str, clock: ManualClock
) -> None:
    display, output = plain_display(clock)

    display.update(state(view))

    assert output.getvalue().rstrip().endswith(ending)


def test_on_a_terminal_the_state_is_drawn_in_place(clock: ManualClock) -> None:
    output = io.StringIO()
    display = Display(Console(file=output, width=100, force_terminal=True), clock)

    with display.streaming():
        display.update(state())
        display.step("a step above it")
    with display.waiting("a while"):
        pass

    assert "a step above it" in output.getvalue()
    assert "a while" in output.getvalue()


def test_alerts_are_printed_without_their_markup(clock: ManualClock) -> None:
    display, output = plain_display(clock)

    display.alert({"data": {"state": "firing", "monitor": "[red]m[/red]"}})

    assert "FIRING  [red]m[/red]" in output.getvalue()


def test_alerts_after_the_first_are_brief(clock: ManualClock) -> None:
    display, output = plain_display(clock)
    event = {"id": "x", "data": {"state": "firing", "summary": "images look odd", "alpha": 0.05}}
    display.alert(event)
    whole = output.getvalue()
    assert "p-value at most 0.05" in whole
    display.alert(event)
    brief = output.getvalue().removeprefix(whole)
    assert "images look odd" in brief
    assert "p-value at most 0.05" not in brief
