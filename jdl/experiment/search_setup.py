"""A search before its first trial: the options, checked against the space, and the Optuna study that they open."""

import dataclasses
import platform
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, NamedTuple

from jdl.experiment import search_space
from jdl.experiment.config import encode
from jdl.experiment.study_storage import TrialNotes, import_optuna
from jdl.runtime.files import as_json
from jdl.training.outcome import Monitor


@dataclasses.dataclass(frozen=True)
class Options:
    """How to search, whatever the experiment."""

    trials: int = 20
    """number of trials in all, including those of earlier calls: the same command continues a study"""
    metric: str = "validation/loss"
    """what is optimized: the mean over the seeds of a final metric, or of the last value of a metric in the log"""
    direction: Literal["minimize", "maximize"] | None = None
    """by default according to the metric's name: maximize a score (accuracy, f1, return ...), minimize all others"""
    seeds: int = 1
    """number of seeds of each trial, trained in one program: seeds 0, 1, ..."""
    population: int = 1
    """number of trials in one program; for floating-point fields of an experiment that uses jdl.tune.together"""
    sampler: Literal["tpe", "random"] = "tpe"
    """how settings are proposed: by a tree-structured Parzen estimator, or at random"""
    pruner: Literal["none", "median", "hyperband"] = "none"
    """which rule stops a trial whose logged metric falls behind the others'; by default none does"""
    seed: int = 0
    """seed of the sampler"""
    name: str | None = None
    """the study's name, by default the experiment's"""
    study_dir: Path | None = None
    """the study's directory, by default runs/tune/NAME"""
    storage: str | None = None
    """URL of a database (sqlite:///FILE, postgresql://...) through which several machines share a study of one name"""


def check_options(options: Options, space: search_space.Space) -> None:
    """Check the options before anything is trained.

    Raises:
        ValueError: for numbers below 1, an unknown sampler or pruner, and a population with a pruner or with a field
            that is not floating-point.
    """
    for field in ("trials", "seeds", "population"):
        if getattr(options, field) < 1:
            raise ValueError(f"--{field} {getattr(options, field)}: give at least 1")
    for field, known in (("sampler", ("tpe", "random")), ("pruner", ("none", "median", "hyperband"))):
        if getattr(options, field) not in known:
            raise ValueError(f"--{field} {getattr(options, field)}: there are {', '.join(known)}")
    if options.population == 1:
        return
    if options.pruner != "none":
        raise ValueError(f"--population trains settings to the end together; leave out --pruner {options.pruner}")
    for name, dimension in space.items():
        values = dimension.values if isinstance(dimension, search_space.Choice) else (dimension.low,)
        if not isinstance(values[0], float):
            raise ValueError(f"--population: {name} is no floating-point field; fix it, or search without --population")


class Search(NamedTuple):
    """A search under way, in a study directory that this process holds.

    Attributes:
        module: the experiment.
        name: the experiment's name on a command line.
        config: the fields that are not searched.
        space: the dimensions, by field.
        options: the options, with a study name.
        folder: the study directory.
        description: the facts that a study keeps for good, as JSON: experiment, config, space, metric, direction,
            seeds.
        study: the Optuna study.
    """

    module: ModuleType
    name: str
    config: Any
    space: search_space.Space
    options: Options
    folder: Path
    description: dict[str, Any]
    study: Any

    @property
    def owner(self) -> str:
        """This search, among those on other machines that share its study."""
        return f"{platform.node()}:{self.folder}"

    def owns(self, notes: TrialNotes) -> bool:
        """Whether no other process can be training a trial: this process alone holds the study directory."""
        return self.options.storage is None or notes.owner == self.owner


def open_search(
    module: ModuleType,
    name: str,
    config: Any,
    space: search_space.Space,
    options: Options,
    folder: Path,
    storage: Any,
) -> Search:
    """Open the Optuna study of a search, or make it.

    Args:
        module: the experiment.
        name: the experiment's name on a command line.
        config: the fields that are not searched.
        space: the dimensions, by field.
        options: the options, with a study name.
        folder: the study directory, which this process holds.
        storage: Optuna's storage.

    Raises:
        ValueError: if the storage has another search under that name; the message says how they differ.
    """
    optuna = import_optuna()
    mode = Monitor.of(options.metric).mode
    direction = options.direction or {"min": "minimize", "max": "maximize"}[mode]
    description = as_json(
        {
            "experiment": name,
            "config": encode(config),
            "space": {field: str(dimension) for field, dimension in space.items()},
            "metric": options.metric,
            "direction": direction,
            "seeds": options.seeds,
        }
    )
    pruners = {
        "none": optuna.pruners.NopPruner,
        "median": optuna.pruners.MedianPruner,
        "hyperband": optuna.pruners.HyperbandPruner,
    }
    study = optuna.create_study(
        study_name=options.name,
        storage=storage,
        direction=direction,
        pruner=pruners[options.pruner](),
        load_if_exists=True,
    )
    before = study.user_attrs.get("description", description)
    different = [f"{part} {before[part]}, not {now}" for part, now in description.items() if before[part] != now]
    if different:
        raise ValueError(f"the study {folder} is of another search: {'; '.join(different)}; give another --name")
    study.set_user_attr("description", description)
    return Search(module, name, config, space, options, folder, description, study)
