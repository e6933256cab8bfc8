"""Agents of PettingZoo's parallel environments as lanes: their valid steps are those of a plain loop over agents."""

import copy
import itertools

import gymnasium
import jax
import numpy as np
import pytest
from gymnasium import spaces
from test_on_host import gathered, killed_and_resumed, random_actions

import jdl
import rl
from rl.envs import SharedPolicy, Spread, agents_of
from rl.runners.vector import Vector


class Leaving:
    """Each agent leaves at a time of its own, by turns terminated and truncated; what it sees is drawn anew each step.

    An agent that comes late is there from the second step on.
    """

    metadata = {"name": "leaving", "render_modes": []}  # noqa: RUF012

    def __init__(self, count=3, late=False, wide=None, render_mode=None):
        self.possible_agents = [f"agent_{i}" for i in range(count)]
        self.late, self.wide, self.agents = late, wide, []
        self.random = np.random.default_rng()

    def observation_space(self, agent):
        return spaces.Box(0, 1, (3 if agent == self.wide else 2,), np.float32)

    def action_space(self, agent):
        return spaces.Discrete(3)

    def reset(self, seed=None, options=None):
        self.random = np.random.default_rng(seed)
        self.agents, self.time = self.possible_agents[: -1 if self.late else None], 0
        self.ends = dict(zip(self.possible_agents, self.random.integers(2, 9, len(self.possible_agents)), strict=True))
        return self._seen(self.agents)

    def step(self, actions):
        assert set(actions) == set(self.agents)  # nobody acts who is out
        self.time += 1
        there = list(self.agents)
        over = {agent: self.time >= self.ends[agent] for agent in there}
        cut = {agent: bool(over[agent] and self.ends[agent] % 2) for agent in there}
        rewards = {agent: float(actions[agent]) + self.random.random() for agent in there}
        self.agents = [agent for agent in there if not over[agent]]
        if self.late and self.time == 1:
            there.append(self.possible_agents[-1])
            self.agents.append(self.possible_agents[-1])
            for told in (over, cut):
                told[there[-1]] = False
            rewards[there[-1]] = 0.0
        ended = {agent: bool(over[agent] and not cut[agent]) for agent in there}
        seen, infos = self._seen(there)
        return seen, rewards, ended, cut, infos

    def _seen(self, agents):
        masks = {agent: np.array([1, self.time % 2, 1 - self.time % 2], np.int8) for agent in agents}
        seen = {agent: self.random.random(2, np.float32) for agent in agents}
        return seen, {agent: {"action_mask": mask} for agent, mask in masks.items()}

    def close(self):
        pass


def plain(make, seed, taken):
    """Each agent's transitions from a plain loop: observation, first, action, reward, ended, cut, reached."""
    world, generator = make(), np.random.default_rng(seed)
    seen, _ = world.reset(seed=seed)
    steps, fresh = {agent: [] for agent in world.possible_agents}, set(world.possible_agents)
    for actions in taken:
        if not world.agents:
            seen, _ = world.reset(seed=int(generator.integers(2**31)))
            fresh = set(world.possible_agents)
            continue
        acting = {agent: actions[world.possible_agents.index(agent)] for agent in world.agents}
        reached, rewards, ended, cut, _ = world.step(acting)
        for agent, action in acting.items():
            row = (seen[agent], agent in fresh, action, rewards[agent], ended[agent], cut[agent], reached[agent])
            steps[agent].append(row)
        fresh -= set(acting)
        seen = reached
    return steps


@pytest.mark.parametrize("late", [False, True])
def test_valid_steps_are_those_of_a_plain_loop(late):
    def make(**options):
        return Leaving(3, late, **options)

    experience, episodes = gathered(SharedPolicy(make, 6))
    seed = int(np.random.SeedSequence(3).generate_state(1)[0] >> 1)
    ended, total = experience.terminated | experience.truncated, 0.0
    for copy_ in range(2):
        lanes = slice(3 * copy_, 3 * copy_ + 3)
        steps = plain(make, seed + 3 * copy_, experience.action[:, lanes])
        for agent, rows in enumerate(steps.values()):
            lane = 3 * copy_ + agent
            mine = np.flatnonzero(experience.valid[:, lane])
            assert len(mine) == len(rows) > 20
            for t, (seen, first, action, reward, terminated, truncated, reached) in zip(mine, rows, strict=True):
                np.testing.assert_array_equal(experience.timestep.observation[t, lane], seen)
                np.testing.assert_array_equal(experience.next_observation[t, lane], reached)
                assert experience.timestep.first[t, lane] == first
                assert experience.action[t, lane] == action
                assert experience.terminated[t, lane] == terminated
                assert experience.truncated[t, lane] == truncated
                np.testing.assert_allclose(experience.reward[t, lane], reward, rtol=1e-6)
                assert experience.timestep.action_mask[t, lane, action]
            complete = np.flatnonzero(ended[:, lane])[-1]
            total += sum(row[3] for t, row in zip(mine, rows, strict=True) if t <= complete)
    assert experience.terminated.any()
    assert experience.truncated.any()
    assert (~experience.valid).mean() > 0.2
    assert not ended[~experience.valid].any()
    np.testing.assert_allclose(np.sum(episodes, 0)[0], total, rtol=1e-5)
    assert np.sum(episodes, 0)[2] == ended.sum()


