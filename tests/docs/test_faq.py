"""Each message that the FAQ quotes is provoked, and is what the page says."""

import re
import warnings
from pathlib import Path

import flax.linen as nn
import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jdl
import jdl.core.runs_axis
import jdl.experiment.find
import rl
import rl.replay.replay

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "faq.md").read_text()
QUOTES = re.findall(r"^```text\n(.*?)\n```$", PAGE, re.DOTALL | re.MULTILINE)
IMAGES = {"input": np.zeros((64, 8, 8, 1), np.float32), "target": np.zeros(64, np.int32)}


def learner(loss=jdl.losses.cross_entropy, model=None):
    metrics = {"accuracy": jdl.metrics.accuracy}
    return jdl.supervised(model or jdl.nn.MLP((10,)), loss, optax.sgd(0.1), example=IMAGES, metrics=metrics)


def step(learner, batch):
    """Trace one step; nothing is compiled."""
    jax.eval_shape(learner.step, jax.eval_shape(learner.init, jax.random.key(0)), batch)


def averaged_loss():
    step(learner(lambda logits, batch: jdl.losses.cross_entropy(logits, batch).mean()), IMAGES)


def no_channel():
    step(learner(), IMAGES | {"input": IMAGES["input"][..., 0]})


def bytes_for_numbers():
    step(learner(), IMAGES | {"input": IMAGES["input"].astype(np.uint8)})


def labels_from_one():
    data = IMAGES | {"target": np.arange(64, dtype=np.int32) % 10 + 1}
    jdl.fit(jdl.feed(learner(), 64), data, steps=1)


def one_hot_labels():
    jdl.losses.cross_entropy(jnp.zeros((64, 10)), {"target": jnp.zeros((64, 10))})


def not_finite():
    jdl.data.check({"input": np.full((1257, 8, 8, 1), np.nan, np.float32)})


def arrays_for_a_learner_that_draws_none():
    jdl.fit(learner(), IMAGES, steps=1)


def not_a_multiple():
    jdl.fit(jdl.scan(jdl.feed(learner(), 64), 19), IMAGES, steps=1000)


def feed_around_seeds():
    jdl.feed(jdl.seeds(learner(), 2), 64)


def unknown_metric():
    jdl.fit(jdl.feed(learner(), 64), IMAGES, steps=1, validation=IMAGES, monitor="val_loss")


def counting(loss):
    """A learner that only counts; `loss` maps the step to what is measured."""

    def step(state, batch):
        measured = jdl.metrics.Mean.of(jnp.asarray(loss(state["step"]))[None])
        return state | {"step": state["step"] + 1}, {"loss": measured}

    return jdl.Learner(lambda key: {"key": key, "step": jnp.zeros((), jnp.int32)}, step, lambda state, batch: {})


def run_directory_exists():
    source = jdl.Batches(IMAGES, 64)
    for _ in range(2):
        jdl.fit(counting(lambda step: 1.0), source, steps=1, run="runs/a")


def diverged():
    jdl.fit(counting(lambda step: jnp.where(step == 4, jnp.nan, 1.0)), jdl.Batches(IMAGES, 64), steps=5)


def donated():
    compiled = jdl.jit(learner())
    state = compiled.init(jax.random.key(0))
    for _ in range(2):
        compiled.step(state, IMAGES)


def seeds_on_one_core(monkeypatch):
    monkeypatch.setattr(jdl.core.runs_axis, "cores", lambda: 2)
    monkeypatch.setattr(jax, "local_device_count", lambda: 1)
    step(jdl.seeds(learner(), 2), IMAGES)


def devices_asked_for_too_late(monkeypatch):
    jax.devices()
    monkeypatch.setattr(jax, "local_device_count", lambda: 1)
    jdl.host_devices(2)


class Plain(nn.Module):
    @nn.compact
    def __call__(self, images):
        return nn.Dense(10)(nn.Conv(4, (3, 3))(images).reshape(len(images), -1))


def slow_convolution():
    step(jdl.scan(jdl.feed(learner(model=Plain()), 64), 2), IMAGES)


