"""Environments whose observations do not tell the state, for agents with a memory, compiled and in Gymnasium."""

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces
from jaxtyping import Array

from rl.envs.classic_control import cartpole, pendulum
from rl.envs.environment import Environment, Outcome

DECKS = {"RepeatFirstEasy-v0": 1, "RepeatFirstMedium-v0": 8, "RepeatFirstHard-v0": 16}  # popgym's
LENGTHS = (*range(1, 11), 12, 14, 17, 20, 25, *range(30, 101, 10))  # of bsuite's memory_len
_HIDDEN = {  # numbers of the observation that are zero
    "CartPoleNoVel-v1": ("CartPole-v1", (1, 3)),
    "PendulumNoVel-v1": ("Pendulum-v1", (2,)),
}


def hidden(env: Environment, name: str, numbers: tuple[int, ...]) -> Environment:
    """The environment with some numbers of its observations hidden: they are zero.

    Args:
        env: the environment, whose observations are vectors.
        name: its new name.
        numbers: positions of what is hidden.
    """
    space = env.observation_space
    assert isinstance(space, spaces.Box)
    keep = np.ones(space.shape, np.float32)
    keep[list(numbers)] = 0

    def shown(result: tuple) -> tuple:
        state, outcome = result
        return state, outcome._replace(observation=jnp.where(keep > 0, outcome.observation, 0))

    return env._replace(
        name=name,
        reset=lambda key: shown(env.reset(key)),
        step=lambda state, action, key: shown(env.step(state, action, key)),
    )


def cartpole_without_velocities() -> Environment:
    """CartPole that shows positions alone, as rl-zoo's CartPoleNoVel-v1 does."""
    return hidden(cartpole(), "CartPoleNoVel-v1", _HIDDEN["CartPoleNoVel-v1"][1])


def pendulum_without_velocity() -> Environment:
    """Pendulum that shows the angle alone, as rl-zoo's PendulumNoVel-v1 does."""
    return hidden(pendulum(), "PendulumNoVel-v1", _HIDDEN["PendulumNoVel-v1"][1])


def memory_chain(length: int | Array) -> Environment:
    """A bit is shown at the start, for two steps, and asked for `length` steps later; the reward is 1 or -1.

    An observation has the time that is left, a number that is always zero (it would say which of several bits is asked
    for), and the bit as -1 or 1, or 0 where it is not shown. An episode has `length` + 1 steps.

    Args:
        length: steps from the bit to the question; may be traced (`jdl.population`).

    Raises:
        ValueError: for a length below 1.

    Source: Osband et al. 2020, "Behaviour suite for reinforcement learning", memory_len.
    """
    known = isinstance(length, int)
    if known and length < 1:
        raise ValueError(f"memory_chain(length={length}): at least 1")

    def observe(bit: Array, time: Array) -> Array:
        cue = jnp.where(time == 0, 2.0 * bit - 1, 0.0)
        return jnp.stack([1 - time / length, jnp.zeros(()), cue]).astype(jnp.float32)

    def reset(key: Array) -> tuple[tuple[Array, Array], Outcome]:
        bit, time = jax.random.bernoulli(key).astype(jnp.int32), jnp.zeros((), jnp.int32)
        return (bit, time), Outcome(observe(bit, time), jnp.float32(0), np.False_, np.False_)

    def step(state: tuple[Array, Array], action: Array, key: Array) -> tuple[tuple[Array, Array], Outcome]:
        bit, time = state
        asked = time == length
        reward = jnp.where(asked, jnp.where(action == bit, 1.0, -1.0), 0.0).astype(jnp.float32)
        return (bit, time + 1), Outcome(observe(bit, time), reward, asked, np.False_)

    space = spaces.Box(-1, 1, (3,), np.float32)
    name = f"MemoryChain{length}-v0" if known else "MemoryChain"
    return Environment(name, reset, step, space, spaces.Discrete(2))


