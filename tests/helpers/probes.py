"""Environments with known answers: what each algorithm must find before any benchmark."""

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces

from rl.envs import Environment, Outcome

NO, YES = np.False_, np.True_
LINE = spaces.Box(-2, 2, (1,), np.float32)


def _observe(x):
    return jnp.asarray(x, jnp.float32)[None]


def constant(action_space=None):
    """One step, always 1."""

    def reset(key):
        return (jnp.int32(0), Outcome(_observe(0), 0.0, NO, NO))

    def step(state, action, key):
        return (state, Outcome(_observe(0), jnp.float32(1), YES, NO))

    return Environment("constant", reset, step, LINE, action_space or spaces.Discrete(2))


def observed():
    """One step, the reward is what is seen."""

    def reset(key):
        sign = jax.random.rademacher(key, ()).astype(jnp.float32)
        return sign, Outcome(_observe(sign), 0.0, NO, NO)

    def step(state, action, key):
        return (state, Outcome(_observe(state), state, YES, NO))

    return Environment("observed", reset, step, LINE, spaces.Discrete(2))


def two_steps(action_space=None):
    """The reward comes at the second step: the first is worth the discount."""

    def reset(key):
        return (jnp.float32(0), Outcome(_observe(0), 0.0, NO, NO))

    def step(state, action, key):
        return state + 1, Outcome(_observe(state + 1), state, state > 0, NO)

    return Environment("two steps", reset, step, LINE, action_space or spaces.Discrete(2))


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


def counted_from():
    """One step; the right action has the number of what is seen, each counted from a start of its own."""
    seen, done = spaces.Discrete(2, start=5), spaces.Discrete(2, start=10)

    def reset(key):
        state = jax.random.randint(key, (), 5, 7)
        return state, Outcome(state, 0.0, NO, NO)

    def step(state, action, key):
        return state, Outcome(state, jnp.where(action - 10 == state - 5, 1.0, 0.0), YES, NO)

    return Environment("counted from", reset, step, seen, done)


def many_kinds(steps=16):
    """A picture, a speed, a choice and bits; right is bright XOR fast, at each of the steps."""
    space = spaces.Dict(
        {
            "picture": spaces.Box(0, 255, (36, 36, 3), np.uint8),
            "speed": spaces.Box(-np.inf, np.inf, (1,), np.float32),
            "choice": spaces.Discrete(3),
            "bits": spaces.MultiBinary(2),
        }
    )

    def observe(key):
        keys = jax.random.split(key, 4)
        bright, fast = (jax.random.bernoulli(one) for one in keys[:2])
        observation = {
            "picture": jnp.full((36, 36, 3), jnp.where(bright, 250, 5), jnp.uint8),
            "speed": jnp.where(fast, 100.0, 0.0)[None],
            "choice": jax.random.randint(keys[2], (), 0, 3),
            "bits": jax.random.bernoulli(keys[3], shape=(2,)).astype(jnp.int8),
        }
        return bright ^ fast, observation

    def reset(key):
        right, observation = observe(key)
        return (right, jnp.int32(0)), Outcome(observation, 0.0, NO, NO)

    def step(state, action, key):
        right, time = state
        following, observation = observe(key)
        over = time + 1 >= steps
        reward = jnp.where(action == right, 1.0, 0.0)
        return (following, time + 1), Outcome(observation, reward, over, NO)

    return Environment("many kinds", reset, step, space, spaces.Discrete(2))


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


def aimed_within(low, high, target):
    """One step, the reward is the closer to zero the closer each number of the action is to its target."""
    space = spaces.Box(np.float32(low), np.float32(high), dtype=np.float32)

    def reset(key):
        return jnp.int32(0), Outcome(_observe(0), 0.0, NO, NO)

    def step(state, action, key):
        return state, Outcome(_observe(0), -jnp.square(action - jnp.asarray(target)).sum(), YES, NO)

    return Environment("aimed within", reset, step, LINE, space)


