"""Decision transformer (Chen et al. 2021): a sequence model that continues an episode so that it reaches a return.

A window of K steps is a sequence of 3K tokens, R̂ₜ, sₜ, aₜ for each step, where R̂ₜ is the return to go:

    R̂ₜ = rₜ + rₜ₊₁ + ... + r_T

The token of sₜ predicts aₜ. Acting begins with the return that is wanted, and takes from it what has been received.
"""

import functools
from typing import Any, NamedTuple, cast

import flax.linen as nn
import gymnasium
import jax
import jax.numpy as jnp
import optax
from gymnasium import spaces
from jaxtyping import Array, Bool, Float, Int, PyTree

import jdl
from jdl.core.update import apply_gradients
from rl import normalize
from rl.bounds import bounds
from rl.networks import MLP, torso
from rl.normalize import Moments
from rl.off_policy import check_counts, own_part
from rl.offline.learner import OfflineAgent
from rl.spaces import encode, has_grid, has_image, zeros
from rl.types import Algorithm, TimeStep


class Window(NamedTuple):
    """The last K steps, the newest at the end; what is before the episode's beginning is masked.

    Attributes:
        observation: leaves [batch, K, ...].
        action: [batch, K, ...]; the newest is not known yet when acting.
        return_to_go: [batch, K].
        time: [batch, K], int32; steps since the beginning of the episode.
        mask: [batch, K], bool; True for steps that exist.
    """

    observation: Any
    action: Any
    return_to_go: Float[Array, "batch context"]
    time: Int[Array, "batch context"]
    mask: Bool[Array, "batch context"]


class SequenceModel(nn.Module):
    """The transformer of a window.

    Attributes:
        torso: network from observations to features.
        outputs: numbers that stand for an action.
        max_steps: steps of the longest episode.
        width: features of a token.
        num_layers: blocks.
        num_heads: heads of attention.
        dropout: dropout rate.
    """

    torso: nn.Module
    outputs: int
    max_steps: int
    width: int = 128
    num_layers: int = 3
    num_heads: int = 1
    dropout: float = 0.1

    @nn.compact
    def __call__(
        self, window: Window, actions: Float[Array, "batch context size"], train: bool = False
    ) -> Float[Array, "batch context outputs"]:
        """What each step's action is expected to be.

        Args:
            window: its actions are not used.
            actions: the actions as vectors.
            train: apply dropout.
        """
        batch, context = window.mask.shape
        flat = jax.tree.map(lambda leaf: jnp.reshape(leaf, (batch * context, *leaf.shape[2:])), window.observation)
        features = self.torso(flat).reshape(batch, context, -1)
        place = nn.Embed(self.max_steps, self.width, name="time")(jnp.minimum(window.time, self.max_steps - 1))
        tokens = [
            nn.Dense(self.width, name=name)(given) + place
            for name, given in (("return", window.return_to_go[..., None]), ("state", features), ("action", actions))
        ]
        x = jnp.stack(tokens, 2).reshape(batch, 3 * context, self.width)
        x = nn.Dropout(self.dropout, deterministic=not train)(nn.LayerNorm()(x))
        block = functools.partial(
            jdl.nn.TransformerBlock,
            num_heads=self.num_heads,
            features=4 * self.width,
            causal=True,
            activation=nn.relu,
            dropout=self.dropout,
            kernel_init=nn.initializers.normal(0.02),
        )
        mask = jnp.repeat(window.mask, 3, 1)[:, None, None]
        x = jdl.nn.Stack(block, self.num_layers, name="blocks")(x, mask=mask, train=train)
        return nn.Dense(self.outputs, name="policy")(nn.LayerNorm()(x)[:, 1::3])


