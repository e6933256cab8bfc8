"""Deep Q-learning (Mnih et al. 2015) with its well-known improvements as options, each independent of the others.

The options are double Q-learning (van Hasselt et al. 2016), dueling networks (Wang et al. 2016), n-step returns and
prioritized replay (Schaul et al. 2016), as Hessel et al. 2018 combine them.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import flax.struct
import gymnasium
import jax
import jax.numpy as jnp
import optax
from gymnasium import spaces
from jaxtyping import Array, Float, PyTree

import jdl
from jdl.core import seam
from jdl.core.accumulators import Last, Mean, merge_axis
from jdl.core.update import apply_gradients
from rl import normalize
from rl.distributions import FORBIDDEN
from rl.exploration import Schedule, at
from rl.networks import Values, torso
from rl.renamed import renamed
from rl.replay.replay import Memory, replay
from rl.replay.transitions import ReplayState, Transitions
from rl.spaces import real_valued, zeros
from rl.types import Algorithm, Carry, Experience, TimeStep


@flax.struct.dataclass
class DQNAgent:
    """Everything that changes while action values are learned.

    Attributes:
        params: parameters of the online network.
        target: parameters of the target network.
        optimizer: state of the Optax optimizer.
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


class Priorities(NamedTuple):
    """The priorities of the replay.

    Attributes:
        tree: as in `ReplayState`.
        highest: as in `ReplayState`.
    """

    tree: Any
    highest: Any


class Learning(NamedTuple):
    """The state that one update passes to the next.

    Attributes:
        params: parameters of the online network.
        target_params: parameters of the target network.
        opt_state: state of the Optax optimizer.
        updates: scalar int32; updates so far.
        priorities: priorities of the replay.
    """

    params: PyTree
    target_params: PyTree
    opt_state: Any
    updates: Array
    priorities: Priorities


