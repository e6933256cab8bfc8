"""Deep Q-learning (Mnih et al. 2015) with its well-known improvements as options, each independent of the others.

Double (van Hasselt et al. 2016), dueling (Wang et al. 2016), n-step returns and prioritized replay (Schaul et al.
2016), as Hessel et al. 2018 combine them.
"""

from typing import Any

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
from jdl.core.metrics import Last, Mean, merge_axis
from rl import normalize
from rl.distributions import FORBIDDEN
from rl.exploration import Schedule, at
from rl.networks import Values, torso
from rl.replay.replay import Memory, ReplayState, Transitions, replay
from rl.spaces import zeros
from rl.types import Algorithm, Carry, Experience, TimeStep


@flax.struct.dataclass
class DQNAgent:
    """Everything that changes while action values are learnt."""

    params: Any
    target: Any
    optimizer: Any
    replay: ReplayState
    steps: Any  # of all environments together
    updates: Any  # of the parameters
    observations: Any  # moments of the observations; None where they are not normalized


def dqn(
    observation_space: gymnasium.Space,
    action_space: gymnasium.Space,
    network: nn.Module | None = None,
    *,
    num_envs: int,
    optimizer: optax.GradientTransformation | None = None,
    rollout: int = 4,
    updates: int = 1,
    batch_size: int = 128,
    capacity: int = 100_000,
    warm_up: int = 1000,
    target_every: int = 500,
    epsilon: float | Schedule = 0.1,
    discount: float | Array = 0.99,
    double: bool = True,
    dueling: bool = False,
    steps: int = 1,
    prioritized: bool = False,
    priority_exponent: float = 0.6,
    importance: float | Schedule = 0.4,
    masked: bool = False,
    stack: int = 1,
    memory: Memory = "device",
    huber: float | None = None,
    normalize_observations: bool = False,
) -> Algorithm:
    """DQN for Discrete actions.

    network: a torso (`rl.networks`), by default 256-256 with ReLU or the network of Mnih et al. 2015 for pictures.
    num_envs: as many as the runner has. optimizer: by default Adam(5e-4) with a global norm of 10. rollout: steps of
    each environment between learning, which is `updates` batches once `warm_up` environment steps are kept.
    target_every: updates between copies to the target network. epsilon, importance (1 corrects fully): numbers or
    functions of the steps of all environments together. steps: n of n-step returns. masked: the environment gives
    action masks. stack, memory: see `rl.replay.replay`. huber: errors above it count linearly; by default all count
    squared, since a limit far below the values lets rare terminations go unheeded (CartPole's grow without bounds).
    Discount may be traced (`jdl.population`). Raises ValueError for other actions, and for a replay that does not
    fit in memory.
    """
    if not isinstance(action_space, spaces.Discrete):
        raise ValueError(f"the action space {action_space} is not Discrete; DQN values single choices (try rl.ppo)")
    for name, value in (("rollout", rollout), ("updates", updates), ("batch_size", batch_size)):
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
        steps=steps,
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
        moments = normalize.initial(one) if normalize_observations else None
        return DQNAgent(params, target, optimizer.init(params), buffer.init(), nothing, nothing, moments)

    def seen(agent: DQNAgent, observation: Any) -> Any:
        return observation if agent.observations is None else normalize.normalized(agent.observations, observation)

    def values(params: PyTree, observation: Any, mask: Any) -> Float[Array, "batch actions"]:
        found = model.apply({"params": params}, observation)
        return found if mask is None else jnp.where(mask, found, FORBIDDEN)  # type: ignore[return-value]

    def act(
        agent: DQNAgent, carry: Carry, timestep: TimeStep, key: Array, greedy: bool
    ) -> tuple[Array, Carry, tuple[()]]:
        found = values(agent.params, seen(agent, timestep.observation), timestep.action_mask)
        best = found.argmax(-1)
        if greedy:
            return best, carry, ()
        which, what = jax.random.split(key)
        allowed = jnp.zeros(found.shape) if timestep.action_mask is None else jnp.log(timestep.action_mask + 1e-30)
        explore = jax.random.uniform(which, best.shape) < at(epsilon, agent.steps)
        return jnp.where(explore, jax.random.categorical(what, allowed), best), carry, ()

    def update(agent: DQNAgent, experience: Experience, key: Array) -> tuple[DQNAgent, dict[str, Any]]:
        kept = buffer.add(agent.replay, experience)
        moments = agent.observations
        if moments is not None:
            moments = normalize.updated(moments, experience.timestep.observation, experience.valid)
        steps = agent.steps + jnp.asarray(experience.valid).sum().astype(jnp.int32)
        agent = agent.replace(replay=kept, steps=steps, observations=moments)  # type: ignore[attr-defined]
        learnt = agent.params, agent.target, agent.optimizer, agent.updates, (kept.tree, kept.highest)

        # The rows are read within and not carried: what passes through a branch or a loop may be copied.
        def learn() -> tuple[Any, Any]:
            results = jax.lax.scan(one_update, learnt, jax.random.split(key, updates))
            return results[0], merge_axis(results[1], 0)

        def one_update(learnt: tuple[Any, ...], key: Array) -> tuple[tuple[Any, ...], dict[str, Mean]]:
            params, target, optimizer_state, count, (tree, highest) = learnt
            now = ReplayState(kept.ring, tree, highest)
            batch = buffer.sample(now, key, batch_size, discount, at(importance, agent.steps))
            batch = batch._replace(
                observation=seen(agent, batch.observation), next_observation=seen(agent, batch.next_observation)
            )
            own = seam.current().share(jnp.arange(batch_size))
            part = jax.tree.map(lambda leaf: leaf[own], {"transitions": batch, "wanted": wanted(params, target, batch)})
            grads, mean, measured = jdl.gradients(loss, params, part, key)
            if prioritized:
                # Where the batch was split, its errors did not come back in one piece.
                whole = not seam.current().reductions
                errors = measured["error"] if whole else error(params, batch, wanted(params, target, batch))
                now = buffer.reprioritize(now, batch.place, errors)
            changes, optimizer_state = optimizer.update(grads, optimizer_state, params)
            params = optax.apply_updates(params, changes)
            count = count + 1
            target = jax.tree.map(lambda new, old: jnp.where(count % target_every == 0, new, old), params, target)
            found = {"loss": mean, "value": measured["value"]}
            return (params, target, optimizer_state, count, (now.tree, now.highest)), found

        shapes = jax.eval_shape(learn)[1]
        nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        ready = (agent.steps >= warm_up) & buffer.ready(kept)
        learnt, metrics = jax.lax.cond(ready, learn, lambda: (learnt, nothing))
        params, target, optimizer_state, count, (tree, highest) = learnt
        memorized = ReplayState(kept.ring, tree, highest)
        agent = DQNAgent(params, target, optimizer_state, memorized, agent.steps, count, moments)
        return agent, {**metrics, "epsilon": Last(jnp.asarray(at(epsilon, agent.steps), jnp.float32))}

    def wanted(params: PyTree, target: PyTree, batch: Transitions) -> Float[Array, " batch"]:
        """What the values should be: rewards, and the target network's value of the best action after them."""
        after = values(target, batch.next_observation, batch.next_action_mask)
        chooser = values(params, batch.next_observation, batch.next_action_mask) if double else after
        following = jnp.take_along_axis(after, chooser.argmax(-1)[:, None], 1)[:, 0]
        return batch.reward + batch.discount * following

    def error(params: PyTree, batch: Transitions, wanted: Array) -> Float[Array, " batch"]:
        found = values(params, batch.observation, None)
        return jnp.take_along_axis(found, batch.action[:, None], 1)[:, 0] - wanted

    def loss(params: PyTree, part: dict[str, Any], key: Array) -> tuple[Array, Array, dict[str, Any]]:
        batch = part["transitions"]
        errors = error(params, batch, jax.lax.stop_gradient(part["wanted"]))
        counted = (batch.weight > 0).astype(jnp.float32)
        measured: dict[str, Any] = {"value": Mean(((errors + part["wanted"]) * counted).sum(), counted.sum())}
        if prioritized:
            measured["error"] = errors
        squared = optax.l2_loss(errors) if huber is None else optax.huber_loss(errors, delta=huber)
        return (squared * batch.weight).sum(), counted.sum(), measured

    return Algorithm(init, lambda num_envs: (), act, update, rollout)
