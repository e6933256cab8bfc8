"""Seeds in separate processes, one core each: for Python code, which a single process runs on one core at a time.

Each seed is a part of the run: a run directory within the run's, which is trained, resumed and loaded like a run of a
single seed.
"""

import contextlib
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
from jdl.training.profiling import profile, profiled_calls
from jdl.training.runs import Run

_OUTPUT = "output.txt"


def separately(run: Run, processes: int | None = None) -> dict[str, np.ndarray]:
    """Train each seed of a run in a separate process, which calls the experiment's `main(config, part)`.

    An experiment calls this in its `main`, for a run of several seeds; its `main` is then called again for each seed.
    When the run is resumed, seeds that are finished are not trained again.

    Inside `jdl.profile` (`jdl run --profile`) each seed is profiled, into `profile/` in its part's directory. The
    times are printed when all seeds are done.

        def main(config, run):
            if len(run.seeds) > 1:
                return jdl.separately(run)
            ...

    Args:
        run: the run that `main` was given.
        processes: how many processes work at the same time; by default one for each core.

    Returns:
        The final metrics by name, each with one value per seed.

    Raises:
        ValueError: for fewer than 1 process, and in a process that `jdl launch` started.
        LookupError: if the run was not made by an experiment.
        ChildProcessError: if a process fails; the message has the last line that it wrote. The others are ended.
    """
    execute.require_experiment(run)
    if several():
        raise ValueError("separately starts processes of its own: run it without `jdl launch`")
    if processes is not None and processes < 1:
        raise ValueError(f"separately(processes={processes}): at least 1")
    cores = leave_core()
    parts = [run.part(f"seed-{seed}", [seed]) for seed in run.seeds]
    waiting = [part for part in parts if part.result is None]
    profiled = list(waiting) if profiled_calls() else []
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
                    if process.returncode == REQUEUE:  # the process was told to end before this one was
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
    write_text(run.path / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in _rows_of_all_seeds(parts)))
    for part in profiled:
        _show_profile(part)
    finals = [part.final for part in parts]
    return {name: np.concatenate([final[name] for final in finals]) for name in finals[0]}


def _start(part: Run) -> subprocess.Popen:
    """Start the process of a part. The pipe to it breaks when this process ends, even if it is killed."""
    with (part.path / _OUTPUT).open("w") as output:
        program = "import sys; from jdl.experiment.separate import work; work(sys.argv[1], int(sys.argv[2]))"
        command = [sys.executable, "-c", program, str(part.path), str(profiled_calls())]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=output, stderr=subprocess.STDOUT)


def _close(process: subprocess.Popen) -> None:
    process.wait()
    if process.stdin is not None:
        process.stdin.close()


def _last_line(output: Path) -> str:
    lines = output.read_text().splitlines()
    return lines[-1] if lines else "it said nothing"


def _show_profile(part: Run) -> None:
    """Print where the time of a part went, which its process measured."""
    files = sorted(part.path.rglob("profile/times.json"))
    for file in files:
        times = json.loads(file.read_text())
        total = sum(times["seconds"].values())
        shares = ", ".join(f"{name} {seconds / total:.0%}" for name, seconds in times["seconds"].items())
        print(
            f"{part.path.name}: {times['calls']} calls of {times['updates'] // times['calls']} update(s), "
            f"{1000 * total / times['calls']:.3f} ms per call: {shares} ({file.parent} has the trace)",
            file=sys.stderr,
        )
    if not files:
        print(f"{part.path.name}: there is no profile; {part.path / _OUTPUT} says why", file=sys.stderr)


def _rows_of_all_seeds(parts: list[Run]) -> list[runs.Row]:
    """Merge the logs of the parts: the rows that every part has, with a list of values for each metric."""
    by_step = [{row["step"]: row for row in part.rows} for part in parts]
    rows = []
    for step, first in by_step[0].items():
        if all(step in other for other in by_step):
            row: runs.Row = {"step": step, "seconds": max(other[step]["seconds"] for other in by_step)}
            for name in sorted(first.keys() - row.keys()):
                row[name] = [value for other in by_step for value in np.ravel(np.array(other[step][name])).tolist()]
            rows.append(row)
    return rows


def work(path: str, calls: int = 0) -> None:
    """Train one seed: the main function of its process, which ends when the process that started it does.

    Args:
        path: the part's run directory.
        calls: how many calls of the step to profile; 0 for no profile.
    """

    def wait() -> None:
        os.read(0, 1)
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
    try:
        with leaving(), profile(calls) if calls else contextlib.nullcontext():
            execute.execute_part(Run(path))
    except Exception as error:
        traceback.print_exc()
        print(f"{type(error).__name__}: {str(error).splitlines()[0]}", file=sys.stderr)
        sys.exit(1)