def misspelt_experiment(monkeypatch):
    monkeypatch.chdir(ROOT)
    jdl.experiment.find.find("dnq")


def no_experiment():
    Path("moons.py").write_text("")
    jdl.experiment.find.find("moons.py")


def run_of_a_script():
    jdl.fit(counting(lambda step: 1.0), jdl.Batches(IMAGES, 64), steps=1, run="runs/a")
    _ = jdl.load("runs/a").state


def too_few_devices(monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    step(jdl.distribute(learner(), "data", "8"), IMAGES)


def continuous_actions():
    env = rl.envs.make("Pendulum-v1")
    rl.dqn(env.observation_space, env.action_space, num_envs=8)


def no_twin():
    rl.envs.make("LunarLander-v3")


def evaluated_on_the_host():
    envs = gymnasium.make_vec("CartPole-v1", 1, vectorization_mode="sync")
    learner, source = rl.on_host(rl.a2c(envs.single_observation_space, envs.single_action_space), envs)
    source.close()
    learner.evaluate(None, None)


def replay_too_large(monkeypatch):
    monkeypatch.setattr(rl.replay.replay, "free_memory", lambda *_: 22_221_850_000)
    frames, actions = gymnasium.spaces.Box(0, 255, (4, 84, 84), np.uint8), gymnasium.spaces.Discrete(4)
    rl.dqn(frames, actions, num_envs=1, capacity=100_000_000).init(jax.random.key(0))


def old_name():
    env = rl.envs.make("CartPole-v1")
    rl.ppo(env.observation_space, env.action_space, rollout=8)


PROVOKE = {
    "the loss has shape": averaged_loss,
    "batch['input'] has shape": no_channel,
    "target has labels": labels_from_one,
    'batch["target"] is float32': one_hot_labels,
    "data['input'] has 80448": not_finite,
    "fit was given arrays": arrays_for_a_learner_that_draws_none,
    "steps=1000 is no multiple": not_a_multiple,
    "feed goes inside": feed_around_seeds,
    "monitor='val_loss'": unknown_metric,
    "the run directory": run_directory_exists,
    "RuntimeWarning: the run diverged": diverged,
    "RuntimeError: Array has been deleted": donated,
    "UserWarning: seeds: 2 runs": seeds_on_one_core,
    "UserWarning: scan: the weight gradients": slow_convolution,
    "there is no experiment": misspelt_experiment,
    "TypeError: moons.py": no_experiment,
    ".../runs/a was not made": run_of_a_script,
    "mesh 8 needs": too_few_devices,
    "the action space Box": continuous_actions,
    "there is no JAX environment": no_twin,
    "a learner on the host": evaluated_on_the_host,
    "a replay of": replay_too_large,
    "FutureWarning: ppo": old_name,
}
INLINE = {
    "has type uint8, the learner was made for float32": bytes_for_numbers,
    "JAX already runs with 1 CPU device(s)": devices_asked_for_too_late,
}


def message(provoke, monkeypatch):
    """What an exception or a warning of the function says, with its type before it."""
    arguments = [monkeypatch] * provoke.__code__.co_argcount
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(Exception) as raised:  # noqa: PT011
            provoke(*arguments)
    return f"{type(raised.value).__name__}: {raised.value}"


@pytest.mark.parametrize("quote", QUOTES, ids=lambda quote: quote[:40])
def test_a_quoted_message_is_what_one_gets(quote, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (provoke,) = (function for start, function in PROVOKE.items() if quote.startswith(start))
    pattern = re.escape(quote).replace(re.escape("..."), ".*")
    said = message(provoke, monkeypatch)
    assert re.fullmatch(rf"(\w+: )?{pattern}", said), f"the page says:\n{quote}\nthe message is:\n{said}"


@pytest.mark.parametrize("quote", INLINE)
def test_a_message_quoted_within_a_sentence_is_a_part_of_what_one_gets(quote, monkeypatch):
    assert f"`{quote}`" in " ".join(PAGE.split())
    assert quote in message(INLINE[quote], monkeypatch)


def test_the_page_still_quotes_each_message():
    assert [start for start in PROVOKE if not any(quote.startswith(start) for quote in QUOTES)] == []
