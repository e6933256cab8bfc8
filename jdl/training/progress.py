"""What a person watching a run sees: a bar with steps per second and the time left; nothing where nobody watches."""

import sys
import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

_REFRESH = 0.2  # seconds between two looks at the clock's consequences


class ProgressBar:
    """A progress bar over updates, on the standard error stream when that is a terminal."""

    def __init__(self, total: int, start: int, show: bool | None) -> None:
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
        """Show a few words beside the bar, the last loss for instance."""
        if self._progress is not None:
            self._progress.update(self._task, note=text)

    def close(self, step: int) -> None:
        """Leave the bar as it stands after `step` updates."""
        if self._progress is not None:
            speed = (step - self._start) / max(time.monotonic() - self._since, 1e-9)
            self._progress.update(self._task, completed=step, speed=speed)
            self._progress.stop()
