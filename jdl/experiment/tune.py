"""Hyper-parameter search: Optuna proposes settings, and each trial is a run directory within the study's.

A search that is killed at any moment goes on when it is called again: the trial that it was at continues from its
checkpoint, and what is proposed depends on the trial's number and those before it alone.
"""

import contextlib
import dataclasses
import functools
import json
import platform
import shlex
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import jax
import numpy as np

from jdl.experiment import execute, find, search_space, study
from jdl.experiment.config import encode
from jdl.experiment.population import POPULATION, check_runs, of_setting, split, together
from jdl.experiment.search_space import choice, log, uniform
from jdl.experiment.study import Study, Trial
from jdl.experiment.study_storage import import_optuna, opened
from jdl.runtime.files import write_json
from jdl.training.outcome import Monitor
from jdl.training.runs import Row, Run, locked

__all__ = ["Options", "Study", "Trial", "choice", "log", "search", "together", "uniform"]

FOLDER = Path("runs") / "tune"
_FEWEST_FOR_IMPORTANCES = 4
_NOT_TRACED = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
)


@dataclasses.dataclass(frozen=True)
class Options:
    """How to search, whatever the experiment."""

    trials: int = 20
    """trials in all, those of earlier calls included; the same command continues a study"""
    metric: str = "validation/loss"
    """what is optimized: a metric of the log (its last value) or a final one; the mean over the seeds"""
    direction: Literal["minimize", "maximize"] | None = None
    """by default what the metric's name says: up for a score (accuracy, f1, return ...), else down"""
    seeds: int = 1
    """runs of each trial, trained together: seeds 0, 1, ..."""
    population: int = 1
    """trials in one program, for floating-point fields of an experiment that uses jdl.tune.together"""
    sampler: Literal["tpe", "random"] = "tpe"
    """who proposes: a tree-structured Parzen estimator, or chance"""
    pruner: Literal["none", "median", "hyperband"] = "none"
    """who stops a trial whose logged metric falls behind the others'"""
    seed: int = 0
    """of the sampler"""
    name: str | None = None
    """the study's name, by default the experiment's"""
    study_dir: Path | None = None
    """the study's directory, by default runs/tune/NAME"""
    storage: str | None = None
    """a database URL (sqlite:///FILE, postgresql://...), for several machines on a study of one name"""


