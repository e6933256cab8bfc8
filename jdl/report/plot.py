"""Figures of reports, drawn by Matplotlib without its global state, so that they need no display."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int, Shaped
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch
from matplotlib.path import Path as MatplotlibPath
from matplotlib.ticker import LogLocator, MaxNLocator

from jdl.core.statistics import Interval, mean_interval
from jdl.experiment.search_space import Choice, Dimension, Range
from jdl.experiment.study import Study
from jdl.training.runs import Series

INK, FAINT = "#1f2733", "#8a94a3"
COLORS = {"train": "#3b6fb6", "validation": "#d9622b"}
_BETTER = LinearSegmentedColormap.from_list("better", ["#e3e8ee", COLORS["train"]])
_OTHERS = ("#3b6fb6", "#d9622b", "#3c8d5a", "#8b5fb0", "#b3862b", "#c2486f")


def learning_curves(metrics: Mapping[str, Series]) -> Figure | None:
    """Draw metrics over training: the mean over runs with its 95% bootstrap band (`jdl.statistics.mean_interval`).

    There is one panel per metric and one line per split. The vertical axis is logarithmic for positive values that
    differ by a factor above 50. The band ends where the first run ends, since with fewer runs it would mean something
    else.

    Args:
        metrics: a series for each name, such as "train/loss": the split, then the metric.

    Returns:
        The figure; None without metrics.
    """
    panels: dict[str, dict[str, Series]] = {}
    for name, series in metrics.items():
        split, _, metric = name.partition("/")
        panels.setdefault(metric, {})[split] = series
    if not panels:
        return None
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure, axes = _figure(columns, rows, width=4.4, height=3.1)
    for axis, (metric, splits) in zip(axes, panels.items(), strict=False):
        for index, (split, series) in enumerate(splits.items()):
            _curve(axis, series, split, COLORS.get(split, _OTHERS[index % len(_OTHERS)]))
        axis.set_title(metric, loc="left", fontsize=11, color=INK, fontweight="bold")
        axis.set_xlabel("updates")
        if _spans_decades(splits.values()):
            axis.set_yscale("log")
        else:
            axis.set_ylim(*_settled_range(splits.values()))
        if len(splits) > 1:
            axis.legend(frameon=False, fontsize=8, labelcolor=INK)
    for axis in axes[len(panels) :]:
        axis.remove()
    return figure


def _curve(axis: Axes, series: Series, label: str, color: str) -> None:
    values = series.values if series.values.ndim == 2 else series.values[:, None]
    running = ~np.isnan(values).all(1)
    steps, values = series.steps[running], values[running]
    mean = np.nanmean(values, axis=1)
    marker = "o" if len(steps) < 3 else None
    axis.plot(steps, mean, color=color, linewidth=1.8, label=label, marker=marker, markersize=4)
    whole = ~np.isnan(values).any(1)
    if values.shape[1] > 1 and whole.any():
        band = mean_interval(values[whole], axis=1)
        axis.fill_between(steps[whole], band.low, band.high, color=color, alpha=0.2, linewidth=0)


def _spans_decades(series: Any) -> bool:
    values = np.concatenate([one.values.ravel() for one in series])
    values = values[np.isfinite(values)]
    return bool(values.size > 0 and values.min() > 0 and values.max() / values.min() > 50)


def _settled_range(series: Any) -> tuple[float | None, float | None]:
    """Find limits without the first twentieth of training, whose large values would flatten the rest."""
    values = np.concatenate([one.values[len(one.values) // 20 :].ravel() for one in series])
    values = values[np.isfinite(values)]
    if not values.size or values.min() == values.max():
        return None, None
    margin = 0.05 * (values.max() - values.min())
    return float(values.min() - margin), float(values.max() + margin)


def intervals(finals: Mapping[str, Sequence[float]], means: Mapping[str, Interval]) -> Figure | None:
    """Draw the final metrics: one dot per seed, and the mean with its interval.

    Metrics whose names share their part before the last "/" share a panel; every other metric has its own.

    Args:
        finals: the value of each seed, by metric.
        means: the mean and its interval, by metric.

    Returns:
        The figure; None without metrics.
    """
    groups: dict[str, dict[str, str]] = {}  # metrics by group, each under the name that the panel shows
    for name in finals:
        group, _, rest = name.rpartition("/")
        alone = not group or sum(other.rpartition("/")[0] == group for other in finals) == 1
        groups.setdefault(name if alone else group, {})[name if alone else rest] = name
    if not groups:
        return None
    columns = min(3, len(groups))
    rows = -(-len(groups) // columns)
    tallest = max(map(len, groups.values()))
    figure, axes = _figure(columns, rows, width=4.4, height=0.9 + 0.42 * tallest)
    for axis, (group, members) in zip(axes, groups.items(), strict=False):
        for place, name in enumerate(members.values()):
            numbers, interval = np.asarray(finals[name], float), means[name]
            jitter = np.linspace(-0.14, 0.14, len(numbers)) if len(numbers) > 1 else np.zeros(1)
            axis.scatter(numbers, place + jitter, s=14, color=COLORS["train"], alpha=0.45, linewidth=0)
            axis.plot([interval.low, interval.high], [place, place], color=INK, linewidth=2.2)
            axis.scatter([interval.mean], [place], s=38, color=COLORS["validation"], zorder=3)
        axis.set_yticks(range(len(members)), list(members) if len(members) > 1 or group not in members else [""])
        axis.set_ylim(len(members) - 0.4, -0.6)
        axis.set_title(group, loc="left", fontsize=11, color=INK, fontweight="bold")
        axis.ticklabel_format(axis="x", useOffset=False)
        axis.locator_params(axis="x", nbins=5)
    for axis in axes[len(groups) :]:
        axis.remove()
    return figure


def profile(scores: Float[np.ndarray, "runs episodes"]) -> Figure:
    """Draw a performance profile: the share of episodes whose return exceeds each threshold.

    The line is the mean over runs, the band its 95% bootstrap interval.

    Args:
        scores: `[runs, episodes]`; the returns.

    Source: Agarwal et al., "Deep reinforcement learning at the edge of the statistical precipice", 2021, section 4.2.
    """
    low, high = scores.min(), scores.max()
    margin = 0.02 * (high - low) or 1.0
    thresholds = np.linspace(low - margin, high + margin, 201)
    above = (scores[:, :, None] > thresholds).mean(1)  # [runs, thresholds]
    figure, (axis,) = _figure(1, 1, width=5.2, height=3.4)
    axis.plot(thresholds, above.mean(0), color=INK, linewidth=1.8)
    if len(scores) > 1:
        band = mean_interval(above)
        axis.fill_between(thresholds, band.low, band.high, color=COLORS["train"], alpha=0.2, linewidth=0)
    axis.set_xlabel("return")
    axis.set_ylim(-0.02, 1.02)
    axis.set_title("share of episodes with a larger return", loc="left", fontsize=9, color=FAINT)
    return figure


def optimization_history(study: Study) -> Figure:
    """Draw the value of each trial of a study in order, and the best value so far.

    A finished trial is a dot, a pruned one a hollow dot, a failed one a cross at the bottom.
    """
    figure, (axis,) = _figure(1, 1, width=5.2, height=3.4)
    finished = [trial for trial in study.trials if trial.state == "finished"]
    pruned = [trial for trial in study.trials if trial.state == "pruned" and not np.isnan(trial.value)]
    failed = [trial.number for trial in study.trials if trial.state == "failed"]
    best = np.maximum if study.maximized else np.minimum
    numbers, values = [trial.number for trial in finished], np.array([trial.value for trial in finished])
    if finished:
        axis.step(numbers, best.accumulate(values), where="post", color=COLORS["validation"], linewidth=1.8)
    axis.scatter(numbers, values, s=22, color=COLORS["train"], linewidth=0, zorder=3)
    axis.scatter(
        [trial.number for trial in pruned],
        [trial.value for trial in pruned],
        s=20,
        facecolors="none",
        edgecolors=FAINT,
        linewidth=1.0,
    )
    axis.plot(failed, np.zeros(len(failed)), "x", color="#a8400f", markersize=5, transform=axis.get_xaxis_transform())
    if values.size and values.min() > 0 and values.max() / values.min() > 50:
        axis.set_yscale("log")
    axis.set_xlabel("trial")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set_title(study.description["metric"], loc="left", fontsize=9, color=FAINT)
    return figure


def importances(shares: Mapping[str, float]) -> Figure:
    """Draw one bar per hyper-parameter, the most important on top.

    Args:
        shares: the share of the objective's variance that each hyper-parameter explains (fANOVA, Hutter et al., "An
            efficient approach for assessing hyperparameter importance", 2014).
    """
    ranked = sorted(shares.items(), key=lambda item: item[1])
    figure, (axis,) = _figure(1, 1, width=5.2, height=max(1.6, 0.7 + 0.42 * len(ranked)))
    axis.barh([name for name, _ in ranked], [share for _, share in ranked], height=0.55, color=COLORS["train"])
    for place, (_, share) in enumerate(ranked):
        axis.text(share + 0.012, place, f"{100 * share:.0f}%", va="center", fontsize=8.5, color=INK)
    axis.set_xlim(0, 1.08)
    axis.set_ylim(-0.6, len(ranked) - 0.4)
    axis.set_xticks([])
    axis.grid(visible=False)
    axis.spines["bottom"].set_visible(False)
    axis.tick_params(length=0)
    return figure


def parallel_coordinates(study: Study) -> Figure:
    """Draw the settings of a study's trials in parallel coordinates.

    Each hyper-parameter and the objective has a vertical axis, and each trial a line through its values. Better trials
    are bluer, the best is orange, pruned trials are dotted.

    Source: Inselberg, "The plane with parallel coordinates", 1985.
    """
    trials = [trial for trial in reversed(study.ranked) if not np.isnan(trial.value)]  # the best on top
    values = np.array([trial.value for trial in trials])
    columns = [_column([trial.settings[name] for trial in trials], one) for name, one in study.space.items()]
    positive = values.min() > 0 and values.max() / values.min() > 50
    margin = 0 if positive else 0.04 * (values.max() - values.min()) or 0.5
    objective = Range(float(values.min() - margin), float(values.max() + margin), logarithmic=bool(positive))
    columns.append(_column(values.tolist(), objective))
    figure = Figure(figsize=(max(6.0, 2.1 * len(columns)), 4.2), layout="constrained")
    axis = figure.subplots()
    finished = sum(trial.state == "finished" for trial in trials)
    for row, trial in enumerate(trials):
        rank = (row - (len(trials) - finished)) / max(1, finished - 1)  # 0 the worst finished, 1 the best
        color, width, style = FAINT, 0.8, ":"
        if trial.state == "finished":
            color, width, style = _BETTER(0.15 + 0.85 * rank), 1.0 + 0.6 * rank, "-"
        if trial is trials[-1] and finished:
            color, width = COLORS["validation"], 2.6
        axis.add_patch(PathPatch(_smooth([c.heights[row] for c in columns]), fc="none", ec=color, lw=width, ls=style))
    for place, (name, column) in enumerate(zip([*study.space, study.description["metric"]], columns, strict=True)):
        axis.plot([place, place], [0, 1], color=INK, linewidth=1.0)
        for height, label in column.ticks:
            axis.plot([place - 0.015, place], [height, height], color=INK, linewidth=1.0)
            text = axis.text(place - 0.03, height, label, ha="right", va="center", fontsize=8, color=INK)
            text.set_bbox({"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 0.6})
        axis.text(place, 1.07, name, ha="center", fontsize=9.5, color=INK, fontweight="bold")
    axis.set_xlim(-0.35, len(columns) - 0.7)
    axis.set_ylim(-0.04, 1.15)
    axis.axis("off")
    return figure


class _Column(NamedTuple):
    """A vertical axis: the height of each trial on it, in [0, 1], and its ticks."""

    heights: list[float]
    ticks: list[tuple[float, str]]


def _column(values: Sequence[Any], dimension: Dimension) -> _Column:
    if isinstance(dimension, Choice):
        names = [str(name) for name in dimension.values]
        place = {name: (index + 0.5) / len(names) for index, name in enumerate(names)}
        return _Column([place[str(value)] for value in values], [(height, name) for name, height in place.items()])
    low, high = dimension.low, dimension.high
    scale = np.log if dimension.logarithmic else np.asarray

    def height(value: int | float) -> float:
        return float((scale(value) - scale(low)) / (scale(high) - scale(low)))

    locator = LogLocator() if dimension.logarithmic else MaxNLocator(5)
    inside = [tick for tick in locator.tick_values(low, high) if low <= tick <= high]
    if len(inside) < 2:
        inside = [low, high]
    return _Column([height(value) for value in values], [(height(tick), f"{tick:.6g}") for tick in inside])


def _smooth(heights: Sequence[float]) -> MatplotlibPath:
    """Connect one height per axis by a curve that is level at the axes."""
    points, codes = [(0.0, heights[0])], [MatplotlibPath.MOVETO]
    for place, (here, there) in enumerate(itertools.pairwise(heights)):
        points += [(place + 0.4, here), (place + 0.6, there), (place + 1.0, there)]
        codes += [MatplotlibPath.CURVE4] * 3
    return MatplotlibPath(points, codes)


def confusion_matrix(counts: Float[np.ndarray, "classes classes"], class_names: Sequence[str]) -> Figure:
    """Draw a confusion matrix, in percent of each true class; only mistakes are colored.

    Args:
        counts: `[classes, classes]`; the number of examples of each true class (row) and predicted class (column).
        class_names: the names of the classes.
    """
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    size = max(3.6, 0.42 * len(counts) + 1.6)
    figure = Figure(figsize=(size, size), layout="constrained")
    axis = figure.subplots()
    mistakes = shares * (1 - np.eye(len(counts)))
    axis.imshow(mistakes, cmap="OrRd", vmin=0, vmax=max(mistakes.max() * 1.3, 0.02))
    for row, column in np.ndindex(*shares.shape):
        share = 100 * shares[row, column]
        if share >= 0.05:
            weight = "bold" if row == column else "normal"
            axis.text(column, row, f"{share:.1f}", ha="center", va="center", fontsize=7.5, color=INK, fontweight=weight)
    ticks = range(len(counts))
    rotation = 0 if max(map(len, class_names)) < 4 else 60
    axis.set_xticks(ticks, class_names, rotation=rotation, fontsize=8)
    axis.set_yticks(ticks, class_names, fontsize=8)
    axis.set_xlabel("predicted", color=INK)
    axis.set_ylabel("true", color=INK)
    axis.tick_params(length=0)
    for spine in axis.spines.values():
        spine.set_visible(False)
    axis.set_title("percent of each true class", loc="left", fontsize=9, color=FAINT)
    return figure


def wrong_examples(
    images: Float[np.ndarray, "examples height width channels"],
    target: Int[np.ndarray, " examples"],
    probabilities: Float[np.ndarray, "runs examples classes"],
    class_names: Sequence[str],
    count: int = 16,
) -> Figure | None:
    """Draw the images that were misclassified with the highest probability.

    Above each are its true class, the predicted class and the probability that the most confident run gave to it;
    below is the number of runs that misclassify it.

    Args:
        images: `[examples, height, width, channels]`; other arrays give no figure.
        target: `[examples]`; the true classes.
        probabilities: `[runs, examples, classes]`; the predicted probabilities.
        class_names: the names of the classes.
        count: the largest number of images to draw.

    Returns:
        The figure; None without mistakes, and for inputs that are not images.
    """
    if images.ndim != 4:
        return None
    wrong = probabilities.argmax(-1) != target
    sureness = np.where(wrong, probabilities.max(-1), 0)
    surest = sureness.argmax(0)  # the run with the most confident mistake
    worst = np.argsort(-sureness.max(0), kind="stable")[: min(count, int(wrong.any(0).sum()))]
    if not len(worst):
        return None
    columns = min(4, len(worst))
    rows = -(-len(worst) // columns)
    titles = [str(name) for name in class_names]
    figure = Figure(figsize=(1.5 * columns, 1.85 * rows), layout="constrained")
    axes = np.ravel(figure.subplots(rows, columns, squeeze=False))
    for axis, index in zip(axes, worst, strict=False):
        axis.imshow(_shown(images[index]), cmap="gray_r", interpolation="nearest")
        said = probabilities[surest[index], index]
        label = f"{titles[int(said.argmax())]}, {100 * said.max():.0f}%"
        axis.set_title(f"{titles[int(target[index])]} → {label}", fontsize=7, color=INK, pad=3)
        note = f"{wrong[:, index].sum()} of {len(wrong)} wrong" if len(wrong) > 1 else ""
        axis.set_xlabel(note, fontsize=6.5, color=FAINT, labelpad=2)
        axis.set_xticks([])
        axis.set_yticks([])
    for axis in axes[len(worst) :]:
        axis.remove()
    return figure


def _shown(image: Shaped[np.ndarray, "height width channels"]) -> np.ndarray:
    """Scale an image to [0, 1]: three channels as colors, otherwise the first channel as gray."""
    low, high = image.min(), image.max()
    scaled = (image - low) / (high - low if high > low else 1)
    return scaled[..., 0] if image.shape[-1] != 3 else scaled


def _figure(columns: int, rows: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    axes = list(np.ravel(figure.subplots(rows, columns, squeeze=False)))
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.spines[["left", "bottom"]].set_color(FAINT)
        axis.tick_params(colors=INK, labelsize=8)
        axis.xaxis.label.set_color(FAINT)
        axis.grid(axis="y", color="#e8ebf0", linewidth=0.8)
        axis.set_axisbelow(True)
    return figure, axes
