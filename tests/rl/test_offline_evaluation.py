"""Estimates without playing beside exact values; the decision transformer's memory; ICU-Sepsis."""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from gymnasium import spaces

import jdl
import rl
from rl import offline
from rl.envs.icu_sepsis import _array
from rl.offline import Episode
from rl.offline.decision_transformer import SequenceModel, Window

STATES, ACTIONS, CHOICE = spaces.Discrete(3), spaces.Discrete(2), spaces.Discrete(2)
P = np.array([[[0.7, 0.3, 0.0], [0.1, 0.6, 0.3]], [[0.2, 0.5, 0.3], [0.0, 0.2, 0.8]]])  # [state, action, next]
R = np.array([[0.0, 1.0], [2.0, -1.0]])  # state 2 ends the episode
BEHAVIOR = np.array([[0.5, 0.5], [0.3, 0.7]])


def chain(count=3000):
    draw = np.random.default_rng(0)
    episodes = []
    for _ in range(count):
        state, seen, taken, rewards = 0, [0], [], []
        while state < 2:
            action = draw.choice(2, p=BEHAVIOR[state])
            rewards.append(R[state, action])
            taken.append(action)
            state = draw.choice(3, p=P[state, action])
            seen.append(state)
        episodes.append(Episode(np.array(seen), np.array(taken), np.array(rewards), True))
    return offline.from_episodes(episodes, STATES, ACTIONS)


def exact(policy, discount):
    """The value of the first state, by linear equations."""
    step = np.einsum("sa,sat->st", policy, P)[:, :2]
    return np.linalg.solve(np.eye(2) - discount * step, (policy * R).sum(1))[0]


def test_estimates_beside_the_exact_value():
    data = chain()
    target = np.array([[0.3, 0.7], [0.5, 0.5]])
    assert exact(target, 0.9) - exact(BEHAVIOR, 0.9) > 0.2
    place = np.minimum(data.observation, 1), data.action
    ratio = np.log(target[place]) - np.log(BEHAVIOR[place])
    found = offline.weighted_importance_sampling(data, ratio, 0.9)
    np.testing.assert_allclose(found.value, exact(target, 0.9), atol=0.1)
    assert 1000 < found.episodes < 3000
    same = offline.weighted_importance_sampling(data, np.zeros(len(ratio)), 0.9)
    discounted = [
        sum(0.9**t * reward for t, reward in enumerate(one.reward)) for one in offline.split(data)
    ]  # a plain loop
    np.testing.assert_allclose(same.value, np.mean(discounted), rtol=1e-6)
    np.testing.assert_allclose(same.episodes, 3000)
    np.testing.assert_allclose(same.value, exact(BEHAVIOR, 0.9), atol=0.1)


def test_fitted_q_evaluation_beside_the_exact_value():
    data, chosen = chain(1000), jnp.array([[1, 0, 0], [0, 1, 0]])  # two agents: an action for each state

    def act(agent, carry, timestep, key, greedy):
        return agent[timestep.observation], carry, ()

    algorithm = rl.Algorithm(lambda key: chosen[0], lambda count: (), act, lambda *_: None, 1)
    found = offline.fitted_q_evaluation(
        algorithm, chosen, data, rl.networks.MLP(rl.spaces.encode(STATES), (32,)), key=jax.random.key(0),
        optimizer=optax.adam(1e-2), updates=1500, batch_size=64, discount=0.9, tau=0.05,
    )  # fmt: skip
    wanted = [exact(np.eye(2)[np.asarray(agent[:2])], 0.9) for agent in chosen]
    assert abs(wanted[0] - wanted[1]) > 1
    np.testing.assert_allclose(found, wanted, atol=0.3)


def test_estimates_that_cannot_be_made():
    data = chain(5)
    with pytest.raises(ValueError, match=r"give one number for each of the \d+ steps"):
        offline.weighted_importance_sampling(data, np.zeros(2))
    with pytest.raises(ValueError, match=r"never does what was recorded"):
        offline.weighted_importance_sampling(data, np.full(len(data.reward), -np.inf))
    remembers = rl.ppo(STATES, ACTIONS, rl.memory.memory(STATES, 4))
    with pytest.raises(ValueError, match=r"these agents have a memory"):
        offline.fitted_q_evaluation(remembers, None, data, key=jax.random.key(0))


LINE, BOX = spaces.Box(-np.inf, np.inf, (2,)), spaces.Box(-2.0, 2.0, (1,))


def decision_transformer(action_space, **options):
    return offline.decision_transformer(
        LINE, action_space,
        **{"target_return": 5.0, "return_scale": 10.0, "max_steps": 50, "context": 4, "width": 16, "num_layers": 2,
           "dropout": 0.0, **options},
    )  # fmt: skip


