"""How soon an experiment takes its first step, the first time and the second, and the memory it needs."""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from experiments.bench.measure import Row, rate

EXPERIMENT, SEEDS = "digits", 8
GIGABYTE = 1e9


def start_rows(rounds: int) -> list[Row]:
    """Seconds from the process's start to its first step done: a second start against one with an empty cache."""
    first, second = [], []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            first.append(_start(Path(folder), "first"))
            second.append(_start(Path(folder), "second"))
    rows = []
    for name, label in (("total", "from process start"), ("without_imports", "from the end of the imports")):
        before, after = [run[name] for run in first], [run[name] for run in second]
        ratios = [late / early for late, early in zip(after, before, strict=True)]
        label = f"second start / first, {EXPERIMENT}, {SEEDS} seeds, {label}"
        rows.append(Row(label, ratios, 0.5, rate(after, "s"), rate(before, "s"), at_most=True))
    return rows


def memory_rows(rounds: int) -> list[Row]:
    """Peak resident memory of the whole run from the command line, its compilation cache empty; measured once."""
    with tempfile.TemporaryDirectory() as folder:
        jdl = Path(sys.executable).with_name("jdl")
        command = [jdl, "run", EXPERIMENT, "--seeds", str(SEEDS), "--run-dir", f"{folder}/run"]
        environment = _cache(Path(folder))
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment)
        _, status, usage = os.wait4(process.pid, 0)
        if status != 0:
            raise RuntimeError(f"{command} ended with status {os.waitstatus_to_exitcode(status)}")
    peak = usage.ru_maxrss * 1024 / GIGABYTE
    return [
        Row(f"peak memory of jdl run {EXPERIMENT} --seeds {SEEDS}, GB", [peak], 1.5, f"{peak:.2f} GB", at_most=True)
    ]


def _cache(folder: Path) -> dict[str, str]:
    """The environment of a process whose compilation cache is in a folder, by the framework's own default."""
    names = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    return {**names, "XDG_CACHE_HOME": str(folder / "cache")}


def _start(folder: Path, name: str) -> dict[str, float]:
    command = [sys.executable, "-m", "experiments.bench.starts", str(folder / name), repr(time.time())]
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=_cache(folder))
    return json.loads(result.stdout.splitlines()[-1])


def main() -> None:
    """A worker: begin the experiment as `jdl run` does, and end it once its first step is done."""
    path, began = sys.argv[1], float(sys.argv[2])
    import jax

    import jdl
    from jdl.experiment import execute, find

    jdl.host_devices()
    module = find.find(EXPERIMENT)
    imported = time.time()
    fit = jdl.fit

    def fit_one_step(learner: jdl.Learner, *arguments: Any, **options: Any) -> None:
        def step(state: Any, batch: Any) -> None:
            jax.block_until_ready(learner.step(state, batch))
            now = time.time()
            print(json.dumps({"total": now - began, "without_imports": now - imported}), flush=True)
            os._exit(0)

        fit(learner._replace(step=step), *arguments, **options)

    jdl.fit = fit_one_step  # type: ignore[assignment]
    execute.run(module, seeds=SEEDS, path=path)


if __name__ == "__main__":
    main()
