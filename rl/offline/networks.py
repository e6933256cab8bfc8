"""What the offline algorithms share: a policy for choices or bounded actions, and critics for either."""

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import flax.linen as nn
import gymnasium
import jax.numpy as jnp
from gymnasium import spaces
from jaxtyping import Array, Float, PyTree

from rl.bounds import bounds
from rl.continuous import torsos
from rl.distributions import Normal, head
from rl.networks import Critic, Values, ensemble, torso
from rl.spaces import zeros


class PolicyOutputs(nn.Module):
    """The outputs of a policy, with standard deviations that are the same in all states.

    Attributes:
        torso: network from observations to features.
        outputs: number of outputs.
        stds: number of standard deviations.
    """

    torso: nn.Module
    outputs: int
    stds: int

    @nn.compact
    def __call__(self, observation: Any) -> tuple[Float[Array, "batch outputs"], Float[Array, " stds"]]:
        """Outputs, and the logarithms of the standard deviations, limited to [-5, 2]."""
        outputs = nn.Dense(self.outputs, name="policy")(self.torso(observation))
        if not self.stds:
            return outputs, jnp.zeros(0)
        return outputs, jnp.clip(self.param("log_std", nn.initializers.zeros, (self.stds,)), -5.0, 2.0)


class StateValue(nn.Module):
    """The value of an observation.

    Attributes:
        torso: network from observations to features.
    """

    torso: nn.Module

    @nn.compact
    def __call__(self, observation: Any) -> Float[Array, " batch"]:
        return nn.Dense(1, name="value")(self.torso(observation))[..., 0]


class OfflinePolicy(NamedTuple):
    """A policy as pure functions.

    Attributes:
        init: `(key) -> parameters`.
        distribution: `(parameters, observation [batch, ...]) -> distribution`; for Box, of actions in units of the
            bounds, around a mean within them.
        log_prob: `(parameters, observation, action) -> [batch]`, of actions as the replay and data sets keep them.
        act: `(parameters, observation, key, greedy) -> action`, as `Algorithm.act` returns them.
    """

    init: Callable[[Array], PyTree]
    distribution: Callable[[PyTree, Any], Any]
    log_prob: Callable[[PyTree, Any, Any], Float[Array, " batch"]]
    act: Callable[[PyTree, Any, Array, bool], Any]


def body(space: gymnasium.Space, network: nn.Module | None, widths: tuple[int, ...] = (256, 256)) -> nn.Module:
    """A torso with parameters of its own: a copy of the given one, or the usual one with ReLU.

    Args:
        space: the observation space.
        network: the torso that was given, or None.
        widths: features of the layers of the usual one.
    """
    return torso(space, widths, nn.relu) if network is None else network.clone()


def offline_policy(
    observation_space: gymnasium.Space, action_space: gymnasium.Space, network: nn.Module | None
) -> OfflinePolicy:
    """A policy for recorded actions.

    Args:
        observation_space: any space that `rl.networks.torso` or the given network takes.
        action_space: any space that `rl.distributions.head` takes.
        network: a torso, or None for 256-256 with ReLU.

    Raises:
        ValueError: for unsupported spaces.
    """
    outputs = head(action_space)
    model = PolicyOutputs(body(observation_space, network), outputs.outputs, outputs.stds)
    box = bounds(action_space) if isinstance(action_space, spaces.Box) else None

    def init(key: Array) -> PyTree:
        return model.init(key, zeros(observation_space, 1))["params"]

    def distribution(params: PyTree, observation: Any) -> Any:
        given, log_std = cast(tuple, model.apply({"params": params}, observation))
        if box is None:
            return outputs.make(given, log_std, None)
        return Normal(box.unit(given), jnp.broadcast_to(log_std, given.shape), (box.size,))

    def log_prob(params: PyTree, observation: Any, action: Any) -> Array:
        return distribution(params, observation).log_prob(action if box is None else box.units(action))

    def act(params: PyTree, observation: Any, key: Array, greedy: bool) -> Any:
        now = distribution(params, observation)
        chosen = now.mode() if greedy else now.sample(key)
        return chosen if box is None else box.action(box.clipped(chosen))

    return OfflinePolicy(init, distribution, log_prob, act)


class Critics(NamedTuple):
    """Several critics of a pair of observation and action.

    Attributes:
        init: `(key) -> parameters`.
        value: `(parameters, observation, action) -> [critic, batch]`, of actions as data sets keep them.
    """

    init: Callable[[Array], PyTree]
    value: Callable[[PyTree, Any, Any], Float[Array, "critic batch"]]


def offline_critics(
    observation_space: gymnasium.Space, action_space: gymnasium.Space, network: nn.Module | None, count: int
) -> Critics:
    """Critics for Discrete or Box actions.

    Args:
        observation_space: any space that `rl.networks.torso` or the given network takes.
        action_space: Discrete, or Box of floating-point numbers.
        network: a torso, or None for 256-256 with ReLU.
        count: how many critics.

    Raises:
        ValueError: for unsupported spaces.
    """
    example = zeros(observation_space, 1)
    if isinstance(action_space, spaces.Discrete):
        several = ensemble(Values(body(observation_space, network), int(action_space.n)), count)

        def chosen(params: PyTree, observation: Any, action: Any) -> Array:
            values = cast(Array, several.apply({"params": params}, observation, None))[..., 0]
            return jnp.take_along_axis(values, action[None, :, None].astype(int), -1)[..., 0]

        return Critics(lambda key: several.init(key, example, None)["params"], chosen)
    box = bounds(action_space)
    _, below, widths = torsos(observation_space, network, (256, 256))
    pairs = ensemble(Critic(below, widths), count)

    def value(params: PyTree, observation: Any, action: Any) -> Array:
        return cast(Array, pairs.apply({"params": params}, observation, box.units(action)))[..., 0]

    return Critics(lambda key: pairs.init(key, example, jnp.zeros((1, box.size)))["params"], value)
