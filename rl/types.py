"""What passes between environments, runners and algorithms. `terminated` and `truncated` are two things everywhere."""

from collections.abc import Callable
from typing import Any, NamedTuple

from jaxtyping import Array

Agent = Any  # one pytree: parameters, optimizer state, replay, normalizers, counters
Carry = Any  # recurrent state with a leading axis of environments; () where there is none
Action = Any  # [env, ...]


class TimeStep(NamedTuple):
    """What an agent sees when it acts, each leaf with a leading axis of environments."""

    observation: Any  # as the observation space gives it
    first: Any  # an episode begins here: recurrent state starts anew
    action_mask: Any = None  # true for what is allowed; None where everything always is


class Experience(NamedTuple):
    """What a runner gathered for an update, each leaf [time, env, ...] but for the last two."""

    timestep: TimeStep  # before each action
    action: Action
    extras: Any  # what `recall` says of it, or what `act` returned beside the action
    reward: Any
    terminated: Any  # nothing comes after: there is nothing to bootstrap from
    truncated: Any  # something would come after, and is not played
    valid: Any  # false for a step that an auto-reset faked: it counts nowhere
    next_observation: Any  # after each action, before any reset
    last: TimeStep  # [env], what the agent sees next, after any reset
    carry: Carry  # [env], recurrent state at the start
    next_action_mask: Any = None  # of `next_observation`; None where everything always is allowed


class Algorithm(NamedTuple):
    """An algorithm as pure functions, closed over spaces and network; the same object serves both runners."""

    init: Callable[[Array], Agent]  # (key) -> agent
    initial_carry: Callable[[int], Carry]  # (num_envs) -> carry
    act: Callable[..., tuple[Action, Carry, Any]]  # (agent, carry, timestep, key, greedy) -> action, carry, extras
    update: Callable[..., tuple[Agent, Any]]  # (agent, experience, key) -> agent, metrics
    num_steps: int  # of each environment, that an update wants
    # (agent, carry [env], timestep [time, env], action [time, env]) -> extras [time, env]: what learning wants to know
    # of the agent that acted, of a whole rollout at once: cheaper than step by step in `act`.
    recall: Callable[..., Any] | None = None
