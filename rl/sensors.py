"""Agents with several sensors, the parts of a Dict observation: some of them alone, or each missing now and then.

What is missing is a property of the agent here, not of the environment: all agents train and are scored in the same
environment, whichever sensors they have. An episode's missing sensors follow from a key in the agent and from the
number of the episode, which is in the agent's carry. So acting and every later look at the same steps
(log-probabilities, values, updates, a replay) see the same zeros, and nothing more is stored.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.struct
import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces
from jaxtyping import Array, Bool, Int

from rl.types import Algorithm, Carry, Experience, TimeStep

PRESENT = "present"  # the part that says which sensors there are
_NO_SENSORS = ("action_mask", PRESENT)

type Make = Callable[[spaces.Dict], Algorithm]


@flax.struct.dataclass
class FailingAgent:
    """An agent whose sensors fail.

    Attributes:
        agent: the agent of the wrapped algorithm.
        key: uint32, data of the key that failures follow from.
    """

    agent: Any
    key: Any


class Episodes(NamedTuple):
    """The carry of an agent whose sensors fail.

    Attributes:
        lane: [env], int32; the number of the environment.
        episode: [env], int32; episodes begun so far.
        carry: that of the wrapped algorithm.
    """

    lane: Any
    episode: Any
    carry: Any


def names(space: gymnasium.Space) -> tuple[str, ...]:
    """The names of the sensors of an observation space: its parts, without an action mask.

    Args:
        space: a Dict.

    Raises:
        ValueError: for another space, or for one with fewer than two sensors.
    """
    found = tuple(name for name in space.spaces if name not in _NO_SENSORS) if isinstance(space, spaces.Dict) else ()
    if len(found) < 2:
        raise ValueError(f"sensors are the parts of a Dict observation, two or more; this one is {space}")
    return found


def only(make: Make, space: gymnasium.Space, chosen: Sequence[str]) -> Algorithm:
    """An algorithm that sees some of the sensors alone.

    Args:
        make: makes the algorithm for the observation space that is left, a Dict.
        space: the environment's observation space.
        chosen: names of the sensors.

    Returns:
        An algorithm for the environment's own observations.

    Raises:
        ValueError: for a space without several sensors, for a name that it does not have, and for no name.
    """
    _check(space, chosen, "only(chosen")
    assert isinstance(space, spaces.Dict)
    if not chosen:
        raise ValueError(f"only(chosen={tuple(chosen)}): name at least one of {names(space)}")
    left = [name for name in space.spaces if name in chosen or name == "action_mask"]
    inner = make(spaces.Dict({name: space[name] for name in left}))

    def see(observation: Any) -> Any:
        return {name: observation[name] for name in left}

    def seen(timestep: TimeStep) -> TimeStep:
        return timestep._replace(observation=see(timestep.observation))

    def act(agent: Any, carry: Carry, timestep: TimeStep, key: Array, greedy: bool) -> tuple[Any, Carry, Any]:
        return inner.act(agent, carry, seen(timestep), key, greedy)

    def update(agent: Any, experience: Experience, key: Array) -> tuple[Any, Any]:
        shown = experience._replace(
            timestep=seen(experience.timestep),
            next_observation=see(experience.next_observation),
            last=seen(experience.last),
        )
        return inner.update(agent, shown, key)

    recall = inner.recall
    if recall is not None:
        inner = inner._replace(
            recall=lambda agent, carry, timestep, action: recall(agent, carry, seen(timestep), action)
        )
    return inner._replace(act=act, update=update)


def failing(make: Make, space: gymnasium.Space, probability: float = 0.5, *, dropped: Sequence[str] = ()) -> Algorithm:
    """An algorithm whose sensors fail at random while it explores, so that it learns to do without any of them.

    In each episode each sensor fails with a probability, but never all of them: then one that is drawn stays. A sensor
    that fails shows zeros, and a further part of the observation, "present", says which sensors there are. Greedy
    actions, those of evaluation, see all sensors that are not `dropped`.

    Args:
        make: makes the algorithm for the observation space with "present", a Dict.
        space: the environment's observation space.
        probability: of a failure; at 0 the agent only learns with "present".
        dropped: names of sensors that are switched off, always. Agents fit algorithms that differ in this alone.

    Returns:
        An algorithm for the environment's own observations.

    Raises:
        ValueError: for a space without several sensors, a probability outside [0, 1), an unknown name in `dropped`, and
            for all sensors dropped.

    Source: Neverova et al. 2016, "ModDrop", section 3.4, by episodes instead of single examples, and with "present".
    """
    sensors = names(space)
    assert isinstance(space, spaces.Dict)
    _check(space, dropped, "failing(dropped")
    if not 0 <= probability < 1:
        raise ValueError(f"failing(probability={probability}): from 0 to below 1")
    if set(dropped) == set(sensors):
        raise ValueError(f"failing(dropped={tuple(dropped)}): leave at least one of {sensors}")
    inner = make(spaces.Dict({**space.spaces, PRESENT: spaces.MultiBinary(len(sensors))}))
    working = np.array([name not in dropped for name in sensors])

    def begun(carry: Episodes, first: Array) -> Int[Array, "*time env"]:
        """The number of the episode at each step of a rollout, or at one step."""
        return carry.episode + (jnp.cumsum(first, 0, dtype=jnp.int32) if jnp.ndim(first) > 1 else first)

    def present(agent: FailingAgent, carry: Episodes, episode: Int[Array, "*time env"]) -> Bool[Array, "*time env n"]:
        lane = jnp.broadcast_to(carry.lane, episode.shape)
        draw = lambda lane, episode: drawn(agent.key, lane, episode, len(sensors), probability)  # noqa: E731
        there = jax.vmap(draw)(lane.ravel(), episode.ravel())
        return there.reshape(*episode.shape, -1) & working

    def see(observation: Any, there: Array) -> Any:
        def part(name: str, leaf: Array) -> Array:
            if name not in sensors:
                return leaf
            keep = there[..., sensors.index(name)]
            return jnp.where(keep.reshape(*keep.shape, *[1] * (jnp.ndim(leaf) - keep.ndim)), leaf, 0)

        shown = {
            name: jax.tree.map(lambda leaf, name=name: part(name, jnp.asarray(leaf)), observation[name])
            for name in space.spaces
        }
        return {**shown, PRESENT: there.astype(jnp.int8)}

    def seen(timestep: TimeStep, there: Array) -> TimeStep:
        return timestep._replace(observation=see(timestep.observation, there))

    def init(key: Array) -> FailingAgent:
        own, rest = jax.random.split(key)
        return FailingAgent(inner.init(rest), jax.random.key_data(own))

    def initial_carry(num_envs: int) -> Episodes:
        return Episodes(
            jnp.arange(num_envs, dtype=jnp.int32), jnp.zeros(num_envs, jnp.int32), inner.initial_carry(num_envs)
        )

    def act(
        agent: FailingAgent, carry: Episodes, timestep: TimeStep, key: Array, greedy: bool
    ) -> tuple[Any, Episodes, Any]:
        episode = begun(carry, timestep.first)
        all_of_them = jnp.broadcast_to(working, (*episode.shape, len(sensors)))
        there = all_of_them if greedy else present(agent, carry, episode)
        action, after, extras = inner.act(agent.agent, carry.carry, seen(timestep, there), key, greedy)
        return action, Episodes(carry.lane, episode, after), extras

    def recalled(agent: FailingAgent, carry: Episodes, timestep: TimeStep, action: Any) -> Any:
        there = present(agent, carry, begun(carry, timestep.first))
        assert inner.recall is not None
        return inner.recall(agent.agent, carry.carry, seen(timestep, there), action)

    def update(agent: FailingAgent, experience: Experience, key: Array) -> tuple[FailingAgent, Any]:
        carry = experience.carry
        episode = begun(carry, experience.timestep.first)
        there = present(agent, carry, episode)
        afterwards = present(agent, carry, episode[-1] + experience.last.first)
        shown = experience._replace(
            timestep=seen(experience.timestep, there),
            next_observation=see(experience.next_observation, there),  # before any reset: of the same episode
            last=seen(experience.last, afterwards),
            carry=carry.carry,
        )
        learned, metrics = inner.update(agent.agent, shown, key)
        return FailingAgent(learned, agent.key), metrics

    recall = None if inner.recall is None else recalled
    return Algorithm(init, initial_carry, act, update, inner.num_steps, recall)


def drawn(key: Array, lane: Array, episode: Array, count: int, probability: float) -> Bool[Array, " sensors"]:
    """The sensors that work in an episode, of which there is at least one.

    Args:
        key: uint32, data of a key.
        lane: the number of the environment.
        episode: the number of the episode there.
        count: sensors.
        probability: of the failure of each.
    """
    own = jax.random.fold_in(jax.random.fold_in(jax.random.wrap_key_data(key), lane), episode)
    fate = jax.random.uniform(own, (count,))
    works = fate >= probability
    return works | (~works.any() & (jnp.arange(count) == fate.argmax()))


def _check(space: gymnasium.Space, given: Sequence[str], argument: str) -> None:
    unknown = [name for name in given if name not in names(space)]
    if unknown or isinstance(given, str):
        raise ValueError(
            f"{argument}={given!r}): name some of the sensors {names(space)}, as in ({names(space)[0]!r},)"
        )