def test_an_evaluation_scores_each_agent():
    """Agents of a world leave after 2 to 8 steps, as drawn from the seeds of its reset."""
    gymnasium.register("Leaving-v0", vector_entry_point=SharedPolicy, kwargs={"make": Leaving})
    try:
        assert agents_of("Leaving-v0") == 3
        space = spaces.Box(0, 1, (2,), np.float32)
        algorithm = rl.ppo(space, spaces.Discrete(3))
        agent = algorithm.init(jax.random.key(0))
        scores = rl.evaluate(algorithm, agent, "Leaving-v0", episodes=7, seed=5)
        worlds = [np.random.default_rng(seed).integers(2, 9, 3) for seed in (5, 8, 11)]
        np.testing.assert_array_equal(scores.lengths, np.concatenate(worlds))  # 7 episodes are at least 3 worlds
    finally:
        del gymnasium.registry["Leaving-v0"]


def test_resume_is_to_the_bit(tmp_path):
    def make():
        learner, source = rl.on_host(random_actions(spaces.Discrete(3), 8), SharedPolicy(Leaving, 6))
        return jdl.jit(learner), source

    whole, again = killed_and_resumed(make, tmp_path / "run")
    rows = [[(row["train/return"], row["train/length"]) for row in fit.rows] for fit in (whole, again)]
    assert rows[0] == rows[1]
    assert len(set(rows[0])) == 4  # every two updates


def test_what_is_wrong_is_said():
    with pytest.raises(ValueError, match=r"space of agent 'agent_0' of .* that of 'agent_2' is .* pad them"):
        SharedPolicy(lambda **options: Leaving(3, wide="agent_2"), 3)
    with pytest.raises(ValueError, match=r"num_envs=8: .* has 3 agents.* give a multiple of 3"):
        rl.make_vec("Spread3-v0", 8)
    with pytest.raises(ValueError, match=r"Spread\(count=9, size=4\)"):
        Spread(9, 4)
    pytest.importorskip("pettingzoo", reason="the multi_agent extra is not installed")
    with pytest.raises(LookupError, match="pettingzoo cannot make 'sisl/nothing_v1'"):
        agents_of("pettingzoo:sisl/nothing_v1")


def test_the_agent_may_know_its_number():
    envs = SharedPolicy(Leaving, 6, agent_index=True)
    observation, _ = envs.reset(seed=0)
    assert envs.single_observation_space["agent"].n == 3
    np.testing.assert_array_equal(observation["agent"], [0, 1, 2, 0, 1, 2])
    without, _ = SharedPolicy(Leaving, 6).reset(seed=0)
    np.testing.assert_array_equal(observation["observation"], without)


@pytest.mark.parametrize("count", rl.envs.SPREADS)
def test_spread_keeps_to_the_interface_of_pettingzoo(count):
    test = pytest.importorskip("pettingzoo.test", reason="the multi_agent extra is not installed")
    test.parallel_api_test(Spread(count), num_cycles=60)


def test_the_best_return_of_spread_solves_bellmans_equation():
    env = Spread(2, 3)
    env.reset(seed=0)
    checked = 0
    while checked < 40:
        best = []
        for actions in itertools.product(range(5), repeat=2):
            after = copy.deepcopy(env)
            _, rewards, over, _, _ = after.step(dict(zip(env.agents, actions, strict=True)))
            best.append(rewards["agent_0"] + (0.0 if over["agent_0"] else after.best_return()))
        np.testing.assert_allclose(env.best_return(), max(best))
        checked += 1
        actions = np.random.default_rng(checked).integers(0, 5, 2)
        _, _, over, _, _ = env.step(dict(zip(env.agents, actions, strict=True)))
        if over["agent_0"]:
            env.reset()


def test_environments_of_pettingzoo_go_by_name():
    pytest.importorskip("pettingzoo", reason="the multi_agent extra is not installed")
    name = "pettingzoo:butterfly/knights_archers_zombies_v11"
    assert rl.envs.gymnasium_id(name) == "pettingzoo/butterfly.knights_archers_zombies_v11"
    assert not rl.envs.is_compiled(name)
    envs = Vector(rl.make_vec(name, agents_of(name)))
    envs.reset(0)
    envs.envs.action_space.seed(0)
    valid = np.stack([envs.step(envs.envs.action_space.sample()).valid for _ in range(300)])
    assert valid.any(0).all()
    assert not valid.all()  # some died, while others went on
    envs.close()


def test_a_video_shows_one_copy(tmp_path):
    envs = rl.make_vec("Spread2-v0", 2)
    algorithm = rl.ppo(envs.single_observation_space, envs.single_action_space)
    path = rl.video(algorithm, algorithm.init(jax.random.key(0)), "Spread2-v0", tmp_path / "video.gif", max_steps=5)
    assert path is not None
    assert path.stat().st_size > 500
