"""The report of a run: one self-contained HTML file, and the figures in it as PNG files beside it."""

import json
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from scipy.special import softmax

from jdl.core import statistics
from jdl.experiment.population import POPULATION, num_settings
from jdl.report import html, plot
from jdl.runtime.files import write_text
from jdl.training.runs import Run

_TILES = 4  # final metrics that are shown large


def write_report(run: Run) -> Path:
    """Write the report of a run into its directory, as report.html, and the figures in it as figures/*.png.

    The report has learning curves, final metrics with 95% bootstrap intervals, the config and the environment. From
    arrays that the experiment saved (`Run.save_arrays`) it also has:
    - "predictions" (logits `[runs, examples, classes]` or `[examples, classes]`, integer target, input, and optionally
      class_names): the confusion matrix and the most confident mistakes.
    - "scores" (returns `[runs, episodes]`): the interquartile mean and the performance profile.
    It ends with the figures of `Run.save_figure`, or else those of its first part that has some. A run that is not
    finished has a report too.

    Args:
        run: the run; runs in folders within it (one for each table of `tabular`, for instance) are shown with it.

    Returns:
        The path of report.html.
    """
    drawn = {name: figure for name, figure in _figures(run).items() if figure is not None}
    images = {name: html.save(figure, run.path / "figures" / f"{name}.png") for name, figure in drawn.items()}
    path = run.path / "report.html"
    write_text(path, _page(run, images))
    return path


def _page(run: Run, images: dict[str, str]) -> str:
    name = run.description["experiment"] or run.path.name
    started = run.environment["started"].replace("T", " ")
    seconds = (run.result or {}).get("seconds")
    lead = [_seeds(run), *([] if seconds is None else [f"{seconds:.1f} s"]), started]
    body = [_tiles(run)]
    if run.result is None:
        body.insert(0, html.note("This run is not finished; the figures show what there is.", warn=True))
    if "learning_curves" in images:
        about = "Mean over the seeds, 95% bootstrap interval." if len(run.seeds) > 1 else "One seed: no interval."
        if POPULATION in run.description:
            about = f"Mean over {num_settings(run)} settings and their seeds; the trials' reports show each by itself."
        body.append(html.image("Learning curves", images["learning_curves"], about))
    body.append(html.pair([*_predictions(images), *_returns(run, images), *_episode(run)]))
    if "final_metrics" in images:
        each = "seed and setting" if POPULATION in run.description else "seed"
        about = f"One dot per {each}; mean and 95% bootstrap interval."
        body.append(html.image("Final metrics", images["final_metrics"], about))
    body += _own_figures(run)
    body.append(html.section("Numbers", _numbers(run)))
    config = html.section("Config", html.facts(run.description["config"]))
    body.append(html.pair([config, html.section("Environment", html.facts(run.environment))]))
    return html.document(name, lead, body)


def _figures(run: Run) -> dict[str, Figure | None]:
    series = dict(run.metrics)
    for part in _parts(run):
        series |= {f"{name} ({part.path.name})": one for name, one in part.metrics.items()}
    scores = _scores(run)
    return {
        "learning_curves": plot.learning_curves(series),
        "final_metrics": plot.intervals(run.final, run.intervals) if len(run.final) > 1 else None,
        "profile": None if scores is None else plot.profile(scores),
        **_prediction_figures(run),
    }


def _prediction_figures(run: Run) -> dict[str, Figure | None]:
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
    probabilities = softmax(logits.astype(float), axis=-1)
    return {
        "confusion_matrix": plot.confusion_matrix(counts, names),
        "most_confidently_wrong": plot.wrong_examples(arrays["input"].astype(float), target, probabilities, names),
    }


def _predictions(images: dict[str, str]) -> list[str]:
    sections = []
    if "confusion_matrix" in images:
        about = "Test set, all seeds together."
        sections.append(html.image("Confusion matrix", images["confusion_matrix"], about))
    if "most_confidently_wrong" in images:
        about = "True class → the class predicted instead, by the seed that was most confident in it."
        sections.append(html.image("Most confidently wrong", images["most_confidently_wrong"], about))
    return sections


def _returns(run: Run, images: dict[str, str]) -> list[str]:
    scores = _scores(run)
    if scores is None:
        return []
    mean, low, high = statistics.iqm_interval(scores.mean(1, keepdims=True))
    spread = f" [{low:.4g}, {high:.4g}]" if len(scores) > 1 else ""
    about = (
        f"Interquartile mean over seeds {mean:.4g}{spread}. Performance profile, with a 95% bootstrap band over the "
        "seeds (Agarwal et al. 2021)."
    )
    return [html.image("Returns", images["profile"], about)]


def _episode(run: Run) -> list[str]:
    """Show a video that the run or one of its parts has."""
    for folder in (run, *_parts(run)):
        if (folder.path / "video.gif").is_file():
            source = html.read(folder.path / "video.gif")
            return [html.image("An episode", source, f"Seed {next(iter(run.seeds))}, greedy actions.")]
    return []


def _own_figures(run: Run) -> list[str]:
    """Show the figures that the experiment saved with `Run.save_figure`, or else those of the first part with some."""
    each = [sorted((folder.path / "figures").glob("*.json")) for folder in (run, *_parts(run))]
    files = next((files for files in each if files), [])
    texts = [json.loads(file.read_text()) for file in files]
    return [
        html.image(text["title"], html.read(file.with_suffix(".png")), text["note"])
        for file, text in zip(files, texts, strict=True)
    ]


def _tiles(run: Run) -> str:
    shown = []
    for name, interval in list(run.intervals.items())[:_TILES]:
        spread = f"95% [{interval.low:.4g}, {interval.high:.4g}]" if len(run.seeds) > 1 else "one seed"
        shown.append((name, f"{interval.mean:.4g}", spread))
    return html.tiles(shown)


def _numbers(run: Run) -> str:
    if not run.final:
        return html.note("No final metrics yet.")
    rows = []
    for name, interval in run.intervals.items():
        values = run.final[name]
        spread = f"[{interval.low:.4g}, {interval.high:.4g}]" if len(values) > 1 else ""
        rows.append((name, f"{interval.mean:.4g}", spread, *(f"{value:.4g}" for value in values)))
    return html.table(("metric", "mean", "95% interval", *(f"seed {seed}" for seed in run.seeds)), rows, bold=1)


def _seeds(run: Run) -> str:
    return f"{len(run.seeds)} seed{'s' if len(run.seeds) != 1 else ''}"


def _parts(run: Run) -> list[Run]:
    """The runs in folders within a run."""
    return [Run(file.parent) for file in sorted(run.path.glob("*/config.json"))]


def _scores(run: Run) -> np.ndarray | None:
    """The returns `[runs, episodes]` that the run saved as "scores", or those of all its parts, one after another."""
    arrays = run.load_arrays("scores")
    if arrays is not None:
        return arrays["returns"]
    parts = [part.load_arrays("scores") for part in _parts(run)]
    known = [part["returns"] for part in parts if part is not None]
    return np.concatenate(known) if known and len(known) == len(parts) else None
