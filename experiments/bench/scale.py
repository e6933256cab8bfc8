"""Two devices beside one at the same global batch, our modes beside the same by hand, checkpoints beside numpy.save.

    python -m experiments.bench.scale [--json] [--only devices by-hand checkpoints] [--rounds 7]

The devices are two parts of one CPU, which share its cores: what one device's program gains from both cores by itself
is what two devices have to make up for.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec

import jdl
from experiments.bench import loops
from experiments.bench.measure import Row, Worker, compared, interleaved, rate, seconds, serve, show, stepping
from experiments.bench.noise import measured
from jdl.parallel.pmap import mesh_of
from jdl.training.checkpoint.checkpoints import Checkpoints

DEVICES = 2
SECONDS = 2.0
NAMES = {"mlp": "MLP 784-512-512-10, batch 1024", "cnn": "CNN 28x28, batch 128", "ppo": "PPO on CartPole, 64 envs"}
BY_HAND = {"data": ["jit"], "pmap": ["shard_map", "jax.pmap"]}  # the equivalents of our modes
MEGABYTES = 500


def device_rows(rounds: int) -> list[Row]:
    """Updates a second on two devices, by each mode, beside one device."""
    rows = []
    for task, name in NAMES.items():
        rates = _rates(task, ["single", "data", "pmap"], rounds)
        for mode in ("data", "pmap"):
            rows.append(compared(f"{mode} on {DEVICES} / single: {name}", rates[mode], rates["single"], 0.9))
    return rows


def by_hand_rows(rounds: int) -> list[Row]:
    """Updates a second of our modes beside what a person would write with JAX alone."""
    rows = []
    for task in ("mlp", "cnn"):
        rates = _rates(task, [*BY_HAND, *(way for ways in BY_HAND.values() for way in ways)], rounds)
        for mode, ways in BY_HAND.items():
            for way in ways:
                rows.append(compared(f"{mode} / {way} by hand: {NAMES[task]}", rates[mode], rates[way], 0.9))
    return rows


def checkpoint_rows(rounds: int) -> list[Row]:
    """The stall, save and restore of a state of 500 MB, beside numpy.save and numpy.load of the same bytes."""
    state = {f"layer_{index}": jnp.full((250, 100_000), index, jnp.float32) for index in range(MEGABYTES // 100)}
    arrays = jax.device_get(state)
    with tempfile.TemporaryDirectory() as folder:
        checkpoints, step = Checkpoints(Path(folder) / "checkpoints"), iter(range(1, 10_000))
        stalls: list[float] = []

        def save() -> None:
            begin = time.perf_counter()
            checkpoints.save(next(step), state)
            stalls.append(time.perf_counter() - begin)
            checkpoints.wait()

        def plain_save() -> None:
            for name, array in arrays.items():
                with (Path(folder) / f"{name}.npy").open("wb") as file:
                    np.save(file, array)
                    os.fsync(file.fileno())  # ours are on the disk when they count as saved

        def plain_load() -> None:
            jax.block_until_ready({name: jnp.asarray(np.load(Path(folder) / f"{name}.npy")) for name in arrays})

        def restore() -> None:
            restored = checkpoints.restore(state)
            assert restored is not None
            jax.block_until_ready(restored.tree)

        save()
        plain_save()
        stalls.clear()
        measures = {"save": save, "plain save": plain_save, "restore": restore, "plain load": plain_load}
        found = interleaved({name: partial(seconds, measure) for name, measure in measures.items()}, rounds)
        stalls = sorted(stalls)[: len(found["save"])]
        checkpoints.close()
    rows = []
    for name, ours, plain, bar in (
        ("loop stands still", stalls, "plain save", 0.5),
        ("save", found["save"], "plain save", 2.0),
        ("restore", found["restore"], "plain load", 2.0),
    ):
        ratios = [one / other for one, other in zip(ours, found[plain], strict=True)]
        words = rate(ours, "s"), rate(found[plain], "s")
        label = f"{name}, {MEGABYTES} MB / numpy.{plain.split()[1]}"
        rows.append(Row(label, ratios, bar, *words, at_most=True))
    return rows


def _rates(task: str, sides: list[str], rounds: int) -> dict[str, list[float]]:
    workers = {side: Worker([sys.executable, "-m", "experiments.bench.scale", "--serve", task, side]) for side in sides}
    rates = interleaved(workers, rounds)
    for worker in workers.values():
        worker.close()
    return rates


def task_of(name: str) -> loops.Task:
    """What is trained."""
    task = loops.tasks()[name]
    return task._replace(batch_size=1024) if name == "mlp" else task


def ours(task: str, mode: str) -> tuple[Callable[[Any], Any], Any, int]:
    """A compiled call in one of our modes, its first state, and how many updates it makes."""
    if task == "ppo":
        import rl

        env = rl.envs.cartpole()
        learner = rl.on_device(rl.ppo(env.observation_space, env.action_space), env, 64)
        learner, data = jdl.scan(jdl.distribute(learner, mode), 5), None
    else:
        one = task_of(task)
        learner = jdl.distribute(loops.learner(one), mode)
        learner, data = jdl.scan(jdl.feed(learner, one.batch_size), one.per_call), one.data
    learner = jdl.jit(learner)
    state = learner.init(jax.random.key(0))
    if data is not None:
        data = jax.device_put(data, jax.tree.leaves(state)[-1].sharding)
    return lambda state: learner.step(state, data)[0], state, learner.steps


def by_hand(task: loops.Task, way: str) -> tuple[Callable[[Any], Any], Any, int]:
    """The same with Flax, Optax and JAX alone, spread over the devices in a given way."""
    init, _ = loops.by_hand(task)
    optimizer = optax.adam(1e-3)
    mesh = mesh_of(jax.devices(), "data")
    replicas = way != "jit"

    def step(state: Any, batch: Any) -> tuple[Any, Any]:
        def loss(params: Any) -> Any:
            logits: Any = task.model.apply(params, batch["input"])
            return optax.softmax_cross_entropy_with_integer_labels(logits, batch["target"]).mean()

        params, optimizer_state = state
        value, gradients = jax.value_and_grad(loss)(params)
        if replicas:
            value, gradients = jax.lax.pmean((value, gradients), "data")
        updates, optimizer_state = optimizer.update(gradients, optimizer_state, params)
        return (optax.apply_updates(params, updates), optimizer_state), value

    def epoch(data: Any, state: Any, key: Any) -> tuple[Any, Any]:
        order = jax.random.permutation(key, task.size)[: task.per_epoch * task.batch_size]
        rows = order.reshape(task.per_epoch, task.batch_size)
        if replicas:
            size = task.batch_size // DEVICES
            rows = jax.lax.dynamic_slice_in_dim(rows, jax.lax.axis_index("data") * size, size, 1)

        def one(state: Any, indices: Any) -> tuple[Any, Any]:
            batch = jax.tree.map(lambda leaf: leaf[indices], data)
            if not replicas:
                batch = jax.lax.with_sharding_constraint(batch, NamedSharding(mesh, PartitionSpec("data")))
            return step(state, batch)

        return jax.lax.scan(one, state, rows)

    def call(state: Any, data: Any) -> tuple[Any, Any]:
        state, key = state
        key, now = jax.random.split(key)
        state, losses = jax.lax.scan(partial(epoch, data), state, jax.random.split(now, task.epochs))
        return (state, key), losses

    state, same = (jax.jit(init)(jax.random.key(0)), jax.random.key(1)), PartitionSpec()
    if way == "jax.pmap":
        copies = jax.pmap(lambda _: (state, jax.tree.map(jnp.asarray, task.data)))(jnp.arange(DEVICES))
        compiled = jax.pmap(call, axis_name="data", donate_argnums=0)
        return lambda state: compiled(state, copies[1])[0], copies[0], task.per_call
    if way == "shard_map":
        call = jax.shard_map(call, mesh=mesh, in_specs=(same, same), out_specs=(same, same), check_vma=False)
    state, data = jax.device_put((state, task.data), NamedSharding(mesh, same))
    compiled = jax.jit(call, donate_argnums=0)
    return lambda state: compiled(state, data)[0], state, task.per_call


def work(task: str, side: str) -> None:
    """A worker's side."""
    jdl.host_devices(1 if side == "single" else DEVICES)
    ways = [way for several in BY_HAND.values() for way in several]
    call, state, updates = by_hand(task_of(task), side) if side in ways else ours(task, side)
    serve(stepping(lambda state: jax.block_until_ready(call(state)), state, updates, SECONDS))


def main() -> None:
    """The table."""
    kinds = {"devices": device_rows, "by-hand": by_hand_rows, "checkpoints": checkpoint_rows}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", nargs="*", default=list(kinds), choices=list(kinds))
    parser.add_argument("--serve", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        work(*options.serve)
        return
    rows = measured({kind: kinds[kind] for kind in options.only}, options.rounds)
    show(rows, f"{DEVICES} devices on {os.cpu_count()} cores", options.json)


if __name__ == "__main__":
    main()
