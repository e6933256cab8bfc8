"""Hyper-parameter search: Optuna proposes settings, and each trial is a run directory within the study's.

An experiment may declare the fields to search as `SPACE`:

    SPACE = {"learning_rate": jdl.tune.log(1e-4, 1e-1), "width": jdl.tune.choice(32, 64, 128)}

A search that is killed at any moment continues when it is called again. The trial that it was training continues from
its checkpoint, and the proposals are those of a search that was never killed.

Source of the default sampler, the tree-structured Parzen estimator: Bergstra et al., "Algorithms for hyper-parameter
optimization", 2011. Source of the pruner "hyperband": Li et al., "Hyperband: a novel bandit-based approach to
hyperparameter optimization", 2018.
"""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from jdl.experiment import find, search_space
from jdl.experiment.population import together
from jdl.experiment.search_loop import run_search
from jdl.experiment.search_setup import Options, check_options, open_search
from jdl.experiment.search_space import choice, log, uniform
from jdl.experiment.study import Study, Trial
from jdl.experiment.study_storage import opened
from jdl.training.runs import locked

__all__ = ["Options", "Study", "Trial", "choice", "log", "search", "together", "uniform"]

FOLDER = Path("runs") / "tune"


def search(
    experiment: str | ModuleType,
    options: Options | None = None,
    *,
    space: Mapping[str, search_space.Dimension] | None = None,
    config: Any = None,
    watch: Callable[[Trial], None] = lambda trial: None,
) -> Study:
    """Search the hyper-parameters of an experiment, or continue a search.

    A trial fails if its objective is not finite, or if it raises an error after another trial has finished. The search
    then goes on with the next trial. An error before any trial has finished ends the search.

        space = {"learning_rate": jdl.tune.log(1e-4, 1e-1)}
        study = jdl.tune.search("digits", jdl.tune.Options(trials=20), space=space)

    Args:
        experiment: the experiment, or its name as `jdl run` takes it.
        options: how to search; by default `Options()`, which trains 20 trials of one seed.
        space: the dimensions to search, by field. They take precedence over the experiment's SPACE.
        config: the values of the fields that are not searched; by default those of `Config()`. A field that differs
            from its default is not searched, even if SPACE has it.
        watch: called with each trial that ends.

    Returns:
        The study. Its directory has the run directory of each trial, `study.json`, and Optuna's journal unless
        `options.storage` names a database.

    Raises:
        ValueError: before anything is trained, for options that are wrong, for a space that does not fit the Config,
            and for a study directory that has another search.
        TypeError: before anything is trained, for a dimension that a field cannot take. With a population, for an
            experiment that branches on a searched field.
        LookupError: for an unknown experiment, and for a metric that the run does not log.
        ImportError: if Optuna is not installed.
    """
    module = find.find(experiment) if isinstance(experiment, str) else experiment
    name = find.name_of(module)
    config = module.Config() if config is None else config
    fixed = {
        field
        for field in search_space.fields(module.Config)
        if search_space.value_of(config, field) != search_space.value_of(module.Config(), field)
    }
    declared = {field: one for field, one in getattr(module, "SPACE", {}).items() if field not in fixed}
    checked = search_space.checked({**declared, **(space or {})}, module.Config)
    options = options or Options()
    check_options(options, checked)
    options = dataclasses.replace(options, name=options.name or Path(name).stem)
    folder = (options.study_dir or FOLDER / str(options.name)).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder), opened(options.storage, folder) as storage:
        return run_search(open_search(module, name, config, checked, options, folder, storage), watch)
