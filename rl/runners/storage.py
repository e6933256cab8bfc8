"""Storage of a rollout on the host, written step by step into arrays that are allocated once."""

from typing import Any

import jax
import numpy as np

from rl import spaces
from rl.runners.vector import Seen, Stepped, Vector
from rl.types import Carry, Experience, TimeStep


class Storage:
    """The arrays of a rollout, [run, time, env, ...].

    Args:
        vector: the vector environment of one run; those of other runs have the same spaces.
        runs: number of runs.
        num_steps: steps per rollout.
        result: shapes of what acting returns, [run, env, ...] (`rl.runners.acting.Program.result`).
    """

    def __init__(self, vector: Vector, runs: int, num_steps: int, result: Any) -> None:
        taken, action, _, extras = result
        shape = runs, num_steps, vector.num_envs
        longer = runs, num_steps + 1, vector.num_envs

        def like(leaf: Any) -> np.ndarray:  # [run, env, ...] -> [run, time, env, ...]
            return np.zeros((runs, num_steps, *leaf.shape[1:]), leaf.dtype)

        self.observation = spaces.zeros(vector.observation_space, *longer)
        self.first = np.zeros(longer, bool)
        self.mask = np.zeros((*longer, sum(spaces.choices(vector.action_space))), bool) if vector.masked else None
        self.action, self.extras = like(taken if action is None else action), jax.tree.map(like, extras)
        self.reward = np.zeros(shape, np.float32)
        self.terminated, self.truncated, self.valid = (np.zeros(shape, bool) for _ in range(3))
        # Where resets take a separate step, the observation that an action led to is the one seen next: keep one only.
        self.reached = None if vector.resets_take_a_step else spaces.zeros(vector.observation_space, *shape)
        self.reached_mask = None if self.mask is None or self.reached is None else self.mask[:, 1:].copy()

    def see(self, run: int, t: int, seen: Seen) -> None:
        """Store what the agent of a run sees before step t; `t = num_steps` is after the last step."""
        _write(self.observation, run, t, seen.observation)
        self.first[run, t] = seen.first
        if self.mask is not None:
            self.mask[run, t] = seen.action_mask

    def timestep(self, t: int) -> TimeStep:
        """The input of the action at step t, leaves [run, env, ...]."""
        mask = None if self.mask is None else self.mask[:, t]
        return TimeStep(jax.tree.map(lambda leaf: leaf[:, t], self.observation), self.first[:, t], mask)

    def timesteps(self) -> TimeStep:
        """The inputs of all actions, leaves [run, time, env, ...]."""
        mask = None if self.mask is None else self.mask[:, :-1]
        return TimeStep(_upto(self.observation), self.first[:, :-1], mask)

    def act(self, t: int, action: Any, extras: Any) -> None:
        """Store the actions and extras of step t, [run, env, ...]."""
        self.action[:, t] = action
        for stored, new in zip(jax.tree.leaves(self.extras), jax.tree.leaves(extras), strict=True):
            stored[:, t] = new

    def step(self, run: int, t: int, step: Stepped) -> None:
        """Store the outcome of step t in the environments of a run."""
        self.reward[run, t], self.valid[run, t] = step.reward, step.valid
        self.terminated[run, t], self.truncated[run, t] = step.terminated, step.truncated
        if self.reached is not None:
            _write(self.reached, run, t, step.reached)
        if self.reached_mask is not None:
            self.reached_mask[run, t] = step.reached_mask

    def check(self, vectors: list[Vector]) -> None:
        """Check the rewards of the rollout.

        Args:
            vectors: the environments of each run, for the message.

        Raises:
            ValueError: for rewards that are not finite.
        """
        if np.isfinite(self.reward).all():
            return
        run, time, env = (int(i) for i in np.argwhere(~np.isfinite(self.reward))[0])
        raise ValueError(
            f"environment {env} of {vectors[run].envs} gave the reward {self.reward[run, time, env]} for the action "
            f"{self.action[run, time, env]}; a reward is a finite number"
        )

    def experience(self, carry: Carry, extras: Any) -> Experience:
        """The rollout as `Experience`, with a leading axis of runs.

        Args:
            carry: recurrent states at the start of the rollout, [run, env, ...].
            extras: result of `Algorithm.recall`; None to take the extras of `act`.
        """

        def after(tree: Any) -> Any:
            return jax.tree.map(lambda leaf: leaf[:, 1:], tree)

        return Experience(
            timestep=self.timesteps(),
            action=self.action,
            extras=self.extras if extras is None else extras,
            reward=self.reward,
            terminated=self.terminated,
            truncated=self.truncated & ~self.terminated,
            valid=self.valid,
            next_observation=after(self.observation) if self.reached is None else self.reached,
            last=self.timestep(-1),
            carry=carry,
            next_action_mask=after(self.mask) if self.reached_mask is None else self.reached_mask,
        )

    def episodes(self, totals: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The returns and lengths of the episodes that ended in this rollout.

        Args:
            totals: [2, run, env]; return and length so far of the episodes under way. Updated in place.

        Returns:
            Per run, the sum of the returns, the sum of the lengths and the number of the episodes that ended.
        """
        ended = self.terminated | self.truncated
        sums = np.zeros((3, len(ended)))
        start = np.zeros(totals.shape[1:], int)  # [run, env], the step at which the episode under way began
        for run, env, time in np.argwhere(ended.swapaxes(1, 2)):
            now = slice(start[run, env], time + 1)
            valid = self.valid[run, now, env]
            finished = totals[:, run, env] + (self.reward[run, now, env] @ valid.astype(float), valid.sum())
            sums[:, run] += *finished, 1
            totals[:, run, env], start[run, env] = 0, time + 1
        under_way = (np.arange(ended.shape[1])[:, None] >= start[:, None]) & self.valid
        totals[0] += (self.reward * under_way).sum(1)
        totals[1] += under_way.sum(1)
        return sums[0], sums[1], sums[2]


def _upto(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf[:, :-1], tree)


def _write(storage: Any, run: int, t: int, observation: Any) -> None:
    if isinstance(storage, np.ndarray):
        storage[run, t] = observation
        return
    parts = zip(jax.tree.leaves(storage), jax.tree.leaves(observation), strict=True)
    for stored, new in parts:
        stored[run, t] = new
