"""The loop and `scan`, beside a loop and a `lax.scan` written by hand with Flax and Optax alone."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import jdl
from experiments.bench.measure import Row, compared, interleaved, seconds
from jdl.core.metrics import Mean


class MLP(nn.Module):
    """Dense layers with rectifiers, and ten logits."""

    widths: tuple[int, ...]

    @nn.compact
    def __call__(self, x):
        x = x.reshape(len(x), -1)
        for width in self.widths:
            x = nn.relu(nn.Dense(width)(x))
        return nn.Dense(10)(x)


class CNN(nn.Module):
    """Two convolutions, each followed by pooling, and two dense layers."""

    @nn.compact
    def __call__(self, x):
        for features in (32, 64):
            x = nn.relu(jdl.nn.Conv(features, (3, 3))(x))
            x = jdl.nn.max_pool(x, (2, 2), (2, 2))
        x = nn.relu(nn.Dense(128)(x.reshape(len(x), -1)))
        return nn.Dense(10)(x)


class Task(NamedTuple):
    """What is trained, and how many steps are timed at once; a scan makes `epochs` epochs a dispatch."""

    name: str
    model: nn.Module
    data: dict[str, np.ndarray]
    steps: int
    epochs: int
    batch_size: int = 128

    @property
    def size(self) -> int:
        return len(self.data["target"])

    @property
    def per_epoch(self) -> int:
        return self.size // self.batch_size

    @property
    def per_call(self) -> int:
        return self.epochs * self.per_epoch

    @property
    def log_every(self) -> int:
        return min(self.steps, max(100, self.per_call) // self.per_call * self.per_call)


def images(count: int) -> dict[str, np.ndarray]:
    """Random images in the shape of Fashion-MNIST's."""
    random = np.random.default_rng(0)
    inputs = random.random((count, 28, 28, 1), np.float32)
    return {"input": inputs, "target": random.integers(0, 10, count).astype(np.int32)}


def tasks() -> dict[str, Task]:
    """The networks, by a short name."""
    digits = jdl.data.digits(split_seed=0).train
    return {
        "mlp": Task("MLP 784-512-512-10", MLP((512, 512)), images(12_800), 400, 1),
        "digits": Task("MLP 64-128-128-10, digits", MLP((128, 128)), digits, 2700, 100),
        "cnn": Task("CNN 28x28", CNN(), images(1_280), 30, 1),
    }


def learner(task: Task) -> jdl.Learner:
    """The framework's learner of a task."""
    return jdl.supervised(task.model, jdl.losses.cross_entropy, optax.adam(1e-3), example=task.data)


def by_hand(task: Task) -> tuple[Callable, Callable]:
    """The same in plain Flax and Optax: how a state starts, and one step; neither is compiled yet."""
    optimizer = optax.adam(1e-3)

    def init(key):
        params = task.model.init(key, jnp.zeros((1, *task.data["input"].shape[1:])))
        return params, optimizer.init(params)

    def step(state, batch):
        def loss(params):
            logits: Any = task.model.apply(params, batch["input"])
            return optax.softmax_cross_entropy_with_integer_labels(logits, batch["target"]).mean()

        params, optimizer_state = state
        value, gradients = jax.value_and_grad(loss)(params)
        updates, optimizer_state = optimizer.update(gradients, optimizer_state, params)
        return (optax.apply_updates(params, updates), optimizer_state), value

    return init, step


def hand_loop(task: Task) -> Callable[[], float]:
    """Steps per second of the loop that a person would write; it looks at its losses every `log_every` steps."""
    init, step = by_hand(task)
    init, step = jax.jit(init), jax.jit(step, donate_argnums=0)

    def train() -> None:
        random, order = np.random.default_rng(0), np.arange(task.size)
        state, losses = init(jax.random.key(0)), []
        for number in range(task.steps):
            place = number % task.per_epoch
            if place == 0:
                order = random.permutation(task.size)
            indices = order[place * task.batch_size : (place + 1) * task.batch_size]
            state, loss = step(state, {name: leaf[indices] for name, leaf in task.data.items()})
            losses.append(loss)
            if (number + 1) % task.log_every == 0:
                np.mean(jax.device_get(losses))
                losses.clear()
        jax.block_until_ready(state)

    return lambda: task.steps / seconds(train)


def our_loop(task: Task) -> Callable[[], float]:
    """Steps per second of `fit` over batches from memory."""
    return _fitting(task, jdl.jit(learner(task)), lambda: jdl.Batches(task.data, task.batch_size))


def our_scan_in_fit(task: Task) -> Callable[[], float]:
    """Steps per second of `fit` with `scan(feed(...))`."""
    training = jdl.jit(jdl.scan(jdl.feed(learner(task), task.batch_size), task.per_call))
    data = jax.device_put(task.data)
    return _fitting(task, training, lambda: data)


