"""Everything in Optax that makes a transformation serves a learner, or is refused by name; a new one must say which."""

import inspect

import flax.linen as nn
import jax
import numpy as np
import optax
import optax.contrib
import pytest

import jdl

DATA = {"input": np.ones((8, 4), np.float32), "target": np.ones((8, 1), np.float32)}
SGD = optax.sgd(0.1)
LABELS = {"kernel": "all", "bias": "all"}
# What they need besides a learning rate, which all take as 0.1.
ARGUMENTS = {
    "adaptive_grad_clip": {"clipping": 0.1},
    "add_noise": {"eta": 0.1, "gamma": 0.5, "key": 0},
    "apply_if_finite": {"inner": SGD, "max_consecutive_errors": 3},
    "clip": {"max_delta": 1.0},
    "clip_by_block_rms": {"threshold": 1.0},
    "clip_by_global_norm": {"max_norm": 1.0},
    "conditionally_mask": {"inner": SGD, "should_transform_fn": lambda step: step > 1},
    "conditionally_transform": {"inner": SGD, "should_transform_fn": lambda step: step > 1},
    "ema": {"decay": 0.9},
    "flatten": {"inner": SGD},
    "freeze": {"mask": {"kernel": True, "bias": False}},
    "lookahead": {"fast_optimizer": SGD, "sync_period": 5, "slow_step_size": 0.5},
    "masked": {"inner": SGD, "mask": {"kernel": True, "bias": False}},
    "multi_transform": {"transforms": {"all": SGD}, "param_labels": LABELS},
    "partition": {"transforms": {"all": SGD}, "param_labels": LABELS},
    "scale": {"step_size": -0.1},
    "scale_by_backtracking_linesearch": {"max_backtracking_steps": 3},
    "scale_by_schedule": {"step_size_fn": lambda step: -0.1},
    "scale_by_zoom_linesearch": {"max_linesearch_steps": 3},
    "selective_transform": {"optimizer": SGD, "freeze_mask": {"kernel": True, "bias": False}},
    "snapshot": {"measure_name": "norm", "measure": optax.tree.norm},
    "stateless": {"f": lambda updates, params: updates},
    "stateless_with_tree_map": {"f": lambda update, param: update},
    "trace": {"decay": 0.9},
    "with_extra_args_support": {"tx": SGD},
    "differentially_private_aggregate": {"l2_norm_clip": 1.0, "noise_multiplier": 0.1, "key": 0},
    "noisy_sgd": {"key": 0},
    "mechanize": {"base_optimizer": SGD},
    "sam": {"optimizer": SGD, "adv_optimizer": SGD},
    "schedule_free": {"base_optimizer": SGD},
    "split_real_and_imaginary": {"inner": SGD},
}
REFUSED = {
    "lookahead": "keeps two sets of parameters",
    "differentially_private_aggregate": "wants the gradients of each example",
    "scale_by_muon": "takes matrices alone",
}
# Made of others; a part of optax.monitor, which gives no updates; what Optax itself warns of.
LEFT_OUT = {
    "chain", "named_chain", "inject_hyperparams", "inject_stateful_hyperparams", "measure_with_ema", "optimistic_adam",
    "dpsgd",
}  # fmt: skip


def family():
    """The functions of Optax that return a transformation, by name."""
    found = {}
    for module in (optax, optax.contrib):
        for name, function in inspect.getmembers(module, inspect.isroutine):
            if "GradientTransformation" in str(inspect.signature(function).return_annotation):
                found[name] = function
    return {name: function for name, function in found.items() if name not in LEFT_OUT and name[0] != "_"}


def trained(optimizer):
    learner = jdl.supervised(nn.Dense(1), jdl.losses.squared_error, optimizer, example=DATA)
    step = jdl.jit(learner, donate=False).step
    return jax.eval_shape(lambda: step(step(learner.init(jax.random.key(0)), DATA)[0], DATA))


@pytest.mark.parametrize("name", family())
def test_a_transformation_serves_or_is_refused_by_name(name):
    function = family()[name]
    options = ARGUMENTS.get(name, {})
    if "learning_rate" in inspect.signature(function).parameters:
        options = {"learning_rate": 0.1, **options}
    optimizer = function(**options)
    if name in REFUSED:
        with pytest.raises(ValueError, match=f"this optimizer cannot serve in a learner: .*{REFUSED[name]}"):
            trained(optimizer)
    else:
        trained(optimizer)


def test_there_is_a_family():
    assert len(family()) > 100
    assert {*ARGUMENTS, *REFUSED} <= family().keys()