def recalled(blank=2):
    """A side is shown at first and then no more; at the end the action that names it is right."""

    def observe(side, time):
        return jnp.stack([jnp.where(time == 0, 2.0 * side - 1, 0.0), jnp.asarray(time == blank, jnp.float32)])

    def reset(key):
        side = jax.random.bernoulli(key).astype(jnp.int32)
        return (side, jnp.int32(0)), Outcome(observe(side, 0), 0.0, NO, NO)

    def step(state, action, key):
        side, time = state
        over = time == blank
        reward = jnp.where(over, jnp.where(action == side, 1.0, -1.0), 0.0)
        return (side, time + 1), Outcome(observe(side, time + 1), reward, over, NO)

    return Environment("recalled", reset, step, spaces.Box(-2, 2, (2,), np.float32), spaces.Discrete(2))


def two_choices():
    """One step, both of two choices count."""

    def reset(key):
        return (jnp.int32(0), Outcome(_observe(0), 0.0, NO, NO))

    def step(state, action, key):
        right = (action[0] == 2).astype(jnp.float32) + (action[1] == 0)
        return state, Outcome(_observe(0), right, YES, NO)

    return Environment("two choices", reset, step, LINE, spaces.MultiDiscrete([3, 2]))


def three_bits():
    """One step, each of three bits counts: 1, 0 and 1 are right."""

    def reset(key):
        return (jnp.int32(0), Outcome(_observe(0), 0.0, NO, NO))

    def step(state, action, key):
        right = (action == jnp.array([1, 0, 1])).sum().astype(jnp.float32)
        return state, Outcome(_observe(0), right, YES, NO)

    return Environment("three bits", reset, step, LINE, spaces.MultiBinary(3))


def picture():
    """One step, the right action is the side of a picture that is bright."""

    def draw(side):
        left = jnp.arange(36) < 18
        return jnp.broadcast_to(jnp.where(left == (side == 0), 200, 10).astype(jnp.uint8)[:, None], (36, 36, 1))

    def reset(key):
        side = jax.random.bernoulli(key).astype(jnp.int32)
        return side, Outcome(draw(side), 0.0, NO, NO)

    def step(state, action, key):
        return state, Outcome(draw(state), (action == state).astype(jnp.float32), YES, NO)

    space = spaces.Box(0, 255, (36, 36, 1), np.uint8)
    return Environment("picture", reset, step, space, spaces.Discrete(2))


class VectorProbe(gymnasium.vector.VectorEnv):
    """Probes as a vector environment of Gymnasium's, whose resets take a step of their own."""

    metadata = {"autoreset_mode": gymnasium.vector.AutoresetMode.NEXT_STEP}  # noqa: RUF012

    def __init__(self, env, num_envs):
        self.num_envs = num_envs
        self.single_observation_space, self.single_action_space = env.observation_space, env.action_space
        self.observation_space = gymnasium.vector.utils.batch_space(env.observation_space, num_envs)
        self.action_space = gymnasium.vector.utils.batch_space(env.action_space, num_envs)

        def step(state, action, ended, key):
            reset_key, step_key = jax.random.split(key)
            stepped = jax.vmap(env.step)(state, action, jax.random.split(step_key, num_envs))
            fresh = jax.vmap(env.reset)(jax.random.split(reset_key, num_envs))
            return jax.vmap(lambda e, a, b: jax.tree.map(lambda x, y: jnp.where(e, x, y), a, b))(ended, fresh, stepped)

        self._reset = jax.jit(lambda key: jax.vmap(env.reset)(jax.random.split(key, num_envs)))
        self._step = jax.jit(step)

    def _info(self, outcome):
        return {} if outcome.action_mask is None else {"action_mask": np.asarray(outcome.action_mask)}

    def reset(self, *, seed=None, options=None):
        self.key, self.count, self.ended = jax.random.key(seed), 0, np.zeros(self.num_envs, bool)
        self.state, outcome = self._reset(self.key)
        return np.asarray(outcome.observation), self._info(outcome)

    def step(self, action):
        self.count += 1
        key = jax.random.fold_in(self.key, self.count)
        self.state, outcome = self._step(self.state, action, self.ended, key)
        terminated, truncated = np.asarray(outcome.terminated), np.asarray(outcome.truncated)
        self.ended = terminated | truncated
        return np.asarray(outcome.observation), np.asarray(outcome.reward), terminated, truncated, self._info(outcome)
