"""Environments and replay shared out over devices: the agent is the one of a single device."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from agents import MAKE

import jdl
import rl
from jdl.parallel.plan import work
from rl.runners.training import _spread

ALIKE = "a2c", "reinforce", "dqn"  # what they share out, the others share out too
DIAGNOSIS = pytest.mark.diagnosis


def exact(learner):
    """The learner with every number in 64 bits: actions that rounding changes would lead elsewhere."""
    wide = lambda leaf: leaf.astype(float) if leaf.dtype == jnp.float32 else leaf  # noqa: E731
    return learner._replace(init=lambda key: jax.tree.map(wide, learner.init(key)))


def trained(learner, name):
    # In single precision actions come to differ at last; DQN has first to fill its replay.
    learner = jdl.jit(jdl.scan(learner, 40 if name.startswith("dqn") else 5))
    state, metrics = learner.step(learner.init(jax.random.key(0)), None)
    return state, {name: metric.compute() for name, metric in metrics.items()}


@pytest.mark.slow
@pytest.mark.parametrize("devices", ["data", "pmap"])
@pytest.mark.parametrize(
    "name", ["ppo", "dqn with everything", *(pytest.param(name, marks=DIAGNOSIS) for name in ALIKE)]
)
def test_the_agent_is_that_of_one_device(name, devices, x64):
    env = rl.envs.cartpole()
    learner = exact(rl.on_device(MAKE[name](env), env, 8))
    alone, expected = trained(learner, name)
    state, metrics = trained(jdl.distribute(learner, devices), name)
    each = jax.tree.leaves((state.environments, state.timestep.observation))
    if name.startswith("dqn") and devices == "data":
        each += jax.tree.leaves(state.agent.replay.ring)
    assert all(leaf.addressable_shards[0].data.shape[0] == 1 for leaf in each)
    for one, other in zip(jax.tree.leaves(alone.agent.params), jax.tree.leaves(state.agent.params), strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-9, atol=1e-9)
    for metric, value in expected.items():
        np.testing.assert_allclose(metrics[metric], value, rtol=1e-9, atol=1e-9, err_msg=metric)


@pytest.mark.parametrize("devices", ["data", "pmap"])
def test_environments_that_the_devices_do_not_divide(devices):
    env = rl.envs.cartpole()
    learner = jdl.distribute(rl.on_device(MAKE["ppo"](env), env, 12), devices)
    message = r"does not divide environments/state, whose shape is \(12, 4\): its axis 0 must be a multiple of 8"
    with pytest.raises(ValueError, match=message):
        jdl.jit(learner).init(jax.random.key(0))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "devices"), [("ppo", "data"), ("ppo", "pmap"), ("dqn", "data")])
def test_groups_of_devices_have_seeds_and_within_them_environments(name, devices, x64):
    env = rl.envs.cartpole()
    learner = exact(rl.on_device(MAKE[name](env), env, 8))
    alone, expected = trained(jdl.seeds(learner, [3, 5, 8, 9], placement="vmap", spread=False), name)
    spread = jdl.seeds(jdl.distribute(learner, devices, 4), [3, 5, 8, 9], spread=2)
    state, metrics = trained(spread, name)
    each = jax.tree.leaves((state.environments, state.timestep.observation))
    assert all(leaf.addressable_shards[0].data.shape[:2] == (2, 2) for leaf in each)
    for one, other in zip(jax.tree.leaves(alone.agent.params), jax.tree.leaves(state.agent.params), strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-9, atol=1e-9)
    for metric, value in expected.items():
        np.testing.assert_allclose(metrics[metric], value, rtol=1e-9, atol=1e-9, err_msg=metric)


@pytest.mark.parametrize(
    ("runs", "options", "message"),
    [
        (3, {"spread": 2}, "3 runs do not divide over 2 groups of devices"),
        (4, {"spread": 4}, r"4 groups of 4 devices .* are 16, and there are 8"),
        (4, {"spread": 2, "placement": "map"}, "trains the runs of all groups together: leave out placement"),
    ],
)
def test_groups_that_cannot_be(runs, options, message):
    env = rl.envs.cartpole()
    learner = jdl.distribute(rl.on_device(MAKE["ppo"](env), env, 8), "data", 4)
    with pytest.raises(ValueError, match=message):
        jdl.jit(jdl.seeds(learner, runs, **options)).init(jax.random.key(0))


@pytest.mark.parametrize(
    ("devices", "groups", "seeds", "spread"),
    [("auto", 1, 1, False), ("auto", 1, 2, True), ("data", 1, 2, 1), ("data", 2, 2, 2)],
)
def test_who_has_the_devices(devices, groups, seeds, spread):
    """Several seeds, unless each is to have some; one seed leaves them to what is inside."""
    assert _spread({"devices": devices, "groups": groups}, SimpleNamespace(seeds=tuple(range(seeds)))) is spread


@pytest.mark.parametrize(("devices", "groups"), [("auto", 2), ("single", 2), ("data", 0)])
def test_groups_that_an_experiment_cannot_have(devices, groups):
    run = SimpleNamespace(seeds=(0, 1))
    with pytest.raises(ValueError, match=f"groups={groups}, devices='{devices}'"):
        _spread({"devices": devices, "groups": groups}, run)


@pytest.mark.slow
def test_a_step_of_an_agent_on_paper():
    env = rl.envs.cartpole()
    learner = rl.on_device(MAKE["ppo"](env), env, 8)
    alone, spread = work(learner, "single", "", 0), work(learner, "pmap", "4", 0)
    assert spread.model_flops == alone.model_flops
    assert alone.program.flops / 4 <= spread.program.flops < alone.program.flops / 2
    assert {one.kind for one in spread.program.collectives} == {"all-gather", "all-reduce"}
