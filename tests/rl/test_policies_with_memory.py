"""Policies with a memory: sequences and resets beside a plain loop, values at truncations, known answers, laws."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import probes
import pytest
from gymnasium import spaces

import jdl
import rl
from rl.memory import Memory, memory
from rl.policy import policy
from rl.types import Experience, TimeStep

NUM_ENVS = 16


def small(env, cell="gru", **options):
    network = Memory(rl.networks.MLP(lambda x: x, (16,)), 16, cell)
    options = {"optimizer": optax.adam(0.01), "num_steps": 12, "minibatches": 2, "entropy_weight": 0.0} | options
    return rl.ppo(env.observation_space, env.action_space, network, **options)


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_a_sequence_is_its_steps_and_an_episode_begins_without_a_past(cell):
    model = Memory(rl.networks.MLP(lambda x: x, (8,)), 4, cell)
    random = np.random.default_rng(0)
    seen = jnp.asarray(random.normal(size=(6, 3, 2)), jnp.float32)
    first = jnp.asarray(random.random((6, 3)) < 0.4)
    carry = jax.tree.map(lambda leaf: leaf + 0.5, model.initial_carry(3))
    params = model.init(jax.random.key(0), carry, seen, first)
    carries, features = model.apply(params, carry, seen, first)
    now = carry
    for t in range(6):
        now = jax.tree.map(lambda leaf, begins=first[t]: jnp.where(begins[:, None], 0, leaf), now)
        after, one = model.apply(params, now, seen[t : t + 1], jnp.zeros((1, 3), bool))
        now = jax.tree.map(lambda leaf: leaf[0], after)
        np.testing.assert_allclose(features[t], one[0], atol=1e-6)
        for kept, wanted in zip(jax.tree.leaves(carries), jax.tree.leaves(now), strict=True):
            np.testing.assert_allclose(kept[t], wanted, atol=1e-6)
    assert not np.allclose(features, model.apply(params, carry, seen, jnp.zeros_like(first))[1])


@pytest.mark.parametrize("bias", [0.0, 3.0])
def test_what_a_cell_keeps_of_the_past_fades_as_its_gates_say(bias):
    """Where all parameters are zero, nothing is written: a state fades by the sigmoid of the bias at each step."""
    space = spaces.Box(-1, 1, (2,), np.float32)
    keep = 1 / (1 + np.exp(-bias))
    for cell in ("gru", "lstm"):
        model = memory(space, 4, cell, gate_bias=bias)
        carry = jax.tree.map(lambda leaf: leaf + 0.5, model.initial_carry(1))
        given = jnp.ones((5, 1, 2)), jnp.zeros((5, 1), bool)
        params = jax.tree.map(jnp.zeros_like, model.init(jax.random.key(0), carry, *given))
        carries, features = model.apply(params, carry, *given)
        state = jax.tree.leaves(carries)[0]
        np.testing.assert_allclose(state[:, 0, 0], 0.5 * keep ** np.arange(1, 6), rtol=1e-6)
        shown = state if cell == "gru" else keep * np.tanh(state)
        np.testing.assert_allclose(features, shown, rtol=1e-6)


@pytest.fixture
def rollout():
    """A rollout of three environments, some of whose episodes are cut off."""
    random = np.random.default_rng(0)
    space, actions = spaces.Box(-np.inf, np.inf, (2,), np.float32), spaces.Box(-1, 1, (2,), np.float32)
    pi = policy(space, actions, memory(space, 8), optax.sgd(0.1), shared=False, normalize_observations=False)
    agent = pi.init(jax.random.key(0))
    time, envs = 7, 3
    ends = random.random((time, envs)) < 0.3
    truncated = ends & (random.random((time, envs)) < 0.7)
    first = np.concatenate([np.zeros((1, envs), bool), ends[:-1]])
    seen = random.normal(size=(time, envs, 2)).astype(np.float32)
    reached = random.normal(size=(time, envs, 2)).astype(np.float32)
    reached[:-1] = np.where(ends[:-1, :, None], reached[:-1], seen[1:])
    carry = jax.tree.map(lambda leaf: leaf + 0.3, pi.initial_carry(envs))
    timestep = TimeStep(jnp.asarray(seen), jnp.asarray(first))
    steps, now = [], carry
    for t in range(time):
        step = TimeStep(timestep.observation[t], timestep.first[t])
        action, now, _ = pi.act(agent, now, step, jax.random.key(t), False)
        steps.append((action, now))
    action, carries = jax.tree.map(lambda *leaves: jnp.stack(leaves), *steps)
    extras = pi.recall(agent, carry, timestep, action)
    return pi, agent, carries, Experience(
        timestep, action, extras, jnp.ones((time, envs)), jnp.asarray(ends & ~truncated), jnp.asarray(truncated),
        jnp.ones((time, envs), bool), jnp.asarray(reached), TimeStep(None, None), carry,
    )  # fmt: skip


@pytest.mark.medium
def test_the_critic_shares_nothing_with_the_actor(rollout):
    params = rollout[1].params
    shapes = [jax.tree.map(jnp.shape, params[part]) for part in ("actor", "critic")]
    assert shapes[0] == shapes[1]
    assert set(shapes[0]) == {"torso", "cell"}


def test_what_is_recalled_of_a_rollout_is_what_was_remembered_step_by_step(rollout):
    _, _, carries, experience = rollout
    for kept, wanted in zip(jax.tree.leaves(experience.extras.carry), jax.tree.leaves(carries), strict=True):
        np.testing.assert_allclose(kept, wanted, atol=1e-6)


def test_a_truncated_episode_is_valued_with_what_it_remembers(rollout):
    pi, agent, carries, experience = rollout
    assert experience.truncated[:-1].any()
    found = pi.after(agent, experience)
    for t in range(len(found)):
        step = TimeStep(experience.next_observation[t][None], jnp.zeros((1, 3), bool))
        before = jax.tree.map(lambda leaf, t=t: leaf[t], carries)
        wanted = pi.recall(agent, before, step, experience.action[t][None]).value[0]
        counts = ~experience.terminated[t]
        np.testing.assert_allclose(found[t][counts], wanted[counts], atol=1e-5)


def test_sequences_are_replayed_as_they_were_played(rollout):
    pi, _, _, experience = rollout
    agent = rollout[1]
    batch = pi.examples({"observation": experience.timestep.observation, "action_mask": None})
    distribution, value = pi.replayed(agent.params, {**batch, **pi.given(experience)})
    np.testing.assert_allclose(value.T, experience.extras.value, atol=1e-5)
    log_prob = distribution.log_prob(jnp.swapaxes(experience.action, 0, 1))
    np.testing.assert_allclose(log_prob.T, experience.extras.log_prob, atol=1e-5)


def score(env, algorithm, updates):
    learner = jdl.jit(jdl.scan(rl.on_device(algorithm, env, NUM_ENVS), updates))
    state, _ = learner.step(learner.init(jax.random.key(0)), None)
    return jdl.evaluate(learner, state, rl.episodes(64))["return"]


@pytest.mark.medium
@pytest.mark.parametrize("cell", ["gru", pytest.param("lstm", marks=pytest.mark.slow)])
def test_what_was_seen_is_remembered(cell):
    env = probes.recalled()
    assert score(env, small(env, cell), 100) == 1


@pytest.mark.slow
def test_without_a_memory_it_is_not():
    env = probes.recalled()
    plain = rl.ppo(env.observation_space, env.action_space, optimizer=optax.adam(0.01), num_steps=12)
    assert abs(score(env, plain, 100)) < 0.5


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a2c", "reinforce"])
def test_other_algorithms_remember_as_well(name):
    env = probes.recalled()
    network = Memory(rl.networks.MLP(lambda x: x, (16,)), 16)
    algorithm = getattr(rl, name)(
        env.observation_space, env.action_space, network, optimizer=optax.adam(0.01), num_steps=12
    )
    assert score(env, algorithm, 600) == 1


@pytest.mark.slow
def test_on_the_host_what_was_seen_is_remembered():
    env = probes.recalled()
    learner, source = rl.on_host(small(env), probes.VectorProbe(env, NUM_ENVS))
    state = jdl.fit(jdl.jit(learner), source, steps=150, log_every=50).state
    on_device = rl.on_device(small(env), env, NUM_ENVS)
    state = on_device.init(jax.random.key(1)).replace(agent=state.agent)
    assert jdl.evaluate(jdl.jit(on_device), state, rl.episodes(64))["return"] == 1


@pytest.mark.slow
def test_gradients_are_the_same_over_replicas(x64):
    env = rl.envs.cartpole()
    steady = optax.adam(0.01, eps=1e-3)  # makes no whole step of a gradient that is rounding alone
    plain = rl.on_device(small(env, optimizer=steady), env, NUM_ENVS)
    results = [
        jdl.jit(one).step(jdl.jit(one).init(jax.random.key(2)), None)[0].agent.params
        for one in (plain, jdl.pmap(plain))
    ]
    for one, other in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-9 if one.dtype == np.float64 else 2e-6)


@pytest.mark.medium
def test_environments_are_what_minibatches_are_made_of():
    env = rl.envs.cartpole()
    learner = jdl.jit(rl.on_device(small(env, minibatches=32), env, NUM_ENVS))
    with pytest.raises(ValueError, match=r"minibatches=32\): a rollout has 16 environments, whose steps stay together"):
        learner.step(learner.init(jax.random.key(0)), None)
    with pytest.raises(ValueError, match=r'memory\(cell=.rnn.\): it is "gru" or "lstm"'):
        memory(env.observation_space, cell="rnn")


def test_a_chain_may_be_given_its_length_as_data():
    def played(length):
        env = rl.envs.memory_chain(length)
        state, outcome = env.reset(jax.random.key(1))
        seen = [outcome.observation]
        for _ in range(3):
            state, outcome = env.step(state, 1, jax.random.key(0))
            seen.append(jnp.stack([*outcome.observation, outcome.reward, outcome.terminated])[:5])
        return jnp.stack(seen[1:])

    together = jax.jit(jax.vmap(played))(jnp.array([1, 2]))
    for length, one in zip((1, 2), together, strict=True):
        np.testing.assert_allclose(one, played(length), atol=1e-6)
    assert together[0, 1, 4] == 1  # the chain of length 1 has its question in the second step
    assert together[1, 1, 4] == 0