def search(
    experiment: str | ModuleType,
    options: Options | None = None,
    *,
    space: Mapping[str, search_space.Dimension] | None = None,
    config: Any = None,
    watch: Callable[[Trial], None] = lambda trial: None,
) -> Study:
    """Search an experiment's hyper-parameters, or go on with the search; returns the study.

    space: dimensions by field, before those of the experiment's SPACE. config: the other fields; one that it sets
    is not searched, whatever SPACE says. watch: called with each trial that ends.
    A trial whose objective is not finite, or which raises an error once another has finished, is failed and the search
    goes on. Raises ValueError or TypeError, before anything is trained, for a space that does not fit the Config.
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
    _check(options, checked)
    options = dataclasses.replace(options, name=options.name or Path(name).stem)
    folder = (options.study_dir or FOLDER / str(options.name)).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder), opened(options.storage, folder) as storage:
        return _Search(module, name, config, checked, options, folder, storage).go(watch)


def _check(options: Options, space: search_space.Space) -> None:
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


class _Search:
    """A search under way, in a directory that this process holds."""

    def __init__(
        self,
        module: ModuleType,
        name: str,
        config: Any,
        space: search_space.Space,
        options: Options,
        folder: Path,
        storage: Any,
    ) -> None:
        self.optuna = import_optuna()
        self.module, self.name, self.config, self.space = module, name, config, space
        self.options, self.folder = options, folder
        mode = Monitor.of(options.metric).mode
        self.description = {
            "experiment": name,
            "config": encode(config),
            "space": {field: str(dimension) for field, dimension in space.items()},
            "metric": options.metric,
            "direction": options.direction or {"min": "minimize", "max": "maximize"}[mode],
            "seeds": options.seeds,
        }
        pruners = self.optuna.pruners
        known = {"none": pruners.NopPruner, "median": pruners.MedianPruner, "hyperband": pruners.HyperbandPruner}
        self.study = self.optuna.create_study(
            study_name=options.name,
            storage=storage,
            direction=self.description["direction"],
            pruner=known[options.pruner](),
            load_if_exists=True,
        )
        plain = _plain(self.description)
        before = self.study.user_attrs.get("description", plain)
        different = [f"{part} {before[part]}, not {now}" for part, now in plain.items() if before[part] != now]
        if different:
            raise ValueError(f"the study {folder} is of another search: {'; '.join(different)}; give another --name")
        self.description = plain
        self.study.set_user_attr("description", plain)

    def go(self, watch: Callable[[Trial], None]) -> Study:
        """Train until there are as many trials as wanted."""
        self._summarize(last=False)
        while trials := self._next():
            with self._outcome(trials):
                shared = "together" in trials[0].user_attrs
                values = self._together(trials) if shared else [self._alone(trials[0])]
                for trial, value in zip(trials, values, strict=True):
                    self._tell(trial, value)
            now = self._summarize(last=False)
            for trial in trials:
                watch(now.trials[trial.number])
        return self._summarize(last=True)

    def _next(self) -> list[Any]:
        """The Optuna trials that a kill left open, else new ones; none when there are as many as wanted."""
        known = self.study.get_trials()
        running = [trial for trial in known if trial.state == self.optuna.trial.TrialState.RUNNING]
        ours = [trial for trial in running if self._is_ours(trial)]
        if ours:
            group = ours[0].user_attrs.get("together")
            same = [trial for trial in ours if trial.user_attrs.get("together") == group] if group else ours[:1]
            trials = [self.optuna.Trial(self.study, trial._trial_id) for trial in same]
        else:
            left = self.options.trials - len(known)
            trials = [self.study.ask() for _ in range(max(0, min(left, self.options.population)))]
        for place, trial in enumerate(trials):
            seed = np.random.SeedSequence([self.options.seed, trial.number]).generate_state(1)[0]
            sampler = {"tpe": self.optuna.samplers.TPESampler, "random": self.optuna.samplers.RandomSampler}
            self.study.sampler = sampler[self.options.sampler](seed=int(seed))
            search_space.suggest(trial, self.space)
            if "owner" not in trial.user_attrs:
                trial.set_user_attr("place", place)
                trial.set_user_attr("run", f"trial-{trial.number:04d}")
                if self.options.population > 1:
                    trial.set_user_attr("together", f"together-{trials[0].number:04d}")
                trial.set_user_attr("owner", self._owner)
        return trials

    @property
    def _owner(self) -> str:
        return f"{platform.node()}:{self.folder}"

    def _is_ours(self, trial: Any) -> bool:
        """Whether no other process can be at a trial: this one alone holds the directory."""
        return self.options.storage is None or trial.user_attrs.get("owner") == self._owner

    def _alone(self, trial: Any) -> float:
        run = self._prepared(trial.user_attrs["run"], trial.params)
        logged = study.Logged(run, self.options.metric)
        known = self.study.get_trials()[trial.number].intermediate_values  # to which a resumed run comes again

        def report(row: Row) -> None:
            measured = logged(row)
            if measured is None:
                return
            step, value = measured
            if np.isfinite(value) and step not in known:
                trial.report(value, step)
            if trial.should_prune():
                raise self.optuna.TrialPruned

        run.observe(report)
        if run.result is None:
            execute.execute(run)
        return study.objective(run, self.options.metric, study.diverged(run))

    def _together(self, trials: Sequence[Any]) -> list[float]:
        """Train settings in one program, then give each its run directory, as if it had been trained alone."""
        settings = {field: [trial.params[field] for trial in trials] for field in self.space}
        shared = self._prepared(trials[0].user_attrs["together"], trials[0].params, settings)
        check = functools.partial(check_runs, run=shared, name=self.name)
        shared.observe(check)
        if shared.result is None:
            execute.execute(shared)
        check((shared.result or {})["metrics"])
        values = []
        for trial in trials:
            place = trial.user_attrs["place"]
            run = self._prepared(trial.user_attrs["run"], trial.params)
            if run.result is None:
                split(shared, place, run)
            diverged = of_setting(study.diverged(shared), place, shared)
            values.append(study.objective(run, self.options.metric, diverged))
        return values

    def _prepared(
        self, name: str, settings: Mapping[str, Any], population: Mapping[str, Sequence[float]] | None = None
    ) -> Run:
        """The run directory of a trial, or of several together; a kill leaves all of it or nothing."""
        path = self.folder / name
        config = search_space.replaced(self.config, settings)
        if not path.is_dir():
            writing = path.with_name(f"{name}.writing")
            shutil.rmtree(writing, ignore_errors=True)
            run = execute.prepare(self.module, config, range(self.options.seeds), writing)
            if population is not None:  # a part of its trials: `jdl runs` lists those
                description = {**run.description, "part": name, POPULATION: population}
                write_json(writing / "config.json", description)
            writing.rename(path)
        run = Run(path)
        if population is None and run.config != _plain(encode(search_space.replaced(self.config, settings))):
            raise FileExistsError(f"{path} holds a run of another search; move it away, or give another --study-dir")
        return run

    @contextlib.contextmanager
    def _outcome(self, trials: Sequence[Any]) -> Iterator[None]:
        """Tell Optuna of trials that are pruned or raise; an error before any trial has finished is the user's."""
        try:
            yield
        except self.optuna.TrialPruned:
            self.study.tell(trials[0], state=self.optuna.trial.TrialState.PRUNED)
        except OSError:  # a full disk, a file that lies elsewhere: once that is mended, the trial goes on
            raise
        except Exception as error:
            if isinstance(error, _NOT_TRACED):
                message = (
                    f"--population: the experiment branches on one of {', '.join(self.space)}, or gives it to "
                    "code that does (as Flax's Dropout); fix that field, or search without --population"
                )
                error = TypeError(message).with_traceback(error.__traceback__)
            for trial in trials:
                self._fail(trial, f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
            states = [trial.state for trial in self.study.get_trials()]
            if self.optuna.trial.TrialState.COMPLETE not in states:
                self._summarize(last=False)
                raise error

    def _tell(self, trial: Any, value: float) -> None:
        if np.isfinite(value):
            self.study.tell(trial, value)
        else:
            self._fail(trial, f"{self.options.metric} is not finite")

    def _fail(self, trial: Any, note: str) -> None:
        trial.set_user_attr("note", note)
        self.study.tell(trial, state=self.optuna.trial.TrialState.FAIL)

    def _summarize(self, *, last: bool) -> Study:
        """Write what the report needs, and read it."""
        trials = [self._record(trial) for trial in self.study.get_trials()]
        summary = {"description": self.description, "trials": trials, "importances": None, "command": None}
        write_json(self.folder / study.SUMMARY, summary)
        best = Study(self.folder).best
        if last and best is not None:
            config = search_space.replaced(self.config, best.settings)
            seeds = ["--seeds", str(self.options.seeds)] if self.options.seeds > 1 else []
            command = shlex.join(["jdl", "run", self.name, *search_space.options(config), *seeds])
            write_json(self.folder / study.SUMMARY, summary | {"command": command, "importances": self._importances()})
        return Study(self.folder)

    def _record(self, trial: Any) -> dict[str, Any]:
        """What there is to know of a trial, the fields of `Trial`."""
        states = {"COMPLETE": "finished", "PRUNED": "pruned", "FAIL": "failed"}
        notes = trial.user_attrs
        run = notes.get("run", "")
        return {
            "number": trial.number,
            "state": states.get(trial.state.name, "running"),
            "value": trial.value if trial.values and np.isfinite(trial.value) else None,
            "settings": trial.params,
            "run": run if self._is_ours(trial) else f"{notes.get('owner', '?')}/{run}",
            "note": notes.get("note", ""),
        }

    def _importances(self) -> dict[str, float] | None:
        """The share of the objective's variance that each field explains; None where too little is known."""
        complete = self.study.get_trials(states=[self.optuna.trial.TrialState.COMPLETE])
        if len(complete) < _FEWEST_FOR_IMPORTANCES or len({trial.value for trial in complete}) == 1:
            return None
        evaluator = self.optuna.importance.FanovaImportanceEvaluator(seed=0)
        return self.optuna.importance.get_param_importances(self.study, evaluator=evaluator)


def _plain(value: Any) -> Any:
    """A value as it comes back from JSON."""
    return json.loads(json.dumps(value, default=str))
