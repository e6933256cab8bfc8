"""The loop of a search: Optuna proposes settings, the trials are trained, Optuna is told their values.

A killed search can continue at any point. Optuna's storage has the trials that were under way, their run directories
have checkpoints, and a proposal depends on nothing but the trial's number and the trials before it.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from jdl.experiment import search_space
from jdl.experiment.search_setup import Search
from jdl.experiment.study import Study, Trial
from jdl.experiment.study_storage import TrialNotes, import_optuna, read_notes, write_failure, write_notes
from jdl.experiment.study_summary import write_summary
from jdl.experiment.trial_runs import train_one, train_population


def run_search(search: Search, watch: Callable[[Trial], None]) -> Study:
    """Train trials until there are as many as wanted.

    Args:
        search: the search.
        watch: called with each trial that ends.

    Returns:
        The study, with its importances and the command that repeats the best trial.
    """
    write_summary(search, last=False)
    while trials := _next_trials(search):
        with _report_failures(search, trials):
            in_one_program = bool(read_notes(trials[0]).shared_run)
            values = train_population(search, trials) if in_one_program else [train_one(search, trials[0])]
            for trial, value in zip(trials, values, strict=True):
                _tell(search, trial, value)
        now = write_summary(search, last=False)
        for trial in trials:
            watch(now.trials[trial.number])
    return write_summary(search, last=True)


def _next_trials(search: Search) -> list[Any]:
    """Return the Optuna trials to train next, with settings and notes: one, or those of one program.

    Trials that a kill interrupted come first. The list is empty when there are as many trials as wanted.
    """
    trials = _interrupted_trials(search) or _new_trials(search)
    for place, trial in enumerate(trials):
        _propose(search, trial)
        if not read_notes(trial).owner:
            shared_run = f"together-{trials[0].number:04d}" if search.options.population > 1 else ""
            write_notes(trial, TrialNotes(search.owner, f"trial-{trial.number:04d}", shared_run, place))
    return trials


def _interrupted_trials(search: Search) -> list[Any]:
    """Return one trial that a kill interrupted, with all others of its program; none if there is none."""
    optuna = import_optuna()
    running = [trial for trial in search.study.get_trials() if trial.state == optuna.trial.TrialState.RUNNING]
    ours = [trial for trial in running if search.owns(read_notes(trial))]
    if not ours:
        return []
    shared_run = read_notes(ours[0]).shared_run
    same = [trial for trial in ours if read_notes(trial).shared_run == shared_run] if shared_run else ours[:1]
    return [optuna.Trial(search.study, trial._trial_id) for trial in same]


def _new_trials(search: Search) -> list[Any]:
    """Ask Optuna for as many new trials as one program trains, at most as many as are left."""
    left = search.options.trials - len(search.study.get_trials())
    return [search.study.ask() for _ in range(max(0, min(left, search.options.population)))]


def _propose(search: Search, trial: Any) -> None:
    """Let a trial have a setting; one that has it already keeps it."""
    optuna = import_optuna()
    samplers = {"tpe": optuna.samplers.TPESampler, "random": optuna.samplers.RandomSampler}
    seed = np.random.SeedSequence([search.options.seed, trial.number]).generate_state(1)[0]
    search.study.sampler = samplers[search.options.sampler](seed=int(seed))
    search_space.suggest(trial, search.space)


@contextlib.contextmanager
def _report_failures(search: Search, trials: Sequence[Any]) -> Iterator[None]:
    """Tell Optuna of trials that are pruned or raise.

    An error before any trial has finished is raised again: the experiment itself is then likely to be wrong.
    """
    optuna = import_optuna()
    try:
        yield
    except optuna.TrialPruned:
        search.study.tell(trials[0], state=optuna.trial.TrialState.PRUNED)
    except OSError:  # such as a full disk: the trial stays open, and continues when the user has mended it
        raise
    except Exception as error:
        for trial in trials:
            _fail(search, trial, f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
        states = [trial.state for trial in search.study.get_trials()]
        if optuna.trial.TrialState.COMPLETE not in states:
            write_summary(search, last=False)
            raise


def _tell(search: Search, trial: Any, value: float) -> None:
    if np.isfinite(value):
        search.study.tell(trial, value)
    else:
        _fail(search, trial, f"{search.options.metric} is not finite")


def _fail(search: Search, trial: Any, failure: str) -> None:
    write_failure(trial, failure)
    search.study.tell(trial, state=import_optuna().trial.TrialState.FAIL)
