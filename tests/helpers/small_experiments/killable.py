"""A small network with dropout, an average and early stopping, slow enough to be killed at any moment."""

import dataclasses
import time

import flax.linen as nn
import optax

import jdl


@dataclasses.dataclass(frozen=True)
class Config:
    """Hyper-parameters."""

    steps: int = 600
    pause: float = 0.01  # seconds after each row of the log
    width: int = 32


class Network(nn.Module):
    width: int

    @nn.compact
    def __call__(self, x, train: bool):
        x = nn.relu(nn.Dense(self.width)(x.reshape(len(x), -1)))
        x = nn.BatchNorm(use_running_average=not train)(x)
        return nn.Dense(10)(nn.Dropout(0.2, deterministic=not train)(x))


def learner(config):
    return jdl.supervised(
        Network(config.width),
        jdl.losses.cross_entropy,
        optax.adam(1e-3),
        example=jdl.data.digits().train,
        metrics={"accuracy": jdl.metrics.accuracy},
        average_decay=0.99,
    )


def main(config, run):
    data = jdl.data.digits(fractions=(0.7, 0.1, 0.2))
    training = jdl.jit(jdl.seeds(jdl.scan(jdl.feed(learner(config), 32), 5), run.seeds))
    fitted = jdl.fit(
        training, data.train, steps=config.steps, log_every=10, evaluate_every=20, checkpoint_every=25,
        validation=data.validation, monitor=jdl.Monitor("accuracy", "max", patience=1000), run=run,
        callbacks=[lambda row, state: time.sleep(config.pause)],
    )  # fmt: skip
    return jdl.evaluate(training, fitted.best, data.test)
