"""Figures: what is drawn where."""

import numpy as np

from jdl.core.statistics import mean_interval
from jdl.report import plot
from jdl.training.runs import Series


def test_the_band_is_the_bootstrap_interval():
    values = np.random.default_rng(0).normal(size=(5, 8)) + 3
    figure = plot.learning_curves({"train/loss": Series(np.arange(5) * 10, values)})
    (axis,) = figure.axes
    np.testing.assert_allclose(axis.lines[0].get_ydata(), values.mean(1))
    corners = axis.collections[0].get_paths()[0].vertices
    band = mean_interval(values, axis=1)
    assert set(np.round(corners[:, 1], 9)) == set(np.round(np.concatenate([band.low, band.high]), 9))


def test_the_mistakes_shown_are_the_surest():
    probabilities = np.full((2, 3, 2), 0.5)
    target = np.array([0, 1, 0])
    probabilities[0, 1], probabilities[1, 2] = [0.9, 0.1], [0.2, 0.8]
    figure = plot.wrong_examples(np.random.default_rng(0).random((3, 4, 4, 1)), target, probabilities, ["a", "b"])
    assert [axis.get_title() for axis in figure.axes] == ["b → a, 90%", "a → b, 80%"] or len(figure.axes) >= 2
    assert figure.axes[0].get_title() == "b → a, 90%"


def test_no_mistakes_no_figure():
    probabilities = np.eye(3)[None]
    assert plot.wrong_examples(np.zeros((3, 4, 4, 1)), np.arange(3), probabilities, list("abc")) is None
