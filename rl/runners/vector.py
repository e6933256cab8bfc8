"""Gymnasium's vector environments behind one interface that is the same for all of their autoreset modes."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import gymnasium
import jax
import numpy as np
from gymnasium.vector import AutoresetMode
from jaxtyping import PyTree

from rl.envs.libraries import extra_of, gymnasium_id
from rl.envs.mujoco import without_notices
from rl.envs.shared_policy import agents_of
from rl.spaces import choices


class Seen(NamedTuple):
    """The next input of the agent, after any reset.

    Attributes:
        observation: leaves [env, ...].
        first: [env], bool; True where it begins an episode.
        action_mask: [env, actions], bool; None if every action is always allowed.
    """

    observation: Any
    first: np.ndarray
    action_mask: Any


class Stepped(NamedTuple):
    """One step of every environment.

    Attributes:
        seen: the next input of the agent, after any reset.
        reached: leaves [env, ...]; the observation that the action led to, before any reset.
        reached_mask: [env, actions], bool; the action mask that belongs to `reached`, or None.
        reward: [env].
        terminated: [env], bool.
        truncated: [env], bool.
        valid: [env], bool; False where the step was only a reset and the action was ignored.
    """

    seen: Seen
    reached: Any
    reached_mask: Any
    reward: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    valid: np.ndarray


class Vector:
    """A vector environment that behaves the same in each of the three autoreset modes of Gymnasium 1.1 and later.

    Where a reset takes a step, an environment may wait for others before it is reset: `info["waiting"]`, [env], is True
    where it does not run, and the steps from its end to its reset are not valid (`rl.envs.SharedPolicy`).

    Args:
        envs: the vector environment, whose `metadata["autoreset_mode"]` is its mode.

    Raises:
        TypeError: for anything but a vector environment.
        ValueError: for an environment that does not state its mode.
    """

    def __init__(self, envs: gymnasium.vector.VectorEnv) -> None:
        if not isinstance(envs, gymnasium.vector.VectorEnv):
            raise TypeError(
                f"{envs!r} is no vector environment; make one with gymnasium.make_vec(name, num_envs), or with "
                "gymnasium.vector.SyncVectorEnv([make_one] * num_envs)"
            )
        mode = envs.metadata.get("autoreset_mode")
        if not isinstance(mode, AutoresetMode):
            raise ValueError(
                f"the vector environment {envs} has metadata['autoreset_mode'] = {mode!r}; set it to one of "
                f"{', '.join(f'AutoresetMode.{known.name}' for known in AutoresetMode)}: without it, steps that only "
                "reset cannot be told from others"
            )
        self.envs, self.mode = envs, mode
        self.num_envs = envs.num_envs
        self.observation_space, self.action_space = envs.single_observation_space, envs.single_action_space
        self._nobody = np.zeros(self.num_envs, bool)
        self._choices = choices(self.action_space)
        self._ended = self._nobody
        self.masked = False

    @property
    def resets_take_a_step(self) -> bool:
        """Whether the step after the end of an episode only resets the environment and ignores the action."""
        return self.mode is AutoresetMode.NEXT_STEP

    def reset(self, seed: int) -> Seen:
        """Begin an episode in every environment.

        Args:
            seed: for the reset of the vector environment.

        Raises:
            ValueError: for observations outside the observation space, and for a mask that forbids every action.
        """
        observation, info = self.envs.reset(seed=seed)
        if not self.envs.observation_space.contains(observation):
            raise ValueError(
                f"{self.envs} was reset to {_shown(observation)}, which is not in its observation space "
                f"{self.envs.observation_space}; rl.check_env says more"
            )
        self._ended = self._waiting(info)
        mask = mask_of(observation, info)
        self.masked = mask is not None
        return Seen(observation, ~self._nobody, self._checked(mask, self._ended))

    def step(self, action: np.ndarray) -> Stepped:
        """Act in every environment; an ended episode is followed by a reset, now or at the next step by its mode.

        Args:
            action: [env, ...], as the environment takes it.

        Raises:
            ValueError: for a mask that forbids every action.
        """
        observation, reward, terminated, truncated, info = self.envs.step(action)
        waiting = self._waiting(info)
        mask = self._mask(observation, info, terminated | waiting)
        ended = terminated | truncated
        if self.resets_take_a_step:
            ignored, self._ended = self._ended, ended | waiting
            seen = Seen(observation, ignored & ~waiting, mask)
            return Stepped(seen, observation, mask, reward, terminated, truncated, ~ignored)
        reached, reached_mask = observation, mask
        if ended.any():
            if self.mode is AutoresetMode.SAME_STEP:
                reached = _with(observation, ended, info["final_obs"])
                final = mask_of(reached, info.get("final_info", {})) if self.masked else None
                reached_mask = mask if final is None else np.where(ended[:, None], final, mask)
            else:
                fresh, info = self.envs.reset(options={"reset_mask": ended})
                fresh_mask = self._mask(fresh, info, ~ended)
                observation, mask = fresh, None if mask is None else np.where(ended[:, None], fresh_mask, mask)
        seen = Seen(observation, ended, mask)
        return Stepped(seen, reached, reached_mask, reward, terminated, truncated, ~self._nobody)

    def close(self) -> None:
        """Close the environments."""
        self.envs.close()

    def _waiting(self, info: Mapping[str, Any]) -> np.ndarray:
        return np.asarray(info.get("waiting", self._nobody), bool)

    def _mask(self, observation: Any, info: Mapping[str, Any], over: np.ndarray) -> Any:
        if not self.masked:
            return None
        mask = mask_of(observation, info)
        return self._checked(np.ones((self.num_envs, sum(self._choices)), bool) if mask is None else mask, over)

    def _checked(self, mask: Any, over: np.ndarray) -> Any:
        """The mask; raises ValueError if a choice has no allowed option, except where the episode is over."""
        if mask is not None:
            parts = np.split(mask, np.cumsum(self._choices)[:-1], axis=1)
            none_left = ~np.stack([part.any(1) for part in parts]).all(0) & ~over
            if none_left.any():
                raise ValueError(
                    f"the action mask of environment {int(none_left.argmax())} of {self.envs} forbids every action; "
                    "an episode with nothing left to do has terminated"
                )
        return mask


def make_vec(name: str, num_envs: int, vectorization: str | None = None, **options: Any) -> gymnasium.vector.VectorEnv:
    """Like `gymnasium.make_vec`, but asynchronous environments run in processes not forked from one that runs JAX.

    A fork of a process with JAX's threads may wait forever for a lock that one of these threads held.

    Args:
        name: id of the Gymnasium environment, or a name of a library's (`pgx:2048`).
        num_envs: number of environments; where an environment has several agents (`rl.envs.SharedPolicy`), a multiple
            of their number.
        vectorization: "sync", "async" or "vector_entry_point"; None for Gymnasium's choice.
        **options: further keywords of `gymnasium.make_vec`.

    Raises:
        LookupError: for an environment that Gymnasium does not have, or whose package is not installed.
        ValueError: for `num_envs` below 1.
    """
    if vectorization == "async":
        options["vector_kwargs"] = {"context": "forkserver", **options.get("vector_kwargs", {})}
    if num_envs < 1:
        raise ValueError(f"num_envs={num_envs}: at least 1 environment")
    env = gymnasium_id(name)
    try:
        with without_notices(env):
            return gymnasium.make_vec(env, num_envs, vectorization, **options)
    except gymnasium.error.DependencyNotInstalled as error:
        extra = extra_of(env)
        how = str(error) if extra is None else f"its packages are not installed: pip install 'jdl[{extra}]'"
        raise LookupError(f"Gymnasium cannot make {name!r}: {how}") from error
    except gymnasium.error.Error as error:
        raise LookupError(f"Gymnasium cannot make {name!r}: {error}") from error


def spaces_of(name: str, vectorization: str | None = None) -> tuple[gymnasium.Space, gymnasium.Space]:
    """Observation and action space of a registered environment, as seen in a vector environment.

    Args:
        name: id of the Gymnasium environment.
        vectorization: see `make_vec`.
    """
    envs = make_vec(name, agents_of(name), vectorization)
    envs.close()
    return envs.single_observation_space, envs.single_action_space


def mask_of(observation: Any, info: Mapping[str, Any]) -> Any:
    """The action masks [env, actions] of a vector environment; None if there are none.

    Args:
        observation: a batch of observations; if it is a dict with "action_mask", that is the mask.
        info: otherwise, the mask is its "action_mask". Environments that gave none are allowed every action.
    """
    if isinstance(observation, Mapping) and "action_mask" in observation:
        return np.asarray(observation["action_mask"]) > 0
    masks = info.get("action_mask")
    if masks is None:
        return None
    given = info.get("_action_mask")
    flat = _flat_masks(masks)
    known = next(mask for mask in flat if mask is not None)
    everything = np.ones(len(known), bool)  # for environments that gave none
    return np.stack([
        everything if mask is None or (given is not None and not given[i]) else mask for i, mask in enumerate(flat)
    ])  # fmt: skip


def _flat_masks(masks: Any) -> list[Any]:
    def flat(mask: Any) -> Any:
        if mask is None:
            return None
        return np.concatenate([np.ravel(part) for part in mask]) > 0 if isinstance(mask, tuple) else np.ravel(mask) > 0

    return [flat(mask) for mask in masks]


def _with(observations: PyTree, where: np.ndarray, others: Any) -> PyTree:
    """A copy of batched observations with the entries at `where` replaced by those of a list."""
    copied = jax.tree.map(np.array, observations)
    for i in np.flatnonzero(where):
        jax.tree.map(lambda all_of_them, one, i=i: all_of_them.__setitem__(i, one), copied, others[i])
    return copied


def _shown(observation: Any) -> str:
    leaves = jax.tree.leaves(observation)
    return ", ".join(
        f"{leaf.dtype}{list(leaf.shape)} from {leaf.min()} to {leaf.max()}" for leaf in map(np.asarray, leaves)
    )
