"""Environments with known answers: what each algorithm must find before any benchmark."""

import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces

from rl.envs import Environment, Outcome

NO, YES = np.False_, np.True_
LINE = spaces.Box(-2, 2, (1,), np.float32)


def _observe(x):
    return jnp.asarray(x, jnp.float32)[None]


def constant():
    """One step, always 1."""

    def reset(key):
        return (jnp.int32(0), Outcome(_observe(0), 0.0, NO, NO))

    def step(state, action, key):
        return (state, Outcome(_observe(0), jnp.float32(1), YES, NO))

    return Environment("constant", reset, step, LINE, spaces.Discrete(2))


def observed():
    """One step, the reward is what is seen."""

    def reset(key):
        sign = jax.random.rademacher(key, ()).astype(jnp.float32)
        return sign, Outcome(_observe(sign), 0.0, NO, NO)

    def step(state, action, key):
        return (state, Outcome(_observe(state), state, YES, NO))

    return Environment("observed", reset, step, LINE, spaces.Discrete(2))


def two_steps():
    """The reward comes at the second step: the first is worth the discount."""

    def reset(key):
        return (jnp.float32(0), Outcome(_observe(0), 0.0, NO, NO))

    def step(state, action, key):
        return state + 1, Outcome(_observe(state + 1), state, state > 0, NO)

    return Environment("two steps", reset, step, LINE, spaces.Discrete(2))


def endless(action_space=None):
    """Always 1, cut off at each step and never over: worth 1 / (1 - discount)."""

    def reset(key):
        return (jnp.int32(0), Outcome(_observe(0), 0.0, NO, NO))

    def step(state, action, key):
        return (state, Outcome(_observe(0), jnp.float32(1), NO, YES))

    return Environment("endless", reset, step, LINE, action_space or spaces.Discrete(2))


def chosen():
    """One step, the second of two actions is right."""

    def reset(key):
        return (jnp.int32(0), Outcome(_observe(0), 0.0, NO, NO))

    def step(state, action, key):
        return (state, Outcome(_observe(0), jnp.where(action == 1, 1.0, -1.0), YES, NO))

    return Environment("chosen", reset, step, LINE, spaces.Discrete(2))


def matched():
    """One step, the right action is that which is seen."""

    def reset(key):
        side = jax.random.bernoulli(key).astype(jnp.int32)
        return side, Outcome(_observe(2 * side - 1), 0.0, NO, NO)

    def step(state, action, key):
        return state, Outcome(_observe(2 * state - 1), jnp.where(action == state, 1.0, -1.0), YES, NO)

    return Environment("matched", reset, step, LINE, spaces.Discrete(2))


def masked():
    """One step, four actions worth 0, 1, 2, 3, the best of them never allowed, the next best where 1 is seen."""

    def mask(side):
        return jnp.array([True, True, False, False]).at[2].set(side > 0)

    def reset(key):
        side = jax.random.bernoulli(key).astype(jnp.int32)
        return side, Outcome(_observe(side), 0.0, NO, NO, mask(side))

    def step(state, action, key):
        return state, Outcome(_observe(state), action.astype(jnp.float32), YES, NO, mask(state))

    return Environment("masked", reset, step, LINE, spaces.Discrete(4))


def aimed():
    """One step, the reward is the closer to zero the closer the action is to half of what is seen."""

    def reset(key):
        sign = jax.random.rademacher(key, ()).astype(jnp.float32)
        return sign, Outcome(_observe(sign), 0.0, NO, NO)

    def step(state, action, key):
        return state, Outcome(_observe(state), -((action[0] - state / 2) ** 2), YES, NO)

    return Environment("aimed", reset, step, LINE, spaces.Box(-1, 1, (1,), np.float32))


def two_choices():
    """One step, both of two choices count."""

    def reset(key):
        return (jnp.int32(0), Outcome(_observe(0), 0.0, NO, NO))

    def step(state, action, key):
        right = (action[0] == 2).astype(jnp.float32) + (action[1] == 0)
        return state, Outcome(_observe(0), right, YES, NO)

    return Environment("two choices", reset, step, LINE, spaces.MultiDiscrete([3, 2]))
