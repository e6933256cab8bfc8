"""The report of a run: one self-contained HTML file, and the figures in it as PNG files beside it."""

import base64
import html
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from scipy.special import softmax

from jdl.core import statistics
from jdl.experiment.study import Study
from jdl.report import plot
from jdl.runtime.files import write_bytes, write_text
from jdl.training.runs import Run

_STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #1f2733; background: #f5f6f8; margin: 0; }
main { max-width: 1080px; margin: 0 auto; padding: 32px 24px 64px; }
h1 { font-size: 28px; margin: 0; } h2 { font-size: 17px; margin: 0 0 12px; }
.lead { color: #5b6675; margin: 4px 0 24px; }
section { background: #fff; border: 1px solid #e3e7ec; border-radius: 10px; padding: 20px 24px; margin: 0 0 18px; }
img { max-width: 100%; height: auto; display: block; }
.tiles { display: flex; flex-wrap: wrap; gap: 14px; margin: 0 0 18px; }
.tile { background: #fff; border: 1px solid #e3e7ec; border-radius: 10px; padding: 14px 20px; min-width: 150px; }
.tile b { display: block; font-size: 26px; font-variant-numeric: tabular-nums; }
.tile span { color: #5b6675; font-size: 13px; }
.pair { display: flex; flex-wrap: wrap; gap: 18px; } .pair section { flex: 1 1 420px; min-width: 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 13.5px; width: 100%; }
td, th { text-align: left; padding: 3px 14px 3px 0; border-bottom: 1px solid #eef0f3; vertical-align: top; }
pre { margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; font-size: 13.5px; }
th { color: #5b6675; font-weight: 500; } td.value { overflow-wrap: anywhere; }
.note { color: #5b6675; font-size: 13px; margin: 10px 0 0; } .warn { color: #a8400f; }
"""


def write(run: Run) -> Path:
    """Write the report of a run into its directory; returns the path of report.html."""
    series = dict(run.metrics)
    for part in _parts(run):
        series |= {f"{name} ({part.path.name})": one for name, one in part.metrics.items()}
    figures: dict[str, Figure | None] = {
        "learning_curves": plot.learning_curves(series),
        "final_metrics": plot.intervals(run.final, run.intervals) if len(run.final) > 1 else None,
        **_score_figures(run),
        **_prediction_figures(run),
    }
    sources = {name: _save(run.path, name, figure) for name, figure in figures.items() if figure is not None}
    path = run.path / "report.html"
    write_text(path, _page(run, sources))
    return path


def write_study(study: Study) -> Path:
    """Write the report of a hyper-parameter search into its directory; returns the path of report.html."""
    judged = [trial for trial in study.trials if trial.state in ("finished", "pruned")]
    figures: dict[str, Figure | None] = {
        "optimization_history": plot.optimization_history(study),
        "importances": plot.importances(study.importances) if study.importances else None,
        "parallel_coordinates": plot.parallel_coordinates(study) if len(judged) > 1 else None,
    }
    sources = {name: _save(study.path, name, figure) for name, figure in figures.items() if figure is not None}
    path = study.path / "report.html"
    write_text(path, _study_page(study, sources))
    return path


def _study_page(study: Study, figures: dict[str, str]) -> str:
    description, best = study.description, study.best
    metric = description["metric"]
    states = [trial.state for trial in study.trials]
    counts = [f"{states.count(state)} {state}" for state in dict.fromkeys(states)]
    lead = [
        f"{len(states)} trials: {', '.join(counts)}" if states else "no trials yet",
        f"{metric}, {'larger' if study.maximized else 'smaller'} is better",
        f"{description['seeds']} seed{'s' if description['seeds'] != 1 else ''} a trial",
    ]
    title = f"{Path(description['experiment']).stem}: search"
    body = [f"<h1>{html.escape(title)}</h1><p class=lead>{html.escape(' · '.join(lead))}</p>"]
    if best is None:
        body.append("<p class='note warn'>No trial has finished.</p>")
    else:
        tiles = [_tile(metric, f"{best.value:.4g}", f"trial {best.number}")]
        tiles += [_tile(name, _shown(value), "of the best trial") for name, value in best.settings.items()]
        body.append(f"<div class=tiles>{''.join(tiles)}</div>")
    if study.command:
        body.append(f"<section><h2>Repeat the best trial</h2><pre>{html.escape(study.command)}</pre></section>")
    pair = []
    if "optimization_history" in figures:
        note = "A dot a trial, hollow where it was pruned, a cross where it failed; the line is the best so far."
        pair.append(_section("Optimization history", figures["optimization_history"], note))
    if "importances" in figures:
        note = (
            f"Share of the objective's variance over {states.count('finished')} finished trials that each field "
            "explains, by a random forest (fANOVA, Hutter et al. 2014); rough for a few dozen trials."
        )
        pair.append(_section("Importance of the hyper-parameters", figures["importances"], note))
    body.append(f"<div class=pair>{''.join(pair)}</div>" if pair else "")
    if "parallel_coordinates" in figures:
        note = "A line a trial: bluer is better, the best is orange, pruned trials are dotted."
        body.append(_section("Settings and what they were worth", figures["parallel_coordinates"], note))
    body.append(f"<section><h2>Best trials</h2>{_trials(study)}</section>")
    searched = {name: value for name, value in description.items() if name != "config"}
    fixed = {name: value for name, value in _flat(description["config"]).items() if name not in description["space"]}
    body.append(
        "<div class=pair>"
        f"<section><h2>Search</h2>{_facts(_flat(searched))}</section>"
        f"<section><h2>Fixed fields</h2>{_facts(fixed)}</section></div>"
    )
    return _document(title, body)


def _trials(study: Study, most: int = 20) -> str:
    """The best trials, then those that failed and why."""
    failed = [trial for trial in study.trials if trial.state == "failed"]
    fields = list(study.description["space"])
    head = "".join(f"<th>{html.escape(text)}" for text in ["trial", study.description["metric"], *fields, "", "run"])
    rows = []
    for trial in [*study.ranked[:most], *failed]:
        value = "" if np.isnan(trial.value) else f"{trial.value:.5g}"
        cells = [str(trial.number), value, *(_shown(trial.settings.get(name, "")) for name in fields)]
        cells += [" ".join(filter(None, [trial.state, trial.note])), trial.run]
        rows.append("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells) + "</tr>")
    return f"<table><tr>{head}</tr>{''.join(rows)}</table>"


def _shown(value: Any) -> str:
    """A hyper-parameter's value, short."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _parts(run: Run) -> list[Run]:
    return [Run(file.parent) for file in sorted(run.path.glob("*/config.json"))]


def _scores(run: Run) -> np.ndarray | None:
    """Returns of episodes [runs, episodes] that the experiment, or each of its parts, kept as "scores"."""
    arrays = run.load_arrays("scores")
    if arrays is not None:
        return arrays["returns"]
    parts = [part.load_arrays("scores") for part in _parts(run)]
    known = [part["returns"] for part in parts if part is not None]
    return np.concatenate(known) if known and len(known) == len(parts) else None


def _score_figures(run: Run) -> dict[str, Figure | None]:
    scores = _scores(run)
    return {} if scores is None else {"profile": plot.profile(scores)}


def _video(run: Run) -> str:
    """One episode of the first seed, as a data URI; "" where there is none."""
    for folder in (run, *_parts(run)):
        if (folder.path / "video.gif").is_file():
            return "data:image/gif;base64," + base64.b64encode((folder.path / "video.gif").read_bytes()).decode()
    return ""


def _prediction_figures(run: Run) -> dict[str, Figure | None]:
    """From what the experiment kept as "predictions": logits [runs, examples, classes], target, input."""
    arrays = run.load_arrays("predictions")
    if arrays is None or not {"logits", "target", "input"} <= arrays.keys():
        return {}
    logits, target = arrays["logits"], arrays["target"]
    if not np.issubdtype(target.dtype, np.integer):
        return {}
    logits = logits if logits.ndim == 3 else logits[None]
    classes = logits.shape[-1]
    names = [str(name) for name in arrays.get("class_names", range(classes))]
    counts = np.zeros((classes, classes))
    np.add.at(counts, (np.tile(target, len(logits)), logits.argmax(-1).ravel()), 1)
    return {
        "confusion_matrix": plot.confusion_matrix(counts, names),
        "most_confidently_wrong": plot.wrong_examples(
            arrays["input"].astype(float), target, softmax(logits.astype(float), axis=-1), names
        ),
    }


def _save(directory: Path, name: str, figure: Figure) -> str:
    """Save a figure as PNG in a run's or a study's directory; returns it as a data URI."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    folder = directory / "figures"
    folder.mkdir(exist_ok=True)
    write_bytes(folder / f"{name}.png", buffer.getvalue())
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _page(run: Run, figures: dict[str, str]) -> str:
    description = run.description
    name = description["experiment"] or run.path.name
    environment = run.environment
    seconds = (run.result or {}).get("seconds")
    lead = [f"{len(run.seeds)} seed{'s' if len(run.seeds) != 1 else ''}", environment["started"].replace("T", " ")]
    if seconds is not None:
        lead.insert(1, f"{seconds:.1f} s")
    body = [f"<h1>{html.escape(name)}</h1><p class=lead>{html.escape(' · '.join(lead))}</p>"]
    if run.result is None:
        body.append("<p class='note warn'>This run is not finished; the figures show what there is.</p>")
    body.append(_tiles(run))
    if "learning_curves" in figures:
        note = "Mean over the seeds, 95% bootstrap interval." if len(run.seeds) > 1 else "One seed: no interval."
        body.append(_section("Learning curves", figures["learning_curves"], note))
    pair = []
    if "confusion_matrix" in figures:
        pair.append(_section("Confusion matrix", figures["confusion_matrix"], "Test part, all seeds together."))
    if "most_confidently_wrong" in figures:
        note = "True class → the class predicted instead, by the seed that was surest of it."
        pair.append(_section("Most confidently wrong", figures["most_confidently_wrong"], note))
    scores = _scores(run)
    if "profile" in figures and scores is not None:
        middle = statistics.iqm_interval(scores.mean(1, keepdims=True))
        spread = f" [{middle.low:.4g}, {middle.high:.4g}]" if len(scores) > 1 else ""
        note = (
            f"Interquartile mean over seeds {middle.mean:.4g}{spread}. Performance profile, with a 95% bootstrap band "
            "over the seeds (Agarwal et al. 2021)."
        )
        pair.append(_section("Returns", figures["profile"], note))
    if video := _video(run):
        pair.append(_section("An episode", video, f"Seed {next(iter(run.seeds))}, greedy actions."))
    body.append(f"<div class=pair>{''.join(pair)}</div>" if pair else "")
    if "final_metrics" in figures:
        note = "A dot a seed; mean and 95% bootstrap interval."
        body.append(_section("Final metrics", figures["final_metrics"], note))
    for file in sorted((run.path / "figures").glob("*.json")):
        about = json.loads(file.read_text())
        source = "data:image/png;base64," + base64.b64encode(file.with_suffix(".png").read_bytes()).decode()
        body.append(_section(html.escape(about["title"]), source, html.escape(about["note"])))
    body.append(f"<section><h2>Numbers</h2>{_numbers(run)}</section>")
    body.append(
        "<div class=pair>"
        f"<section><h2>Config</h2>{_facts(_flat(description['config']))}</section>"
        f"<section><h2>Environment</h2>{_facts(_flat(environment))}</section></div>"
    )
    return _document(name, body)


def _document(title: str, body: list[str]) -> str:
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style><main>{''.join(body)}</main></html>\n"
    )


def _tiles(run: Run) -> str:
    tiles = []
    for name, interval in list(run.intervals.items())[:4]:
        spread = f"95% [{interval.low:.4g}, {interval.high:.4g}]" if len(run.seeds) > 1 else "one seed"
        tiles.append(_tile(name, f"{interval.mean:.4g}", spread))
    return f"<div class=tiles>{''.join(tiles)}</div>"


def _tile(title: str, value: str, note: str) -> str:
    title, value, note = (html.escape(text) for text in (title, value, note))
    return f"<div class=tile><span>{title}</span><b>{value}</b><span>{note}</span></div>"


def _section(title: str, source: str, note: str) -> str:
    return f"<section><h2>{title}</h2><img src='{source}' alt='{title}'><p class=note>{note}</p></section>"


def _numbers(run: Run) -> str:
    if not run.final:
        return "<p class=note>No final metrics yet.</p>"
    head = "".join(f"<th>seed {seed}</th>" for seed in run.seeds)
    rows = []
    for name, interval in run.intervals.items():
        values = run.final[name]
        spread = f"[{interval.low:.4g}, {interval.high:.4g}]" if len(values) > 1 else ""
        cells = "".join(f"<td>{value:.4g}</td>" for value in values)
        rows.append(f"<tr><td>{html.escape(name)}</td><td><b>{interval.mean:.4g}</b></td><td>{spread}</td>{cells}</tr>")
    return f"<table><tr><th>metric<th>mean<th>95% interval{head}</tr>{''.join(rows)}</table>"


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, dict):
        flat: dict[str, Any] = {}
        for key, item in value.items():
            flat |= _flat(item, f"{prefix}.{key}" if prefix else str(key))
        return flat
    return {prefix: value}


def _facts(facts: dict[str, Any]) -> str:
    shown = {name: value if isinstance(value, str) else json.dumps(value) for name, value in facts.items()}
    rows = [
        f"<tr><th>{html.escape(name)}</th><td class=value>{html.escape(value)}</td></tr>"
        for name, value in shown.items()
    ]
    return f"<table>{''.join(rows)}</table>" if rows else "<p class=note>Nothing set.</p>"