@pytest.mark.medium
@pytest.mark.parametrize("action_space", [BOX, CHOICE])
def test_acting_sees_what_learning_saw(action_space):
    """An action depends on the last steps as the same window of a recorded episode predicts it."""
    algorithm = decision_transformer(action_space)
    agent = algorithm.init(jax.random.key(0))
    draw = np.random.default_rng(0)
    observations, rewards = draw.normal(size=(9, 2)).astype(np.float32), draw.normal(size=9).astype(np.float32)
    carry, actions = algorithm.initial_carry(1), []
    for t in range(9):
        last = rewards[t - 1 : t] if t else np.zeros(1, np.float32)
        timestep = rl.TimeStep(observations[t][None], np.array([t == 0]), None, last)
        action, carry, _ = algorithm.act(agent, carry, timestep, jax.random.key(1), True)
        actions.append(np.asarray(action)[0])
    # The episode as recorded: the return to go at the start is what the agent aimed at.
    to_go = 5.0 - np.concatenate([[0], np.cumsum(rewards[:-1])])
    seen = range(5, 9)
    size = 1 if action_space is BOX else 2
    plain = rl.networks.MLP(rl.spaces.encode(LINE), ())
    model = SequenceModel(plain, size, max_steps=50, width=16, num_layers=2, dropout=0.0)
    vectors = np.stack([actions[t] / 2 if size == 1 else np.eye(2)[actions[t]] for t in seen])
    window = Window(
        observations[None, 5:9],
        None,
        jnp.asarray(to_go[None, 5:9] / 10),
        jnp.arange(5, 9)[None],
        jnp.ones((1, 4), bool),
    )
    outputs = model.apply({"params": agent.params}, window, jnp.asarray(vectors[None], jnp.float32))[0, -1]
    expected = 2 * np.tanh(outputs) if size == 1 else np.argmax(outputs)
    np.testing.assert_allclose(actions[-1], expected, rtol=1e-4)


@pytest.mark.slow
def test_it_reaches_the_return_that_it_is_asked_for():
    """Each action is worth its number; asked for a return, the model repeats the episodes that had it."""
    draw = np.random.default_rng(0)
    episodes = []
    for _ in range(200):
        action = draw.choice(2)
        episodes.append(Episode(np.zeros((5, 2), np.float32), np.full(4, action), np.full(4, float(action)), False))
    data = offline.from_episodes(episodes, LINE, CHOICE)
    for wanted in (0.0, 4.0):
        algorithm = decision_transformer(CHOICE, target_return=wanted, optimizer=optax.adam(3e-3))
        learner = offline.learner(algorithm, CHOICE, 32, context=4)
        state, _ = (one := jdl.jit(jdl.scan(learner, 100))).step(one.init(jax.random.key(0)), data.transitions)
        carry, total = algorithm.initial_carry(1), 0.0
        for t in range(4):
            timestep = rl.TimeStep(
                np.zeros((1, 2), np.float32), np.array([t == 0]), None, np.array([total > 0], np.float32)
            )
            action, carry, _ = algorithm.act(state.agent, carry, timestep, jax.random.key(1), True)
            total += float(action[0])
        assert total == wanted


def test_a_decision_transformer_says_what_it_needs():
    algorithm = decision_transformer(CHOICE)
    agent = algorithm.init(jax.random.key(0))
    seen, carry = rl.TimeStep(np.zeros((1, 2), np.float32), np.ones(1, bool)), algorithm.initial_carry(1)
    with pytest.raises(ValueError, match=r"needs the last reward to act"):
        algorithm.act(agent, carry, seen, jax.random.key(0), True)
    with pytest.raises(ValueError, match=r"windows of 4 recorded steps: rl.offline.learner\(.*context=4\)"):
        algorithm.update(agent, {"reward": jnp.zeros(3)}, jax.random.key(0))
    with pytest.raises(ValueError, match=r"return_scale=0"):
        decision_transformer(CHOICE, return_scale=0.0)


@pytest.mark.skipif(importlib.util.find_spec("icu_sepsis") is None, reason="icu-sepsis is not installed")
def test_icu_sepsis_has_the_value_of_what_clinicians_did():
    rules, policy = rl.envs.icu_sepsis_table(), rl.envs.clinicians()
    np.testing.assert_allclose(rules.probability.sum(-1), 1)
    np.testing.assert_allclose(rl.envs.expected_return(policy, rules, 500), 0.7818, atol=5e-5)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("icu_sepsis") is None, reason="icu-sepsis is not installed")
def test_icu_sepsis_has_the_optimum_and_the_rewards_of_its_package():
    rules = rl.envs.icu_sepsis_table()
    np.testing.assert_allclose(rl.envs.expected_return(np.full((716, 25), 0.04), rules, 500), 0.7801, atol=5e-5)
    best = rl.envs.greedy(rl.envs.optimal_values(rules, 1.0, 1e-8), rules, 1.0)
    np.testing.assert_allclose(rl.envs.expected_return(best, rules, 500), 0.8751, atol=5e-5)
    rewards = _array("r_mat")
    np.testing.assert_array_equal(np.take_along_axis(rewards, rules.next_state, -1) * (rules.probability > 0),
                                  rules.reward * (rules.probability > 0))  # fmt: skip
