"""The part that algorithms share which learn from a replay: what an agent keeps, and when it learns from it."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.struct
import gymnasium
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from jdl.core import seam
from jdl.core.accumulators import merge_axis
from rl import normalize
from rl.exploration import Schedule, at
from rl.replay.replay import Replay
from rl.replay.transitions import ReplayState, Transitions
from rl.spaces import real_valued, zeros
from rl.types import Algorithm, Carry, Experience, TimeStep


@flax.struct.dataclass
class ReplayAgent:
    """Everything that changes while an agent learns from a replay.

    Attributes:
        params: parameters of the networks that learn.
        target: parameters of the target networks.
        optimizer: states of the Optax optimizers.
        replay: the transitions kept.
        steps: scalar int32; steps of all environments together.
        updates: scalar int32; updates of the parameters.
        observations: `rl.normalize.Moments` of the observations; None if they are not normalized.
    """

    params: Any
    target: Any
    optimizer: Any
    replay: ReplayState
    steps: Any
    updates: Any
    observations: Any


class Learning(NamedTuple):
    """The state that one update passes to the next.

    Attributes:
        params: parameters of the networks that learn.
        target: parameters of the target networks.
        optimizer: states of the Optax optimizers.
        updates: scalar int32; updates so far.
    """

    params: PyTree
    target: PyTree
    optimizer: Any
    updates: Array


class Priorities(NamedTuple):
    """The priorities of the replay.

    Attributes:
        tree: as in `ReplayState`.
        highest: as in `ReplayState`.
    """

    tree: Any
    highest: Any


def off_policy(
    name: str,
    observation_space: gymnasium.Space,
    buffer: Replay,
    *,
    init: Callable[[Array], tuple[PyTree, PyTree, Any]],
    act: Callable[..., tuple[Any, Carry, Any]],
    learn: Callable[[Learning, Transitions, Array], tuple[Learning, Array | None, dict[str, Any]]],
    initial_carry: Callable[[int], Carry] = lambda num_envs: (),
    also: Callable[[ReplayAgent], Mapping[str, Any]] = lambda agent: {},
    num_steps: int,
    updates_per_rollout: int,
    batch_size: int,
    learning_starts: int,
    discount: float | Array,
    importance: float | Schedule = 1.0,
    normalize_observations: bool,
) -> Algorithm:
    """An algorithm that keeps each rollout in a replay, and then learns from several samples of it.

    Args:
        name: the algorithm's, for messages.
        observation_space: space of the observations.
        buffer: the replay.
        init: `(key) -> (params, target, optimizer)`.
        act: as `Algorithm.act`; observations are normalized if the agent normalizes.
        learn: `(learning, transitions [batch], key) -> (learning, errors [batch], metrics)`, one update. Errors are for
            a replay with priorities; None where there are none.
        initial_carry: as in `Algorithm`.
        also: further metrics of the agent after an update.
        num_steps: steps of each environment between two phases of learning.
        updates_per_rollout: samples in each phase.
        batch_size: transitions in a sample.
        learning_starts: environment steps to keep before the first update.
        discount: γ; may be traced.
        importance: as for `rl.dqn`.
        normalize_observations: by running moments; real-valued parts alone.

    Raises:
        ValueError: for counts below 1.
    """
    check_counts(name, num_steps=num_steps, updates_per_rollout=updates_per_rollout, batch_size=batch_size)

    def make(key: Array) -> ReplayAgent:
        params, target, optimizer = init(key)
        nothing = jnp.zeros((), jnp.int32)
        one = jax.tree.map(lambda leaf: leaf[0], zeros(observation_space, 1))
        moments = normalize.initial(one, real_valued(observation_space)) if normalize_observations else None
        return ReplayAgent(params, target, optimizer, buffer.init(), nothing, nothing, moments)

    def seen(agent: ReplayAgent, observation: Any) -> Any:
        return observation if agent.observations is None else normalize.normalized(agent.observations, observation)

    def act_on_seen(
        agent: ReplayAgent, carry: Carry, timestep: TimeStep, key: Array, greedy: bool
    ) -> tuple[Any, Carry, Any]:
        timestep = timestep._replace(observation=seen(agent, timestep.observation))
        return act(agent, carry, timestep, key, greedy)

    def update(agent: ReplayAgent, experience: Experience, key: Array) -> tuple[ReplayAgent, dict[str, Any]]:
        kept = buffer.add(agent.replay, experience)
        moments = agent.observations
        if moments is not None:
            moments = normalize.updated(moments, experience.timestep.observation, experience.valid)
        steps = agent.steps + jnp.asarray(experience.valid).sum().astype(jnp.int32)
        agent = agent.replace(replay=kept, steps=steps, observations=moments)  # type: ignore[attr-defined]
        learning = Learning(agent.params, agent.target, agent.optimizer, agent.updates)
        before = learning, Priorities(kept.tree, kept.highest)

        # The replay's rows are closed over, not carried: an array that passes through a branch or loop may be copied.
        def phase() -> tuple[tuple[Learning, Priorities], Any]:
            after, metrics = jax.lax.scan(one_update, before, jax.random.split(key, updates_per_rollout))
            return after, merge_axis(metrics, 0)

        def one_update(now: tuple[Learning, Priorities], key: Array) -> tuple[tuple[Learning, Priorities], Any]:
            learning, priorities = now
            buffer_state = ReplayState(kept.ring, priorities.tree, priorities.highest)
            batch = buffer.sample(buffer_state, key, batch_size, discount, at(importance, agent.steps))
            batch = batch._replace(
                observation=seen(agent, batch.observation), next_observation=seen(agent, batch.next_observation)
            )
            learning, errors, metrics = learn(learning, batch, key)
            if errors is not None:
                buffer_state = buffer.reprioritize(buffer_state, batch.place, errors)
            return (learning, Priorities(buffer_state.tree, buffer_state.highest)), metrics

        shapes = jax.eval_shape(phase)[1]
        unmeasured = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        ready = (agent.steps >= learning_starts) & buffer.ready(kept)
        (learning, priorities), metrics = jax.lax.cond(ready, phase, lambda: (before, unmeasured))
        params, target, optimizer, count = learning
        memorized = ReplayState(kept.ring, priorities.tree, priorities.highest)
        agent = ReplayAgent(params, target, optimizer, memorized, agent.steps, count, moments)
        return agent, {**metrics, **also(agent)}

    return Algorithm(make, initial_carry, act_on_seen, update, num_steps)


def check_counts(algorithm: str, **counts: int) -> None:
    """Refuse counts below 1.

    Args:
        algorithm: its name, for the message.
        **counts: by the names of its arguments.

    Raises:
        ValueError: for a count below 1.
    """
    for name, value in counts.items():
        if value < 1:
            raise ValueError(f"{algorithm}({name}={value}): at least 1")


def own_part(tree: PyTree, batch_size: int) -> PyTree:
    """The part of a batch that this replica learns from: all of it, except under `jdl.pmap`.

    Args:
        tree: leaves [batch, ...].
        batch_size: the size of the batch.
    """
    share = seam.current().share(jnp.arange(batch_size))
    return jax.tree.map(lambda leaf: leaf[share], tree)
