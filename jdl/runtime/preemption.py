"""A scheduler's notice that a process is to end (SIGTERM): save, and leave with a status that asks to be started again.

Slurm, Kubernetes and preemptible machines send it some seconds before they end a process. `fit` then saves between two
calls of the step, so that the run goes on to the bits that it would have had.
"""

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any

REQUEUE = 75  # EX_TEMPFAIL in sysexits.h: "the user is invited to retry"


class Preempted(SystemExit):
    """Ends the process with the status `REQUEUE`."""

    def __init__(self) -> None:
        super().__init__(REQUEUE)


class Notice:
    """False until the process is told to end."""

    def __init__(self) -> None:
        self._given = threading.Event()

    def __bool__(self) -> bool:
        return self._given.is_set()

    def give(self) -> None:
        """Tell those who ask from now on."""
        self._given.set()


@contextlib.contextmanager
def noticed() -> Iterator[Notice]:
    """Until this context is left, SIGTERM does no more than to give the notice."""
    notice = Notice()
    with _handling(lambda *_: notice.give()):
        yield notice


@contextlib.contextmanager
def leaving() -> Iterator[None]:
    """Until this context is left, SIGTERM raises Preempted, but within `noticed`: what is open is closed."""

    def leave(*_: Any) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one would break off what the first one closes
        raise Preempted

    with _handling(leave):
        yield


@contextlib.contextmanager
def _handling(handler: Any) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # which alone may say how signals are taken
        yield
        return
    before = signal.signal(signal.SIGTERM, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)
