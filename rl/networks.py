"""Networks for agents: a torso turns a batch of observations into features, and the algorithm adds its heads.

A torso is any Flax module that takes a batch of observations from the space, not encoded, and returns
[batch, features].
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import gymnasium
import jax
import jax.numpy as jnp
from gymnasium import spaces
from jaxtyping import Array, Float

import jdl
from rl.spaces import encode, has_grid, has_image, is_grid, is_image

_orthogonal = nn.initializers.orthogonal
NATURE = ((32, 8, 4), (64, 4, 2), (64, 3, 1))  # features, size and stride of the convolutions of Mnih et al. 2015


class MLP(nn.Module):
    """Dense layers on encoded observations, initialized as in Huang et al. 2022, details 2 and 3.

    Attributes:
        encode: function from a batch of observations to vectors (`rl.spaces.encode`).
        widths: features of each layer.
        activation: applied after each layer.
        noisy: the layers are `NoisyDense`.
    """

    encode: Callable[[Any], Array]
    widths: Sequence[int] = (64, 64)
    activation: Callable[[Array], Array] = nn.tanh
    noisy: bool = False

    @nn.compact
    def __call__(self, observation: Any) -> Float[Array, "batch features"]:
        x = self.encode(observation)
        for width in self.widths:
            dense = NoisyDense(width) if self.noisy else nn.Dense(width, kernel_init=_orthogonal(2**0.5))
            x = self.activation(dense(x))
        return x


class NatureCNN(nn.Module):
    """The convolutional network of Mnih et al. 2015, for uint8 images [batch, height, width, channels].

    Attributes:
        width: features of the dense layer at the end; None for no such layer.
        channels_first: images are [batch, channels, height, width], as Gymnasium stacks frames.
        noisy: the dense layer is `NoisyDense`.
        convolutions: features, size and stride of each; others than the paper's make a smaller network.
    """

    width: int | None = 512
    channels_first: bool = False
    noisy: bool = False
    convolutions: Sequence[tuple[int, int, int]] = NATURE

    @nn.compact
    def __call__(self, observation: Any) -> Float[Array, "batch features"]:
        x = jnp.moveaxis(observation, 1, -1) if self.channels_first else observation
        x = x.astype(jnp.float32) / 255
        for features, size, stride in self.convolutions:
            conv = jdl.nn.Conv(
                features, (size, size), (stride, stride), padding="VALID", kernel_init=_orthogonal(2**0.5)
            )
            x = nn.relu(conv(x))
        if self.width is None:
            return x.reshape(len(x), -1)
        dense = NoisyDense(self.width) if self.noisy else nn.Dense(self.width, kernel_init=_orthogonal(2**0.5))
        return nn.relu(dense(x.reshape(len(x), -1)))


class MinAtarCNN(nn.Module):
    """The convolutional network of Young and Tian 2019, for grids of truth values [batch, height, width, channels].

    Attributes:
        width: features of the dense layer at the end.
        noisy: the dense layer is `NoisyDense`.
    """

    width: int = 128
    noisy: bool = False

    @nn.compact
    def __call__(self, observation: Any) -> Float[Array, "batch features"]:
        x = jnp.asarray(observation, jnp.float32)
        x = nn.relu(jdl.nn.Conv(16, (3, 3), padding="VALID", kernel_init=_orthogonal(2**0.5))(x))
        dense = NoisyDense(self.width) if self.noisy else nn.Dense(self.width, kernel_init=_orthogonal(2**0.5))
        return nn.relu(dense(x.reshape(len(x), -1)))


class Fusion(nn.Module):
    """A torso for each part of an observation; what they find is joined and mixed.

    Each part has a last layer of its own, all of the same width, so that hundreds of features of a picture do not
    outweigh a vector of two numbers.

    Attributes:
        parts: a torso for each part, in the structure of the observation: a dict or a tuple.
        widths: features of the layer that each part has for itself, then of the layers that mix all of them.
        activation: applied after each layer.
        noisy: the layers are `NoisyDense`.
    """

    parts: Any
    widths: Sequence[int] = (64, 64)
    activation: Callable[[Array], Array] = nn.tanh
    noisy: bool = False

    @nn.compact
    def __call__(self, observation: Any) -> Float[Array, "batch features"]:
        parts = self.parts.items() if isinstance(self.parts, Mapping) else enumerate(self.parts)
        found = {name: part(observation[name]) for name, part in parts}
        for width in self.widths[:1]:
            found = {name: self._layer(f"own_{name}", width, features) for name, features in found.items()}
        x = jnp.concatenate(list(found.values()), -1)
        for number, width in enumerate(self.widths[1:]):
            x = self._layer(f"mixing_{number}", width, x)
        return x

    def _layer(self, name: str, width: int, x: Array) -> Array:
        if self.noisy:
            return self.activation(NoisyDense(width, name=name)(x))
        return self.activation(nn.Dense(width, kernel_init=_orthogonal(2**0.5), name=name)(x))


def torso(
    space: gymnasium.Space,
    widths: Sequence[int] = (64, 64),
    activation: Callable[[Array], Array] = nn.tanh,
    noisy: bool = False,
    convolutions: Sequence[tuple[int, int, int]] = NATURE,
) -> nn.Module:
    """A torso for an observation space: `NatureCNN` for uint8 images, `MinAtarCNN` for grids, `MLP` for all else.

    A Dict or Tuple with an image or a grid among its parts has a torso for each of them (`Fusion`); the parts of any
    other are one vector. Images smaller than 36 x 36 are too small for these convolutions and get an `MLP` as well, and
    so do grids smaller than 8 x 8.

    Args:
        space: any space that `rl.spaces.encode` takes.
        widths: features of each layer of the `MLP` or `Fusion`.
        activation: of the `MLP` or `Fusion`.
        noisy: the dense layers are `NoisyDense`.
        convolutions: features, size and stride of those of `NatureCNN`.

    Raises:
        ValueError: for unsupported spaces.
    """
    widths = tuple(widths)
    if is_grid(space):
        return MinAtarCNN(noisy=noisy)
    if is_image(space):
        return _of_images(space, 512, noisy, convolutions)
    if not _has_pictures(space):
        return MLP(encode(space), widths, activation, noisy)

    def of_part(part: gymnasium.Space) -> nn.Module:  # without dense layers, where `Fusion` gives it one
        if is_image(part):
            return _of_images(part, None, noisy, convolutions)
        return torso(part, widths if _has_pictures(part) else (), activation, noisy, convolutions)

    if isinstance(space, spaces.Dict):
        return Fusion({name: of_part(part) for name, part in space.spaces.items()}, widths, activation, noisy)
    assert isinstance(space, spaces.Tuple)
    return Fusion(tuple(map(of_part, space.spaces)), widths, activation, noisy)


def _has_pictures(space: gymnasium.Space) -> bool:
    return has_image(space) or has_grid(space)


def independent(module: nn.Module) -> nn.Module:
    """A copy of a module that has parameters of its own throughout.

    `module.clone()` does not copy modules in the fields of a module: beside the original it would share theirs.

    Args:
        module: a module that is not bound.
    """

    def copied(value: Any) -> Any:
        if isinstance(value, nn.Module):
            return independent(value)
        if isinstance(value, Mapping):
            return {name: copied(part) for name, part in value.items()}
        return type(value)(map(copied, value)) if type(value) in (list, tuple) else value

    fields = {name: getattr(module, name) for name in module.__dataclass_fields__ if name not in ("parent", "name")}
    return module.clone(**{name: copied(value) for name, value in fields.items()})


def _of_images(
    space: gymnasium.Space, width: int | None, noisy: bool, convolutions: Sequence[tuple[int, int, int]]
) -> NatureCNN:
    channels_first = space.shape[0] < space.shape[-1]  # type: ignore[index]
    return NatureCNN(width, channels_first, noisy, convolutions)


class ActorCritic(nn.Module):
    """A policy head and a value head.

    Attributes:
        actor: torso of the policy head.
        critic: torso of the value head; None to use the actor's.
        outputs: number of outputs of the policy head.
        stds: number of standard deviations, whose logarithms are learned and the same in all states.
    """

    actor: nn.Module
    critic: nn.Module | None
    outputs: int
    stds: int

    @nn.compact
    def __call__(self, observation: Any) -> tuple[Array, Array, Array]:
        """Outputs of the policy [batch, outputs], log_std [stds], values [batch]."""
        features = self.actor(observation)
        outputs = nn.Dense(self.outputs, kernel_init=_orthogonal(0.01), name="policy")(features)
        log_std = self.param("log_std", nn.initializers.zeros, (self.stds,)) if self.stds else jnp.zeros(0)
        features = features if self.critic is None else self.critic(observation)
        value = nn.Dense(1, kernel_init=_orthogonal(1.0), name="value")(features)
        return outputs, log_std, value[..., 0]


class NoisyDense(nn.Module):
    """A dense layer whose noise is learned, for exploration; without a random key "noise" it is a plain one.

    The noise is factorized, and each example has its own.

    Attributes:
        features: outputs.
        std: σ₀, the noise at the start.

    Source: Fortunato et al. 2018, section 3.1 (b).
    """

    features: int
    std: float = 0.5

    @nn.compact
    def __call__(self, x: Float[Array, "*batch inputs"]) -> Float[Array, "*batch features"]:
        bound = x.shape[-1] ** -0.5
        uniform = lambda key, shape: jax.random.uniform(key, shape, minval=-bound, maxval=bound)  # noqa: E731
        scale = nn.initializers.constant(self.std * bound)
        shape = (x.shape[-1], self.features)
        kernel, bias = self.param("kernel", uniform, shape), self.param("bias", uniform, shape[1:])
        kernel_std, bias_std = self.param("kernel_std", scale, shape), self.param("bias_std", scale, shape[1:])
        y = x @ kernel + bias
        if not self.has_rng("noise"):
            return y
        keys = jax.random.split(self.make_rng("noise"))
        at_input = _signed_root(jax.random.normal(keys[0], x.shape))
        at_output = _signed_root(jax.random.normal(keys[1], y.shape))
        # The noise of a weight is a product of one number for its input and one for its output.
        return y + at_output * ((x * at_input) @ kernel_std + bias_std)


class Values(nn.Module):
    """Outputs for each action (`rl.value_heads`).

    Attributes:
        torso: network from observations to features.
        actions: number of actions.
        dueling: compute state value and advantages separately and add them (Wang et al. 2016, equation 9).
        outputs: numbers for each action.
        noisy: the layers of this module are `NoisyDense`.
        drawn: there are `levels` of quantiles, and an output for each of them (Dabney et al. 2018b, section 3.1).
    """

    torso: nn.Module
    actions: int
    dueling: bool = False
    outputs: int = 1
    noisy: bool = False
    drawn: bool = False

    @nn.compact
    def __call__(
        self, observation: Any, levels: Float[Array, "batch outputs"] | None = None
    ) -> Float[Array, "batch actions outputs"]:
        features = self.torso(observation)
        each = self.outputs
        if self.drawn:
            waves = jnp.cos(jnp.pi * jnp.arange(1, 65) * levels[..., None])  # type: ignore[index]
            features, each = features[:, None] * nn.relu(nn.Dense(features.shape[-1], name="levels")(waves)), 1
        values = self._layer(self.actions * each, "advantages" if self.dueling else "values", features)
        if self.dueling:
            values = self._layer(each, "value", features) + values - values.mean(-2, keepdims=True)
        return jnp.swapaxes(values[..., 0], -1, -2) if self.drawn else values

    def _layer(self, outputs: int, name: str, features: Array) -> Array:
        """[..., actions, each]"""
        layer = NoisyDense(outputs, name=name) if self.noisy else nn.Dense(outputs, name=name)
        each = 1 if self.drawn else self.outputs
        return layer(features).reshape(*features.shape[:-1], outputs // each, each)


def _signed_root(x: Array) -> Array:
    return jnp.sign(x) * jnp.sqrt(jnp.abs(x))


class Actor(nn.Module):
    """Outputs of a policy for continuous actions.

    Attributes:
        torso: network from observations to features.
        size: numbers in an action.
        spread: also output the logarithms of standard deviations, limited to [-20, 2].
    """

    torso: nn.Module
    size: int
    spread: bool = True

    @nn.compact
    def __call__(self, observation: Any) -> tuple[Float[Array, "batch size"], Float[Array, "batch size"]]:
        """Means, and log_std (zeros without `spread`)."""
        features = self.torso(observation)
        mean = nn.Dense(self.size, name="mean")(features)
        if not self.spread:
            return mean, jnp.zeros_like(mean)
        return mean, jnp.clip(nn.Dense(self.size, name="log_std")(features), -20.0, 2.0)


class StateDependentActor(nn.Module):
    """An `Actor` whose standard deviations come from its features: the noise is a linear function of them.

    Attributes:
        torso: network from observations to features.
        size: numbers in an action.
        log_std: at the start, of each weight of that function.

    Source: Raffin et al. 2021, equations 6 to 8.
    """

    torso: nn.Module
    size: int
    log_std: float = -3.0

    @nn.compact
    def __call__(
        self, observation: Any, weights: Float[Array, "batch features size"] | None = None
    ) -> tuple[Float[Array, "batch size"], Float[Array, "batch size"]]:
        """Means, and log_std; with standard normal `weights`, the means are moved by the noise that these make."""
        features = self.torso(observation)
        mean = nn.Dense(self.size, name="mean")(features)
        log_std = self.param("log_std", nn.initializers.constant(self.log_std), (features.shape[-1], self.size))
        fixed = jax.lax.stop_gradient(features)
        if weights is not None:
            mean = mean + jnp.einsum("bf,bfs->bs", fixed, weights * jnp.exp(log_std))
        return mean, 0.5 * jnp.log(fixed**2 @ jnp.exp(2 * log_std) + 1e-6)


class Critic(nn.Module):
    """A value of an observation and an action together, or several numbers that stand for its distribution.

    Attributes:
        torso: network from observations to features, to which the action is joined.
        widths: features of the layers after that.
        outputs: numbers per pair.
        normalized: the input and each layer's output are normalized over the batch (Bhatt et al. 2024), whose running
            statistics are the collection "batch_stats".
        training: normalize by the statistics of the batch, instead of the running ones.
    """

    torso: nn.Module
    widths: Sequence[int] = (256, 256)
    outputs: int = 1
    normalized: bool = False
    training: bool = False

    @nn.compact
    def __call__(self, observation: Any, action: Float[Array, "batch size"]) -> Float[Array, "batch outputs"]:
        x = self._normalized(jnp.concatenate([self.torso(observation), action], -1))
        for width in self.widths:
            x = self._normalized(nn.relu(nn.Dense(width)(x)))
        return nn.Dense(self.outputs, name="value")(x)

    def _normalized(self, x: Array) -> Array:
        if not self.normalized:
            return x
        return nn.BatchNorm(use_running_average=not self.training, momentum=0.99, epsilon=1e-3)(x)


def ensemble(critic: nn.Module, count: int) -> nn.Module:
    """Several critics of the same kind with parameters of their own; their outputs are [critic, batch, outputs].

    Args:
        critic: a module of a class such as `Critic`, unbound.
        count: how many.
    """
    fields = {name: getattr(critic, name) for name in critic.__dataclass_fields__ if name not in ("parent", "name")}
    several = nn.vmap(
        type(critic),
        variable_axes={"params": 0, "batch_stats": 0},
        split_rngs={"params": True},
        in_axes=None,  # type: ignore[arg-type]
        axis_size=count,
    )
    return several(**fields)
