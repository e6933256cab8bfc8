"""Figures of agents: counts beside a plain count, returns beside a plain sum, and what a report shows of a run."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces

import jdl
import rl
from rl import figures, value_heads

rng = np.random.default_rng(0)


@pytest.mark.parametrize(
    ("space", "sample"),
    [
        (spaces.Discrete(4, start=2), lambda: rng.integers(2, 6, 6)),
        (spaces.MultiDiscrete([2, 3]), lambda: rng.integers(0, [2, 3], (6, 2))),
        (spaces.MultiBinary(3), lambda: rng.integers(0, 2, (6, 3))),
        (spaces.Box(np.float32([-1, 0]), np.float32([1, 3])), lambda: rng.uniform([-1, 0], [1, 3], (6, 2))),
    ],
)  # fmt: skip
def test_actions_are_counted_as_a_plain_loop_does(space, sample):
    counted = figures.Actions(space, 2)
    assert counted.counts is not None
    by_hand = np.zeros_like(counted.counts)
    for _ in range(20):
        actions, running = sample(), rng.random(6) < 0.7
        counted(actions, running)
        for i in np.flatnonzero(running):
            for dimension, value in enumerate(np.ravel(actions[i])):
                nearest = np.abs(counted.centers[dimension] - value).argmin()
                by_hand[i // 3, dimension, nearest] += 1
    np.testing.assert_array_equal(counted.counts, by_hand)
    assert figures.actions_picture(counted).axes


def test_actions_without_bounds_are_not_counted():
    counted = figures.Actions(spaces.Box(-np.inf, np.inf, (2,)), 1)
    counted(np.zeros((3, 2)), np.ones(3, bool))
    assert counted.counts is None


def test_discounted_returns_are_the_sums():
    reward = rng.normal(size=7)
    sums = [sum(0.9**k * reward[t + k] for k in range(7 - t)) for t in range(7)]
    np.testing.assert_allclose(figures.discounted_returns(reward, 0.9), sums)


@pytest.mark.parametrize(
    "head",
    [value_heads.categorical(-2, 3, 11), value_heads.quantiles(7), value_heads.implicit(7)],
    ids=["c51", "qr", "iqn"],
)
def test_the_mean_of_a_distribution_is_the_value(head):
    outputs = jnp.asarray(rng.normal(size=(5, 2, head.outputs)), jnp.float32)
    returns, probabilities = head.distribution(outputs)
    np.testing.assert_allclose(probabilities.sum(-1), 1, rtol=1e-5)
    np.testing.assert_allclose((returns * probabilities).sum(-1), head.values(outputs), rtol=1e-4, atol=1e-6)


def test_an_episode_is_played_by_the_best_action(tmp_path):
    space, actions = spaces.Box(-np.inf, np.inf, (4,)), spaces.Discrete(2)
    algorithm = rl.dqn(space, actions, num_envs=1, head=value_heads.quantiles(5), discount=0.9)
    agent = algorithm.init(jax.random.key(1))
    episode = figures.played(algorithm, agent, "CartPole-v1", seed=3)
    scores = rl.evaluate(algorithm, agent, "CartPole-v1", episodes=1, seed=3)
    assert episode.reward.sum() == scores.returns[0]
    assert episode.ended
    returns, probabilities, discount = episode.beliefs
    np.testing.assert_array_equal((returns * probabilities).sum(-1).argmax(-1), episode.action)
    np.testing.assert_allclose(discount, 0.9)
    assert figures.beliefs_picture(episode).axes
    assert rl.dqn(space, actions, num_envs=1).beliefs is None  # of the mean alone


def test_the_influence_of_an_observation_is_what_replacing_it_changes():
    time = 6
    observation = rng.normal(size=(time, 2)).astype(np.float32)
    weights = np.tril(rng.normal(size=(time, time))).astype(np.float32)  # of each observation, in each log-probability

    def recall(agent, carry, timestep, action):
        return rl.policy.Extras(agent * jnp.einsum("ts,se...->te", weights, timestep.observation.sum(-1)), None)

    algorithm = rl.Algorithm(None, lambda batch: (), None, None, 1, recall)
    timestep = rl.TimeStep(observation, np.arange(time) == 0)
    episode = figures.Episode(np.zeros(time), np.zeros(time), (), None, True, timestep, np.zeros(time))
    found = figures.influence(algorithm, 3.0, episode, seed=4)
    draws, total = np.random.default_rng(4), observation.sum(-1)
    by_hand = [np.abs(3 * weights * (total[draws.permutation(time)] - total)) for _ in range(4)]
    np.testing.assert_allclose(found, np.mean(by_hand, axis=0), rtol=1e-4, atol=1e-5)
    assert figures.influence_picture(found).axes


@pytest.mark.medium
def test_a_run_has_the_figures_of_its_agents(tmp_path):
    run = jdl.training.runs.create(tmp_path / "run", {}, seeds=(0, 1))
    network = rl.memory.memory(spaces.Box(-np.inf, np.inf, (4,)), 3, "lstm")
    algorithm = rl.ppo(spaces.Box(-np.inf, np.inf, (4,)), spaces.Discrete(2), network)
    counted = figures.Actions(spaces.Discrete(2), 2)
    agents = jax.vmap(algorithm.init)(jax.random.split(jax.random.key(0), 2))
    scores = rl.evaluate(algorithm, agents, "CartPole-v1", episodes=3, runs=2, watch=counted)
    assert counted.counts.sum() == scores.lengths.sum()
    np.testing.assert_array_equal(counted.counts.sum((1, 2)), scores.lengths.sum(1))
    first = jax.tree.map(lambda leaf: leaf[0], agents)
    figures.save(algorithm, first, "CartPole-v1", run, scores.returns, counted)
    drawn = {file.stem for file in (run.path / "figures").glob("*.png")}
    assert drawn == {"actions", "returns_of_each_seed", "memory_over_an_episode", "influence_of_earlier_observations"}
    jdl.write_report(run)
    assert "Memory over an episode" in (run.path / "report.html").read_text()


def test_a_report_shows_the_figures_of_its_first_part(tmp_path):
    run = jdl.training.runs.create(tmp_path / "run", {}, seeds=(0, 1))
    for seed in run.seeds:  # as those that are trained in separate processes
        counted = figures.Actions(spaces.Discrete(2), 1)
        run.part(f"seed-{seed}").save_figure(f"Of seed {seed}", figures.actions_picture(counted))
    jdl.write_report(run)
    report = (run.path / "report.html").read_text()
    assert "Of seed 0" in report
    assert "Of seed 1" not in report
