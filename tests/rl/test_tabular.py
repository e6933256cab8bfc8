"""Tabular methods beside a plain loop and beside value iteration."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import probes
import pytest
from gymnasium import spaces

import jdl
import rl
from rl.envs.toy_text import Table
from rl.types import Experience, TimeStep

OTHERS = [pytest.param(one, marks=pytest.mark.diagnosis) for one in (rl.q_learning, rl.expected_sarsa)]
METHODS = [rl.q_learning, rl.sarsa, rl.expected_sarsa]
STATES, ACTIONS, TIME, DISCOUNT, EPSILON, RATE = 5, 3, 6, 0.9, 0.3, 0.5


def experience(random):
    state = random.integers(0, STATES, (TIME + 1, 1))
    terminated = random.random((TIME, 1)) < 0.3
    return Experience(
        timestep=TimeStep(jnp.asarray(state[:-1]), jnp.zeros((TIME, 1), bool)),
        action=jnp.asarray(random.integers(0, ACTIONS, (TIME, 1))),
        extras=(),
        reward=jnp.asarray(random.normal(size=(TIME, 1)), jnp.float32),
        terminated=jnp.asarray(terminated),
        truncated=jnp.zeros((TIME, 1), bool),
        valid=jnp.asarray(random.random((TIME, 1)) < 0.8),
        next_observation=jnp.asarray(state[1:]),
        last=TimeStep(jnp.asarray(state[-1]), jnp.zeros(1, bool)),
        carry=(),
    )


@pytest.mark.parametrize("method", METHODS)
def test_updates_are_those_of_a_plain_loop(method):
    algorithm = method(
        spaces.Discrete(STATES), spaces.Discrete(ACTIONS), learning_rate=RATE, epsilon=EPSILON, discount=DISCOUNT,
        num_steps=TIME,
    )  # fmt: skip
    random = np.random.default_rng(0)
    agent = algorithm.init(jax.random.key(0))
    q = np.zeros((STATES, ACTIONS))
    for _ in range(10):
        seen = experience(random)
        agent, _ = algorithm.update(agent, seen, jax.random.key(1))
        for t in range(TIME):
            if not seen.valid[t, 0]:
                continue
            if method is rl.sarsa and t == TIME - 1 and not seen.terminated[t, 0]:
                q[...] = agent.values  # the next action was drawn: anything of the table will do
                continue
            s, a, after = int(seen.timestep.observation[t, 0]), int(seen.action[t, 0]), seen.next_observation[t, 0]
            row = q[after]
            if method is rl.q_learning:
                worth = row.max()
            elif method is rl.sarsa:
                worth = row[int(seen.action[min(t + 1, TIME - 1), 0])]
            else:
                best = row == row.max()
                worth = EPSILON * row.mean() + (1 - EPSILON) * row[best].mean()
            target = float(seen.reward[t, 0]) + (0 if seen.terminated[t, 0] else DISCOUNT * worth)
            q[s, a] += RATE * (target - q[s, a])
        np.testing.assert_allclose(agent.values, q, atol=1e-5)
    assert agent.steps == sum_valid(10)


def sum_valid(rounds):
    random = np.random.default_rng(0)
    return sum(int(experience(random).valid.sum()) for _ in range(rounds))


def corridor(allowed=None):
    """Five rooms in a row; right leads to the last and pays, left leads back; a third action stays and costs."""
    after = np.array([[max(s - 1, 0), min(s + 1, 4), s] for s in range(STATES)])[..., None]
    reward = np.array([[-1.0, 10.0 if s == 3 else -1.0, 5.0] for s in range(STATES)], np.float32)[..., None]
    if allowed is None:
        reward[:, 2] = -2
    return Table(
        np.ones(after.shape), after.astype(np.int32), reward, (after == 4) & (reward == 10), np.eye(5)[0], allowed
    )


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("masked", [False, True])
def test_the_table_comes_to_value_iterations(method, masked):
    # Masked, to stay would pay best, and is forbidden: also as what a backup looks at.
    allowed = np.array([[True, True, False]] * STATES) if masked else None
    rules = corridor(allowed)
    env = rl.envs.from_table("corridor", rules, max_steps=50)
    algorithm = method(
        env.observation_space, env.action_space, learning_rate=0.2, discount=DISCOUNT,
        epsilon=optax.linear_schedule(1.0, 0.0, 15_000),
    )  # fmt: skip
    updates = 40_000 // (4 * algorithm.num_steps)
    learner = jdl.jit(jdl.seeds(jdl.scan(rl.on_device(algorithm, env, 4), updates), 2))
    state, metrics = learner.step(learner.init(jax.random.key(0)), None)
    np.testing.assert_array_equal(rl.greedy_policies(algorithm, state.agent, rules)[:, :4], 1)
    best = [DISCOUNT ** (3 - s) * 10 - sum(DISCOUNT**k for k in range(3 - s)) for s in range(4)]
    np.testing.assert_allclose(state.agent.values[0, :4, 1], best, atol=0.1)
    if masked:
        assert np.all(state.agent.visits[:, :, 2] == 0)
    returned = jax.tree.map(lambda leaf: leaf[:, -100:].sum(), metrics["return"])
    assert returned.compute() == 7


@pytest.mark.parametrize("greedy", [False, True])
def test_what_is_little_known_is_tried_at_first_and_left_in_the_end(greedy):
    bonus = optax.linear_schedule(3.0, -3.0, 10)
    algorithm = rl.q_learning(spaces.Discrete(1), spaces.Discrete(3), epsilon=0.0, bonus=bonus)
    agent = algorithm.init(jax.random.key(0)).replace(values=jnp.array([[1, 2, 1.9]]), visits=jnp.array([[0, 3, 99.0]]))
    now = TimeStep(jnp.zeros(1, jnp.int32), jnp.ones(1, bool))
    for steps, expected in ((0, 0), (5, 1), (10, 2)):  # values 4, 3.5, 2.2; 1, 2, 1.9; -2, 0.5, 1.6
        action, *_ = algorithm.act(agent.replace(steps=jnp.array(steps)), (), now, jax.random.key(0), greedy)
        assert action == expected


@pytest.mark.parametrize(("initial", "known"), [(20.0, 3), (-20.0, 1)])
def test_high_hopes_try_every_action_once(initial, known):
    """Where each action disappoints the next one is taken; with low hopes the first is taken forever."""
    stays = Table(
        np.ones((1, 3, 1)),
        np.zeros((1, 3, 1), np.int32),
        np.ones((1, 3, 1)),
        np.zeros((1, 3, 1), bool),
        np.ones(1),
        None,
    )
    env = rl.envs.from_table("one state", stays, max_steps=50)
    algorithm = rl.q_learning(env.observation_space, env.action_space, epsilon=0.0, initial=initial, discount=0.5)
    learner = jdl.jit(jdl.scan(rl.on_device(algorithm, env, 1), 30))
    agent = learner.step(learner.init(jax.random.key(0)), None)[0].agent
    assert (agent.visits > 0).sum() == known


@pytest.mark.slow
@pytest.mark.parametrize("method", [rl.sarsa, *OTHERS])
def test_the_same_on_the_host(method):
    env = rl.envs.from_table("corridor", corridor(), max_steps=50)
    algorithm = method(
        env.observation_space, env.action_space, learning_rate=0.2, discount=DISCOUNT,
        epsilon=optax.linear_schedule(1.0, 0.0, 15_000),
    )  # fmt: skip
    learner, source = rl.on_host(algorithm, probes.VectorProbe(env, 4))
    updates = 40_000 // (4 * algorithm.num_steps)
    fitted = jdl.fit(jdl.jit(learner), source, steps=updates, log_every=updates // 20)
    agents = jax.tree.map(lambda leaf: leaf[None], fitted.state.agent)
    np.testing.assert_array_equal(rl.greedy_policies(algorithm, agents, corridor())[0, :4], 1)
    assert fitted.rows[-1]["train/return"] == 7


def test_only_finite_spaces():
    with pytest.raises(ValueError, match=r"observation space Box.* is not Discrete"):
        rl.q_learning(spaces.Box(0, 1, (2,)), spaces.Discrete(2))
