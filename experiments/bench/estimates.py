"""How far the times of `jdl plan` are from measured ones, on this machine: its figures measured first, then steps.

    python -m experiments.bench.estimates [--json]

A plan is a bound: each part of a device busy all the time, beside the others. Measured over estimated is what is lost
to everything else: kernels that don't reach the peak, what lies between products, waiting.
"""

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import PartitionSpec
from rich.console import Console
from rich.table import Table

import jdl
from experiments.bench import loops
from experiments.text import char_lm
from experiments.vision import fashion_mnist
from jdl.parallel.hardware import Hardware
from jdl.parallel.plan import work
from jdl.parallel.pmap import mesh_of

DEVICES = 2
ROUNDS = 15
COLUMNS = ("step", "devices", "batch", "estimated", "bound", "measured", "ratio")


def best(program: Callable[[], Any]) -> float:
    """The least seconds of a call, of several: others use this machine, too."""
    jax.block_until_ready(program())
    times = []
    for _ in range(ROUNDS):
        begin = time.perf_counter()
        jax.block_until_ready(program())
        times.append(time.perf_counter() - begin)
    return min(times)


def here(devices: int) -> Hardware:
    """This machine's figures, for each of so many parts of it that work at once; all in single precision."""
    mesh = mesh_of(jax.devices()[:devices], "data")
    over = PartitionSpec("data")

    def spread(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
        return jax.jit(jax.shard_map(function, mesh=mesh, in_specs=over, out_specs=over, check_vma=False))

    size, count = 2048, 1 << 26
    square, row = jnp.ones((devices, size, size)), jnp.ones((devices, count // devices))
    product, increment = spread(lambda a: a @ a), spread(lambda a: a + 1)
    total = spread(lambda a: jax.lax.psum(a, "data"))
    flops = 2 * size**3 / best(lambda: product(square))
    bandwidth = 2 * row.nbytes / devices / best(lambda: increment(row))
    link = 2 * (devices - 1) / devices * row.nbytes / devices / best(lambda: total(row)) if devices > 1 else 1e12
    return Hardware("here", flops, 24e9, bandwidth, link, devices, link)


def learners() -> dict[str, tuple[jdl.Learner, int]]:
    """What is trained, and its batch."""
    mlp = loops.tasks()["mlp"]
    images = {"input": np.zeros((1, 28, 28, 1), np.float32), "target": np.zeros(1, np.int32)}
    resnet = jdl.nn.ResNet18(10, width=32, stem="cifar")
    return {
        "MLP 784-512-512-10": (loops.learner(mlp), 1024),
        "CNN of fashion_mnist": (fashion_mnist.learner(fashion_mnist.Config()), 100),
        "ResNet-18, width 32": (
            jdl.supervised(resnet, jdl.losses.cross_entropy, optax.adam(1e-3), example=images),
            100,
        ),
        "GPT of char_lm": (char_lm.learner(char_lm.Config()), 12),
        "GPT of char_lm, 96 sequences": (char_lm.learner(char_lm.Config()), 96),
    }


def measured(learner: jdl.Learner, batch_size: int) -> float:
    """Seconds of a step."""
    compiled = jdl.jit(learner, donate=False)
    random = np.random.default_rng(0)

    def filled(leaf: Any) -> np.ndarray:
        shape = (batch_size, *leaf.shape[1:])
        integers = np.issubdtype(leaf.dtype, np.integer)
        return (random.integers(0, 10, shape) if integers else random.random(shape)).astype(leaf.dtype)

    batch = jax.tree.map(filled, learner.traits.example)
    state = compiled.init(jax.random.key(0))
    return best(lambda: compiled.step(state, batch))


def main() -> None:
    """The table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    jdl.host_devices(DEVICES)
    table = Table("step", "devices", "batch", "estimated, ms", "bound", "measured, ms", "measured / estimated")
    rows = []
    for devices, mode in ((1, "single"), (DEVICES, "data")):
        machine = here(devices)
        Console().print(
            f"{devices} device(s): each {machine.flops / 1e9:,.0f} GFLOP/s, {machine.bandwidth / 1e9:,.1f} GB/s"
            + (f", sends {machine.link / 1e9:,.2f} GB/s" if devices > 1 else "")
        )
        for name, (learner, batch) in learners().items():
            planned = work(learner, mode, str(devices) if devices > 1 else "", batch).on(machine)
            found = measured(jdl.distribute(learner, mode, devices if devices > 1 else ""), batch)
            row = (name, devices, batch, planned.seconds, planned.bound, found, found / planned.seconds)
            rows.append(dict(zip(COLUMNS, row, strict=True)))
            words = (f"{1e3 * row[3]:,.1f}", row[4], f"{1e3 * row[5]:,.1f}", f"{row[6]:.2f}")
            table.add_row(name, str(devices), str(batch), *words)
    Console(width=140).print(table)
    if options.json:
        print(json.dumps({"rows": rows}))


if __name__ == "__main__":
    main()
