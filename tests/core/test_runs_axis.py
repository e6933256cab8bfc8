"""Runs that leave cores idle are said so, and only they."""

import warnings

import jax
import pytest

from jdl.core import runs_axis


@pytest.mark.parametrize(
    ("runs", "placement", "warned"), [(4, None, True), (4, "map", True), (4, "vmap", False), (1, None, False)]
)
def test_idle_cores_are_warned_of(runs, placement, warned, monkeypatch):
    monkeypatch.setattr(runs_axis, "cores", lambda: 2)
    monkeypatch.setattr(jax, "local_device_count", lambda: 1)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        runs_axis.warn_if_runs_stay_on_one_core(runs, placement, "seeds")
    assert len(found) == warned
