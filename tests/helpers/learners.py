"""The learners that every transform is held to, tiny enough to compile in no time. To add one, add its name."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import jdl
from jdl.core.accumulators import Mean


class Case(NamedTuple):
    """A learner, data for it, and what is random or depends on the whole batch in its step."""

    learner: jdl.Learner
    data: dict[str, np.ndarray]
    random: bool = False
    batch_statistics: bool = False


def images(size=96, classes=3, seed=0):
    random = np.random.default_rng(seed)
    target = random.integers(0, classes, size).astype(np.int32)
    inputs = random.normal(size=(size, 5, 5, 1)) + target[:, None, None, None]
    return {"input": inputs, "target": target}


def vectors(size=96, seed=0):
    random = np.random.default_rng(seed)
    inputs = random.normal(size=(size, 4))
    return {"input": inputs, "target": inputs @ np.array([1.0, -2.0, 0.5, 0.0]) + 0.1 * random.normal(size=size)}


class Linear(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(1, param_dtype=x.dtype)(x)[:, 0]


class DropoutMLP(nn.Module):
    rate: float = 0.5

    @nn.compact
    def __call__(self, x, train: bool):
        x = nn.relu(nn.Dense(8, param_dtype=x.dtype)(x.reshape(len(x), -1)))
        x = nn.Dropout(self.rate, deterministic=not train)(x)
        self.sow("metrics", "activity", jnp.mean(x))
        return nn.Dense(3, param_dtype=x.dtype)(x)


class NormalizedCNN(nn.Module):
    @nn.compact
    def __call__(self, x, train: bool):
        x = jdl.nn.Conv(4, (3, 3), param_dtype=x.dtype)(x)
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9, param_dtype=x.dtype)(x)
        x = nn.relu(x).mean((1, 2))
        return nn.Dense(3, param_dtype=x.dtype)(x)


def linear() -> Case:
    data = vectors()
    learner = jdl.supervised(
        Linear(), jdl.losses.squared_error, optax.sgd(0.1), example=data, metrics={"fit": jdl.metrics.regression}
    )
    return Case(learner, data)


def mlp_dropout() -> Case:
    data = images()
    learner = jdl.supervised(
        DropoutMLP(),
        jdl.losses.cross_entropy,
        optax.adamw(1e-2, weight_decay=1e-2, mask=jdl.by_path("kernel$")),
        example=data,
        metrics={"accuracy": jdl.metrics.accuracy},
        average_decay=0.9,
    )
    return Case(learner, data, random=True)


def cnn_batch_norm() -> Case:
    data = images()
    learner = jdl.supervised(
        NormalizedCNN(),
        jdl.losses.cross_entropy,
        optax.sgd(0.1, momentum=0.9),
        example=data,
        metrics={"confusion": jdl.metrics.confusion},
        clip_norm=1.0,
    )

    def init(key):
        state = learner.init(key)  # Flax keeps running statistics in float32, which would hide in rounding
        return state.replace(collections=jax.tree.map(lambda a: a.astype(jnp.result_type(float)), state.collections))

    return Case(learner._replace(init=init), data, batch_statistics=True)


class Adversaries(NamedTuple):
    """The state of two networks with an optimizer each."""

    key: Any
    step: Any
    generator: Any
    critic: Any
    generator_optimizer: Any
    critic_optimizer: Any


class Critic(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(1, param_dtype=x.dtype)(nn.tanh(nn.Dense(6, param_dtype=x.dtype)(x)))[:, 0]


class Generator(nn.Module):
    @nn.compact
    def __call__(self, z):
        return nn.Dense(4, param_dtype=z.dtype)(nn.tanh(nn.Dense(6, param_dtype=z.dtype)(z)))


def adversarial() -> Case:
    """A toy GAN on vectors, some of which are padding; the latent codes come with the batch."""
    data = vectors()
    random = np.random.default_rng(1)
    data = {"input": data["input"], "latent": random.normal(size=(96, 2)), "mask": (random.random(96) < 0.7) * 1.0}
    data["mask"][:16] = 0  # a whole micro-batch of padding
    generator, critic = Generator(), Critic()
    optimizer, slower = optax.adam(1e-2), optax.sgd(1e-2)

    def init(key):
        g = generator.init(jdl.fold(key, "generator"), jnp.zeros((1, 2), jnp.result_type(float)))
        c = critic.init(jdl.fold(key, "critic"), jnp.zeros((1, 4), jnp.result_type(float)))
        return Adversaries(key, jnp.zeros((), jnp.int32), g, c, optimizer.init(g), slower.init(c))

    def step(state, batch):
        key = jdl.step_key(state)

        def critic_loss(params, batch, key):
            real = optax.sigmoid_binary_cross_entropy(critic.apply(params, batch["input"]), jnp.ones(()))
            false = optax.sigmoid_binary_cross_entropy(
                critic.apply(params, generator.apply(state.generator, batch["latent"])), jnp.zeros(())
            )
            return ((real + false) * batch["mask"]).sum(), batch["mask"].sum()

        grads, critic_mean, _ = jdl.gradients(critic_loss, state.critic, batch, jdl.fold(key, "critic"))
        updates, critic_optimizer = slower.update(grads, state.critic_optimizer)
        new_critic = optax.apply_updates(state.critic, updates)

        def generator_loss(params, batch, key):
            verdict = critic.apply(new_critic, generator.apply(params, batch["latent"]))
            losses = optax.sigmoid_binary_cross_entropy(verdict, jnp.ones(()))
            return (losses * batch["mask"]).sum(), batch["mask"].sum(), {"verdict": Mean.of(verdict, batch["mask"])}

        grads, generator_mean, extra = jdl.gradients(generator_loss, state.generator, batch, jdl.fold(key, "generator"))
        updates, generator_optimizer = optimizer.update(grads, state.generator_optimizer)
        new_generator = optax.apply_updates(state.generator, updates)
        state = Adversaries(state.key, state.step + 1, new_generator, new_critic, generator_optimizer, critic_optimizer)
        return state, {"critic": critic_mean, "generator": generator_mean, **extra}

    def evaluate(state, batch):
        return {"verdict": Mean.of(critic.apply(state.critic, batch["input"]), batch["mask"])}

    return Case(jdl.Learner(init, step, evaluate), data)


CASES = {"linear": linear, "mlp_dropout": mlp_dropout, "cnn_batch_norm": cnn_batch_norm, "adversarial": adversarial}


def in_precision(data, dtype):
    """Data with its floating arrays in one precision."""
    return jax.tree.map(lambda a: a.astype(dtype) if np.issubdtype(a.dtype, np.floating) else a, data)
