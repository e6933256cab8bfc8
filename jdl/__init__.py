"""Deep learning research in functional JAX: learners, transforms, runs.

The framework:
    core        learners, the seam of their gradients, transforms, supervised learning, losses, metrics, optimizers
    runtime     this process and its machine: cores and devices, other processes, caches, files
    parallel    many devices: replicas, shards, partition rules, plans
    nn          layers and network families
    data        real data, split, shuffled, augmented, batched, tokenized
    transfer    trained weights of others, heads, frozen parts, adapters
    training    fit, evaluate, sources of batches, run directories, checkpoints
    experiment  experiments found by name: run, repeat, search, sweep
    report      plots, reports, summaries of networks
    cli         the command `jdl`

The domains, built from it:
    text        systems that read and write text
    generative  measures of what generative models make

Names below are imported when they are first used.
"""

from etils import epy as _epy

from jdl import _public_modules

with _epy.lazy_api_imports(globals()):
    from jdl import data, generative, nn, text, transfer
    from jdl.core import losses, metrics, optimizers, statistics
    from jdl.core.learner import Learner, fold, gradients, step_key
    from jdl.core.paths import by_path
    from jdl.core.precision import compute_type, mixed_precision
    from jdl.core.supervised import TrainState, evaluated_params, supervised
    from jdl.core.transforms import accumulate, feed, jit, population, scan, seeds
    from jdl.data.pipeline import Pipeline, pipeline
    from jdl.experiment import tune
    from jdl.experiment.execute import run
    from jdl.experiment.load import load
    from jdl.experiment.records import Record
    from jdl.experiment.separate import separately
    from jdl.parallel.modes import Mode, distribute
    from jdl.parallel.pmap import pmap
    from jdl.parallel.shard import shard
    from jdl.report.network import summarize
    from jdl.report.run import write_report
    from jdl.runtime.cores import host_devices, one_core
    from jdl.runtime.preemption import REQUEUE, Preempted
    from jdl.training import checkpoint
    from jdl.training.evaluate import evaluate
    from jdl.training.fit import Fitted, fit
    from jdl.training.outcome import Monitor
    from jdl.training.profiling import profile
    from jdl.training.runs import Run
    from jdl.training.source import Batches, Bucketed, Source, Whole
    from jdl.transfer import lora, pretrained

__version__ = "0.2.0"

_public_modules.show(
    checkpoint="jdl.training.checkpoint",
    lora="jdl.transfer.lora",
    losses="jdl.core.losses",
    metrics="jdl.core.metrics",
    optimizers="jdl.core.optimizers",
    pretrained="jdl.transfer.pretrained",
    statistics="jdl.core.statistics",
    tune="jdl.experiment.tune",
)

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
