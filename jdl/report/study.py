"""The report of a study, a hyper-parameter search by `jdl tune`: one self-contained HTML file, and its figures."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from jdl.experiment.study import Study, Trial
from jdl.report import html, plot
from jdl.runtime.files import write_text

_TRIALS = 20  # the best ones, which the table lists


def write(study: Study) -> Path:
    """Write the report of a study into its directory, as report.html, and the figures in it as figures/*.png.

    The report has the best trial with the command that repeats it, the value of each trial in order, the importance of
    each hyper-parameter, the settings, the best trials, and the trials that failed with their errors.

    Returns:
        The path of report.html.
    """
    judged = [trial for trial in study.trials if trial.state in ("finished", "pruned")]
    figures: dict[str, Figure | None] = {
        "optimization_history": plot.optimization_history(study),
        "importances": plot.importances(study.importances) if study.importances else None,
        "parallel_coordinates": plot.parallel_coordinates(study) if len(judged) > 1 else None,
    }
    drawn = {name: figure for name, figure in figures.items() if figure is not None}
    images = {name: html.save(figure, study.path / "figures" / f"{name}.png") for name, figure in drawn.items()}
    path = study.path / "report.html"
    write_text(path, _page(study, images))
    return path


def setting_text(value: object) -> str:
    """Write a hyper-parameter's value, a float with four significant digits."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _page(study: Study, images: dict[str, str]) -> str:
    description = study.description
    body = [_best(study, study.best)]
    if study.command:
        body.append(html.section("Repeat the best trial", html.code(study.command)))
    body.append(html.pair(_objective(study, images)))
    if "parallel_coordinates" in images:
        about = "One line per trial: bluer is better, the best is orange, pruned trials are dotted."
        body.append(html.image("Settings and their values", images["parallel_coordinates"], about))
    body.append(html.section("Best trials", _table(study)))
    searched = html.facts({name: value for name, value in description.items() if name != "config"})
    config = html.flat(description["config"])
    fixed = html.facts({name: value for name, value in config.items() if name not in description["space"]})
    body.append(html.pair([html.section("Search", searched), html.section("Fixed fields", fixed)]))
    return html.document(f"{Path(description['experiment']).stem}: search", _lead(study), body)


def _lead(study: Study) -> list[str]:
    states, seeds = [trial.state for trial in study.trials], study.description["seeds"]
    counts = [f"{states.count(state)} {state}" for state in dict.fromkeys(states)]
    return [
        f"{len(states)} trials: {', '.join(counts)}" if states else "no trials yet",
        f"{study.description['metric']}, {'larger' if study.maximized else 'smaller'} is better",
        f"{seeds} seed{'s' if seeds != 1 else ''} per trial",
    ]


def _best(study: Study, best: Trial | None) -> str:
    if best is None:
        return html.note("No trial has finished.", warn=True)
    settings = [(name, setting_text(value), "best trial") for name, value in best.settings.items()]
    return html.tiles([(study.description["metric"], f"{best.value:.4g}", f"trial {best.number}"), *settings])


def _objective(study: Study, images: dict[str, str]) -> list[str]:
    sections = []
    if "optimization_history" in images:
        about = "One dot per trial, hollow if pruned, a cross if failed; the line is the best value so far."
        sections.append(html.image("Optimization history", images["optimization_history"], about))
    if "importances" in images:
        finished = sum(trial.state == "finished" for trial in study.trials)
        about = (
            f"Share of the objective's variance over {finished} finished trials that each field explains, by a random "
            "forest (fANOVA, Hutter et al. 2014); rough for a few dozen trials."
        )
        sections.append(html.image("Importance of the hyper-parameters", images["importances"], about))
    return sections


def _table(study: Study) -> str:
    """The best trials, then those that failed."""
    failed = [trial for trial in study.trials if trial.state == "failed"]
    fields = list(study.description["space"])
    rows = []
    for trial in [*study.ranked[:_TRIALS], *failed]:
        value = "" if np.isnan(trial.value) else f"{trial.value:.5g}"
        settings = [setting_text(trial.settings.get(name, "")) for name in fields]
        state = " ".join(filter(None, [trial.state, trial.note]))
        rows.append([str(trial.number), value, *settings, state, trial.run])
    return html.table(["trial", study.description["metric"], *fields, "", "run"], rows)
