"""Gymnasium's vector environments as experience: every mode gives the transitions of a plain loop."""

import warnings

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from agents import MAKE
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv

import jdl
import rl
from rl.runners.vector import Vector
from rl.types import Algorithm

MODES = list(AutoresetMode)


def random_actions(action_space, rollout=40):
    """An algorithm that learns nothing and acts at random, within the mask."""

    def act(agent, carry, timestep, key, greedy):
        size = len(jax.tree.leaves(timestep.observation)[0])
        if isinstance(action_space, spaces.Box):
            return 3 * jax.random.normal(key, (size, *action_space.shape)), carry, ()
        logits = jnp.zeros((size, int(action_space.n)))
        if timestep.action_mask is not None:
            logits = jnp.where(timestep.action_mask, logits, -jnp.inf)
        return jax.random.categorical(key, logits), carry, ()

    def update(agent, experience, key):
        return agent + 1, {}

    return Algorithm(lambda key: jnp.zeros(()), lambda num_envs: (), act, update, rollout)


def gathered(envs, rollouts=2, rollout=40, seed=3):
    algorithm = random_actions(envs.single_action_space, rollout)
    learner, source = rl.on_host(algorithm, envs, seed=seed)
    learner = jdl.jit(learner)
    state = learner.init(jax.random.key(0))
    batches = []
    for _ in range(rollouts):
        batches.append(jax.tree.map(np.array, source.next(state)))
        state, _ = learner.step(state, batches[-1])
    source.close()
    joined = jax.tree.map(lambda *leaves: np.concatenate(leaves), *[batch["experience"] for batch in batches])
    return joined, [batch["episodes"] for batch in batches]


def first_seed(seed):
    return int(np.random.SeedSequence(seed).generate_state(1)[0] >> 1)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("name", "vectorization"),
    [("CartPole-v1", "sync"), ("FrozenLake-v1", "sync"), ("Pendulum-v1", "sync"), ("CartPole-v1", "async")],
)
def test_valid_steps_are_those_of_a_plain_loop(name, mode, vectorization):
    limit = {"max_episode_steps": 15}
    envs = rl.make_vec(name, 3, vectorization, vector_kwargs={"autoreset_mode": mode}, **limit)
    experience, episodes = gathered(envs)
    assert experience.valid.all() == (mode is not AutoresetMode.NEXT_STEP)
    ended, length, returned, number = experience.terminated | experience.truncated, 0.0, 0.0, 0
    for i in range(3):
        env = gymnasium.make(name, **limit)
        observation, _ = env.reset(seed=first_seed(3) + i)
        first, total, steps = True, 0.0, 0
        for t in np.flatnonzero(experience.valid[:, i]):
            np.testing.assert_array_equal(experience.timestep.observation[t, i], observation)
            assert experience.timestep.first[t, i] == first
            action = experience.action[t, i]
            taken = np.clip(action, -2, 2) if name == "Pendulum-v1" else action
            observation, reward, terminated, truncated, _ = env.step(taken)
            np.testing.assert_array_equal(experience.next_observation[t, i], observation)
            np.testing.assert_allclose(experience.reward[t, i], reward, rtol=1e-6)
            assert experience.terminated[t, i] == terminated
            assert experience.truncated[t, i] == (truncated and not terminated)
            first, total, steps = terminated or truncated, total + reward, steps + 1
            if first:
                length, returned, number = length + steps, returned + total, number + 1
                total, steps = 0.0, 0
                observation, _ = env.reset()
    sums = np.sum(episodes, 0)
    np.testing.assert_allclose(sums, [returned, length, number], rtol=1e-6)
    assert number > 5
    assert not ended[~experience.valid].any()


def test_the_native_vector_environment_has_the_dynamics_of_the_single_one():
    experience, _ = gathered(gymnasium.make_vec("CartPole-v1", 4, max_episode_steps=20))
    one = gymnasium.make("CartPole-v1").unwrapped
    one.reset(seed=0)
    for t, i in np.argwhere(experience.valid):
        one.state = experience.timestep.observation[t, i].astype(float)
        one.steps_beyond_terminated = None
        observation, _, terminated, _, _ = one.step(int(experience.action[t, i]))
        np.testing.assert_allclose(experience.next_observation[t, i], observation, atol=1e-6)
        assert experience.terminated[t, i] == terminated
    assert (~experience.valid).any()
    assert experience.truncated.any()


