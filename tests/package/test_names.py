"""The names that `jdl` and `rl` show, wherever their files lie."""

import importlib
import subprocess
import sys

import pytest

import jdl
import rl

JDL = [
    "REQUEUE",
    "Batches",
    "Bucketed",
    "Fitted",
    "Learner",
    "Mode",
    "Monitor",
    "Pipeline",
    "Preempted",
    "Record",
    "Run",
    "Source",
    "TrainState",
    "Whole",
    "accumulate",
    "by_path",
    "checkpoint",
    "compute_type",
    "data",
    "distribute",
    "evaluate",
    "evaluated_params",
    "feed",
    "fit",
    "fold",
    "generative",
    "gradients",
    "host_devices",
    "jit",
    "load",
    "lora",
    "losses",
    "metrics",
    "mixed_precision",
    "nn",
    "one_core",
    "optimizers",
    "pipeline",
    "pmap",
    "population",
    "pretrained",
    "profile",
    "run",
    "scan",
    "seeds",
    "separately",
    "shard",
    "statistics",
    "step_key",
    "summarize",
    "supervised",
    "text",
    "transfer",
    "tune",
    "write_report",
]
MODULES = ["checkpoint", "lora", "losses", "metrics", "optimizers", "pretrained", "statistics", "tune"]


def test_the_names_of_jdl_are_these_and_each_is_there():
    assert sorted(jdl.__all__) == sorted(JDL)
    for name in JDL:
        assert getattr(jdl, name) is not None
    assert set(JDL) <= set(dir(jdl))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = jdl.nothing  # type: ignore[attr-defined]


def test_the_names_of_rl_are_there():
    for name in rl.__all__:
        assert getattr(rl, name) is not None


@pytest.mark.parametrize("name", MODULES)
def test_a_module_has_its_short_name_too(name):
    module = importlib.import_module(f"jdl.{name}")
    assert module is getattr(jdl, name)
    assert module.__spec__.name == module.__name__ != f"jdl.{name}"


def test_importing_jdl_imports_nothing_that_is_not_used():
    program = (
        "import sys, jdl; heavy = {'jax', 'flax', 'optax', 'numpy', 'sklearn', 'orbax'} & set(sys.modules); "
        "assert not heavy, heavy; from jdl.metrics import Mean; assert jdl.metrics.Mean is Mean"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True)
