"""The types that environments, runners and algorithms exchange.

`terminated` and `truncated` are two things everywhere: after a termination the return to come is zero, after a
truncation the episode would have continued.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from jaxtyping import Array

Agent = Any  # one pytree: parameters, optimizer state, replay, normalizers, counters
Carry = Any  # recurrent state, [env, ...]; () if there is none
Action = Any  # [env, ...]


class TimeStep(NamedTuple):
    """The input of an agent when it acts; every leaf has a leading axis of environments.

    Attributes:
        observation: [env, ...], a batch from the observation space, not encoded.
        first: [env], bool; True where an episode begins, so recurrent state must be reset.
        action_mask: [env, actions], bool; True for the allowed actions (for several choices, `rl.spaces.choices`, the
            masks of all of them side by side). None if every action is always allowed.
        reward: [env], float32; the reward of the step before. None while learning: only evaluation and its kin give it.
    """

    observation: Any
    first: Any
    action_mask: Any = None
    reward: Any = None


class Experience(NamedTuple):
    """The rollout that a runner collects for one update.

    Attributes:
        timestep: leaves [time, env, ...]; the input of each action.
        action: [time, env, ...]; as the policy chose it, before `rl.spaces.legal`.
        extras: leaves [time, env, ...]; the result of `Algorithm.recall`, or without it the extras that `act` returned.
        reward: [time, env], float32.
        terminated: [time, env], bool; the episode ended here, so there is nothing to bootstrap from.
        truncated: [time, env], bool; the episode was cut off here and would have continued.
        valid: [time, env], bool; False for steps in which an auto-reset ignored the action. They count nowhere.
        next_observation: leaves [time, env, ...]; the observation after each action, before any reset.
        last: leaves [env, ...]; the input of the first action after the rollout, after any reset.
        carry: leaves [env, ...]; the recurrent state at the start of the rollout.
        next_action_mask: [time, env, actions], bool; the action mask that belongs to `next_observation`. None if every
            action is always allowed.
    """

    timestep: TimeStep
    action: Action
    extras: Any
    reward: Any
    terminated: Any
    truncated: Any
    valid: Any
    next_observation: Any
    last: TimeStep
    carry: Carry
    next_action_mask: Any = None


class Algorithm(NamedTuple):
    """An algorithm as pure functions, closed over the spaces and the network; the same object serves both runners.

    Attributes:
        init: `(key) -> agent`.
        initial_carry: `(num_envs) -> carry`, the recurrent state at the start of an episode.
        act: `(agent, carry, timestep, key, greedy) -> (action, carry, extras)`, one step of all environments. `greedy`
            is a Python bool: True for the best action, False for exploration.
        update: `(agent, experience, key) -> (agent, metrics)`.
        num_steps: steps of each environment per rollout.
        recall: optional, `(agent, carry, timestep, action) -> extras`; carry is [env, ...], all else [time, env, ...].
            Computes what learning needs from the agent that acted (log-probabilities, values) for a whole rollout at
            once, which is cheaper than step by step in `act`.
        beliefs: optional, `(agent, timestep) -> (returns, probabilities, discount)`, for pictures: the discounted
            returns that each action may have and their probabilities, both [env, actions, n], and the discount.
    """

    init: Callable[[Array], Agent]
    initial_carry: Callable[[int], Carry]
    act: Callable[..., tuple[Action, Carry, Any]]
    update: Callable[..., tuple[Agent, Any]]
    num_steps: int
    recall: Callable[..., Any] | None = None
    beliefs: Callable[..., tuple[Any, Any, Any]] | None = None
