"""PPO on CartPole as one writes it in one file, all compiled: the reference for the device runner.

The algorithm is that of `rl.ppo`'s defaults: GAE, minibatches in the order of a permutation, clipped objective,
global-norm clipping, Adam, separate 64-64 tanh networks with orthogonal initialization. Nothing of `rl` is used but
the environment itself, so that what differs is the framework.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from rl.envs import auto_reset, cartpole

STEPS, EPOCHS, MINIBATCHES = 128, 4, 4
DISCOUNT, TRACE, CLIP, ENTROPY, VALUE = 0.99, 0.95, 0.2, 0.01, 0.5


class ActorCritic(nn.Module):
    """Logits and a value."""

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, Array]:
        def torso(x: Array) -> Array:
            for _ in range(2):
                x = nn.tanh(nn.Dense(64, kernel_init=nn.initializers.orthogonal(np.sqrt(2)))(x))
            return x

        logits = nn.Dense(2, kernel_init=nn.initializers.orthogonal(0.01))(torso(x))
        return logits, nn.Dense(1, kernel_init=nn.initializers.orthogonal(1.0))(torso(x))[..., 0]


def make(num_envs: int) -> tuple[Callable[[Array], Any], Callable[[Any], tuple[Any, Array]]]:
    """`init(key)` and `update(state)`, a rollout and its epochs; to be compiled."""
    env, network = cartpole(), ActorCritic()
    step_env = jax.vmap(auto_reset(env))
    optimizer = optax.chain(optax.clip_by_global_norm(0.5), optax.adam(2.5e-4, eps=1e-5))

    def init(key: Array) -> Any:
        net_key, env_key, key = jax.random.split(key, 3)
        params = network.init(net_key, jnp.zeros((1, 4)))
        states, outcome = jax.vmap(env.reset)(jax.random.split(env_key, num_envs))
        return params, optimizer.init(params), states, outcome.observation, key

    def update(state: Any) -> tuple[Any, Array]:
        params, opt_state, states, seen, key = state

        def act(carry: Any, _: None) -> tuple[Any, Any]:
            states, seen, key = carry
            key, act_key, env_key = jax.random.split(key, 3)
            logits, value = network.apply(params, seen)  # type: ignore[misc]
            action = jax.random.categorical(act_key, logits)
            log_prob = jnp.take_along_axis(nn.log_softmax(logits), action[:, None], -1)[:, 0]
            states, outcome, now = step_env(states, action, jax.random.split(env_key, num_envs))
            row = (
                seen,
                action,
                log_prob,
                value,
                outcome.reward,
                outcome.terminated,
                outcome.truncated,
                outcome.observation,
            )
            return (states, now.observation, key), row

        (states, seen, key), rows = jax.lax.scan(act, (states, seen, key), None, STEPS)
        observation, action, log_prob, value, reward, terminated, truncated, reached = rows
        following = network.apply(params, reached)[1]  # type: ignore[index]

        def back(advantage: Array, row: Any) -> tuple[Array, Array]:
            value, following, reward, terminated, truncated = row
            delta = reward + DISCOUNT * following * ~terminated - value
            advantage = delta + DISCOUNT * TRACE * advantage * ~(terminated | truncated)
            return advantage, advantage

        columns = (value, following, reward, terminated, truncated)
        advantage = jax.lax.scan(back, jnp.zeros(num_envs), columns, reverse=True)[1]
        data = (observation, action, log_prob, advantage, advantage + value)
        data = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), data)

        def loss(params: Any, batch: Any) -> Array:
            observation, action, old, advantage, target = batch
            logits, value = network.apply(params, observation)  # type: ignore[misc]
            log_probs = nn.log_softmax(logits)
            log_prob = jnp.take_along_axis(log_probs, action[:, None], -1)[:, 0]
            advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
            ratio = jnp.exp(log_prob - old)
            gain = jnp.minimum(ratio * advantage, jnp.clip(ratio, 1 - CLIP, 1 + CLIP) * advantage).mean()
            entropy = -(jnp.exp(log_probs) * log_probs).sum(-1).mean()
            return -gain + VALUE * 0.5 * ((value - target) ** 2).mean() - ENTROPY * entropy

        def epoch(carry: Any, key: Array) -> tuple[Any, Array]:
            order = jax.random.permutation(key, STEPS * num_envs)
            batches = jax.tree.map(lambda x: x[order].reshape(MINIBATCHES, -1, *x.shape[1:]), data)

            def minibatch(carry: Any, batch: Any) -> tuple[Any, Array]:
                params, opt_state = carry
                value, grads = jax.value_and_grad(loss)(params, batch)
                changes, opt_state = optimizer.update(grads, opt_state, params)
                return (optax.apply_updates(params, changes), opt_state), value

            return jax.lax.scan(minibatch, carry, batches)

        key, order_key = jax.random.split(key)
        (params, opt_state), losses = jax.lax.scan(epoch, (params, opt_state), jax.random.split(order_key, EPOCHS))
        return (params, opt_state, states, seen, key), losses.mean()

    return init, update
