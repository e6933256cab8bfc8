"""Recorded experience: the steps of whole episodes, one after another, and what can be asked of them."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces
from jaxtyping import Float, Int, PyTree

from rl import normalize
from rl.normalize import Moments
from rl.spaces import real_valued, zeros


class Episode(NamedTuple):
    """One episode of T steps.

    Attributes:
        observation: leaves [T + 1, ...]; the last is the one that the last action led to.
        action: [T, ...]; as the environment takes them.
        reward: [T].
        terminated: whether it ended; if not, it was cut off and would have continued.
    """

    observation: Any
    action: np.ndarray
    reward: np.ndarray
    terminated: bool


class Dataset(NamedTuple):
    """The steps of whole episodes, in order.

    Attributes:
        observation: leaves [step, ...].
        action: [step, ...]; as the environment takes them.
        reward: [step], float32.
        terminated: [step], bool; the episode ended here.
        ends: [step], bool; the episode ended here, or was cut off.
        next_observation: leaves [step, ...]; what the action led to.
        observation_space: space of one observation.
        action_space: space of one action.
        env: id of the environment; None if it is not known.
    """

    observation: Any
    action: np.ndarray
    reward: Float[np.ndarray, " step"]
    terminated: np.ndarray
    ends: np.ndarray
    next_observation: Any
    observation_space: gymnasium.Space
    action_space: gymnasium.Space
    env: str | None = None

    @property
    def starts(self) -> Int[np.ndarray, " episode"]:
        """The position of the first step of each episode."""
        return np.concatenate([[0], np.flatnonzero(self.ends)[:-1] + 1])

    @property
    def returns(self) -> Float[np.ndarray, " episode"]:
        """The undiscounted sum of the rewards of each episode."""
        return np.add.reduceat(self.reward.astype(np.float64), self.starts)

    @property
    def lengths(self) -> Int[np.ndarray, " episode"]:
        """The number of steps of each episode."""
        return np.diff([*self.starts, len(self.reward)])

    @property
    def first_observations(self) -> PyTree:
        """Where each episode begins, leaves [episode, ...]."""
        return jax.tree.map(lambda leaf: leaf[self.starts], self.observation)

    @property
    def transitions(self) -> dict[str, Any]:
        """What algorithms learn from: arrays of steps, with choices counted from 0, as policies count them.

        Beside the steps there are "return_to_go", the sum of the rewards from a step to the end of its episode, and
        "time", the steps since its beginning.
        """
        start = getattr(self.action_space, "start", 0)
        time = np.arange(len(self.reward)) - np.repeat(self.starts, self.lengths)
        so_far = np.cumsum(self.reward, dtype=np.float64)
        to_go = np.repeat(so_far[self.starts + self.lengths - 1], self.lengths) - so_far + self.reward
        return {
            "observation": self.observation,
            "action": self.action - start if np.any(start) else self.action,
            "reward": self.reward,
            "terminated": self.terminated,
            "next_observation": self.next_observation,
            "return_to_go": to_go.astype(np.float32),
            "time": time.astype(np.int32),
        }

    def moments(self) -> Moments:
        """Mean and variance of the observations; parts that are not real numbers are left alone."""
        one = jax.tree.map(lambda leaf: leaf[0], self.observation)
        tracked = normalize.initial(one, real_valued(self.observation_space))
        return normalize.updated(tracked, jax.tree.map(jnp.asarray, self.observation), jnp.ones(len(self.reward)))


def from_episodes(
    episodes: Sequence[Episode],
    observation_space: gymnasium.Space,
    action_space: gymnasium.Space,
    env: str | None = None,
) -> Dataset:
    """A data set of episodes.

    Args:
        episodes: at least one.
        observation_space: space of one observation.
        action_space: space of one action.
        env: id of the environment, if it is known.

    Raises:
        ValueError: for no episodes, for an episode without steps or with another number of observations, for
            observations of another structure, and for numbers that are not finite; the message names the episode.
    """
    if not episodes:
        raise ValueError("a data set of no episodes: record at least one")
    types = zeros(observation_space), zeros(action_space)
    rows: list[tuple[Any, ...]] = []
    for number, episode in enumerate(episodes):
        observation, action, reward, ended = _checked(number, episode, *types)
        final = np.arange(len(reward)) == len(reward) - 1
        before, after = (jax.tree.map(lambda leaf: leaf[part], observation) for part in (slice(-1), slice(1, None)))  # noqa: B023
        rows.append((before, action, reward, final & ended, final, after))
    arrays = jax.tree.map(lambda *leaves: np.concatenate(leaves), *rows)
    return _dataset(arrays, observation_space, action_space, env)


def join(*sets: Dataset) -> Dataset:
    """The episodes of several data sets of the same spaces, one after another.

    Args:
        *sets: at least one.

    Raises:
        ValueError: for different spaces.
    """
    first = sets[0]
    for other in sets[1:]:
        for name in ("observation_space", "action_space"):
            ours, theirs = getattr(first, name), getattr(other, name)
            if ours != theirs:
                raise ValueError(f"these data sets do not belong together: their {name}s are {ours} and {theirs}")
    arrays = jax.tree.map(lambda *leaves: np.concatenate(leaves), *(one[:6] for one in sets))
    return _dataset(arrays, *first[6:])


def check_spaces(dataset: Dataset, env: str, observation_space: gymnasium.Space, action_space: gymnasium.Space) -> None:
    """Refuse a data set that was recorded in an environment with other spaces.

    Args:
        dataset: the data set.
        env: the environment, for the message.
        observation_space: its space of observations.
        action_space: its space of actions.

    Raises:
        ValueError: if one of the spaces differs.
    """
    for name, wanted in (("observation_space", observation_space), ("action_space", action_space)):
        found = getattr(dataset, name)
        if not _same(found, wanted):
            raise ValueError(
                f"the data set was recorded with {name} {found}, {env} has {wanted}; learn from a set of {env}, or "
                f"evaluate in {dataset.env or 'the environment of the set'}"
            )


def _dataset(arrays: tuple[Any, ...], *described: Any) -> Dataset:
    fields: Any = (*arrays, *described)
    return Dataset(*fields)


def _checked(number: int, episode: Episode, *types: Any) -> tuple[Any, np.ndarray, np.ndarray, bool]:
    """The arrays of an episode in the types of its spaces."""
    steps = len(episode.reward)
    given = jax.tree.map(np.asarray, episode.observation), np.asarray(episode.action)
    if steps < 1:
        raise ValueError(f"episode {number} has no steps; leave it out")
    shapes = jax.tree.map(np.shape, given)
    wanted = tuple(
        jax.tree.map(lambda leaf: (count, *np.shape(leaf)), like)  # noqa: B023
        for like, count in zip(types, (steps + 1, steps), strict=True)
    )
    if shapes != wanted:
        raise ValueError(
            f"episode {number} has {steps} rewards, and observations and actions of the shapes {shapes}; by its spaces "
            f"they are {wanted}: one observation more than actions"
        )
    observation, action = jax.tree.map(lambda leaf, like: leaf.astype(np.asarray(like).dtype), given, types)
    reward = np.asarray(episode.reward, np.float32)
    for name, tree in (("observation", observation), ("action", action), ("reward", reward)):
        for leaf in jax.tree.leaves(tree):
            if np.issubdtype(leaf.dtype, np.floating) and not np.isfinite(leaf).all():
                step = int(np.argwhere(~np.isfinite(leaf))[0][0])
                raise ValueError(
                    f"episode {number} has a number in {name} that is not finite, first at step {step}; leave the "
                    "episode out, or record it again"
                )
    return observation, action, reward, bool(episode.terminated)


def _same(a: gymnasium.Space, b: gymnasium.Space) -> bool:
    """Whether spaces are equal; the bounds of observations may differ, which sets often leave out."""
    if isinstance(a, spaces.Box) and isinstance(b, spaces.Box):
        return a.shape == b.shape and a.dtype == b.dtype
    if isinstance(a, spaces.Dict) and isinstance(b, spaces.Dict):
        return set(a.spaces) == set(b.spaces) and all(_same(a[name], b[name]) for name in a.spaces)
    if isinstance(a, spaces.Tuple) and isinstance(b, spaces.Tuple):
        return len(a.spaces) == len(b.spaces) and all(map(_same, a.spaces, b.spaces))
    return a == b
