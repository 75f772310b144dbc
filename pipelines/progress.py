"""What a command shows while it works: a bar on a terminal, nothing that moves elsewhere."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Raises the error at hand again, which the library would turn into an exit: it is for `command`."""
        raise


console = _Console(highlight=False, soft_wrap=True)

Advance = Callable[[int, int, str], None]  # done, total, figures


@contextmanager
def bar(description: str) -> Iterator[Advance]:
    """A function of (done, total, figures) that moves a bar; it disappears at the end."""
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TextColumn("{task.fields[figures]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as progress:
        task = progress.add_task(description, total=None, figures="")

        def advance(done: int, total: int, figures: str = "") -> None:
            progress.update(task, completed=done, total=total, figures=figures)

        yield advance


def say(text: str) -> None:
    """One line for the user; markup in names from the data is left as it is."""
    console.print(text, markup=False)
