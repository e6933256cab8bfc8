"""`rl.check_env` says what is wrong with an environment, and nothing about one that is right."""

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces

import rl
from rl.envs import Environment, Outcome, time_limit


class Right(gymnasium.Env):
    """Walk on a line; each broken one changes a part of it."""

    observation_space = spaces.Box(-1, 1, (2,), np.float32)
    action_space = spaces.Discrete(2)
    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place, self.time = self.np_random.uniform(-0.5, 0.5), 0
        return self.observe(), {}

    def step(self, action):
        self.place, self.time = self.place + (0.1 if action else -0.1), self.time + 1
        over = abs(self.place) > 0.9
        return self.observe(), 1.0, bool(over), self.time >= 30 and not over, {}

    def observe(self):
        return np.array([self.place, 0.5], np.float32)


def broken(**changes):
    return type("Broken", (Right,), changes)


def stepping(change):
    """An environment whose step's result is changed."""
    return broken(step=lambda self, action: change(Right.step(self, action)))


class Aliased(Right):
    def __init__(self):
        self.kept = np.zeros(2, np.float32)

    def observe(self):
        self.kept[:] = Right.observe(self)
        return self.kept


class Unseeded(Right):
    def reset(self, *, seed=None, options=None):
        Right.reset(self, seed=seed)
        self.place = np.random.default_rng().uniform(-0.5, 0.5)
        return self.observe(), {}


class Reseeded(Right):
    def reset(self, *, seed=None, options=None):
        return Right.reset(self, seed=7 if seed is None else seed)


class TimeUp(Right):
    def step(self, action):
        self.time += 1
        return self.observe(), 1.0, self.time >= 20, False, {}


