"""An offline algorithm: an `rl.Algorithm` whose updates take recorded transitions, and the learner that draws them."""

from collections.abc import Callable
from typing import Any

import flax.struct
import gymnasium
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from jdl.core.learner import Batch, Learner, State, Traits, fold, step_key
from rl import normalize
from rl.normalize import Moments
from rl.off_policy import Learning
from rl.replay.transitions import Transitions
from rl.runners.acting import predictor
from rl.runners.on_host import OnHostState
from rl.types import Algorithm, Carry, TimeStep


@flax.struct.dataclass
class OfflineAgent:
    """Everything that changes while an agent learns from recorded transitions.

    Attributes:
        params: parameters of the networks that learn.
        target: parameters of the target networks, or what else the agent aims at; `()` if there is nothing.
        optimizer: states of the Optax optimizers.
        updates: scalar int32; updates of the parameters.
        observations: `rl.normalize.Moments` of the recorded observations; None if they are not normalized.
    """

    params: Any
    target: Any
    optimizer: Any
    updates: Any
    observations: Any


def offline(
    name: str,
    *,
    init: Callable[[Array], tuple[PyTree, PyTree, Any]],
    act: Callable[[PyTree, Carry, TimeStep, Array, bool], tuple[Any, Carry]],
    learn: Callable[[Learning, Transitions, Array], tuple[Learning, dict[str, Any]]],
    discount: float | Array,
    moments: Moments | None,
) -> Algorithm:
    """An algorithm that learns from batches of recorded transitions (`Dataset.transitions`).

    Args:
        name: the algorithm's, for messages.
        init: `(key) -> (params, target, optimizer)`.
        act: `(params, carry, timestep, key, greedy) -> (action, carry)`; observations are normalized if the agent
            normalizes.
        learn: `(learning, transitions [batch], key) -> (learning, metrics)`, one update.
        discount: γ; may be traced.
        moments: of the recorded observations (`Dataset.moments()`), which normalize them; None to leave them.
    """

    def make(key: Array) -> OfflineAgent:
        params, target, optimizer = init(key)
        return OfflineAgent(params, target, optimizer, jnp.zeros((), jnp.int32), jax.tree.map(jnp.asarray, moments))

    def seen(agent: OfflineAgent, observation: Any) -> Any:
        return observation if agent.observations is None else normalize.normalized(agent.observations, observation)

    def act_on_seen(
        agent: OfflineAgent, carry: Carry, timestep: TimeStep, key: Array, greedy: bool
    ) -> tuple[Any, Carry, Any]:
        timestep = timestep._replace(observation=seen(agent, timestep.observation))
        return *act(agent.params, carry, timestep, key, greedy), ()

    def update(agent: OfflineAgent, batch: Batch, key: Array) -> tuple[OfflineAgent, dict[str, Any]]:
        if not isinstance(batch, dict):
            raise TypeError(
                f"{name} learns from recorded transitions alone: rl.offline.learner(algorithm, space) with "
                "dataset.transitions, instead of a runner"
            )
        size = len(batch["reward"])
        transitions = Transitions(
            observation=seen(agent, batch["observation"]),
            action=batch["action"],
            reward=batch["reward"],
            discount=jnp.where(batch["terminated"], 0, jnp.asarray(discount, jnp.float32)),
            next_observation=seen(agent, batch["next_observation"]),
            next_action_mask=None,
            weight=jnp.ones(size),
            place=jnp.arange(size),
        )
        before = Learning(agent.params, agent.target, agent.optimizer, agent.updates)
        after, metrics = learn(before, transitions, key)
        return OfflineAgent(*after, agent.observations), metrics

    return Algorithm(make, lambda num_envs: (), act_on_seen, update, 1)


def learner(
    algorithm: Algorithm, action_space: gymnasium.Space, batch_size: int = 256, *, context: int | None = None
) -> Learner:
    """A learner that draws batches of recorded transitions.

    Train it by `jdl.fit(jdl.jit(learner), dataset.transitions, steps=...)`. Each batch is drawn anew with replacement.
    `predict` acts greedily on a batch of observations.

    Args:
        algorithm: one of `rl.offline`.
        action_space: space of the actions.
        batch_size: transitions per update, or windows.
        context: steps in a window, for algorithms that see several: leaves are [batch, context, ...], the newest step
            last, and "mask" is True for the steps of the same episode. None for single transitions.

    Raises:
        ValueError: for sizes below 1; in `step`, for data without transitions.
    """
    if batch_size < 1 or (context is not None and context < 1):
        raise ValueError(f"rl.offline.learner(batch_size={batch_size}, context={context}): at least 1")

    def init(key: Array) -> OnHostState:
        return OnHostState(key, jnp.zeros((), jnp.int32), algorithm.init(fold(key, "agent")))

    def step(state: OnHostState, data: Batch) -> tuple[OnHostState, dict[str, Any]]:
        size = len(jax.tree.leaves(data)[0])
        if size < 1:
            raise ValueError("rl.offline.learner was given data without transitions")
        key = step_key(state)
        drawn = jax.random.randint(fold(key, "draw"), (batch_size,), 0, size)
        batch = _rows(data, drawn) if context is None else _windows(data, drawn, context)
        agent, metrics = algorithm.update(state.agent, batch, fold(key, "update"))
        return OnHostState(state.key, state.step + 1, agent), metrics

    def evaluate(state: State, batch: Batch) -> Any:
        raise TypeError("a learner of recorded data cannot play; use rl.evaluate(algorithm, agent, env)")

    return Learner(init, step, evaluate, predictor(algorithm, action_space), traits=Traits(fed=True))


def _rows(data: Batch, places: Array) -> Batch:
    return jax.tree.map(lambda leaf: jnp.asarray(leaf)[places], data)


def _windows(data: Batch, places: Array, context: int) -> Batch:
    """The steps up to these places; before the beginning of an episode its first step is repeated, and masked."""
    back = jnp.arange(context)[::-1]
    time = jnp.asarray(data["time"])[places]
    return {**_rows(data, places[:, None] - jnp.minimum(back, time[:, None])), "mask": back <= time[:, None]}
