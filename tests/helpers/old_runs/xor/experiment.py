"""XOR, the network that started it: 2-4-1 sigmoids, mean squared error, plain gradient descent.

Run:       jdl run xor --seeds 8        (about 3 seconds on 2 cores)
Expected:  accuracy 1.000 for every seed: all four points on the right side of 0.5
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import optax

import jdl

POINTS = {
    "input": np.array([[0, 0], [0, 1], [1, 0], [1, 1]], np.float32),
    "target": np.array([[0], [1], [1], [0]], np.float32),
}


@dataclasses.dataclass(frozen=True)
class Config:
    """Hyper-parameters."""

    hidden: int = 4
    learning_rate: float = 5.0
    steps: int = 5000


class SigmoidNetwork(nn.Module):
    """Two layers of sigmoids, weights drawn from the unit normal as in the classic tutorial."""

    hidden: int

    @nn.compact
    def __call__(self, x):
        x = nn.sigmoid(nn.Dense(self.hidden, kernel_init=nn.initializers.normal(1.0))(x))
        return nn.sigmoid(nn.Dense(1, kernel_init=nn.initializers.normal(1.0))(x))


def right_side(outputs: Any, batch: Any) -> jdl.metrics.Mean:
    """The share of outputs on the target's side of one half."""
    return jdl.metrics.Mean.of(jnp.all((outputs > 0.5) == (batch["target"] > 0.5), axis=-1).astype(outputs.dtype))


def learner(config: Config) -> jdl.Learner:
    """One run."""
    return jdl.supervised(
        SigmoidNetwork(config.hidden),
        jdl.losses.squared_error,
        optax.sgd(config.learning_rate),
        example=POINTS,
        metrics={"accuracy": right_side},
    )


def main(config: Config, run: jdl.Run) -> dict[str, Any]:
    """Train on all four points at once, every step."""
    training = jdl.jit(jdl.seeds(jdl.scan(jdl.feed(learner(config), 4), 100), run.seeds))
    fitted = jdl.fit(training, POINTS, steps=config.steps, run=run)
    return jdl.evaluate(training, fitted.state, POINTS)
