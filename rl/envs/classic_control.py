"""Gymnasium's classic control environments, compiled. States are float32; in Gymnasium they are float64.

Episodes are truncated after `max_steps` steps.

Sources, by way of Gymnasium 1.4: CartPole, Barto, Sutton and Anderson 1983; MountainCar, Moore 1990; Acrobot, Sutton
and Barto, "Reinforcement Learning", section 11.3 of the first edition; Pendulum, Gymnasium's own.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces
from jaxtyping import Array, Float

from rl.envs.environment import Environment, Outcome, time_limit

_NO = np.False_


def cartpole(max_steps: int = 500) -> Environment:
    """Balance a pole on a cart by pushing the cart left or right; the reward is 1 per step until the pole falls.

    Args:
        max_steps: steps after which an episode is truncated.
    """
    gravity, pole_mass, total_mass, half_length, force, dt = 9.8, 0.1, 1.1, 0.5, 10.0, 0.02
    angle_limit, position_limit = 12 * 2 * np.pi / 360, 2.4
    high = np.array([2 * position_limit, np.inf, 2 * angle_limit, np.inf], np.float32)

    def reset(key: Array) -> tuple[Array, Outcome]:
        state = jax.random.uniform(key, (4,), jnp.float32, -0.05, 0.05)
        return state, Outcome(state, jnp.float32(0), _NO, _NO)

    def step(state: Float[Array, "4"], action: Array, key: Array) -> tuple[Array, Outcome]:
        x, velocity, angle, angular_velocity = state
        cosine, sine = jnp.cos(angle), jnp.sin(angle)
        push = jnp.where(action == 1, force, -force)
        common = (push + pole_mass * half_length * angular_velocity**2 * sine) / total_mass
        angular_acceleration = (gravity * sine - cosine * common) / (
            half_length * (4 / 3 - pole_mass * cosine**2 / total_mass)
        )
        acceleration = common - pole_mass * half_length * angular_acceleration * cosine / total_mass
        x, velocity = x + dt * velocity, velocity + dt * acceleration
        angle, angular_velocity = angle + dt * angular_velocity, angular_velocity + dt * angular_acceleration
        state = jnp.stack([x, velocity, angle, angular_velocity])
        fallen = (jnp.abs(x) > position_limit) | (jnp.abs(angle) > angle_limit)
        return state, Outcome(state, jnp.float32(1), fallen, _NO)

    env = Environment("CartPole-v1", reset, step, spaces.Box(-high, high, dtype=np.float32), spaces.Discrete(2))
    return time_limit(env, max_steps)


def mountain_car(max_steps: int = 200) -> Environment:
    """Drive an underpowered car out of a valley by swinging; the reward is -1 per step until it reaches the flag.

    Args:
        max_steps: steps after which an episode is truncated.
    """

    def reward(action: Array, there: Array) -> Array:
        return jnp.float32(-1)

    env = _valley("MountainCar-v0", spaces.Discrete(3), 0.5, lambda action: (action - 1) * 0.001, reward)
    return time_limit(env, max_steps)


def mountain_car_continuous(max_steps: int = 999) -> Environment:
    """The same car with any force up to a limit; 100 for the flag, minus 0.1 times the square of the force each step.

    Args:
        max_steps: steps after which an episode is truncated.
    """

    def reward(action: Array, there: Array) -> Array:
        return 100.0 * there - 0.1 * action[0] ** 2

    forces = spaces.Box(-1, 1, (1,), np.float32)
    push = lambda action: jnp.clip(action[0], -1, 1) * 0.0015  # noqa: E731
    return time_limit(_valley("MountainCarContinuous-v0", forces, 0.45, push, reward), max_steps)


def _valley(
    name: str,
    actions: spaces.Space,
    goal: float,
    push: Callable[[Any], Any],
    reward: Callable[[Any, Array], Array],
) -> Environment:
    """A car in a valley; `push` is the acceleration by an action, `reward` that of an action and of being there."""
    lowest, highest, fastest, gravity = -1.2, 0.6, 0.07, 0.0025
    low, high = np.array([lowest, -fastest], np.float32), np.array([highest, fastest], np.float32)

    def reset(key: Array) -> tuple[Array, Outcome]:
        state = jnp.stack([jax.random.uniform(key, (), jnp.float32, -0.6, -0.4), jnp.float32(0)])
        return state, Outcome(state, jnp.float32(0), _NO, _NO)

    def step(state: Float[Array, "2"], action: Any, key: Array) -> tuple[Array, Outcome]:
        position, velocity = state
        velocity = velocity + push(action) - gravity * jnp.cos(3 * position)
        velocity = jnp.clip(velocity, -fastest, fastest)
        position = jnp.clip(position + velocity, lowest, highest)
        velocity = jnp.where((position <= lowest) & (velocity < 0), 0, velocity)
        state = jnp.stack([position, velocity])
        there = (position >= goal) & (velocity >= 0)
        return state, Outcome(state, reward(action, there), there, _NO)

    return Environment(name, reset, step, spaces.Box(low, high, dtype=np.float32), actions)


def acrobot(max_steps: int = 500) -> Environment:
    """Swing a two-link arm above a line by torque on its middle joint; the reward is -1 per step until it is there.

    Args:
        max_steps: steps after which an episode is truncated.
    """
    dt, gravity, fastest = 0.2, 9.8, (4 * np.pi, 9 * np.pi)
    high = np.array([1, 1, 1, 1, *fastest], np.float32)

    def observe(state: Array) -> Array:
        first, second, speed, other_speed = state
        return jnp.stack([jnp.cos(first), jnp.sin(first), jnp.cos(second), jnp.sin(second), speed, other_speed])

    def derivative(state: Array, torque: Array) -> Array:
        # The equations of the book, for links of length and mass 1, centers of mass at 0.5, moments of inertia 1.
        first, second, speed, other_speed = state
        d1 = 0.25 + 1 + 0.25 + jnp.cos(second) + 2
        d2 = 0.25 + 0.5 * jnp.cos(second) + 1
        phi2 = 0.5 * gravity * jnp.cos(first + second - jnp.pi / 2)
        phi1 = (
            -0.5 * other_speed**2 * jnp.sin(second)
            - other_speed * speed * jnp.sin(second)
            + 1.5 * gravity * jnp.cos(first - jnp.pi / 2)
            + phi2
        )
        other = (torque + d2 / d1 * phi1 - 0.5 * speed**2 * jnp.sin(second) - phi2) / (1.25 - d2**2 / d1)
        return jnp.stack([speed, other_speed, -(d2 * other + phi1) / d1, other])

    def wrapped(angle: Array) -> Array:
        return (angle + jnp.pi) % (2 * jnp.pi) - jnp.pi

    def reset(key: Array) -> tuple[Array, Outcome]:
        state = jax.random.uniform(key, (4,), jnp.float32, -0.1, 0.1)
        return state, Outcome(observe(state), jnp.float32(0), _NO, _NO)

    def step(state: Float[Array, "4"], action: Array, key: Array) -> tuple[Array, Outcome]:
        torque = (action - 1).astype(jnp.float32)
        k1 = derivative(state, torque)  # one step of the classic Runge-Kutta method
        k2 = derivative(state + dt / 2 * k1, torque)
        k3 = derivative(state + dt / 2 * k2, torque)
        k4 = derivative(state + dt * k3, torque)
        first, second, speed, other_speed = state + dt / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        speeds = (jnp.clip(speed, -fastest[0], fastest[0]), jnp.clip(other_speed, -fastest[1], fastest[1]))
        state = jnp.stack([wrapped(first), wrapped(second), *speeds])
        above = -jnp.cos(state[0]) - jnp.cos(state[1] + state[0]) > 1
        return state, Outcome(observe(state), jnp.where(above, 0, -1).astype(jnp.float32), above, _NO)

    env = Environment("Acrobot-v1", reset, step, spaces.Box(-high, high, dtype=np.float32), spaces.Discrete(3))
    return time_limit(env, max_steps)


def pendulum(max_steps: int = 200) -> Environment:
    """Swing up a pendulum and hold it with little torque; the reward is minus a cost of angle, speed and torque.

    Args:
        max_steps: steps after which an episode is truncated.
    """
    gravity, fastest, strongest, dt = 10.0, 8.0, 2.0, 0.05
    high = np.array([1, 1, fastest], np.float32)
    torques = spaces.Box(-strongest, strongest, (1,), np.float32)

    def observe(state: Array) -> Array:
        return jnp.stack([jnp.cos(state[0]), jnp.sin(state[0]), state[1]])

    def reset(key: Array) -> tuple[Array, Outcome]:
        bounds = jnp.array([jnp.pi, 1.0], jnp.float32)
        state = jax.random.uniform(key, (2,), jnp.float32, -bounds, bounds)
        return state, Outcome(observe(state), jnp.float32(0), _NO, _NO)

    def step(state: Float[Array, "2"], action: Any, key: Array) -> tuple[Array, Outcome]:
        angle, speed = state
        torque = jnp.clip(action, -strongest, strongest)[0]
        normalized = (angle + jnp.pi) % (2 * jnp.pi) - jnp.pi
        cost = normalized**2 + 0.1 * speed**2 + 0.001 * torque**2
        speed = jnp.clip(speed + (1.5 * gravity * jnp.sin(angle) + 3 * torque) * dt, -fastest, fastest)
        state = jnp.stack([angle + speed * dt, speed])
        return state, Outcome(observe(state), -cost, _NO, _NO)

    env = Environment("Pendulum-v1", reset, step, spaces.Box(-high, high, dtype=np.float32), torques)
    return time_limit(env, max_steps)