def repeat_first(decks: int = 1) -> Environment:
    """Cards are dealt one after another; each time, name the suit of the first. A right answer earns 1 / (cards - 1).

    An observation is the suit of the card just dealt, 0 to 3, and so is an action; a wrong answer costs what a right
    one earns. An episode ends with the last card: 52 `decks` - 1 steps, with a return of at best 1.

    Args:
        decks: of 52 cards, shuffled together.

    Raises:
        ValueError: for fewer than 1.

    Source: Morad et al. 2023, "POPGym: benchmarking partially observable reinforcement learning", RepeatFirst.
    """
    if decks < 1:
        raise ValueError(f"repeat_first(decks={decks}): at least 1")
    worth = np.float32(1 / (52 * decks - 1))

    def deal(left: Array, key: Array) -> tuple[Array, Array]:
        card = jax.random.categorical(key, jnp.log(left.astype(jnp.float32)))
        return left.at[card].add(-1), card.astype(jnp.int32)

    def reset(key: Array) -> tuple[tuple[Array, Array], Outcome]:
        left, card = deal(jnp.full(4, 13 * decks, jnp.int32), key)
        return (card, left), Outcome(card, jnp.float32(0), np.False_, np.False_)

    def step(state: tuple[Array, Array], action: Array, key: Array) -> tuple[tuple[Array, Array], Outcome]:
        first, left = state
        left, card = deal(left, key)
        reward = jnp.where(action == first, worth, -worth)
        return (first, left), Outcome(card, reward, np.False_, left.sum() == 0)

    return Environment(_name_of(decks), reset, step, spaces.Discrete(4), spaces.Discrete(4))


def _name_of(decks: int) -> str:
    return next((name for name, number in DECKS.items() if number == decks), f"RepeatFirst{decks}-v0")


class Hidden(gymnasium.ObservationWrapper):
    """Gymnasium's environment with some numbers of its observations zero.

    Args:
        env: the environment, whose observations are vectors.
        numbers: positions of what is hidden.
    """

    def __init__(self, env: gymnasium.Env, numbers: tuple[int, ...]) -> None:
        super().__init__(env)
        space = env.observation_space
        assert isinstance(space, spaces.Box)
        self._keep = np.ones(space.shape, bool)
        self._keep[list(numbers)] = False

    def observation(self, observation: np.ndarray) -> np.ndarray:
        """The observation with what is hidden as zeros.

        Args:
            observation: of the environment itself.
        """
        return np.where(self._keep, observation, 0).astype(np.float32)


class MemoryChain(gymnasium.Env):
    """`memory_chain` in Gymnasium.

    Args:
        length: steps from the bit to the question.
    """

    metadata = {"render_modes": []}  # noqa: RUF012

    def __init__(self, length: int, render_mode: str | None = None) -> None:
        self.length, self.render_mode = length, render_mode
        self.observation_space = spaces.Box(-1, 1, (3,), np.float32)
        self.action_space = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        """Draw a bit and show it."""
        super().reset(seed=seed)
        self._bit, self._time = int(self.np_random.integers(2)), 0
        return self._observe(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        """Let time pass, or judge the answer."""
        observation, asked = self._observe(), self._time == self.length
        self._time += 1
        return observation, (1.0 if action == self._bit else -1.0) if asked else 0.0, asked, False, {}

    def _observe(self) -> np.ndarray:
        cue = 2 * self._bit - 1 if self._time == 0 else 0
        return np.array([1 - self._time / self.length, 0, cue], np.float32)


class RepeatFirst(gymnasium.Env):
    """`repeat_first` in Gymnasium.

    Args:
        decks: of 52 cards, shuffled together.
    """

    metadata = {"render_modes": []}  # noqa: RUF012

    def __init__(self, decks: int = 1, render_mode: str | None = None) -> None:
        self.decks, self.render_mode = decks, render_mode
        self.observation_space, self.action_space = spaces.Discrete(4), spaces.Discrete(4)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[int, dict]:
        """Shuffle, and deal the first card."""
        super().reset(seed=seed)
        self._cards = self.np_random.permutation(np.repeat(np.arange(4), 13 * self.decks))
        self._dealt = 1
        return int(self._cards[0]), {}

    def step(self, action: int) -> tuple[int, float, bool, bool, dict]:
        """Judge the answer, and deal another card."""
        card = int(self._cards[self._dealt])
        self._dealt += 1
        worth = 1 / (len(self._cards) - 1)
        return card, worth if action == self._cards[0] else -worth, False, self._dealt == len(self._cards), {}


def register() -> None:
    """Register the Gymnasium environments of this file."""
    for name, (base, numbers) in _HIDDEN.items():
        make = lambda base=base, numbers=numbers, **options: Hidden(gymnasium.make(base, **options).unwrapped, numbers)  # noqa: E731
        limit = gymnasium.spec(base).max_episode_steps
        gymnasium.register(name, make, max_episode_steps=limit)
    for length in LENGTHS:
        gymnasium.register(f"MemoryChain{length}-v0", f"{__name__}:MemoryChain", kwargs={"length": length})
    for name, decks in DECKS.items():
        gymnasium.register(name, f"{__name__}:RepeatFirst", kwargs={"decks": decks})
