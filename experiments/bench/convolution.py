"""Training steps of a small convolutional network on a CPU: XLA's gradients against `jdl.nn`'s.

Command: `python -m experiments.bench.convolution [--json]` (about 70 seconds).

Every variant trains the same network (3x3x32 and 3x3x64 convolutions, each with a 2x2 maximum, and a dense layer) on a
batch of 128 images, by plain gradient descent. Variants take turns in one process. `loop` is one compiled step a
dispatch, `scan` ten steps, `seeds` four runs of ten steps under `lax.map`. `XLA` is Flax's own layers, `conv` replaces
the convolution and `ours` the pooling too.

Expected on 2 cores: `loop conv` level with `loop XLA` (0.95 to 1.05), `loop ours` at twice it (XLA's gradient
of max pooling costs more than the convolutions), `scan ours` and `seeds ours` at 4 times it at 28x28 and at
twice it at 8x8, `scan XLA` at 0.04 to 0.15.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax

from experiments.bench import noise
from experiments.bench.measure import Row, compared, interleaved, show
from jdl.nn import Conv, max_pool

BATCH = 128
STEPS = 10
SEEDS = 4


class Network(nn.Module):
    """Two convolutions, each followed by pooling, and a dense layer."""

    layer: Any
    pool: Any

    @nn.compact
    def __call__(self, x):
        for features in (32, 64):
            x = nn.relu(self.layer(features, (3, 3))(x))
            x = self.pool(x, (2, 2), strides=(2, 2))
        return nn.Dense(10)(x.reshape(x.shape[0], -1))


class Variant(NamedTuple):
    """A compiled program that returns its new parameters, and how many training steps it makes."""

    run: Callable
    variables: Any
    steps: int

    def seconds(self) -> float:
        """Time one call, in seconds per training step."""
        begin = time.perf_counter()
        jax.block_until_ready(self.run(self.variables))
        return (time.perf_counter() - begin) / self.steps


def variants(size: int) -> dict[str, Variant]:
    """Compile every way to train on images of this size; XLA's scan makes two steps, being slow."""
    random = np.random.default_rng(0)
    images = jnp.asarray(random.normal(size=(BATCH, size, size, 1)), jnp.float32)
    labels = jnp.asarray(random.integers(0, 10, BATCH))

    def step(network, images, labels, variables):
        def loss(variables):
            chosen = jax.nn.log_softmax(network.apply(variables, images))
            return -jnp.take_along_axis(chosen, labels[:, None], 1).mean()

        return jax.tree.map(lambda p, g: p - 0.01 * g, variables, jax.grad(loss)(variables))

    def many(network, steps, images, labels, variables):
        def body(variables, _):
            return step(network, images, labels, variables), None

        return lax.scan(body, variables, None, length=steps)[0]

    def seeds(network, images, labels, variables):
        return lax.map(partial(many, network, STEPS, images, labels), variables)

    kinds = {"XLA": (nn.Conv, nn.max_pool), "conv": (Conv, nn.max_pool), "ours": (Conv, max_pool)}
    made = {}
    for name, (layer, pool) in kinds.items():
        network = Network(layer, pool)
        variables = network.init(jax.random.key(0), images)
        programs = {"loop": (partial(step, network), variables, 1)}
        scanned = 2 if name == "XLA" else STEPS
        programs["scan"] = (partial(many, network, scanned), variables, scanned)
        if name == "ours":
            runs = jax.vmap(lambda key, n=network: n.init(key, images))(jax.random.split(jax.random.key(0), SEEDS))
            programs["seeds"] = (partial(seeds, network), runs, STEPS * SEEDS)
        for way, (program, start, steps) in programs.items():
            # The data are arguments: as constants they would be folded at compile time.
            compiled = jax.jit(program)
            made[f"{way} {name}"] = Variant(partial(compiled, images, labels), start, steps)
    return made


def rows(size: int, rounds: int) -> list[Row]:
    """How many times as fast as the best of XLA's or as a loop; XLA's scan, which takes seconds, is measured once."""
    made = variants(size)
    for variant in made.values():
        variant.seconds()
    slow = made.pop("scan XLA")
    rates = {"scan XLA": [1 / slow.seconds()] * rounds}

    def measure(variant: Variant) -> float:
        # A loop is timed over as many dispatches as a scan makes steps.
        repeats = STEPS if variant.steps == 1 else 1
        return 1 / statistics.mean(variant.seconds() for _ in range(repeats))

    rates |= interleaved({name: partial(measure, variant) for name, variant in made.items()}, rounds)
    rates["best loop"] = [max(of) for of in zip(*(x for name, x in rates.items() if "loop" in name), strict=True)]
    return [
        compared(f"{size}x{size} {ours} / {reference}", rates[ours], rates[reference], bar)
        for ours, reference, bar in (
            ("loop conv", "loop XLA", 1.0),
            ("loop ours", "loop XLA", 1.0),
            ("scan XLA", "loop XLA", 0.0),  # why all this is needed
            ("scan ours", "best loop", 1.0),
            ("seeds ours", "best loop", 1.0),
        )
    ]


def main() -> None:
    """Measure, print the table and judge the ratios."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print the rows as JSON on the last line")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    found = noise.measured({f"{size}x{size}": partial(rows, size) for size in (28, 8)}, options.rounds)
    show(found, f"steps a second at batch {BATCH}", options.json)


if __name__ == "__main__":
    main()
