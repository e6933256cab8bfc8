"""Deep learning research in functional JAX: learners, transforms, runs."""

from jdl import checkpoint, data, lora, losses, metrics, nn, optimizers, pretrained, statistics, text, transfer, tune
from jdl.evaluate import evaluate
from jdl.experiment import load, run
from jdl.fit import Fitted, fit
from jdl.learner import Learner, fold, gradients, step_key
from jdl.modes import Mode, distribute
from jdl.outcome import Monitor
from jdl.parallel import pmap
from jdl.paths import by_path
from jdl.pipeline import Pipeline, pipeline
from jdl.placement import host_devices, one_core
from jdl.precision import compute_type, mixed_precision
from jdl.preemption import REQUEUE, Preempted
from jdl.profiling import profile
from jdl.runs import Run
from jdl.separate import separately
from jdl.sharding import shard
from jdl.source import Batches, Bucketed, Source, Whole
from jdl.summary import summarize
from jdl.supervised import TrainState, evaluated_params, supervised
from jdl.transforms import accumulate, feed, jit, population, scan, seeds

__all__ = [
    "REQUEUE",
    "Batches",
    "Bucketed",
    "Fitted",
    "Learner",
    "Mode",
    "Monitor",
    "Pipeline",
    "Preempted",
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
]