@renamed(
    rollout="num_steps",
    updates="updates_per_rollout",
    warm_up="learning_starts",
    steps="n_step",
    prioritised="prioritized",
    normalise_observations="normalize_observations",
)
def dqn(
    observation_space: gymnasium.Space,
    action_space: gymnasium.Space,
    network: nn.Module | None = None,
    *,
    num_envs: int,
    optimizer: optax.GradientTransformation | None = None,
    num_steps: int = 4,
    updates_per_rollout: int = 1,
    batch_size: int = 128,
    capacity: int = 100_000,
    learning_starts: int = 1000,
    target_every: int = 500,
    epsilon: float | Schedule = 0.1,
    discount: float | Array = 0.99,
    double: bool = True,
    dueling: bool = False,
    n_step: int = 1,
    prioritized: bool = False,
    priority_exponent: float = 0.6,
    importance: float | Schedule = 0.4,
    masked: bool = False,
    stack: int = 1,
    memory: Memory = "device",
    huber: float | None = None,
    normalize_observations: bool = False,
) -> Algorithm:
    """Deep Q-learning for Discrete actions.

    Args:
        observation_space: any space that `rl.networks.torso` or the given network takes.
        action_space: Discrete.
        network: a torso (`rl.networks`), by default 256-256 with ReLU, or the network of Mnih et al. 2015 for pictures.
        num_envs: how many environments the runner has.
        optimizer: by default Adam(5e-4), gradients clipped to a global norm of 10.
        num_steps: steps of each environment between two phases of learning.
        updates_per_rollout: batches in each phase.
        batch_size: transitions per update.
        capacity: transitions kept; the oldest are overwritten.
        learning_starts: environment steps to keep before the first update.
        target_every: updates between copies of the parameters to the target network.
        epsilon: probability of a random action, a number or a function of the steps of all environments together.
        discount: may be traced (`jdl.population`).
        double: choose the next action by the online network (van Hasselt et al. 2016).
        dueling: split values into state value and advantages (Wang et al. 2016).
        n_step: rewards summed before bootstrapping.
        prioritized: sample by TD error (Schaul et al. 2016).
        priority_exponent: of the errors.
        importance: correction of prioritized sampling, 0 (none) to 1 (full); a number or a function like `epsilon`.
        huber: errors above it count linearly. By default all count squared: a limit far below the values clips the
            rare terminal errors, and CartPole's values then grow without bounds.
        masked: the environment gives action masks.
        stack: frames in an observation, as for `rl.replay.replay`.
        memory: where the replay's observations lie, as for `rl.replay.replay`.
        normalize_observations: by running moments; real-valued parts alone.

    Raises:
        ValueError: for other actions, and for a replay that does not fit in memory.
    """
    if not isinstance(action_space, spaces.Discrete):
        raise ValueError(f"the action space {action_space} is not Discrete; DQN values single choices (try rl.ppo)")
    for name, value in (
        ("num_steps", num_steps),
        ("updates_per_rollout", updates_per_rollout),
        ("batch_size", batch_size),
    ):
        if value < 1:
            raise ValueError(f"dqn({name}={value}): at least 1")
    if optimizer is None:
        optimizer = optax.chain(optax.clip_by_global_norm(10.0), optax.adam(5e-4))
    body = torso(observation_space, (256, 256), nn.relu) if network is None else network
    model = Values(body, int(action_space.n), dueling)
    buffer = replay(
        observation_space,
        action_space,
        capacity=capacity,
        num_envs=num_envs,
        n_step=n_step,
        prioritized=prioritized,
        exponent=priority_exponent,
        masked=masked,
        stack=stack,
        memory=memory,
    )

    def init(key: Array) -> DQNAgent:
        params = model.init(key, zeros(observation_space, 1))["params"]
        nothing = jnp.zeros((), jnp.int32)
        target = jax.tree.map(jnp.copy, params)
        one = jax.tree.map(lambda leaf: leaf[0], zeros(observation_space, 1))
        moments = normalize.initial(one, real_valued(observation_space)) if normalize_observations else None
        return DQNAgent(params, target, optimizer.init(params), buffer.init(), nothing, nothing, moments)

    def seen(agent: DQNAgent, observation: Any) -> Any:
        return observation if agent.observations is None else normalize.normalized(agent.observations, observation)

    def values(params: PyTree, observation: Any, mask: Any) -> Float[Array, "batch actions"]:
        q_values = model.apply({"params": params}, observation)
        return q_values if mask is None else jnp.where(mask, q_values, FORBIDDEN)  # type: ignore[return-value]

    def act(
        agent: DQNAgent, carry: Carry, timestep: TimeStep, key: Array, greedy: bool
    ) -> tuple[Array, Carry, tuple[()]]:
        q_values = values(agent.params, seen(agent, timestep.observation), timestep.action_mask)
        best = q_values.argmax(-1)
        if greedy:
            return best, carry, ()
        which, what = jax.random.split(key)
        allowed = jnp.zeros(q_values.shape) if timestep.action_mask is None else jnp.log(timestep.action_mask + 1e-30)
        explore = jax.random.uniform(which, best.shape) < at(epsilon, agent.steps)
        return jnp.where(explore, jax.random.categorical(what, allowed), best), carry, ()

    def update(agent: DQNAgent, experience: Experience, key: Array) -> tuple[DQNAgent, dict[str, Any]]:
        kept = buffer.add(agent.replay, experience)
        moments = agent.observations
        if moments is not None:
            moments = normalize.updated(moments, experience.timestep.observation, experience.valid)
        steps = agent.steps + jnp.asarray(experience.valid).sum().astype(jnp.int32)
        agent = agent.replace(replay=kept, steps=steps, observations=moments)  # type: ignore[attr-defined]
        before = Learning(
            agent.params, agent.target, agent.optimizer, agent.updates, Priorities(kept.tree, kept.highest)
        )

        # The replay's rows are closed over, not carried: an array that passes through a branch or loop may be copied.
        def learn() -> tuple[Learning, Any]:
            learning, metrics = jax.lax.scan(one_update, before, jax.random.split(key, updates_per_rollout))
            return learning, merge_axis(metrics, 0)

        def one_update(learning: Learning, key: Array) -> tuple[Learning, dict[str, Mean]]:
            params, target_params, opt_state, count, priorities = learning
            buffer_state = ReplayState(kept.ring, priorities.tree, priorities.highest)
            batch = buffer.sample(buffer_state, key, batch_size, discount, at(importance, agent.steps))
            batch = batch._replace(
                observation=seen(agent, batch.observation), next_observation=seen(agent, batch.next_observation)
            )
            targets = td_targets(params, target_params, batch)
            share = seam.current().share(jnp.arange(batch_size))  # this replica's part of the batch
            part = jax.tree.map(lambda leaf: leaf[share], {"transitions": batch, "td_targets": targets})
            grads, mean, measured = jdl.gradients(loss, params, part, key, separable=not prioritized)
            if prioritized:
                # Where a transform split the batch, its errors are not in one piece and are computed again.
                whole = not seam.current().reductions
                errors = (
                    measured["error"] if whole else td_errors(params, batch, td_targets(params, target_params, batch))
                )
                buffer_state = buffer.reprioritize(buffer_state, batch.place, errors)
            params, opt_state = apply_gradients(optimizer, grads, opt_state, params, mean, loss, part, key)
            count = count + 1
            due = count % target_every == 0
            target_params = jax.tree.map(lambda new, old: jnp.where(due, new, old), params, target_params)
            priorities = Priorities(buffer_state.tree, buffer_state.highest)
            learning = Learning(params, target_params, opt_state, count, priorities)
            return learning, {"loss": mean, "value": measured["value"]}

        shapes = jax.eval_shape(learn)[1]
        unmeasured = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        ready = (agent.steps >= learning_starts) & buffer.ready(kept)
        learning, metrics = jax.lax.cond(ready, learn, lambda: (before, unmeasured))
        params, target_params, opt_state, count, priorities = learning
        memorized = ReplayState(kept.ring, priorities.tree, priorities.highest)
        agent = DQNAgent(params, target_params, opt_state, memorized, agent.steps, count, moments)
        return agent, {**metrics, "epsilon": Last(jnp.asarray(at(epsilon, agent.steps), jnp.float32))}

    def td_targets(params: PyTree, target_params: PyTree, batch: Transitions) -> Float[Array, " batch"]:
        """The n-step rewards plus the discounted value of the best next action, by the target network."""
        next_values = values(target_params, batch.next_observation, batch.next_action_mask)
        chooser = values(params, batch.next_observation, batch.next_action_mask) if double else next_values
        bootstrap = jnp.take_along_axis(next_values, chooser.argmax(-1)[:, None], 1)[:, 0]
        return batch.reward + batch.discount * bootstrap

    def td_errors(params: PyTree, batch: Transitions, targets: Array) -> Float[Array, " batch"]:
        q_values = values(params, batch.observation, None)
        return jnp.take_along_axis(q_values, batch.action[:, None], 1)[:, 0] - targets

    def loss(params: PyTree, part: dict[str, Any], key: Array) -> tuple[Array, Array, dict[str, Any]]:
        batch = part["transitions"]
        errors = td_errors(params, batch, jax.lax.stop_gradient(part["td_targets"]))
        counted = (batch.weight > 0).astype(jnp.float32)
        measured: dict[str, Any] = {"value": Mean(((errors + part["td_targets"]) * counted).sum(), counted.sum())}
        if prioritized:
            measured["error"] = errors
        squared = optax.l2_loss(errors) if huber is None else optax.huber_loss(errors, delta=huber)
        return (squared * batch.weight).sum(), counted.sum(), measured

    return Algorithm(init, lambda num_envs: (), act, update, num_steps)