class Masked(gymnasium.Env):
    """Action 1 is forbidden at odd times, action 2 at even ones; ends after 3 steps, by turns in either way."""

    def __init__(self, in_observation=False, forbid_everything=False):
        self.action_space = spaces.Discrete(3)
        self.forbid_everything = forbid_everything
        place = spaces.Box(0, 10, (1,), np.float32)
        mask = spaces.MultiBinary(3)
        self.observation_space = spaces.Dict({"place": place, "action_mask": mask}) if in_observation else place
        self.in_observation, self.count = in_observation, 0

    def _seen(self):
        mask = np.array([1, self.time % 2 == 0, self.time % 2 == 1], np.int8)
        if self.forbid_everything and self.time == 2:
            mask[:] = 0
        place = np.full(1, self.time, np.float32)
        return ({"place": place, "action_mask": mask}, {}) if self.in_observation else (place, {"action_mask": mask})

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time, self.count = 0, self.count + 1
        return self._seen()

    def step(self, action):
        assert not self.forbid_everything or self.time < 2
        allowed = action == 0 or action == 1 + self.time % 2
        self.time += 1
        over = self.time == 3
        observation, info = self._seen()
        return observation, 0.0 if allowed else -1.0, over and self.count % 2 == 0, over and self.count % 2 == 1, info


@pytest.mark.parametrize("in_observation", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_masks_belong_to_their_observations(mode, in_observation):
    envs = SyncVectorEnv([lambda: Masked(in_observation)] * 2, autoreset_mode=mode)
    experience, _ = gathered(envs, rollout=11)
    assert (experience.reward[experience.valid] == 0).all()

    def expected(observation):
        place = observation["place"] if in_observation else observation
        odd = place[..., 0] % 2 == 1
        return np.stack([np.ones_like(odd), ~odd, odd], -1)

    np.testing.assert_array_equal(experience.timestep.action_mask, expected(experience.timestep.observation))
    np.testing.assert_array_equal(experience.next_action_mask, expected(experience.next_observation))


@pytest.mark.medium
def test_an_agent_learns_within_its_masks():
    envs = SyncVectorEnv([Masked] * 4)
    algorithm = rl.ppo(envs.single_observation_space, envs.single_action_space, num_steps=16)
    learner, source = rl.on_host(algorithm, envs)
    fitted = jdl.fit(jdl.jit(learner), source, steps=3, log_every=1)
    assert [row["train/return"] for row in fitted.rows] == [0, 0, 0]


@pytest.mark.medium
@pytest.mark.parametrize("name", ["ppo", pytest.param("dqn with everything", marks=pytest.mark.slow), "q_learning"])
def test_the_same_seed_gives_the_same_bits_and_another_does_not(name):
    def run(seed, key=0):
        kind = "FrozenLake-v1" if name == "q_learning" else "CartPole-v1"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            envs = gymnasium.make_vec(kind, 8, "sync")
        spaces = envs.single_observation_space, envs.single_action_space
        algorithm = rl.q_learning(*spaces, num_steps=8) if name == "q_learning" else MAKE[name](_Spaces(*spaces))
        learner, source = rl.on_host(algorithm, envs, seed=seed)
        state = jdl.fit(jdl.jit(learner), source, steps=4, key=key).state
        return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(state.agent)])

    one = run(0)
    np.testing.assert_array_equal(one, run(0))
    assert not np.array_equal(one, run(1))
    assert not np.array_equal(one, run(0, key=1))


class _Spaces:
    def __init__(self, observation_space, action_space):
        self.observation_space, self.action_space = observation_space, action_space


@pytest.mark.slow
def test_a_run_among_others_is_that_run_alone():
    def run(seeds):
        envs = [gymnasium.make_vec("CartPole-v1", 4) for _ in seeds]
        algorithm = MAKE["ppo"](_Spaces(envs[0].single_observation_space, envs[0].single_action_space))
        learner, source = rl.on_host(algorithm, envs, seed=seeds)
        return jdl.fit(jdl.jit(jdl.seeds(learner, seeds, each=True)), source, steps=4)

    together, alone = run([0, 1, 2]), run([2])
    for several, one in zip(jax.tree.leaves(together.state.agent), jax.tree.leaves(alone.state.agent), strict=True):
        np.testing.assert_array_equal(several[2], one[0])
    assert together.rows[-1]["train/return"][2] == alone.rows[-1]["train/return"][0]


def bits(tree):
    leaves = jax.tree.leaves(tree)
    return [np.asarray(jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x) for x in leaves]


