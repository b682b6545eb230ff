"""A run's progress on stderr: a bar on a terminal, a plain line now and then elsewhere."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Final

from heatpipe.config import Settings
from heatpipe.report import Progress

PLAIN_EVERY_S: Final = 10.0


@contextmanager
def show_progress(settings: Settings, *, quiet: bool = False) -> Iterator[Callable[[Progress], None]]:
    """Yield a callback that shows where a run stands.

    Parameters
    ----------
    settings : Settings
        The budget, for the time that is left.
    quiet : bool
        Show nothing.
    """
    if quiet:
        yield lambda _: None
    else:
        with ExitStack() as shown:
            try:
                show = shown.enter_context(_bar(settings)) if sys.stderr.isatty() else _plain_progress(settings)
            except RuntimeError:  # no thread can be started for the bar
                show = _plain_progress(settings)
            yield show


def _plain_progress(settings: Settings) -> Callable[[Progress], None]:
    return plain_progress(settings, lambda line: print(line, file=sys.stderr, flush=True))


@contextmanager
def _bar(settings: Settings) -> Iterator[Callable[[Progress], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
    from rich.progress import Progress as Bar

    columns = (
        BarColumn(bar_width=10),  # leaves room for the words in 80 columns
        MofNCompleteColumn(),
        TextColumn("windows, {task.fields[said]}"),
    )
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None, said="")

        def show(progress: Progress) -> None:
            bar.update(
                task, completed=progress.windows_done, total=progress.windows, said=_describe(progress, settings)
            )

        yield show


def plain_progress(settings: Settings, say: Callable[[str], None]) -> Callable[[Progress], None]:
    """Return a callback that says a line now and then.

    Parameters
    ----------
    settings : Settings
        The budget, for the time that is left.
    say : callable
        Takes the line.
    """
    due = time.monotonic() + PLAIN_EVERY_S

    def show(progress: Progress) -> None:
        nonlocal due
        if time.monotonic() >= due:
            due = time.monotonic() + PLAIN_EVERY_S
            windows = f"{progress.windows_done:,} of {progress.windows:,} windows"
            say(f"{windows}, {_describe(progress, settings)}")

    return show


@contextmanager
def show_files(*, quiet: bool = False) -> Iterator[Callable[[int, int], None]]:
    """Yield a callback that shows how many files of how many are done.

    Parameters
    ----------
    quiet : bool
        Show nothing.
    """
    if quiet:
        yield lambda _done, _files: None
    else:
        with ExitStack() as shown:
            try:
                show = shown.enter_context(_file_bar()) if sys.stderr.isatty() else _plain_files()
            except RuntimeError:  # no thread can be started for the bar
                show = _plain_files()
            yield show


def _plain_files() -> Callable[[int, int], None]:
    return plain_files(lambda line: print(line, file=sys.stderr, flush=True))


@contextmanager
def _file_bar() -> Iterator[Callable[[int, int], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
    from rich.progress import Progress as Bar

    with Bar(
        BarColumn(), MofNCompleteColumn(), TextColumn("files"), console=Console(stderr=True), transient=True
    ) as bar:
        task = bar.add_task("", total=None)
        yield lambda done, files: bar.update(task, completed=done, total=files)


def plain_files(
    say: Callable[[str], None], *, clock: Callable[[], float] = time.monotonic
) -> Callable[[int, int], None]:
    """Return a callback that says a line now and then.

    Parameters
    ----------
    say : callable
        Takes the line.
    clock : callable
        Seconds.
    """
    due = clock() + PLAIN_EVERY_S

    def show(done: int, files: int) -> None:
        nonlocal due
        if clock() >= due:
            due = clock() + PLAIN_EVERY_S
            say(f"{done:,} of {files:,} files")

    return show


def _describe(progress: Progress, settings: Settings) -> str:
    left_s = progress.weight_left * 60 / settings.weight_per_minute
    done = progress.done
    return f"{done.rows:,} rows, weight {done.weight:,}, {show_seconds(left_s)} to go at the budget"


def show_seconds(seconds: float) -> str:
    """Return a length of time as a person says it."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"


def show_bytes(size_bytes: float) -> str:
    """Return a size in decimal units."""
    for unit in ("B", "kB", "MB", "GB"):
        if size_bytes < 1000:
            return f"{size_bytes:.0f} B" if unit == "B" else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1000
    return f"{size_bytes:.1f} TB"
