"""State-dependent exploration: the noise that acting has is that of the density, and it is kept for a while."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import probes
import pytest
from agents import CONTINUOUS, NUM_ENVS, torso

import jdl
import rl
from rl.networks import StateDependentActor
from rl.types import TimeStep


def test_the_spread_of_the_noise_is_that_of_the_density():
    actor = StateDependentActor(torso(), 3, log_std=-1.0)
    seen = jnp.array([[0.3, -1.0]])
    params = actor.init(jax.random.key(0), seen)
    mean, log_std = actor.apply(params, seen)
    features = torso().apply({"params": params["params"]["torso"]}, seen)
    expected = np.exp(-1) * np.sqrt((np.asarray(features) ** 2).sum())
    np.testing.assert_allclose(jnp.exp(log_std[0]), np.full(3, expected), rtol=1e-4)
    weights = jax.random.normal(jax.random.key(1), (20_000, 1, 16, 3))
    moved = jax.vmap(lambda one: actor.apply(params, seen, one)[0])(weights)[:, 0]
    np.testing.assert_allclose(moved.mean(0), mean[0], atol=0.05)
    np.testing.assert_allclose(moved.std(0), jnp.exp(log_std[0]), rtol=0.03)

    def density(params):
        return actor.apply(params, seen)[1].sum()

    slopes = jax.grad(density)(params)["params"]
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(slopes["torso"]))  # the features are not its own
    np.testing.assert_allclose(slopes["log_std"].sum(0), 1, rtol=1e-4)  # d log √Σz²σ² / d log σ, of all weights


def test_the_noise_is_kept_for_some_steps_of_an_episode():
    exploration = rl.exploration.state_dependent(3)
    carry, drawn = exploration.init(2, 4, 1), []
    for t in range(7):
        first = jnp.array([t == 0, t == 5])
        carry, weights = exploration.step(carry, first, jax.random.key(t))
        drawn.append(np.asarray(weights)[:, 0, 0])
    kept = np.array(drawn)[1:] == np.array(drawn)[:-1]
    np.testing.assert_array_equal(kept[:, 0], [True, True, False, True, True, False])
    np.testing.assert_array_equal(kept[:, 1], [True, True, False, True, False, True])  # an episode begins
    with pytest.raises(ValueError, match=r"state_dependent\(steps=0\)"):
        rl.exploration.state_dependent(0)


@pytest.mark.medium
def test_an_agent_acts_alike_in_the_same_state_until_the_noise_is_drawn_anew():
    env = rl.envs.pendulum()
    exploration = rl.exploration.state_dependent(4, log_std=0.0)
    algorithm = CONTINUOUS["sac"](env, noise=exploration, learning_starts=0)
    agent, carry = algorithm.init(jax.random.key(0)), algorithm.initial_carry(2)
    taken = []
    for t in range(5):
        timestep = TimeStep(jnp.ones((2, 3)), jnp.full(2, t == 0))
        action, carry, _ = algorithm.act(agent, carry, timestep, jax.random.key(t), False)
        taken.append(np.asarray(action))
    np.testing.assert_array_equal(taken[0], taken[3])
    assert (taken[3] != taken[4]).all()
    assert taken[0][0] != taken[0][1]  # each environment has its own


@pytest.mark.slow
def test_an_action_that_is_aimed():
    env = probes.aimed()
    noise = rl.exploration.state_dependent(2, log_std=-2.0)
    algorithm = CONTINUOUS["sac"](env, noise=noise, optimizer=optax.adam(3e-3))
    learner = jdl.jit(jdl.scan(rl.on_device(algorithm, env, NUM_ENVS), 500))
    state, _ = learner.step(learner.init(jax.random.key(0)), None)
    seen = TimeStep(jnp.array([[-1.0], [1.0]]), jnp.ones(2, bool))
    found = algorithm.act(state.agent, algorithm.initial_carry(2), seen, jax.random.key(0), True)[0]
    np.testing.assert_allclose(found[:, 0], [-0.5, 0.5], atol=0.15)