def decision_transformer(
    observation_space: gymnasium.Space,
    action_space: gymnasium.Space,
    network: nn.Module | None = None,
    *,
    target_return: float,
    return_scale: float,
    max_steps: int,
    optimizer: optax.GradientTransformation | None = None,
    context: int = 20,
    width: int = 128,
    num_layers: int = 3,
    num_heads: int = 1,
    dropout: float = 0.1,
    moments: Moments | None = None,
) -> Algorithm:
    """A decision transformer for Discrete or Box actions; its learner needs the same `context` (`rl.offline.learner`).

    Args:
        observation_space: any space that `rl.networks.torso` or the given network takes.
        action_space: Discrete, or Box of floating-point numbers.
        network: network from observations to features; by default a layer, or `rl.networks.NatureCNN` for pictures.
        target_return: the return that it tries to reach when it acts.
        return_scale: returns are divided by it, so that they are of the order of 1.
        max_steps: steps of the longest episode.
        optimizer: by default AdamW(1e-4), with a warm-up of 1,000 updates and gradients clipped to a norm of 0.25.
        context: K, steps that it sees.
        width: features of a token.
        num_layers: blocks.
        num_heads: heads of attention.
        dropout: dropout rate.
        moments: of the recorded observations, which normalize them (`Dataset.moments()`).

    Raises:
        ValueError: for other actions, for counts below 1, and for a `return_scale` that is not above 0.

    Source: Chen et al. 2021, algorithm 1 and appendix A.
    """
    check_counts("decision_transformer", context=context, max_steps=max_steps, num_layers=num_layers)
    if not return_scale > 0:
        raise ValueError(f"decision_transformer(return_scale={return_scale}): above 0")
    if optimizer is None:
        warm = optax.linear_schedule(0.0, 1e-4, 1000)
        optimizer = optax.chain(optax.clip_by_global_norm(0.25), optax.adamw(warm, weight_decay=1e-4))
    discrete = isinstance(action_space, spaces.Discrete)
    box = None if discrete else bounds(action_space)
    size = int(action_space.n) if discrete else cast(Any, box).size
    if network is None:
        pictures = has_image(observation_space) or has_grid(observation_space)
        network = torso(observation_space) if pictures else MLP(encode(observation_space), ())
    model = SequenceModel(network, size, max_steps, width, num_layers, num_heads, dropout)

    def empty(batch: int) -> Window:
        observation, action = (
            jax.tree.map(jnp.asarray, zeros(space, batch, context)) for space in (observation_space, action_space)
        )
        nothing = jnp.zeros((batch, context))
        return Window(observation, action, nothing, nothing.astype(jnp.int32), nothing.astype(bool))

    def vectors(action: Array) -> Array:
        """Actions [batch, K, ...] as vectors."""
        if box is None:
            return jax.nn.one_hot(action, size)
        flat = box.units(action.reshape(-1, *action.shape[2:]))
        return flat.reshape(*action.shape[:2], size)

    def init(key: Array) -> OfflineAgent:
        window = empty(1)
        params = model.init(key, window, vectors(window.action))["params"]
        kept = jax.tree.map(jnp.asarray, moments)
        # What it aims at travels with the agent, as the moments do.
        aim = {"return": jnp.float32(target_return), "scale": jnp.float32(return_scale)}
        return OfflineAgent(params, aim, optimizer.init(params), jnp.zeros((), jnp.int32), kept)

    def seen(agent: OfflineAgent, observation: Any) -> Any:
        return observation if agent.observations is None else normalize.normalized(agent.observations, observation)

    def act(
        agent: OfflineAgent, carry: Window, timestep: TimeStep, key: Array, greedy: bool
    ) -> tuple[Any, Window, tuple[()]]:
        if timestep.reward is None:
            raise ValueError(
                "a decision transformer needs the last reward to act: TimeStep(..., reward=...), as rl.evaluate gives"
            )
        begins, scale = timestep.first, agent.target["scale"]
        kept = jnp.where(begins[:, None], False, carry.mask)
        wanted = jnp.where(begins, agent.target["return"], carry.return_to_go[:, -1] * scale - timestep.reward)
        time = jnp.where(begins, 0, carry.time[:, -1] + 1)
        window = Window(
            jax.tree.map(_shifted, carry.observation, seen(agent, timestep.observation)),
            _shifted(carry.action, jnp.zeros_like(carry.action[:, 0])),
            _shifted(carry.return_to_go, wanted / scale),
            _shifted(carry.time, time),
            _shifted(kept, jnp.ones_like(begins)),
        )
        outputs = model.apply({"params": agent.params}, window, vectors(window.action))[:, -1]  # type: ignore[index]
        if box is None:
            allowed = outputs if timestep.action_mask is None else jnp.where(timestep.action_mask, outputs, -1e9)
            action = allowed.argmax(-1) if greedy else jax.random.categorical(key, allowed)
        else:
            action = box.action(box.unit(outputs))
        return action, window._replace(action=window.action.at[:, -1].set(action)), ()

    def update(agent: OfflineAgent, batch: dict[str, Any], key: Array) -> tuple[OfflineAgent, dict[str, Any]]:
        if not isinstance(batch, dict) or "mask" not in batch or batch["mask"].shape[1:] != (context,):
            raise ValueError(
                f"a decision transformer learns from windows of {context} recorded steps: "
                f"rl.offline.learner(algorithm, space, context={context}) with dataset.transitions"
            )
        window = Window(
            seen(agent, batch["observation"]),
            batch["action"],
            batch["return_to_go"] / agent.target["scale"],
            batch["time"],
            batch["mask"],
        )
        part = own_part(window, len(window.mask))
        grads, mean, _ = jdl.gradients(loss, agent.params, part, key, separable=dropout == 0)
        params, state = apply_gradients(optimizer, grads, agent.optimizer, agent.params, mean, loss, part, key)
        return OfflineAgent(params, agent.target, state, agent.updates + 1, agent.observations), {"loss": mean}

    def loss(params: PyTree, window: Window, key: Array) -> tuple[Array, Array]:
        actions = vectors(window.action)
        outputs = cast(
            Array, model.apply({"params": params}, window, actions, train=dropout > 0, rngs={"dropout": key})
        )
        if box is None:
            each = optax.softmax_cross_entropy(outputs, actions)
        else:
            each = ((box.unit(outputs) - actions) ** 2).mean(-1)
        return (each * window.mask).sum(), window.mask.sum().astype(jnp.float32)

    return Algorithm(init, empty, act, update, 1)


def _shifted(leaf: Array, new: Any) -> Array:
    """[batch, K, ...] with everything one step earlier, and the new step at the end."""
    return jnp.concatenate([leaf[:, 1:], jnp.asarray(new, leaf.dtype)[:, None]], 1)