def killed_and_resumed(make, folder):
    """The same run, whole, and killed between two checkpoints and resumed."""
    options = {"steps": 8, "log_every": 2, "checkpoint_every": 4}

    def kill(row, state):
        if row["step"] == 6:
            raise KeyboardInterrupt

    learner, source = make()
    whole = jdl.fit(learner, source, **options)
    learner, source = make()
    with pytest.raises(KeyboardInterrupt):
        jdl.fit(learner, source, **options, run=folder, callbacks=[kill])
    learner, source = make()
    return whole, jdl.fit(learner, source, **options, run=folder, resume=True)


@pytest.mark.medium
@pytest.mark.parametrize(
    ("name", "env", "mode", "ahead"),
    [
        pytest.param("ppo", "CartPole-v1", None, False, marks=pytest.mark.slow),
        ("ppo", "CartPole-v1", None, True),
        ("dqn", "CartPole-v1", AutoresetMode.SAME_STEP, True),
        pytest.param("dqn with everything", "MountainCar-v0", AutoresetMode.DISABLED, False, marks=pytest.mark.slow),
        pytest.param("ppo", "Pendulum-v1", AutoresetMode.NEXT_STEP, False, marks=pytest.mark.slow),
        pytest.param("ppo", "Acrobot-v1", AutoresetMode.SAME_STEP, False, marks=pytest.mark.slow),
        ("q_learning", "FrozenLake-v1", AutoresetMode.NEXT_STEP, False),
        pytest.param("q_learning", "Taxi-v4", AutoresetMode.DISABLED, True, marks=pytest.mark.slow),
        pytest.param("ppo", "LunarLander-v3", AutoresetMode.NEXT_STEP, False, marks=pytest.mark.slow),
    ],
)
def test_resume_is_to_the_bit(name, env, mode, ahead, tmp_path):
    if env.startswith("Lunar"):
        pytest.importorskip("Box2D", reason="the box2d extra is not installed")

    def make():
        kind = {} if mode is None else {"vectorization_mode": "sync", "vector_kwargs": {"autoreset_mode": mode}}
        envs = gymnasium.make_vec(env, 8, max_episode_steps=9, **kind)
        spaces = envs.single_observation_space, envs.single_action_space
        options = {"num_steps": 8}
        algorithm = (
            rl.q_learning(*spaces, **options) if name == "q_learning" else MAKE[name](_Spaces(*spaces), **options)
        )
        learner, source = rl.on_host(algorithm, envs, ahead=ahead)
        return jdl.jit(learner), source

    whole, again = killed_and_resumed(make, tmp_path / "run")
    for one, other in zip(bits(whole.state), bits(again.state), strict=True):
        np.testing.assert_array_equal(one, other)
    untimed = [[{k: v for k, v in row.items() if k != "seconds"} for row in fit.rows] for fit in (whole, again)]
    assert untimed[0] == untimed[1]


def test_ahead_acts_the_agent_of_one_update_before():
    """The agent counts its updates; where it acts ahead, the first two rollouts are the first agent's."""
    envs = gymnasium.make_vec("CartPole-v1", 2)
    algorithm = random_actions(envs.single_action_space, 4)

    def act(agent, carry, timestep, key, greedy):
        action, carry, _ = algorithm.act(agent, carry, timestep, key, greedy)
        return action, carry, jnp.full(2, agent)

    acted, actions = [], []
    for ahead in (False, True):
        learner, source = rl.on_host(algorithm._replace(act=act), envs, ahead=ahead)
        learner, batches = jdl.jit(learner), []
        state = learner.init(jax.random.key(0))
        for _ in range(4):
            batches.append(jax.tree.map(np.array, source.next(state)["experience"]))
            state, _ = learner.step(state, {"experience": batches[-1], "episodes": (0, 0, 0)})
        assert len({batch.extras[0, 0] for batch in batches}) == 4 - ahead
        acted.append([batch.extras[0, 0] for batch in batches])
        actions.append(np.concatenate([batch.action for batch in batches]))
    source.close()
    assert acted == [[0, 1, 2, 3], [0, 0, 1, 2]]
    np.testing.assert_array_equal(*actions)  # what they draw is the same


class Unrepeatable(gymnasium.Env):
    """Sees noise that no seed decides."""

    observation_space, action_space = spaces.Box(-np.inf, np.inf, (2,), np.float32), spaces.Discrete(2)
    noise = np.random.default_rng()

    def reset(self, *, seed=None, options=None):
        return self.noise.normal(size=2).astype(np.float32), {}

    def step(self, action):
        return self.noise.normal(size=2).astype(np.float32), 0.0, False, False, {}


