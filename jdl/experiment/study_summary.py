"""Writes `study.json`, the record of a study that `Study` reads without Optuna."""

import shlex
from typing import Any

import numpy as np

from jdl.experiment import search_space
from jdl.experiment.search_setup import Search
from jdl.experiment.study import SUMMARY, Study, Trial
from jdl.experiment.study_storage import import_optuna, read_notes
from jdl.runtime.files import write_json

_FEWEST_FOR_IMPORTANCES = 4  # finished trials
_STATES = {"COMPLETE": "finished", "PRUNED": "pruned", "FAIL": "failed"}  # for Optuna's; all others are "running"


def write_summary(search: Search, *, last: bool) -> Study:
    """Write the record of a study, and read it.

    Args:
        search: the search.
        last: whether the search is over; then the record also has the importance of each field and the command that
            repeats the best trial.
    """
    trials = [_record(search, trial) for trial in search.study.get_trials()]
    summary = {"description": search.description, "trials": trials, "importances": None, "command": None}
    write_json(search.folder / SUMMARY, summary)
    best = Study(search.folder).best
    if last and best is not None:
        summary |= {"command": _command(search, best), "importances": _importances(search)}
        write_json(search.folder / SUMMARY, summary)
    return Study(search.folder)


def _record(search: Search, trial: Any) -> dict[str, Any]:
    """Make the fields of `Trial` from an Optuna trial."""
    notes = read_notes(trial)
    return {
        "number": trial.number,
        "state": _STATES.get(trial.state.name, "running"),
        "value": trial.value if trial.values and np.isfinite(trial.value) else None,
        "settings": trial.params,
        "run": notes.run if search.owns(notes) else f"{notes.owner or '?'}/{notes.run}",
        "note": notes.failure,
    }


def _command(search: Search, best: Trial) -> str:
    """Write the command that trains the best trial again."""
    config = search_space.replaced(search.config, best.settings)
    seeds = ["--seeds", str(search.options.seeds)] if search.options.seeds > 1 else []
    return shlex.join(["jdl", "run", search.name, *search_space.options(config), *seeds])


def _importances(search: Search) -> dict[str, float] | None:
    """Estimate the share of the objective's variance that each field explains; None if too little is known.

    Source: Hutter, Hoos and Leyton-Brown, "An efficient approach for assessing hyperparameter importance", 2014.
    """
    optuna = import_optuna()
    complete = search.study.get_trials(states=[optuna.trial.TrialState.COMPLETE])
    if len(complete) < _FEWEST_FOR_IMPORTANCES or len({trial.value for trial in complete}) == 1:
        return None
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    return optuna.importance.get_param_importances(search.study, evaluator=evaluator)
