"""Callbacks of `fit` that send the rows of its log to TensorBoard or Weights & Biases, besides metrics.jsonl."""

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jdl.training.runs import Row


class Logger(NamedTuple):
    """A callback of `fit` that must be closed.

    Attributes:
        log: `(row, state) -> None`, called with every row of the log.
        close: called after the last row.
    """

    log: Callable[[Row, Any], None]
    close: Callable[[], Any]

    def __call__(self, row: Row, state: Any) -> None:
        self.log(row, state)


def tensorboard(folder: str | os.PathLike) -> Logger:
    """Make a callback that writes TensorBoard's event files.

    There is one curve per metric. With several runs, it is their mean, and each run has a curve as well.

    Args:
        folder: the folder of the event files.

    Raises:
        ImportError: if the package tensorboard is not installed.
    """
    try:
        from tensorboard.compat.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]
        from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]
        from tensorboard.summary.writer.event_file_writer import EventFileWriter
    except ImportError as error:
        raise ImportError("logging to TensorBoard needs its package: pip install 'jdl[tensorboard]'") from error
    writer = EventFileWriter(str(Path(folder)))

    def log(row: Row, state: Any) -> None:
        values = [Summary.Value(tag=name, simple_value=value) for name, value in scalars(row)]
        writer.add_event(Event(wall_time=time.time(), step=row["step"], summary=Summary(value=values)))
        writer.flush()

    return Logger(log, writer.close)


def wandb(folder: str | os.PathLike, project: str = "jdl", mode: Any = None, **options: Any) -> Logger:
    """Make a callback that logs to Weights & Biases.

    Args:
        folder: the folder of the local files.
        project: the project's name there.
        mode: "online" or "offline"; by default the environment variable WANDB_MODE, else "offline". Upload offline
            runs by `wandb sync`.
        options: further arguments of `wandb.init`.

    Raises:
        ImportError: if the package wandb is not installed.
    """
    try:
        import wandb
    except ImportError as error:
        raise ImportError("logging to Weights & Biases needs its package: pip install 'jdl[wandb]'") from error
    mode = mode or os.environ.get("WANDB_MODE", "offline")
    session = wandb.init(project=project, dir=str(folder), mode=mode, reinit="create_new", **options)

    def log(row: Row, state: Any) -> None:
        session.log(dict(scalars(row)), step=row["step"])

    return Logger(log, session.finish)


LOGGERS = {"tensorboard": tensorboard, "wandb": wandb}


def scalars(row: Row) -> Iterator[tuple[str, float]]:
    """Yield the numbers of a row with their names, without the step.

    A list of one number per run gives the mean over the runs that have not ended, and then each ("train/loss/run_3").
    """
    for name, value in row.items():
        if name == "step" or value is None:
            continue
        if not isinstance(value, list):
            yield name, float(value)
            continue
        runs = {index: run for index, run in enumerate(value) if run is not None}
        if runs:
            yield name, float(np.mean(list(runs.values())))
        for index, run in runs.items():
            yield f"{name}/run_{index}", run
