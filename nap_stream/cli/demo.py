"""nap-stream demo."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer


def demo(
    out: Annotated[
        Path, typer.Option(help="The folder to fill; only a demo's own folder is replaced.")
    ] = Path("demo-run"),
    rate: Annotated[float, typer.Option(min=1, max=1000, help="Images a second.")] = 50.0,
    workers: Annotated[int, typer.Option(min=1, max=8, help="Worker actors.")] = 1,
    seed: Annotated[
        int, typer.Option(min=0, help="Another one gives another model and another stream.")
    ] = 0,
    no_color: Annotated[bool, typer.Option("--no-color", help="No colours.")] = False,
) -> None:
    """See the monitor at work, with nothing of your own: about a minute.

    Trains a small CNN on handwritten digits, calibrates it, starts a broker and the monitor,
    and sends held-out digits as image files; then photographs and corrupted digits come among
    them, then digits alone again. Shows the alerts as they come, and a summary that is read
    back from the log. Exit code 1 if anything is not as it must be.

    \b
    Examples:
      nap-stream demo
      nap-stream demo --out /tmp/demo --seed 7
    """
    from nap_stream.dev.demo.extra import require_demo_extra

    require_demo_extra()

    import logging

    from rich.console import Console

    from nap_stream.clock import SystemClock
    from nap_stream.dev.demo.display import Display
    from nap_stream.runtime.logging import configure_logging

    configure_logging(for_people=True)
    # The broker is asked whether it is up before it is.
    logging.getLogger("kafka").setLevel(logging.CRITICAL)
    clock = SystemClock()
    display = Display(Console(no_color=True) if no_color else Console(), clock)
    display.step("loading PyTorch, scikit-learn and the rest")

    from nap_stream.dev.demo.run import DemoOptions, run_demo

    options = DemoOptions(rate, workers, seed)
    succeeded = run_demo(out, options, display=display, clock=clock, environ=os.environ)
    sys.exit(0 if succeeded else 1)
