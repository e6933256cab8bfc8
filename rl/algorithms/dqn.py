"""Deep Q-learning (Mnih et al. 2015) with its well-known improvements as options, each independent of the others.

The options are double Q-learning (van Hasselt et al. 2016), dueling networks (Wang et al. 2016), n-step returns,
prioritized replay (Schaul et al. 2016), noisy layers (Fortunato et al. 2018), and distributions of the return in place
of its mean (`rl.value_heads`). `rainbow` has all of them, as Hessel et al. 2018 combine them.
"""

from typing import Any

import flax.linen as nn
import gymnasium
import jax
import jax.numpy as jnp
import optax
from gymnasium import spaces
from jaxtyping import Array, Float, PyTree

import jdl
from jdl.core import seam
from jdl.core.accumulators import Last, Mean
from jdl.core.update import apply_gradients
from rl import normalize, value_heads
from rl.distributions import FORBIDDEN
from rl.exploration import Schedule, at
from rl.networks import Values, torso
from rl.off_policy import Learning, ReplayAgent, check_counts, off_policy, own_part
from rl.renamed import renamed
from rl.replay.replay import Memory, replay
from rl.replay.transitions import Transitions
from rl.spaces import zeros
from rl.types import Algorithm, Carry, TimeStep
from rl.value_heads import ValueHead

