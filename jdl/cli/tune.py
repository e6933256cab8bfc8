"""`jdl tune`."""

import dataclasses
import sys

from jdl.cli.command import of_name
from jdl.cli.console import console, number_or_none, print_json, show_setting, show_table
from jdl.cli.options import read_by_field
from jdl.experiment import execute, find, search_space
from jdl.experiment import tune as tuning
from jdl.experiment.study import Study, Trial
from jdl.runtime.cores import use_every_core

_RANGES = (
    'What to search. RANGE is "LOW HIGH" (uniform), "log LOW HIGH" (each order of magnitude equally likely) or the '
    'values to choose from, "32 64 128" ("choice 32 64" for two). An experiment may declare its own as SPACE.'
)
_TRIALS = 5  # the best ones, which are shown at the end


@dataclasses.dataclass(frozen=True)
class Options(tuning.Options):
    """How to search, whatever the experiment."""

    json: bool = False
    """print the result as one JSON object, on the last line"""


def tune(name: str, arguments: list[str]) -> int:
    """Search an experiment's hyper-parameters: its name, then --space.FIELD RANGE ...; `jdl tune NAME --help`.

    Args:
        name: the experiment
    """
    use_every_core()
    module = find.find(name)
    chosen, texts = read_by_field("tune", name, module, Options, arguments, "space", "RANGE", _RANGES)
    space = search_space.from_text(texts, module.Config)
    execute.settle(chosen.config)
    options = chosen.options
    try:
        study = tuning.search(module, options, space=space, config=chosen.config, watch=_show_trial)
    except KeyboardInterrupt:
        print("jdl: stopped; the same command continues the search", file=sys.stderr)
        return 130
    return _finish(study, options.json)


def _show_trial(trial: Trial) -> None:
    settings = ", ".join(f"{name} {show_setting(value)}" for name, value in trial.settings.items())
    value = trial.note if trial.state == "failed" else f"{trial.value:.5g}"
    console.print(f"trial {trial.number} {trial.state}: {value} ({settings})", soft_wrap=True, markup=False)


def _finish(study: Study, as_json: bool) -> int:
    """Write the report of a study and show its best trials; returns the exit status."""
    from jdl.report.study import write  # matplotlib takes a second to import

    path = write(study)
    metric, fields = study.description["metric"], list(study.description["space"])
    rows = []
    for trial in study.ranked[:_TRIALS]:
        settings = [show_setting(trial.settings[name]) for name in fields]
        rows.append((str(trial.number), trial.state, f"{trial.value:.5g}", *settings))
    show_table(("trial", "state", metric, *fields), rows)
    failed = sum(trial.state == "failed" for trial in study.trials)
    counts = f"{len(study.trials)} trials, {failed} failed"
    console.print(f"{counts}, in {study.path}; report: {path}", soft_wrap=True, markup=False)
    if study.command:
        console.print(f"the best again: {study.command}", soft_wrap=True, markup=False)
    if as_json:
        trials = [{**trial._asdict(), "value": number_or_none(trial.value)} for trial in study.trials]
        best = None if study.best is None else trials[study.best.number]
        summary = {"study": str(study.path), "report": str(path), "best": best, "command": study.command}
        print_json({**summary, "importances": study.importances, "trials": trials})
    return 0


COMMAND = of_name(tune)
