"""The part that SAC, TD3 and their kin share: an actor and an ensemble of critics, and how the actor explores."""

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import flax.linen as nn
import gymnasium
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from jdl.core.accumulators import Mean
from rl.bounds import Bounds, bounds
from rl.distributions import Squashed
from rl.exploration import Noise, StateDependent
from rl.networks import MLP, Actor, Critic, StateDependentActor, ensemble, torso
from rl.off_policy import ReplayAgent
from rl.spaces import encode, has_grid, has_image, zeros
from rl.types import Carry, TimeStep
from rl.value_heads import quantile_loss


class ActorCritics(NamedTuple):
    """An actor and several critics as pure functions.

    Attributes:
        bounds: of the actions.
        init: `(key) -> (actor parameters, critic parameters)`.
        actor: `(actor parameters, observation [batch, ...]) -> (means, log_std)`, each [batch, size]; where exploration
            depends on the state, a third argument is the weights of the noise, and the means are moved by it.
        critics: `(critic parameters, observation [batch, ...], units [batch, size]) -> [critic, batch, outputs]`, for
            actions in units of their bounds.
    """

    bounds: Bounds
    init: Callable[[Array], tuple[PyTree, PyTree]]
    actor: Callable[..., tuple[Array, Array]]
    critics: Callable[[PyTree, Any, Array], Float[Array, "critic batch outputs"]]


class ValueRule(NamedTuple):
    """What the outputs of the critics, [critic, batch, outputs], stand for.

    Attributes:
        outputs: numbers that each critic gives for a pair of observation and action.
        value: `(outputs) -> [batch]`, the value that the actor climbs.
        following: `(outputs) -> [batch, goals]`, cautious values of what follows an action.
        loss: `(outputs, goals [batch, goals]) -> [batch]`.
    """

    outputs: int
    value: Callable[[Array], Float[Array, " batch"]]
    following: Callable[[Array], Float[Array, "batch goals"]]
    loss: Callable[[Array, Array], Float[Array, " batch"]]


LEAST = ValueRule(  # clipped double Q-learning (Fujimoto et al. 2018, equation 10)
    outputs=1,
    value=lambda outputs: outputs[..., 0].min(0),
    following=lambda outputs: outputs.min(0),
    loss=lambda outputs, goals: 0.5 * ((outputs - goals) ** 2).sum((0, 2)),
)


def truncated_quantiles(quantiles: int = 25, drop: int = 2, huber: float = 1.0) -> ValueRule:
    """Quantiles of the return, of which the highest are left out of the goals.

    A goal of all critics' quantiles together, without the highest, overestimates less than one without any of them,
    and its caution is finer than that of the least of two values.

    Args:
        quantiles: of each critic, at the midpoints (2i − 1) / 2n.
        drop: the highest quantiles that are left out, times the critics.
        huber: errors above it count linearly.

    Raises:
        ValueError: for fewer than 1 quantile, and where all of them would be dropped.

    Source: Kuznetsov et al. 2020, equations 7 to 12.
    """
    if quantiles < 1 or not 0 <= drop < quantiles:
        raise ValueError(
            f"truncated_quantiles(quantiles={quantiles}, drop={drop}): at least 1 quantile, and at least one left"
        )
    levels = (jnp.arange(quantiles) + 0.5) / quantiles

    def following(outputs: Array) -> Array:
        pooled = jnp.sort(jnp.moveaxis(outputs, 0, -1).reshape(outputs.shape[1], -1), -1)
        return pooled[:, : len(outputs) * (quantiles - drop)]

    def loss(outputs: Array, goals: Array) -> Array:
        return quantile_loss(outputs, goals, levels, huber).sum(0) / quantiles

    return ValueRule(quantiles, lambda outputs: outputs.mean((0, 2)), following, loss)


def torsos(
    observation_space: gymnasium.Space, network: nn.Module | None, widths: tuple[int, ...]
) -> tuple[nn.Module, nn.Module, tuple[int, ...]]:
    """The torso of an actor, that of a critic, and the widths of the layers that follow it in a critic.

    Args:
        observation_space: see `actor_critics`.
        network: see `actor_critics`.
        widths: see `actor_critics`.
    """
    if network is None and (has_image(observation_space) or has_grid(observation_space)):
        network = torso(observation_space)
    if network is not None:
        return network, network.clone(), widths[-1:]
    encoded = encode(observation_space)
    return MLP(encoded, widths, nn.relu), MLP(encoded, ()), widths


