"""Agents on the device obey the laws of learners; networks and observations of a user's own."""

import contextlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from agents import MAKE, some_slow
from gymnasium import spaces

import jdl
import rl
from rl.envs.toy_text import Table

# Their state and their updates are made of the same parts as PPO's.
LIKE_PPO = "a2c", "reinforce"


def small(name, **options):
    env = rl.envs.cartpole()
    return rl.on_device(MAKE[name](env, **options), env, 8)


def bits(tree):
    return [np.asarray(jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x)
            for x in jax.tree.leaves(tree)]  # fmt: skip


@pytest.mark.medium
@pytest.mark.parametrize("name", some_slow("dqn with everything", diagnosis=("dqn", *LIKE_PPO)))
def test_a_seed_among_others_is_that_seed_alone(name):
    together = jdl.jit(jdl.seeds(jdl.scan(small(name), 3), 3, placement="map"))
    alone = jdl.jit(jdl.seeds(jdl.scan(small(name), 3), [2]))
    key = jax.random.key(1)
    (state, _), (one, _) = (learner.step(learner.init(key), None) for learner in (together, alone))
    for several, single in zip(bits(state), bits(one), strict=True):
        np.testing.assert_array_equal(several[2], single[0])
    params = np.asarray(next(leaf for leaf in jax.tree.leaves(state.agent.params) if leaf.ndim == 3))
    assert not np.array_equal(params[0], params[1])
    assert not np.array_equal(state.timestep.observation[0], state.timestep.observation[1])


@pytest.mark.medium
@pytest.mark.parametrize("name", some_slow("dqn", diagnosis=("dqn with everything", *LIKE_PPO)))
def test_seeds_by_vmap_are_close_after_an_update(name):
    key = jax.random.key(1)
    results = []
    for learner in (jdl.seeds(small(name), 2, placement="vmap"), jdl.seeds(small(name), 2, placement="map")):
        learner = jdl.jit(learner)
        results.append(learner.step(learner.init(key), None)[0].agent.params)
    for one, other in zip(jax.tree.leaves(results[0]), jax.tree.leaves(results[1]), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def _accumulated(learner):
    return jdl.accumulate(learner, 2)


def _mark(name, split):
    """Each way of splitting with one of the two kinds of algorithm, and slow, where most is gathered."""
    if (name, split) in (("dqn", jdl.pmap), ("ppo", _accumulated)):
        return ()
    return pytest.mark.slow if (name, split) == ("dqn with everything", jdl.pmap) else pytest.mark.diagnosis


@pytest.mark.medium
@pytest.mark.parametrize(
    ("name", "transform"),
    [pytest.param(name, split, marks=_mark(name, split)) for name in MAKE for split in (jdl.pmap, _accumulated)],
)
def test_gradients_are_the_same_however_they_are_split(name, transform, x64):
    options = {"learning_starts": 1} if name.startswith("dqn") else {}  # learn at the first step
    plain, split = small(name, **options), transform(small(name, **options))
    key = jax.random.key(2)
    results = [jdl.jit(learner).step(jdl.jit(learner).init(key), None)[0].agent.params for learner in (plain, split)]
    first = plain.init(key).agent.params
    assert not np.array_equal(jax.tree.leaves(first)[1], jax.tree.leaves(results[0])[1])
    for one, other in zip(jax.tree.leaves(results[0]), jax.tree.leaves(results[1]), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-9 if one.dtype == np.float64 else 2e-6)


@pytest.mark.parametrize("name", some_slow("ppo", "dqn with everything", diagnosis=LIKE_PPO))
def test_resume_is_to_the_bit(name, tmp_path):
    learner = jdl.jit(jdl.scan(small(name, normalize_observations=True), 2))
    options = {"steps": 8, "log_every": 2, "checkpoint_every": 4}
    whole = jdl.fit(learner, None, **options)

    def kill(row, state):
        if row["step"] == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        jdl.fit(learner, None, **options, run=tmp_path / "run", callbacks=[kill])
    again = jdl.fit(learner, None, **options, run=tmp_path / "run", resume=True)
    assert [row["step"] for row in again.rows] == [2, 4, 6, 8]
    for one, other in zip(bits(whole.state), bits(again.state), strict=True):
        np.testing.assert_array_equal(one, other)


class Own(nn.Module):
    """A user's own torso, for observations in parts."""

    @nn.compact
    def __call__(self, observation):
        parts = [nn.Dense(8)(observation["place"]), jax.nn.one_hot(observation["door"], 3)]
        return nn.tanh(nn.Dense(16)(jnp.concatenate(parts, -1)))


def door():
    """The right action is the number of the door, in a Dict observation."""
    space = spaces.Dict({"place": spaces.Box(-1, 1, (2,), np.float32), "door": spaces.Discrete(3)})

    def seen(state):
        return {"place": jnp.zeros(2), "door": state}

    def reset(key):
        state = jax.random.randint(key, (), 0, 3)
        return state, rl.envs.Outcome(seen(state), 0.0, np.False_, np.False_)

    def step(state, action, key):
        return state, rl.envs.Outcome(seen(state), (action == state).astype(jnp.float32), np.True_, np.False_)

    return rl.envs.Environment("door", reset, step, space, spaces.Discrete(3))


@pytest.mark.medium
@pytest.mark.parametrize("network", [Own(), pytest.param(None, marks=pytest.mark.slow)])
def test_a_users_own_network_and_dict_observations(network):
    env = door()
    algorithm = rl.ppo(env.observation_space, env.action_space, network, optimizer=optax.adam(3e-3), num_steps=16)
    learner = jdl.jit(jdl.scan(rl.on_device(algorithm, env, 8), 100))
    state, _ = learner.step(learner.init(jax.random.key(0)), None)
    assert jdl.evaluate(learner, state, rl.episodes(30))["return"] == 1


@pytest.mark.medium
@pytest.mark.parametrize("placement", ["map", "vmap"])
def test_a_mask_that_forbids_everything_stops_the_program(placement):
    def step_into(rooms):
        """After each step one more of two actions is forbidden."""
        rules = Table(
            np.ones((rooms, 2, 1)), np.minimum(np.arange(rooms) + 1, rooms - 1)[:, None, None].repeat(2, 1),
            np.zeros((rooms, 2, 1), np.float32), np.zeros((rooms, 2, 1), bool), np.eye(rooms)[0],
            np.arange(2) >= np.arange(rooms)[:, None],
        )  # fmt: skip
        env = rl.envs.from_table("corridor", rules, max_steps=9)
        learner = rl.on_device(rl.q_learning(env.observation_space, env.action_space, num_steps=4), env, 2)
        learner = jdl.jit(jdl.seeds(learner, 2, placement=placement))
        return jax.block_until_ready(learner.step(learner.init(jax.random.key(0)), None))

    step_into(2)
    with pytest.raises(jax.errors.JaxRuntimeError, match="an action mask of corridor forbids every action"):
        step_into(3)
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        jax.effects_barrier()  # or it is said once more when Python ends
