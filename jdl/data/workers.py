"""Processes that read ahead for a pipeline: what is sent to them, how they begin and end, and why one died."""

import importlib.machinery
import multiprocessing
import os
import signal
import sys
import threading
from typing import Any

import jax


def check_sendable(workers: int, things: dict[str, Any]) -> None:
    """Check that everything a worker needs can be sent to it.

    Args:
        workers: the number of processes, for the message.
        things: what is sent, by the names of the pipeline's arguments.

    Raises:
        ValueError: for something that cannot be sent; the message says how to change it.
    """
    import cloudpickle  # Grain sends functions with it

    for name, thing in things.items():
        module = sys.modules.get(getattr(thing, "__module__", None) or type(thing).__module__)
        if module is not None and not _importable(module.__name__):  # such as an experiment's file
            cloudpickle.register_pickle_by_value(module)
        try:
            cloudpickle.dumps(thing)
        except Exception as error:
            raise ValueError(
                f"pipeline(workers={workers}): {name} cannot be sent to another process ({type(error).__name__}: "
                f"{error}); let it open files and make locks and generators when it is called, or use workers=0"
            ) from error


def _importable(module: str) -> bool:
    """Whether another process could import a module."""
    if module == "__main__" or module in sys.builtin_module_names:
        return True
    package = module.rpartition(".")[0]
    path = getattr(sys.modules.get(package), "__path__", None) if package else None
    return importlib.machinery.PathFinder.find_spec(module, path) is not None


def enter_worker(index: int, count: int) -> None:
    """Set up a worker process: it uses no accelerator, and ends when the process that it works for ends."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    jax.config.update("jax_platforms", "cpu")  # JAX was imported before the variable was set
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent process gets the signal, too, and ends this one
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


_DEATHS = {
    "-7": "shared memory is full; give more (docker run --shm-size=8g), or use fewer workers or smaller batches",
    "-9": "it was killed, as by a machine short of memory; use fewer workers or threads",
    "1": 'if it could not start: what a script does is put under `if __name__ == "__main__":`, since workers import it',
}


def explain_death(error: Exception) -> None:
    """Raise RuntimeError with a likely cause if an error of Grain's means that a worker process died."""
    words = str(error)
    if "terminated unexpectedly with exit code" in words:
        code = words.partition("exit code ")[2].split(".")[0]
        hint = _DEATHS.get(code, "what it printed above may say why")
        raise RuntimeError(f"a worker process of the pipeline ended with exit code {code}: {hint}") from error
