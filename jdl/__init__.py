"""Deep learning research in functional JAX: learners, transforms, runs."""

from jdl import checkpoint, data, losses, metrics, nn, pretrained, statistics, tune
from jdl.evaluate import evaluate
from jdl.experiment import load, run
from jdl.fit import Fitted, fit
from jdl.learner import Learner, fold, gradients, step_key
from jdl.outcome import Monitor
from jdl.parallel import pmap, shard
from jdl.pipeline import Pipeline, pipeline
from jdl.placement import host_devices, one_core
from jdl.runs import Run
from jdl.separate import separately
from jdl.source import Batches, Source, Whole
from jdl.supervised import TrainState, by_path, supervised
from jdl.transforms import accumulate, feed, jit, population, scan, seeds

__all__ = [
    "Batches",
    "Fitted",
    "Learner",
    "Monitor",
    "Pipeline",
    "Run",
    "Source",
    "TrainState",
    "Whole",
    "accumulate",
    "by_path",
    "checkpoint",
    "data",
    "evaluate",
    "feed",
    "fit",
    "fold",
    "gradients",
    "host_devices",
    "jit",
    "load",
    "losses",
    "metrics",
    "nn",
    "one_core",
    "pipeline",
    "pmap",
    "population",
    "pretrained",
    "run",
    "scan",
    "seeds",
    "separately",
    "shard",
    "statistics",
    "step_key",
    "supervised",
    "tune",
]
