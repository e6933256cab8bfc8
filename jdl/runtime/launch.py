"""Run a command as several processes of one program: start all of them on this machine, or be one of a cluster.

jdl launch --processes 2 run char_lm --devices data              # all processes here, to try it

srun jdl launch run char_lm --devices fsdp                       # one process of a cluster, as Slurm says

jdl launch --coordinator 10.0.0.1:4000 --processes 2 --index 0 run char_lm        # by hand, once on each machine
"""

import dataclasses
import importlib.util
import os
import runpy
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from jdl.runtime import processes
from jdl.runtime.cores import share_cores
from jdl.runtime.preemption import REQUEUE, Preempted

_GRACE = 20.0  # seconds for the others to report what they saw, once a process has failed
_SAVING = 600.0  # seconds for all processes to save, once they are told to end


@dataclasses.dataclass(frozen=True)
class Options:
    """How the processes find each other. By default the cluster's environment says (Slurm, Kubernetes, MPI ...)."""

    processes: int | None = None
    """the number of processes; without --coordinator and --cluster all are started on this machine"""
    devices_each: int = 1
    """the number of JAX devices that each process makes of a CPU"""
    coordinator: str | None = None
    """HOST:PORT at which process 0 listens"""
    index: int | None = None
    """the index of this process, from 0 up"""
    cluster: str | None = None
    """slurm, k8s, ompi or mpi4py, if it is not detected"""
    patience: int = 120
    """seconds to wait for the other processes at the start"""


def launch(options: Options, command: Sequence[str], dispatch: Callable[[list[str]], int]) -> int:
    """Run a command of jdl, or a Python script, as one of several processes, or start all of them here.

    Args:
        options: how the processes find each other. With `processes`, but neither `coordinator` nor `cluster`, all of
            them are started on this machine.
        command: the words of the command; a first word that ends in ".py" is a script to run.
        dispatch: runs a command of jdl, given its words, and returns its exit status.

    Returns:
        The exit status.

    Raises:
        ValueError: for numbers below 1, and for GPUs of this machine that the processes do not divide evenly.
    """
    if options.devices_each < 1:
        raise ValueError(f"--devices-each {options.devices_each}: at least 1")
    if options.processes is not None and options.processes < 1:
        raise ValueError(f"--processes {options.processes}: at least 1")
    if options.processes is not None and options.coordinator is None and options.cluster is None:
        return _start_all(options, command)
    share_cores(options.devices_each)
    processes.join(
        options.coordinator, options.processes, options.index, cluster=options.cluster, patience=options.patience
    )
    if not command[0].endswith(".py"):
        return dispatch(list(command))
    sys.argv = list(command)
    runpy.run_path(command[0], run_name="__main__")
    return 0


def _start_all(options: Options, command: Sequence[str]) -> int:
    """Start all processes on this machine, wait for them and return their status.

    The output of process 0 is shown. Another process shows only its last line, and only if it fails first.
    """
    count = options.processes or 1
    address = processes.here()
    shares = _shares_of_gpus(count, _gpus(os.environ))
    with tempfile.TemporaryDirectory(prefix="jdl-") as folder:
        outputs = [Path(folder) / f"{index}.txt" for index in range(count)]
        working = []
        try:
            for index, output in enumerate(outputs):
                said = ["--coordinator", address, "--processes", str(count), "--index", str(index)]
                said += ["--devices-each", str(options.devices_each), "--patience", str(options.patience)]
                with output.open("w") as file:
                    quiet = {"stdout": file, "stderr": subprocess.STDOUT} if index else {}
                    command_line = [sys.executable, "-m", "jdl", "launch", *said, *command]
                    working.append(subprocess.Popen(command_line, env={**os.environ, **shares[index]}, **quiet))
            return _watch(working, outputs)
        except Preempted:
            for process in working:
                process.terminate()
            _wait(working, _SAVING)
            raise
        finally:
            for process in working:
                process.kill()
                process.wait()


def _watch(working: list[subprocess.Popen], outputs: list[Path]) -> int:
    """Wait for the processes; return 0 if all succeed, else the status of the one that failed first.

    A failure is also printed.

    Raises:
        Preempted: if that process asks to be started again.
    """
    while True:
        statuses = [process.poll() for process in working]
        failed = [index for index, status in enumerate(statuses) if status]
        if not failed and None not in statuses:
            return 0
        if failed:
            # One that a signal ended is the cause of what else failed by the same look: the others missed it.
            first = next((index for index in failed if (statuses[index] or 0) < 0), failed[0])
            _wait(working, _SAVING if statuses[first] == REQUEUE else _GRACE)
            status = statuses[first] or 1
            if status == REQUEUE:
                raise Preempted
            ended = f"ended by signal {-status}" if status < 0 else f"failed with status {status}"
            lines = [line for line in outputs[first].read_text().splitlines() if line.strip()]
            last = f": {lines[-1]}" if lines else ""
            print(f"jdl: process {first} of {len(working)} {ended}{last}; all have stopped", file=sys.stderr)
            return status if status > 0 else 128 - status
        time.sleep(0.05)


def _wait(working: list[subprocess.Popen], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while any(process.poll() is None for process in working) and time.monotonic() < deadline:
        time.sleep(0.05)


def _gpus(environment: Mapping[str, str]) -> list[str]:
    """List the GPUs that JAX processes would find, without starting JAX, which would occupy them."""
    chosen = environment.get("JAX_PLATFORMS") or ",".join(
        "cuda" for name in ("jax_cuda12_plugin", "jax_cuda13_plugin") if importlib.util.find_spec(name)
    )
    if "cuda" not in chosen and "gpu" not in chosen:
        return []
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [one for one in visible.split(",") if one]
    return sorted((path.name.removeprefix("nvidia") for path in Path("/dev").glob("nvidia[0-9]*")), key=int)


def _shares_of_gpus(count: int, gpus: list[str]) -> list[dict[str, str]]:
    """Return the environment variables that divide the GPUs equally among the processes."""
    if not gpus:
        return [{}] * count
    if len(gpus) % count:
        raise ValueError(
            f"--processes {count}: they do not divide the {len(gpus)} GPU(s) of this machine ({', '.join(gpus)}); give "
            "a number that does, or choose GPUs by CUDA_VISIBLE_DEVICES"
        )
    each = len(gpus) // count
    return [{"CUDA_VISIBLE_DEVICES": ",".join(gpus[i * each : (i + 1) * each])} for i in range(count)]