WRONG = {
    "observation outside": (stepping(lambda r: (r[0] * 9, *r[1:])), "is outside of its bounds, from"),
    "observation of another shape": (
        broken(observe=lambda self: np.zeros(3, np.float32)), r"its shape is \(3,\), not \(2,\)"),
    "observation of another type": (broken(observe=lambda self: np.zeros(2)), "its type is float64, not float32"),
    "no array": (broken(observe=lambda self: [0.0, 0.0]), "it is a list, not an array"),
    "not a number": (stepping(lambda r: (r[0] * np.float32(np.nan), *r[1:])), "it is not finite"),
    "reward of an array": (stepping(lambda r: (r[0], np.ones(1), *r[2:])), "return one number"),
    "reward not finite": (stepping(lambda r: (r[0], np.inf, *r[2:])), "a reward is inf"),
    "four values": (stepping(lambda r: (*r[:3], {})), "step.. returns 4 values"),
    "flags": (stepping(lambda r: (*r[:2], 0, *r[3:])), "terminated is 0, a int; return a bool"),
    "aliasing": (Aliased, "changes the observation that was returned before"),
    "seed": (Unseeded, "with the same seed and the same actions, .* steps differ"),
    "reseeded": (Reseeded, "it seeds itself anew with a constant"),
    "reset": (broken(reset=lambda self, *, seed=None, options=None: np.zeros(2, np.float32)), "it is a pair of"),
    "no seed": (broken(reset=lambda self: (np.zeros(2, np.float32), {})), r"reset\(seed=0\) raises TypeError"),
    "step raises": (broken(step=lambda self, action: 1 / 0), "raises ZeroDivisionError: division by zero"),
    "no space": (broken(action_space=3), "action_space is 3; set it to one of gymnasium.spaces"),
    "text": (broken(observation_space=spaces.Text(5)), "cannot be observed here"),
    "integers": (broken(action_space=spaces.Box(0, 5, (1,), np.int32)), "has no distribution"),
    "mask of another size": (stepping(lambda r: (*r[:4], {"action_mask": np.ones(3)})), r"it is \(2,\)"),
    "mask of nothing": (stepping(lambda r: (*r[:4], {"action_mask": np.zeros(2)})), "forbids every action"),
    "no environment": (lambda: 3, "it is a int, not a gymnasium.Env"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_said(name):
    make, message = WRONG[name]
    checked = rl.check_env(make, steps=200)
    with pytest.raises(AssertionError, match=message):
        raise AssertionError("\n".join(checked.problems))
    assert f"{len(checked.problems)} problem" in str(checked)


def test_nothing_is_said_about_one_that_is_right():
    checked = rl.check_env(Right)
    assert checked.problems == checked.notes == []
    assert checked.episodes > 20
    assert checked.steps_per_second > 100
    assert "nothing wrong was found" in str(checked)


@pytest.mark.parametrize("name", ["CartPole-v1", "Taxi-v4", "Blackjack-v1"])
def test_nothing_is_wrong_with_gymnasiums_own(name):
    assert rl.check_env(name, steps=300).problems == []


NOTED = {
    "time limit": (TimeUp, "every episode terminated after exactly 20 steps"),
    "endless": (broken(step=lambda self, action: (self.observe(), 1.0, False, False, {})), "no episode ended within"),
    "scale": (
        broken(observation_space=spaces.Box(-np.inf, np.inf, (2,), np.float32),
               observe=lambda self: np.array([self.place * 1000, 0], np.float32)), "normalize_observations=True"),
    "rewards": (stepping(lambda r: (r[0], 1e4, *r[2:])), "rewards reach 1e.04"),
    "bounds": (broken(action_space=spaces.Box(-40, 40, (1,), np.float32),
                      step=lambda self, action: Right.step(self, action[0] > 0)), "RescaleAction"),
    "picture": (broken(observation_space=spaces.Box(0, 1, (64, 64, 3), np.float32),
                       observe=lambda self: np.zeros((64, 64, 3), np.float32)), "look like pictures"),
    "no film": (broken(metadata={}), "renders no rgb_array"),
}  # fmt: skip


@pytest.mark.parametrize("name", NOTED)
def test_what_is_worth_knowing_is_said(name):
    make, message = NOTED[name]
    checked = rl.check_env(make, steps=200)
    assert checked.problems == []
    with pytest.raises(AssertionError, match=message):
        raise AssertionError("\n".join(checked.notes))


def test_an_environment_of_parts_is_told_which_part_is_wrong():
    space = spaces.Dict({"place": spaces.Box(-1, 1, (2,), np.float32), "door": spaces.Discrete(3)})
    make = broken(observation_space=space, observe=lambda self: {"place": np.zeros(2, np.float32), "door": 7})
    assert "part 'door': 7 is not in Discrete(3)" in rl.check_env(make, steps=20).problems[0]


def line(reset=None, step=None, space=Right.observation_space):
    def observe(state):
        return jnp.stack([state, 0.5])

    def plain_reset(key):
        state = jax.random.uniform(key, (), minval=-0.5, maxval=0.5)
        return state, Outcome(observe(state), jnp.float32(0), np.False_, np.False_)

    def plain_step(state, action, key):
        state = state + jnp.where(action == 1, 0.1, -0.1)
        return state, Outcome(observe(state), jnp.float32(1), jnp.abs(state) > 0.9, np.False_)

    return Environment("line", reset or plain_reset, step or plain_step, space, spaces.Discrete(2))


def _after(change):
    plain = line().step
    return line(step=lambda *arguments: change(*plain(*arguments)))


COMPILED = {
    "state of another type": (_after(lambda s, o: (s.astype(jnp.int32), o)), "float32.. after reset and int32"),
    "state of another structure": (_after(lambda s, o: ((s,), o)), "another structure than that of reset"),
    "flag": (_after(lambda s, o: (s, o._replace(terminated=jnp.int32(0)))), "terminated of step is a int32"),
    "reward": (_after(lambda s, o: (s, o._replace(reward=jnp.ones(1)))), r"reward of step is a float32\[1\]"),
    "outside": (_after(lambda s, o: (s, o._replace(observation=o.observation * 3))), "is outside of its bounds"),
    "not a number": (_after(lambda s, o: (s, o._replace(observation=o.observation * jnp.nan))), "it is not finite"),
    "both ends": (_after(lambda s, o: (s, o._replace(truncated=o.terminated))), "terminated and truncated at once"),
    "a branch": (line(step=lambda s, a, k: line().step(s, 1 if a > 0 else 0, k)), "raises TracerBoolConversionError"),
    "no outcome": (_after(lambda s, o: (s, o.observation)), "something else than"),
    "mask": (_after(lambda s, o: (s, o._replace(action_mask=jnp.ones(2, bool)))), "only one of reset and step gives"),
}  # fmt: skip


@pytest.mark.parametrize("name", COMPILED)
def test_what_is_wrong_with_a_compiled_one_is_said(name):
    env, message = COMPILED[name]
    with pytest.raises(AssertionError, match=message):
        raise AssertionError("\n".join(rl.check_env(env, steps=50).problems))


@pytest.mark.parametrize("name", ["line", "CartPole-v1", "Pendulum-v1", "FrozenLake-v1", "Taxi-v4"])
def test_nothing_is_wrong_with_the_compiled_ones(name):
    env = time_limit(line(), 50) if name == "line" else rl.envs.make(name)
    checked = rl.check_env(env, steps=250)
    assert checked.problems == []
    assert checked.episodes > 10


def test_what_is_no_environment_is_refused():
    with pytest.raises(TypeError, match="give the id of an environment"):
        rl.check_env(3)
    with pytest.raises(ValueError, match=r"check_env\(steps=0\)"):
        rl.check_env("CartPole-v1", steps=0)
