"""Seeds in processes of their own, a core each: for what Python does, which one process cannot do on two cores.

Each seed is a part of the run, a run directory within it that is trained, resumed and loaded as one of a single seed.
"""

import json
import os
import subprocess
import sys
import threading
import time
import traceback
from pathlib import Path

import numpy as np

from jdl.experiment import execute
from jdl.runtime.cores import leave_core
from jdl.runtime.files import write_text
from jdl.runtime.preemption import REQUEUE, Preempted, leaving
from jdl.runtime.processes import several
from jdl.training import runs
from jdl.training.runs import Run

_OUTPUT = "output.txt"


def separately(run: Run, processes: int | None = None) -> dict[str, np.ndarray]:
    """Call the experiment's `main(config, part)` for each seed of a run in a process of its own; returns all metrics.

    processes: how many at once, by default one for each core. What is finished stays finished when the run is
    resumed. Raises ChildProcessError with the last line that a process wrote where one fails; the others are ended.
    """
    execute.require_experiment(run)
    if several():
        raise ValueError("separately starts processes of its own: run it without `jdl launch`")
    if processes is not None and processes < 1:
        raise ValueError(f"separately(processes={processes}): at least 1")
    cores = leave_core()
    parts = [run.part(f"seed-{seed}", [seed]) for seed in run.seeds]
    waiting = [part for part in parts if part.result is None]
    working: dict[Path, subprocess.Popen] = {}
    try:
        while waiting or working:
            while waiting and len(working) < (processes or cores):
                part = waiting.pop(0)
                working[part.path] = _start(part)
            for path, process in list(working.items()):
                if process.poll() is not None:
                    del working[path]
                    _close(process)
                    if process.returncode == REQUEUE:  # it was told before this process was
                        raise Preempted
                    if process.returncode:
                        raise ChildProcessError(
                            f"{path.name} failed: {_last_line(path / _OUTPUT)} ({path / _OUTPUT} has all of it)"
                        )
            time.sleep(0.05)
    finally:
        for process in working.values():
            process.terminate()
            _close(process)
    write_text(run.path / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in _joined(parts)))
    finals = [part.final for part in parts]
    return {name: np.concatenate([final[name] for final in finals]) for name in finals[0]}


def _start(part: Run) -> subprocess.Popen:
    """A process that works on a part; the pipe to it breaks when this process ends, however it does."""
    with (part.path / _OUTPUT).open("w") as output:
        program = "import sys; from jdl.experiment.separate import work; work(sys.argv[1])"
        command = [sys.executable, "-c", program, str(part.path)]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=output, stderr=subprocess.STDOUT)


def _close(process: subprocess.Popen) -> None:
    process.wait()
    if process.stdin is not None:
        process.stdin.close()


def _last_line(output: Path) -> str:
    lines = output.read_text().splitlines()
    return lines[-1] if lines else "it said nothing"


def _joined(parts: list[Run]) -> list[runs.Row]:
    """The rows that every part has, a list of values for each metric."""
    by_step = [{row["step"]: row for row in part.rows} for part in parts]
    rows = []
    for step, first in by_step[0].items():
        if all(step in other for other in by_step):
            row: runs.Row = {"step": step, "seconds": max(other[step]["seconds"] for other in by_step)}
            for name in sorted(first.keys() - row.keys()):
                row[name] = [value for other in by_step for value in np.ravel(np.array(other[step][name])).tolist()]
            rows.append(row)
    return rows


def work(path: str) -> None:
    """What the process of a seed does; it ends with the one that started it."""

    def wait() -> None:
        os.read(0, 1)
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
    try:
        with leaving():
            execute.execute_part(Run(path))
    except Exception as error:
        traceback.print_exc()
        print(f"{type(error).__name__}: {str(error).splitlines()[0]}", file=sys.stderr)
        sys.exit(1)
