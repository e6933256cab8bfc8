"""Torsos with a memory, for environments whose observations alone do not tell the state.

A torso with a memory is a Flax module with two functions:

    initial_carry(batch) -> carry                                    what it remembers at the start of an episode: zeros
    __call__(carry, observation, first) -> (carries, features)       a sequence; leaves [time, batch, ...]

`carries` has the memory after each step, [time, batch, ...]. Where `first` is True an episode begins, and what was
remembered before is forgotten.
"""

from typing import Any, Literal, Protocol, runtime_checkable

import flax.linen as nn
import gymnasium
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from rl.networks import torso
from rl.types import Carry


@runtime_checkable
class Remembering(Protocol):
    """A torso with a memory."""

    def initial_carry(self, batch: int) -> Carry:
        """What it remembers at the start of an episode."""
        ...


class Memory(nn.Module):
    """A recurrent cell on the features of a torso.

    Attributes:
        torso: network from observations to features, without memory.
        width: numbers that are remembered, which are also the features.
        cell: "gru" or "lstm".
        gate_bias: added to what the gates of the cell are the sigmoid of. They begin half open where it is 0, and what
            was seen n steps ago has faded by 2⁻ⁿ; with the logarithm of n, most of it is left.

    Source: Tallec and Ollivier 2018, "Can recurrent neural networks warp time?", section 2, which draws it for each
    number and has the opposite sign in the input gate of an LSTM.
    """

    torso: nn.Module
    width: int = 64
    cell: Literal["gru", "lstm"] = "gru"
    gate_bias: float = 0.0

    def initial_carry(self, batch: int) -> Carry:
        """Zeros, [batch, width]; a pair of them for an LSTM."""
        zeros = jnp.zeros((batch, self.width))
        return (zeros, zeros) if self.cell == "lstm" else zeros

    @nn.compact
    def __call__(
        self, carry: Carry, observation: Any, first: Bool[Array, "time batch"]
    ) -> tuple[Carry, Float[Array, "time batch features"]]:
        time, batch = first.shape
        flat = jax.tree.map(lambda leaf: jnp.reshape(leaf, (time * batch, *jnp.shape(leaf)[2:])), observation)
        features = self.torso(flat).reshape(time, batch, -1)
        steps = nn.scan(_Step, variable_broadcast="params", split_rngs={"params": False})
        _, (carries, outputs) = steps(self.width, self.cell, self.gate_bias, name="cell")(carry, (features, first))
        return carries, outputs


class _Step(nn.Module):
    """One step of a cell that forgets where an episode begins."""

    width: int
    cell: str
    gate_bias: float

    @nn.compact
    def __call__(self, carry: Carry, now: tuple[Array, Array]) -> tuple[Carry, tuple[Carry, Array]]:
        features, first = now
        carry = jax.tree.map(lambda leaf: jnp.where(first[:, None], 0, leaf), carry)
        gate = nn.sigmoid if self.gate_bias == 0 else lambda x: nn.sigmoid(x + self.gate_bias)
        kind = nn.GRUCell if self.cell == "gru" else nn.OptimizedLSTMCell
        carry, output = kind(self.width, gate_fn=gate)(carry, features)
        return carry, (carry, output)


def memory(
    space: gymnasium.Space,
    width: int = 64,
    cell: Literal["gru", "lstm"] = "gru",
    widths: tuple[int, ...] = (64,),
    gate_bias: float = 0.0,
) -> Memory:
    """A memory on the usual torso for an observation space (`rl.networks.torso`).

    Args:
        space: any space that `rl.networks.torso` takes.
        width: numbers that are remembered.
        cell: "gru" or "lstm".
        widths: features of each layer below the cell.
        gate_bias: see `Memory`; for rewards that depend on something long ago, the logarithm of the steps since.

    Raises:
        ValueError: for unsupported spaces, and for an unknown cell.
    """
    if cell not in ("gru", "lstm"):
        raise ValueError(f'memory(cell={cell!r}): it is "gru" or "lstm"')
    return Memory(torso(space, widths), width, cell, gate_bias)


class RecurrentActorCritic(nn.Module):
    """A policy head and a value head on torsos with a memory.

    Attributes:
        actor: torso of the policy head.
        critic: torso of the value head; None to use the actor's.
        outputs: number of outputs of the policy head.
        stds: number of standard deviations, whose logarithms are learned and the same in all states.
    """

    actor: Any
    critic: Any
    outputs: int
    stds: int

    def initial_carry(self, batch: int) -> Carry:
        """What both torsos remember at the start of an episode."""
        return tuple(torso.initial_carry(batch) for torso in (self.actor, self.critic) if torso is not None)

    @nn.compact
    def __call__(self, carry: Carry, observation: Any, first: Bool[Array, "time batch"]) -> tuple[Any, ...]:
        """Carries after each step, outputs of the policy, log_std [stds], values; leaves [time, batch, ...]."""
        carries, features = self.actor(carry[0], observation, first)
        orthogonal = nn.initializers.orthogonal
        outputs = nn.Dense(self.outputs, kernel_init=orthogonal(0.01), name="policy")(features)
        log_std = self.param("log_std", nn.initializers.zeros, (self.stds,)) if self.stds else jnp.zeros(0)
        after = (carries,)
        if self.critic is not None:
            critic_carries, features = self.critic(carry[1], observation, first)
            after = (carries, critic_carries)
        value = nn.Dense(1, kernel_init=orthogonal(1.0), name="value")(features)
        return after, outputs, log_std, value[..., 0]
