"""A benchmark's row that misses its bar on an unsteady machine is measured again, and says so."""

import itertools

from experiments.bench.measure import Row
from experiments.bench.noise import measured, spread


def section(*ratios):
    """Rows with one ratio each time they are measured."""
    turns = iter(ratios)
    return lambda rounds: [Row("speed", [next(turns)] * rounds, 1.0), Row("steady", [2.0], 1.0)]


def test_a_missed_row_is_measured_again_on_an_unsteady_machine():
    seconds = itertools.cycle([1.0, 1.5])
    speed, steady = measured({"all": section(0.8, 1.2)}, 3, lambda: next(seconds))
    assert speed.ratio == 1.2
    assert speed.note == "measured twice; before: 0.8, noise 50%"
    assert steady.note == ""


def test_on_a_steady_machine_a_miss_is_a_miss():
    (speed, _) = measured({"all": section(0.8)}, 3, lambda: 1.0)
    assert speed.ratio == 0.8
    assert speed.noise == 0


def test_a_bar_that_is_met_is_not_measured_again():
    seconds = itertools.cycle([1.0, 1.5])
    (speed, _) = measured({"all": section(1.1)}, 3, lambda: next(seconds))
    assert speed.note == ""


def test_drift_between_before_and_after_is_noise():
    assert spread([1.0] * 5, [1.2] * 5) > 0.15
    assert spread([1.0] * 5, [1.0] * 5) == 0
    assert spread([1.0, 1.0, 1.0, 1.0, 9.0], [1.0] * 5) == 0  # one slow time is no drift
