"""One update of SAC, TQC, CrossQ and TD3 beside the papers' equations, written anew here on the networks' arrays."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from one_update import ACTIONS, BATCH, OPTIONS, RATE, SEEN, TAU, updated

import rl

QUANTILES, DROP = 5, 2
LAYERS = "BatchNorm_0", "BatchNorm_1"  # of CrossQ's critics


class Same(nn.Module):
    """The features are the observation."""

    @nn.compact
    def __call__(self, observation):
        return observation


def dense(params, x):
    return x @ params["kernel"] + params["bias"]


def critic(params, observation, action):
    """[critic, batch, outputs]: one hidden layer with ReLU on the observation and the action together."""
    both = jnp.concatenate([observation, action], 1)
    each = [jax.tree.map(lambda leaf, i=i: leaf[i], params) for i in range(len(jax.tree.leaves(params)[0]))]
    return jnp.stack([dense(one["value"], jnp.maximum(dense(one["Dense_0"], both), 0)) for one in each])


def gaussian(actor, observation, noise):
    """An action and its log-probability: appendix C of Haarnoja et al. 2018b."""
    mean, log_std = dense(actor["mean"], observation), jnp.clip(dense(actor["log_std"], observation), -20, 2)
    u = mean + jnp.exp(log_std) * noise
    normal = -0.5 * noise**2 - log_std - 0.5 * jnp.log(2 * jnp.pi)
    return jnp.tanh(u), (normal + 2 * jnp.log(jnp.cosh(u))).sum(1)  # 1 − tanh² = 1 / cosh²


def descended(loss, params):
    return jax.tree.map(lambda x, slope: x - RATE * slope, params, jax.grad(loss)(params))


def moved(target, params, share=TAU):
    return jax.tree.map(lambda old, new: (1 - share) * old + share * new, target, params)


def same(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for left, right in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(left, right, rtol=2e-4, atol=2e-5)


def squared(outputs, goals):
    """Equation 5 of Haarnoja et al. 2018b, of each critic."""
    return 0.5 * ((outputs[..., 0] - goals[:, 0]) ** 2).sum(0)


def quantile_huber(outputs, goals):
    """Equations 10 and 11 of Kuznetsov et al. 2020, of each critic."""
    levels = (2 * jnp.arange(1, QUANTILES + 1) - 1) / (2 * QUANTILES)
    u = goals[None, :, None, :] - outputs[..., None]  # [critic, batch, quantile, goal]
    huber = jnp.where(jnp.abs(u) <= 1, 0.5 * u**2, jnp.abs(u) - 0.5)
    return (jnp.abs(levels[:, None] - (u < 0)) * huber).sum((0, 2, 3)) / (QUANTILES * goals.shape[1])


@pytest.mark.medium
@pytest.mark.parametrize("name", ["sac", "tqc"])
def test_an_update_of_sac_and_of_tqc(name):
    own = {"quantiles": QUANTILES, "drop": DROP} if name == "tqc" else {}
    algorithm = getattr(rl, name)(SEEN, ACTIONS, Same(), tau=TAU, **OPTIONS, **own)
    before, after, batch, key = updated(algorithm)
    noise = jax.random.normal(key, (2, BATCH, 2))
    actor, critics = before.params["actor"], before.params["critics"]
    alpha = jnp.exp(actor["log_temperature"])

    action, log_prob = gaussian(actor["network"], batch.next_observation, noise[0])
    following = critic(before.target, batch.next_observation, action)
    if name == "tqc":
        pooled = jnp.sort(jnp.concatenate(list(following), 1), 1)[:, : 2 * (QUANTILES - DROP)]
    else:
        pooled = following.min(0)
    goals = batch.reward[:, None] + batch.discount[:, None] * (pooled - alpha * log_prob[:, None])
    loss = quantile_huber if name == "tqc" else squared
    critics = descended(lambda c: loss(critic(c, batch.observation, batch.action), goals).mean(), critics)
    same(after.params["critics"], critics)
    same(after.target, moved(before.target, critics))

    def of_actor(network):
        action, log_prob = gaussian(network, batch.observation, noise[1])
        values = critic(critics, batch.observation, action)
        value = values.mean((0, 2)) if name == "tqc" else jnp.minimum(values[0, :, 0], values[1, :, 0])
        return (alpha * log_prob - value).mean()

    same(after.params["actor"]["network"], descended(of_actor, actor["network"]))
    log_prob = gaussian(actor["network"], batch.observation, noise[1])[1]
    slope = -(log_prob - 2).mean()  # the entropy that is sought is minus the numbers in an action
    np.testing.assert_allclose(after.params["actor"]["log_temperature"], -RATE * slope, rtol=1e-4)


@pytest.mark.parametrize("delay", [1, 2])
def test_an_update_of_td3(delay):
    algorithm = rl.td3(SEEN, ACTIONS, Same(), target_noise=0.4, policy_delay=delay, tau=TAU, **OPTIONS)
    before, after, batch, key = updated(algorithm)

    def policy(actor, observation):
        return jnp.tanh(dense(actor["mean"], observation))

    smoothing = jnp.clip(0.4 * jax.random.normal(key, (BATCH, 2)), -0.5, 0.5)
    assert (jnp.abs(smoothing) == 0.5).any()
    action = jnp.clip(policy(before.target["actor"], batch.next_observation) + smoothing, -1, 1)
    following = critic(before.target["critics"], batch.next_observation, action).min(0)
    goals = batch.reward[:, None] + batch.discount[:, None] * following
    critics = descended(
        lambda c: squared(critic(c, batch.observation, batch.action), goals).mean(), before.params["critics"]
    )
    same(after.params["critics"], critics)

    def of_actor(actor):
        return -critic(critics, batch.observation, policy(actor, batch.observation))[0].mean()

    actor = descended(of_actor, before.params["actor"]) if delay == 1 else before.params["actor"]
    same(after.params["actor"], actor)
    params = {"actor": actor, "critics": critics}
    same(after.target, moved(before.target, params) if delay == 1 else before.target)


@pytest.mark.medium
def test_an_update_of_crossq():
    before, after, batch, key = updated(rl.crossq(SEEN, ACTIONS, Same(), width=16, policy_delay=1, **OPTIONS))
    noise = jax.random.normal(key, (2, BATCH, 2))
    actor, statistics = before.params["actor"], before.params["statistics"]
    action, log_prob = gaussian(actor["network"], batch.next_observation, noise[0])

    def normalized(params, x, known, found):
        """By the batch's own moments, which are kept as "found", or by known ones."""
        mean, var = (x.mean(0), ((x - x.mean(0)) ** 2).mean(0)) if known is None else (known["mean"], known["var"])
        found.append({"mean": mean, "var": var})
        return params["scale"] * (x - mean) / jnp.sqrt(var + 1e-3) + params["bias"]

    def values(params, observation, action, known):
        """[critic, batch], and the moments of the two layers of each critic."""
        outputs, moments = [], []
        for i in range(2):
            one = jax.tree.map(lambda leaf, i=i: leaf[i], params)
            of = [None, None] if known is None else [jax.tree.map(lambda x, i=i: x[i], known[n]) for n in LAYERS]
            found = []
            x = normalized(one[LAYERS[0]], jnp.concatenate([observation, action], 1), of[0], found)
            x = normalized(one[LAYERS[1]], jnp.maximum(dense(one["Dense_0"], x), 0), of[1], found)
            outputs.append(dense(one["value"], x)[:, 0])
            moments.append(dict(zip(LAYERS, found, strict=True)))
        return jnp.stack(outputs), jax.tree.map(lambda *x: jnp.stack(x), *moments)

    both = jnp.concatenate([batch.observation, batch.next_observation]), jnp.concatenate([batch.action, action])

    def of_critics(params):
        now, then = jnp.split(values(params, *both, None)[0], 2, axis=1)
        goals = batch.reward + batch.discount * (jax.lax.stop_gradient(then).min(0) - log_prob)
        return (0.5 * (now - goals) ** 2).sum(0).mean()

    _, found = values(before.params["critics"], *both, None)
    statistics = jax.tree.map(lambda old, new: 0.99 * old + 0.01 * new, statistics, found)
    same(after.params["statistics"], statistics)
    critics = descended(of_critics, before.params["critics"])
    same(after.params["critics"], critics)

    def of_actor(network):
        action, log_prob = gaussian(network, batch.observation, noise[1])
        return (log_prob - values(critics, batch.observation, action, statistics)[0].min(0)).mean()

    same(after.params["actor"]["network"], descended(of_actor, actor["network"]))
