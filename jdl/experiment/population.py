"""Several settings of an experiment in one program: the line that an experiment writes, and each setting's results."""

import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from jdl.core import transforms
from jdl.core.learner import Learner
from jdl.experiment import search_space
from jdl.runtime.files import write_json, write_text
from jdl.training.runs import Run

POPULATION = "population"  # in a run's description: {field: its value in each setting}
TRAINED_IN = "trained_in"  # in a trial's description: {"run": name of the shared run, "place": of its setting}
_CLOCK = ("step", "seconds")


def together[C](make: Callable[[C], Learner], config: C, run: Run) -> Learner:
    """Build the learner of a run: its seeds and, in a search with `--population`, several settings, in one program.

    An experiment that writes `jdl.tune.together(make, config, run)` in its `main` can be searched with `--population`.
    Outside such a search it is the same as `jdl.seeds(make(config), run.seeds)`.

    Within such a search, the searched fields of the config are traced scalars: the learner may compute with them, but
    not branch on them. A field that only Flax's `Dropout` reads cannot be searched this way, because that layer
    branches on its rate. The search refuses such a field with an error that names it.

    Each setting trains as it would by itself, from the same initial parameters, on the same batches and with the same
    random numbers, such as dropout masks. The results agree up to rounding, because a searched field is a variable of
    the program instead of a constant.

    Args:
        make: `config -> learner`, the learner of one run.
        config: the experiment's config.
        run: the run that `main` was given.

    Returns:
        A learner of len(run.seeds) * settings runs. State, metrics and predictions have one leading axis for all of
        them, in which the settings of the first seed come first.
    """
    settings = run.description.get(POPULATION)
    if settings is None:
        return transforms.seeds(make(config), run.seeds)
    values = {name: np.asarray(numbers, float) for name, numbers in settings.items()}
    learner = transforms.population(lambda setting: make(search_space.replaced(config, setting)), values)
    return transforms.seeds(learner, run.seeds)


def mark_population(run: Run, name: str, settings: Mapping[str, Sequence[float]]) -> None:
    """Write into a new run's description that it trains several settings.

    Args:
        run: the run.
        name: the name of its directory in the study; `jdl runs` lists the trials instead of it.
        settings: the value of each searched field in each setting.
    """
    write_json(run.path / "config.json", {**run.description, "part": name, POPULATION: settings})


def num_settings(run: Run) -> int:
    """Return the number of settings that a run trains in one program."""
    return len(next(iter(run.description[POPULATION].values())))


def refuse_population(run: Run) -> None:
    """Refuse to continue a run outside its search if it trains several settings of that search.

    Raises:
        ValueError: with the command that continues the search.
    """
    if POPULATION not in run.description:
        return
    words = run.environment["command"][1:]
    command = f"`{shlex.join(['jdl', *words])}`" if words[:1] == ["tune"] else "the jdl.tune.search that made it"
    folder = run.path.parent
    raise ValueError(
        f"{run.path} trains {num_settings(run)} trials of a search in one program; continue the search with {command} "
        f"(`jdl runs {folder}` lists its trials)"
    )


def check_runs(metrics: Mapping[str, Any], *, run: Run, name: str) -> None:
    """Check that an experiment trained the seeds and settings of its run.

    Args:
        metrics: a row of the log, or the final metrics.
        run: the run of several settings.
        name: the experiment's name, for the message.

    Raises:
        ValueError: if a metric has another number of values; the message says which line the experiment lacks.
    """
    settings = num_settings(run)
    wanted = settings * len(run.seeds)
    found = {np.size(value) for metric, value in metrics.items() if metric not in _CLOCK} - {wanted}
    if found:
        raise ValueError(
            f"--population {settings}: {name} trained {found.pop()} run(s) where {wanted} were wanted; in its main, "
            "write jdl.tune.together(make, config, run) for jdl.seeds(make(config), run.seeds)"
        )


def refuse_to_compare(run: Run) -> None:
    """Refuse to take the settings of a run of several settings for seeds.

    Raises:
        ValueError: with the command that lists the trials.
    """
    if POPULATION in run.description:
        raise ValueError(
            f"{run.path} trains {num_settings(run)} settings, which are no repetitions of one another; give its trials "
            f"(`jdl runs {run.path.parent}` lists them)"
        )


def values_of_setting(values: list[Any], place: int, shared: Run) -> list[Any]:
    """Select the values [seeds] of one setting from the values [seeds * settings] of a run of several settings.

    Args:
        values: the values of all settings.
        place: the place of the setting.
        shared: the run of several settings.
    """
    return values[place :: num_settings(shared)]


def copy_results(shared: Run, place: int, run: Run) -> None:
    """Give a run directory the log and the result of one setting, as if it had been trained by itself.

    The setting's share of the time is the time of the whole program divided by the number of settings.

    Args:
        shared: the finished run of several settings.
        place: the place of the setting.
        run: the run directory of the setting's trial.
    """

    def own(metrics: Mapping[str, Any]) -> dict[str, Any]:
        return {
            name: value if name in _CLOCK else values_of_setting(value, place, shared)
            for name, value in metrics.items()
        }

    trained_in = {"run": shared.path.name, "place": place}  # where `jdl.load` finds its trained state
    write_json(run.path / "config.json", {**run.description, TRAINED_IN: trained_in})
    write_text(run.path / "metrics.jsonl", "".join(json.dumps(own(row)) + "\n" for row in shared.rows))
    result = shared.result or {}
    metrics = {name: np.array(values, float) for name, values in own(result["metrics"]).items()}
    run.finish(metrics, result["seconds"] / num_settings(shared))
