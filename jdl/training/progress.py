"""A progress bar with updates per second and the time left, shown only on a terminal."""

import sys
import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

_REFRESH = 0.2  # seconds between two updates of the bar


class ProgressBar:
    """A progress bar over updates, on the standard error stream."""

    def __init__(self, total: int, start: int, show: bool | None) -> None:
        """Show the bar.

        Args:
            total: the number of updates.
            start: the updates already done, by the run that is resumed.
            show: whether to show anything; None shows the bar if standard error is a terminal.
        """
        shown = sys.stderr.isatty() if show is None else show
        self._progress = None
        if shown:
            self._progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[speed]:,.0f} steps/s"),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
                console=Console(stderr=True),
                refresh_per_second=1 / _REFRESH,
            )
            self._task = self._progress.add_task("training", total=total, completed=start, speed=0.0, note="")
            self._progress.start()
        self._start, self._since, self._due = start, time.monotonic(), 0.0

    def advance(self, step: int) -> None:
        """Show that `step` updates are done."""
        if self._progress is None:
            return
        now = time.monotonic()
        if now >= self._due:
            self._due = now + _REFRESH
            speed = (step - self._start) / max(now - self._since, 1e-9)
            self._progress.update(self._task, completed=step, speed=speed)

    def note(self, text: str) -> None:
        """Show a few words beside the bar, such as the last loss."""
        if self._progress is not None:
            self._progress.update(self._task, note=text)

    def close(self, step: int) -> None:
        """Show that `step` updates are done, and stop refreshing the bar."""
        if self._progress is not None:
            speed = (step - self._start) / max(time.monotonic() - self._since, 1e-9)
            self._progress.update(self._task, completed=step, speed=speed)
            self._progress.stop()