def test_what_cannot_be_repeated_is_said_at_the_start(tmp_path):
    def make():
        with pytest.warns(UserWarning, match=r"does not repeat itself .* will begin new episodes"):
            learner, source = rl.on_host(random_actions(spaces.Discrete(2), 4), SyncVectorEnv([Unrepeatable] * 2))
        return jdl.jit(learner), source

    whole, again = killed_and_resumed(make, tmp_path / "run")
    assert whole.state.step == again.state.step == 8


def test_what_is_wrong_with_an_environment_is_said():
    envs = gymnasium.make_vec("CartPole-v1", 2, "sync")
    envs.metadata = {"autoreset_mode": "at once"}
    with pytest.raises(ValueError, match=r"autoreset_mode'\] = 'at once'; set it to one of AutoresetMode.NEXT_STEP"):
        Vector(envs)
    with pytest.raises(TypeError, match="no vector environment; make one with"):
        rl.on_host(random_actions(spaces.Discrete(2)), gymnasium.make("CartPole-v1"))
    with pytest.raises(TypeError, match="make_vec"):
        Vector(gymnasium.make("CartPole-v1"))
    with pytest.raises(ValueError, match=r"1 vector environment.s. and 2 seed.s."):
        rl.on_host(random_actions(spaces.Discrete(2)), [gymnasium.make_vec("CartPole-v1", 2)], seed=[0, 1])
    with pytest.raises(ValueError, match=r"environment 0 .* forbids every action"):
        gathered(SyncVectorEnv([lambda: Masked(forbid_everything=True)] * 2))


class Full(Masked):
    """Terminates with nothing left to do."""

    def _seen(self):
        place, info = super()._seen()
        return place, {"action_mask": info["action_mask"] * (self.time < 3)}

    def step(self, action):
        observation, reward, terminated, truncated, info = super().step(action)
        return observation, reward, terminated or truncated, False, info


@pytest.mark.parametrize("mode", MODES)
def test_what_has_terminated_may_forbid_everything(mode):
    experience, _ = gathered(SyncVectorEnv([Full] * 2, autoreset_mode=mode), rollout=11)
    assert experience.terminated.any()
    assert not experience.next_action_mask[experience.terminated].any()
    seen = experience.timestep.action_mask[experience.valid]
    assert seen.any(-1).all()


def test_an_environment_that_there_is_not():
    with pytest.raises(LookupError, match="Gymnasium cannot make 'Nope-v1'"):
        rl.make_vec("Nope-v1", 2)
    with pytest.raises(ValueError, match="num_envs=0: at least 1"):
        rl.make_vec("CartPole-v1", 0)
    with pytest.raises(ValueError, match="num_envs=0, num_steps=4: at least 1 of each"):
        rl.updates(100, 0, 4)


class Broken(gymnasium.Env):
    """Sees what is not in its space, or is rewarded with no number."""

    observation_space, action_space = spaces.Box(0, 1, (2,), np.float32), spaces.Discrete(2)

    def __init__(self, seen=0.0, reward=0.0):
        self.seen, self.reward = np.full(2, seen, np.float32), reward

    def reset(self, *, seed=None, options=None):
        return self.seen, {}

    def step(self, action):
        return self.seen, self.reward, False, False, {}


def test_a_broken_environment_is_named():
    with pytest.raises(ValueError, match=r"reset to float32.* from 7.0 to 7.0, which is not in its observation space"):
        gathered(SyncVectorEnv([lambda: Broken(seen=7.0)] * 2))
    with pytest.raises(ValueError, match=r"environment 1 of .* gave the reward nan for the action [01]"):
        gathered(SyncVectorEnv([Broken, lambda: Broken(reward=np.nan)]))


def test_what_goes_wrong_while_the_device_learns_is_raised():
    class Gone(Broken):
        count = 0

        def step(self, action):
            self.count += 1
            if self.count > 60:
                raise ConnectionError("the simulator is gone")
            return super().step(action)

    learner, source = rl.on_host(random_actions(spaces.Discrete(2), 8), SyncVectorEnv([Gone] * 2), ahead=True)
    with pytest.raises(ConnectionError, match="the simulator is gone"):
        jdl.fit(jdl.jit(learner), source, steps=8)
    source.close()
