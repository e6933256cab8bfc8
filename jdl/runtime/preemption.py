"""Preemption: on a scheduler's SIGTERM, save and exit with a status that asks for a restart.

Slurm, Kubernetes and preemptible machines send it some seconds before they end a process. `fit` then saves between
two calls of the step, so that the resumed run gives the same bits as a run without interruption.
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
    """False until the process is told to end, then True."""

    def __init__(self) -> None:
        self._given = threading.Event()

    def __bool__(self) -> bool:
        return self._given.is_set()

    def give(self) -> None:
        """Make the notice true."""
        self._given.set()


@contextlib.contextmanager
def noticed() -> Iterator[Notice]:
    """Inside this context, SIGTERM only makes the `Notice` true."""
    notice = Notice()
    with _handling(lambda *_: notice.give()):
        yield notice


@contextlib.contextmanager
def leaving() -> Iterator[None]:
    """Inside this context, but outside `noticed`, SIGTERM raises `Preempted`, so that cleanup code runs."""

    def leave(*_: Any) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second signal would interrupt the cleanup
        raise Preempted

    with _handling(leave):
        yield


@contextlib.contextmanager
def _handling(handler: Any) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # only the main thread may set signal handlers
        yield
        return
    before = signal.signal(signal.SIGTERM, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)