def _fitting(task: Task, training: jdl.Learner, source: Callable[[], Any]) -> Callable[[], float]:
    def measure() -> float:
        chosen = source()
        steps = -(-task.steps // training.steps) * training.steps
        train = partial(jdl.fit, training, chosen, steps=steps, log_every=min(task.log_every, steps))
        return steps / seconds(lambda: jax.block_until_ready(train().state))

    return measure


def our_scan(task: Task) -> Callable[[], float]:
    """Steps per second of `scan(feed(...))`, called as it is."""
    training = jdl.jit(jdl.scan(jdl.feed(learner(task), task.batch_size), task.per_call))
    return _calling(task, training.init, training.step)


def hand_scan(task: Task) -> Callable[[], float]:
    """Steps per second of a `lax.scan` over epochs, each a permutation drawn and gathered from on the device."""
    init, step = by_hand(task)

    def epoch(data, state, key):
        order = jax.random.permutation(key, task.size)[: task.per_epoch * task.batch_size]
        batches = order.reshape(task.per_epoch, task.batch_size)
        return jax.lax.scan(lambda s, i: step(s, jax.tree.map(lambda leaf: leaf[i], data)), state, batches)

    @partial(jax.jit, donate_argnums=0)
    def call(state, data):
        state, key = state
        key, now = jax.random.split(key)
        state, losses = jax.lax.scan(partial(epoch, data), state, jax.random.split(now, task.epochs))
        return (state, key), losses

    return _calling(task, jax.jit(lambda key: (init(key), jnp.copy(key))), call)


def _calling(task: Task, init: Callable, step: Callable) -> Callable[[], float]:
    data = jax.device_put(task.data)
    calls = -(-task.steps // task.per_call)

    def measure() -> float:
        state = jax.block_until_ready(init(jax.random.key(0)))

        def train() -> None:
            now = state
            for _ in range(calls):
                now, _ = step(now, data)
            jax.block_until_ready(now)

        return calls * task.per_call / seconds(train)

    return measure


def loop_rows(rounds: int) -> list[Row]:
    """`fit` against a loop by hand, and what the loop itself costs."""
    rows = []
    for task in tasks().values():
        rates = _rates({"ours": our_loop(task), "hand": hand_loop(task)}, rounds)
        rows.append(compared(f"fit / loop by hand: {task.name}", rates["ours"], rates["hand"], 0.97))
    return [*rows, overhead(rounds)]


def scan_rows(rounds: int) -> list[Row]:
    """`scan(feed(...))` against a `lax.scan` by hand, and against the loop."""
    rows = []
    for name, task in tasks().items():
        rates = _rates({"ours": our_scan(task), "hand": hand_scan(task)}, rounds)
        rows.append(compared(f"scan / lax.scan by hand: {task.name}", rates["ours"], rates["hand"], 1.0))
        rates = _rates({"scan": our_scan_in_fit(task), "loop": our_loop(task)}, rounds)
        bar = 1.0 if name == "cnn" else 1.1
        rows.append(compared(f"scan / fit's loop: {task.name}", rates["scan"], rates["loop"], bar))
    return rows


class Counter(NamedTuple):
    """The state of a learner that does next to nothing."""

    key: jax.Array
    step: jax.Array


class Same:
    """A source that gives the same batch for ever."""

    def __init__(self, batch: Any) -> None:
        self.batch = batch

    def next(self, state: Any) -> Any:
        return self.batch

    def save(self) -> dict:
        return {}

    def restore(self, saved: Any) -> None:
        pass


def overhead(rounds: int, steps: int = 20_000) -> Row:
    """Microseconds a step of `fit` beyond those of a bare loop over the same compiled step."""

    def step(state: Counter, batch: Any) -> tuple[Counter, dict[str, Mean]]:
        return Counter(state.key, state.step + 1), {"loss": Mean(batch.sum(), jnp.float32(1))}

    init = lambda key: Counter(jnp.copy(key), jnp.int32(0))  # noqa: E731
    training = jdl.jit(jdl.Learner(init, step, step))
    source = Same(jnp.zeros(8))

    def bare() -> None:
        state = training.init(jax.random.key(0))
        for _ in range(steps):
            state, _ = training.step(state, source.batch)
        jax.block_until_ready(state)

    fit = partial(jdl.fit, training, source, steps=steps)
    each = _rates({"fit": lambda: seconds(fit) / steps, "bare": lambda: seconds(bare) / steps}, rounds)
    costs = [(ours - least) * 1e6 for ours, least in zip(each["fit"], each["bare"], strict=True)]
    words = {name: f"{np.median(times) * 1e6:.1f} us" for name, times in each.items()}
    return Row("fit's own cost a step, in us", costs, 10.0, words["fit"], words["bare"], at_most=True)


def _rates(measures: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    for measure in measures.values():
        measure()  # compiles
    return interleaved(measures, rounds)
