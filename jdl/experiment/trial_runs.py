"""Trials of a search, trained one by one or several in one program; each leaves a run directory in the study's."""

import functools
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jdl.experiment import execute, search_space, study
from jdl.experiment.config import encode
from jdl.experiment.population import check_runs, copy_results, mark_population, values_of_setting
from jdl.experiment.search_setup import Search
from jdl.experiment.study_storage import import_optuna, read_notes
from jdl.runtime.files import as_json
from jdl.training.runs import Row, Run

_NOT_TRACED = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
)


def train_one(search: Search, trial: Any) -> float:
    """Train a trial by itself, from its last checkpoint if it has one.

    Args:
        search: the search.
        trial: the Optuna trial, with its settings and notes.

    Returns:
        The trial's value; NaN if it diverged.

    Raises:
        TrialPruned: Optuna's, when the pruner stops the trial.
    """
    run = _run_of_trial(search, trial)
    logged = study.Logged(run, search.options.metric)
    known = search.study.get_trials()[trial.number].intermediate_values  # a resumed run logs these steps again

    def report(row: Row) -> None:
        measured = logged(row)
        if measured is None:
            return
        step, value = measured
        if np.isfinite(value) and step not in known:
            trial.report(value, step)
        if trial.should_prune():
            raise import_optuna().TrialPruned

    run.observe(report)
    if run.result is None:
        execute.execute(run)
    return study.objective(run, search.options.metric, study.diverged(run))


def train_population(search: Search, trials: Sequence[Any]) -> list[float]:
    """Train trials in one program, then give each its run directory, as if it had been trained by itself.

    Args:
        search: the search.
        trials: the Optuna trials, which name the same shared run in their notes.

    Returns:
        The value of each trial; NaN for one that diverged.

    Raises:
        TypeError: if the experiment branches on a searched field.
        ValueError: if the experiment does not train the settings that it is given.
    """
    shared = _run_of_population(search, trials)
    check = functools.partial(check_runs, run=shared, name=search.name)
    shared.observe(check)
    if shared.result is None:
        try:
            execute.execute(shared)
        except _NOT_TRACED as error:
            message = (
                f"--population: the experiment branches on one of {', '.join(search.space)}, or gives it to "
                "code that does (as Flax's Dropout); fix that field, or search without --population"
            )
            raise TypeError(message) from error
    check((shared.result or {})["metrics"])
    values = []
    for trial in trials:
        place = read_notes(trial).place
        run = _run_of_trial(search, trial)
        if run.result is None:
            copy_results(shared, place, run)
        diverged = values_of_setting(study.diverged(shared), place, shared)
        values.append(study.objective(run, search.options.metric, diverged))
    return values


def _run_of_trial(search: Search, trial: Any) -> Run:
    """Open or make the run directory of a trial; raises FileExistsError if the folder holds another run."""
    path = search.folder / read_notes(trial).run
    if not path.is_dir():
        _make_run(search, path.name, trial.params)
    run = Run(path)
    if run.config != as_json(encode(search_space.replaced(search.config, trial.params))):
        raise FileExistsError(f"{path} holds a run of another search; move it away, or give another --study-dir")
    return run


def _run_of_population(search: Search, trials: Sequence[Any]) -> Run:
    """Open or make the run directory of the program that trains several trials; its config is that of the first."""
    path = search.folder / read_notes(trials[0]).shared_run
    if not path.is_dir():
        settings = {field: [trial.params[field] for trial in trials] for field in search.space}
        _make_run(search, path.name, trials[0].params, settings)
    return Run(path)


def _make_run(
    search: Search, name: str, settings: Mapping[str, Any], population: Mapping[str, Sequence[float]] | None = None
) -> None:
    """Make a run directory under another name, then rename it: a kill leaves all of it or nothing."""
    writing = search.folder / f"{name}.writing"
    shutil.rmtree(writing, ignore_errors=True)
    config = search_space.replaced(search.config, settings)
    run = execute.prepare(search.module, config, range(search.options.seeds), writing)
    if population is not None:
        mark_population(run, name, population)
    writing.rename(search.folder / name)