MEAN = value_heads.mean()
_NOISE = 1  # folded into a key, so that the other random numbers are those of a network without noise


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
    epsilon: float | Schedule | None = None,
    discount: float | Array = 0.99,
    double: bool = True,
    dueling: bool = False,
    n_step: int = 1,
    prioritized: bool = False,
    priority_exponent: float = 0.6,
    importance: float | Schedule = 0.4,
    head: ValueHead = MEAN,
    noisy: bool = False,
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
        epsilon: probability of a random action, a number or a function of the steps of all environments together; by
            default 0.1, or 0 with noisy layers.
        discount: may be traced (`jdl.population`).
        double: choose the next action by the online network (van Hasselt et al. 2016).
        dueling: split values into state value and advantages (Wang et al. 2016).
        n_step: rewards summed before bootstrapping.
        prioritized: sample by TD error (Schaul et al. 2016).
        priority_exponent: of the errors.
        importance: correction of prioritized sampling, 0 (none) to 1 (full); a number or a function like `epsilon`.
        head: what is learned about the return of an action (`rl.value_heads`), by default its mean.
        noisy: explore by noise in the layers (Fortunato et al. 2018); a network of your own needs noisy layers, too
            (`rl.networks.torso(..., noisy=True)`).
        huber: with the default head, errors above it count linearly. By default all count squared: a limit far below
            the values clips the rare terminal errors, and CartPole's values then grow without bounds.
        masked: the environment gives action masks.
        stack: frames in an observation, as for `rl.replay.replay`.
        memory: where the replay's observations lie, as for `rl.replay.replay`.
        normalize_observations: by running moments; real-valued parts alone.

    Raises:
        ValueError: for other actions, for a replay that does not fit in memory, and for `huber` with another head.
    """
    if not isinstance(action_space, spaces.Discrete):
        box = isinstance(action_space, spaces.Box)
        raise ValueError(
            f"the action space {action_space} is not Discrete; DQN values single choices (try "
            f"{'rl.sac or ' if box else ''}rl.ppo)"
        )
    if huber is not None:
        if head is not MEAN:
            raise ValueError(f"dqn(huber={huber}): the head has a limit of its own; give it there (rl.value_heads)")
        head = value_heads.mean(huber)
    check_counts("dqn", target_every=target_every)
    if epsilon is None:
        epsilon = 0.0 if noisy else 0.1
    if optimizer is None:
        optimizer = optax.chain(optax.clip_by_global_norm(10.0), optax.adam(5e-4))
    body = torso(observation_space, (256, 256), nn.relu, noisy) if network is None else network
    model = Values(body, int(action_space.n), dueling, head.outputs, noisy, head.drawn)
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

    def init(key: Array) -> tuple[PyTree, PyTree, Any]:
        levels = jnp.zeros((1, head.outputs)) if head.drawn else None
        params = model.init(key, zeros(observation_space, 1), levels)["params"]
        return params, jax.tree.map(jnp.copy, params), optimizer.init(params)

    def outputs(params: PyTree, observation: Any, levels: Any, key: Array | None) -> Float[Array, "batch actions n"]:
        """What the network gives; its layers are noisy where there is a key."""
        noise = {"noise": key} if noisy and key is not None else {}
        return model.apply({"params": params}, observation, levels, rngs=noise)  # type: ignore[return-value]

    def masked_values(given: Array, mask: Any) -> Float[Array, "batch actions"]:
        values = head.values(given)
        return values if mask is None else jnp.where(mask, values, FORBIDDEN)

    def midpoints(count: int) -> Array | None:
        levels = (jnp.arange(head.outputs) + 0.5) / head.outputs
        return jnp.broadcast_to(levels, (count, head.outputs)) if head.drawn else None

    def act(
        agent: ReplayAgent, carry: Carry, timestep: TimeStep, key: Array, greedy: bool
    ) -> tuple[Array, Carry, tuple[()]]:
        count, noise_key = len(timestep.first), None if greedy else jax.random.fold_in(key, _NOISE)
        given = outputs(agent.params, timestep.observation, midpoints(count), noise_key)
        best = masked_values(given, timestep.action_mask).argmax(-1)
        if greedy:
            return best, carry, ()
        which, what = jax.random.split(key)
        allowed = jnp.zeros(given.shape[:-1]) if timestep.action_mask is None else jnp.log(timestep.action_mask + 1e-30)
        explore = jax.random.uniform(which, best.shape) < at(epsilon, agent.steps)
        return jnp.where(explore, jax.random.categorical(what, allowed), best), carry, ()

    def beliefs(agent: ReplayAgent, timestep: TimeStep) -> tuple[Array, Array, Any]:
        assert head.distribution is not None
        seen = timestep.observation
        if agent.observations is not None:
            seen = normalize.normalized(agent.observations, seen)
        return *head.distribution(outputs(agent.params, seen, midpoints(len(timestep.first)), None)), discount

    def learn(learning: Learning, batch: Transitions, key: Array) -> tuple[Learning, Array | None, dict[str, Mean]]:
        params, target_params, opt_state, count = learning
        keys = jax.random.split(jax.random.fold_in(key, _NOISE), 4)
        levels = jax.random.uniform(keys[0], (2, batch_size, head.outputs)) if head.drawn else (None, None)
        goals, beyond = goals_of(params, target_params, batch, levels[0], keys[1:3])
        part = own_part({"transitions": batch, "goals": goals, "levels": levels[1], "beyond": beyond}, batch_size)
        separable = not (prioritized or noisy)  # the errors are one for each example, and noise is drawn
        grads, mean, measured = jdl.gradients(loss, params, part, key, separable=separable)
        errors = None
        if prioritized:
            # Where a transform split the batch, its errors are not in one piece and are computed again.
            whole = not seam.current().reductions
            errors = measured["error"] if whole else each(params, batch, goals, levels[1], key)[0]
        params, opt_state = apply_gradients(optimizer, grads, opt_state, params, mean, loss, part, key)
        count = count + 1
        due = count % target_every == 0
        target_params = jax.tree.map(lambda new, old: jnp.where(due, new, old), params, target_params)
        measured.pop("error", None)
        return Learning(params, target_params, opt_state, count), errors, {"loss": mean, **measured}

    def goals_of(
        params: PyTree, target_params: PyTree, batch: Transitions, levels: Any, keys: Array
    ) -> tuple[Array, Array | None]:
        """The n-step rewards plus the discounted return of the best next action, by the target network.

        And how much of it lies beyond what the head can represent, if there is such a thing.
        """
        following = outputs(target_params, batch.next_observation, levels, keys[0])
        chooser = outputs(params, batch.next_observation, levels, keys[1]) if double else following
        best = masked_values(chooser, batch.next_action_mask).argmax(-1)
        given = batch.reward, batch.discount, _taken(following, best)
        return head.goals(*given), None if head.beyond is None else head.beyond(*given)

    def each(params: PyTree, batch: Transitions, goals: Array, levels: Any, key: Array) -> tuple[Array, Array, Array]:
        """Error, loss and value of each transition."""
        taken = _taken(outputs(params, batch.observation, levels, key), batch.action)
        losses, value = head.loss(taken, goals, levels), head.values(taken)
        return value - goals[:, 0] if head.mean else losses, losses, value

    def loss(params: PyTree, part: dict[str, Any], key: Array) -> tuple[Array, Array, dict[str, Any]]:
        batch = part["transitions"]
        errors, losses, value = each(params, batch, part["goals"], part["levels"], key)
        counted = (batch.weight > 0).astype(jnp.float32)
        measured: dict[str, Any] = {"value": Mean((value * counted).sum(), counted.sum())}
        if part["beyond"] is not None:
            measured["beyond_support"] = Mean((part["beyond"] * counted).sum(), counted.sum())
        if prioritized:
            measured["error"] = errors
        return (losses * batch.weight).sum(), counted.sum(), measured

    algorithm = off_policy(
        "dqn",
        observation_space,
        buffer,
        init=init,
        act=act,
        learn=learn,
        also=lambda agent: {"epsilon": Last(jnp.asarray(at(epsilon, agent.steps), jnp.float32))},
        num_steps=num_steps,
        updates_per_rollout=updates_per_rollout,
        batch_size=batch_size,
        learning_starts=learning_starts,
        discount=discount,
        importance=importance,
        normalize_observations=normalize_observations,
    )
    return algorithm if head.distribution is None else algorithm._replace(beliefs=beliefs)


def _taken(outputs: Float[Array, "batch actions n"], action: Array) -> Float[Array, "batch n"]:
    """The outputs of one action of each example."""
    return jnp.take_along_axis(outputs, action[:, None, None], 1)[:, 0]


def rainbow(
    observation_space: gymnasium.Space,
    action_space: gymnasium.Space,
    network: nn.Module | None = None,
    *,
    low: float,
    high: float,
    atoms: int = 51,
    **options: Any,
) -> Algorithm:
    """Rainbow: `rl.dqn` with a categorical head, double, dueling and noisy networks, 3 steps and prioritized replay.

    Args:
        observation_space: see `rl.dqn`.
        action_space: see `rl.dqn`.
        network: a torso, with noisy layers (`rl.networks.torso(..., noisy=True)`); by default as for `rl.dqn`.
        low: see `rl.value_heads.categorical`.
        high: see `rl.value_heads.categorical`.
        atoms: see `rl.value_heads.categorical`.
        **options: see `rl.dqn`; `num_envs` is required.

    Raises:
        ValueError: as `rl.dqn` and `rl.value_heads.categorical`.

    Source: Hessel et al. 2018.
    """
    combined = {
        "head": value_heads.categorical(low, high, atoms),
        "double": True,
        "dueling": True,
        "noisy": True,
        "n_step": 3,
        "prioritized": True,
        "priority_exponent": 0.5,
    }
    return dqn(observation_space, action_space, network, **{**combined, **options})
