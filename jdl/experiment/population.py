"""Several settings of an experiment in one program: the one line that an experiment writes, and how to part them."""

import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from jdl.core import transforms
from jdl.core.learner import Learner
from jdl.experiment import search_space
from jdl.runtime.files import write_text
from jdl.training.runs import Run

POPULATION = "population"  # in a run's description: {field: its value in each setting}
_CLOCK = ("step", "seconds")


def together[C](make: Callable[[C], Learner], config: C, run: Run) -> Learner:
    """The learner of a run: its seeds and, in a search with --population, several settings, in one program.

    make: `config -> learner` of one run. For any other run it is `seeds(make(config), run.seeds)`. With several
    settings, the fields searched hold traced scalars: a learner may compute with them, not branch on them. Metrics
    and predictions have a leading axis of seeds * settings.
    """
    settings = run.description.get(POPULATION)
    if settings is None:
        return transforms.seeds(make(config), run.seeds)
    values = {name: np.asarray(numbers, float) for name, numbers in settings.items()}
    learner = transforms.population(lambda setting: make(search_space.replaced(config, setting)), values)
    return transforms.seeds(learner, run.seeds)


def size_of(run: Run) -> int:
    """How many settings a run trains."""
    return len(next(iter(run.description[POPULATION].values())))


def check_runs(metrics: Mapping[str, Any], *, run: Run, name: str) -> None:
    """Raises ValueError where the experiment called `name` trained something else than a run's seeds and settings."""
    size = size_of(run)
    wanted = size * len(run.seeds)
    found = {np.size(value) for metric, value in metrics.items() if metric not in _CLOCK} - {wanted}
    if found:
        raise ValueError(
            f"--population {size}: {name} trained {found.pop()} run(s) where {wanted} were wanted; in its main, "
            "write jdl.tune.together(make, config, run) for jdl.seeds(make(config), run.seeds)"
        )


def of_setting(values: list[Any], place: int, shared: Run) -> list[Any]:
    """Of values [seeds * settings], the ones [seeds] of the setting at a place."""
    return values[place :: size_of(shared)]


def split(shared: Run, place: int, run: Run) -> None:
    """Give a run directory the log and the result of one setting of a run that trained several."""

    def part(metrics: Mapping[str, Any]) -> dict[str, Any]:
        return {name: value if name in _CLOCK else of_setting(value, place, shared) for name, value in metrics.items()}

    write_text(run.path / "metrics.jsonl", "".join(json.dumps(part(row)) + "\n" for row in shared.rows))
    result = shared.result or {}
    metrics = {name: np.array(values, float) for name, values in part(result["metrics"]).items()}
    run.finish(metrics, result["seconds"] / size_of(shared))
