"""A progress bar where a person waits, silence where a machine does."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

Advance = Callable[[int, int | None], None]
NewBar = Callable[[str, str], Advance]
"""From what is done and its unit to a function that takes (done, total or None)."""


@contextmanager
def progress_bars(console: Console | None = None) -> Iterator[NewBar]:
    """A function that makes bars, shown on stderr while the block runs.

    Each bar stands below those before it, from when it is first told of something.
    """
    console = console or Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[unit]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:

        def new_bar(what: str, unit: str) -> Advance:
            task: TaskID | None = None

            def advance(done: int, total: int | None) -> None:
                nonlocal task
                if task is None:
                    task = progress.add_task(what, total=total, unit=unit)
                progress.update(task, completed=done, total=total)

            return advance

        yield new_bar


@contextmanager
def progress_bar(what: str, *, unit: str) -> Iterator[Advance]:
    """A function that takes (done, total or None), shown on stderr while the block runs."""
    with progress_bars() as new_bar:
        advance = new_bar(what, unit)
        advance(0, None)
        yield advance
