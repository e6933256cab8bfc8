"""How far the losses of each mode drift from those of one device in single precision, over 50 updates.

    python -m experiments.bench.drift

In double precision they agree to 1e-9 (`tests/parallel/test_modes.py`); what is left here is the order in which
numbers are added, which training then grows.
"""

import jax
import numpy as np
import optax
from rich.console import Console
from rich.table import Table

import jdl

STEPS = 50
MESHES = {"pmap": "8", "data": "8", "fsdp": "8", "tensor": "1x8", "fsdp+tensor": "4x2"}


def learners() -> dict[str, tuple[jdl.Learner, dict[str, np.ndarray]]]:
    """Networks and their data."""
    random = np.random.default_rng(0)
    labels, tokens = random.integers(0, 10, 512).astype(np.int32), random.integers(0, 64, (512, 32)).astype(np.int32)
    images = random.random((512, 16, 16, 3), np.float32)
    cases = {
        "MLP 784-512-512-10": (jdl.nn.MLP((512, 512, 10)), random.random((512, 784), np.float32), labels),
        "ResNet-18, width 16": (jdl.nn.ResNet18(10, width=16, stem="cifar"), images, labels),
        "GPT, 2 layers of 64": (jdl.nn.GPT(64, 32, 64, 2, 8), tokens, np.roll(tokens, -1, 1)),
    }
    found = {}
    for name, (model, inputs, targets) in cases.items():
        data = {"input": inputs, "target": targets}
        loss = jdl.losses.token_cross_entropy if targets.ndim > 1 else jdl.losses.cross_entropy
        found[name] = jdl.supervised(model, loss, optax.adam(1e-3), example=data), data
    return found


def losses(learner: jdl.Learner, data: dict[str, np.ndarray]) -> np.ndarray:
    """Of each update."""
    learner = jdl.jit(jdl.scan(jdl.feed(learner, 64), STEPS))
    _, metrics = learner.step(learner.init(jax.random.key(0)), data)
    return np.asarray(metrics["loss"].compute())


def main() -> None:
    """The table."""
    jdl.host_devices(8)
    table = Table("relative difference of the loss", *MESHES, title=f"single precision, after 10 and {STEPS} updates")
    for name, (learner, data) in learners().items():
        alone = losses(learner, data)
        drifts = []
        for mode, mesh in MESHES.items():
            difference = np.abs(losses(jdl.distribute(learner, mode, mesh), data) / alone - 1)
            drifts.append(f"{difference[9]:.1e}, {difference[-1]:.1e}")
        table.add_row(name, *drifts)
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