def actor_critics(
    observation_space: gymnasium.Space,
    action_space: gymnasium.Space,
    network: nn.Module | None,
    *,
    count: int,
    outputs: int = 1,
    spread: bool = True,
    widths: tuple[int, ...] = (256, 256),
    exploration: StateDependent | None = None,
) -> ActorCritics:
    """An actor, and critics that each see the observation and the action.

    Args:
        observation_space: any space that `rl.networks.torso` or the given network takes.
        action_space: Box of floating-point numbers, with any bounds.
        network: a torso; the actor and each critic have their own. Without one, layers of `widths` follow the
            observation, after it is joined to the action in a critic; pictures have the torso of `rl.networks.torso`.
        count: critics.
        outputs: numbers that a critic gives for a pair of observation and action.
        spread: the actor has standard deviations.
        widths: features of the layers.
        exploration: the actor's standard deviations depend on the state that way.

    Raises:
        ValueError: for unsupported spaces.
    """
    box = bounds(action_space)
    of_actor, of_critic, following = torsos(observation_space, network, widths)
    if exploration is None:
        actor: nn.Module = Actor(of_actor, box.size, spread)
    else:
        actor = StateDependentActor(of_actor, box.size, exploration.log_std)
    critics = ensemble(Critic(of_critic, following, outputs), count)

    def init(key: Array) -> tuple[PyTree, PyTree]:
        actor_key, critics_key = jax.random.split(key)
        example = zeros(observation_space, 1)
        units = jnp.zeros((1, box.size))
        return actor.init(actor_key, example)["params"], critics.init(critics_key, example, units)["params"]

    def act(params: PyTree, observation: Any, *weights: Array) -> tuple[Array, Array]:
        return cast(tuple, actor.apply({"params": params}, observation, *weights))

    def value(params: PyTree, observation: Any, units: Array) -> Array:
        return cast(Array, critics.apply({"params": params}, observation, units))

    return ActorCritics(box, init, act, value)


def check_tau(algorithm: str, tau: float) -> None:
    """Refuse a share by which targets would not move, or move past what they follow.

    Args:
        algorithm: its name, for the message.
        tau: the share.

    Raises:
        ValueError: for a share that is not above 0 and at most 1.
    """
    if not 0 < tau <= 1:
        raise ValueError(f"{algorithm}(tau={tau}): above 0, and at most 1")


def explored(
    box: Bounds,
    agent: ReplayAgent,
    units: Float[Array, "env size"],
    timestep: TimeStep,
    carry: Carry,
    key: Array,
    noise: Noise | None,
    learning_starts: int,
) -> tuple[Array, Carry]:
    """The actions with which an agent collects experience: random ones at first, then its own with noise.

    Args:
        box: bounds of the actions.
        agent: the agent, for the number of its steps.
        units: its actions, in units of their bounds.
        timestep: the input of the agent.
        carry: of the noise.
        key: a random key.
        noise: added to the actions, in units of their bounds; None for none.
        learning_starts: environment steps whose actions are random.

    Returns:
        Actions as the environment takes them, and the next carry.
    """
    noise_key, random_key = jax.random.split(key)
    if noise is not None:
        carry, added = noise.step(carry, timestep.first, noise_key)
        units = box.clipped(units + added)
    early = agent.steps < learning_starts
    return box.action(jnp.where(early, box.random(random_key, len(units)), units)), carry


def soft_actor_loss(
    policy: Callable[[PyTree, Any], Squashed],
    value: Callable[[Any, Array], Float[Array, " batch"]],
    temperature: float | None,
    sought: float,
) -> Callable[[PyTree, dict[str, Any], Array], tuple[Array, Array, dict[str, Mean]]]:
    """The loss of an actor that climbs the value and the entropy (Haarnoja et al. 2018b, equations 7 and 18).

    A learned temperature falls while the entropy is above what is sought, and rises below.

    Args:
        policy: `(actor, observation) -> distribution`.
        value: `(observation, units) -> [batch]`.
        temperature: α; None where the actor has its logarithm, "log_temperature", which is learned.
        sought: the entropy that a learned temperature aims at, in nats.
    """

    def loss(actor: PyTree, part: dict[str, Any], key: Array) -> tuple[Array, Array, dict[str, Mean]]:
        batch = part["transitions"]
        units, log_prob = policy(actor, batch.observation).from_noise(part["noise"])
        alpha = jax.lax.stop_gradient(weight_of_entropy(actor, temperature))
        each = alpha * log_prob - value(batch.observation, units)
        if temperature is None:
            each = each - actor["log_temperature"] * jax.lax.stop_gradient(log_prob + sought)
        weight = batch.weight.sum()
        means = {"actor_loss": each, "entropy": -log_prob}
        measured = {name: Mean((x * batch.weight).sum(), weight) for name, x in means.items()}
        return (each * batch.weight).sum(), weight, measured

    return loss


def weight_of_entropy(actor: PyTree, temperature: float | None) -> Any:
    """The temperature α: the given one, or else the actor's own.

    Args:
        actor: parameters, with "log_temperature" where the temperature is learned.
        temperature: None if it is learned.
    """
    return jnp.exp(actor["log_temperature"]) if temperature is None else temperature


def every(
    delay: int,
    count: Array,
    improve: Callable[[], tuple[PyTree, PyTree, dict[str, Mean]]],
    before: tuple[PyTree, PyTree],
) -> tuple[PyTree, PyTree, dict[str, Mean]]:
    """Improve the actor at every so many updates.

    Args:
        delay: updates for each improvement.
        count: updates so far.
        improve: `() -> (parameters, optimizer state, metrics)`.
        before: parameters and optimizer state as they are.
    """
    if delay == 1:
        return improve()
    shapes = jax.eval_shape(improve)[2]
    unmeasured = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    return jax.lax.cond(count % delay == 0, improve, lambda: (*before, unmeasured))
