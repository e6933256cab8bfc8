"""Gymnasium's toy text environments, compiled from their tables of transitions."""

from typing import Any, NamedTuple

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int
from scipy import sparse

from rl.envs.environment import Environment, Outcome, time_limit


class Table(NamedTuple):
    """A finite Markov decision process: the possible outcomes of each action in each state.

    Attributes:
        probability: of each outcome; zero for outcomes that only pad the table.
        next_state: the state that an outcome leads to.
        reward: of each outcome.
        terminated: whether an outcome ends the episode.
        start: probability that an episode begins in each state.
        allowed: [states, actions], bool; True for the allowed actions. None if every action is always allowed.
    """

    probability: Float[np.ndarray, "states actions outcomes"]
    next_state: Int[np.ndarray, "states actions outcomes"]
    reward: Float[np.ndarray, "states actions outcomes"]
    terminated: Bool[np.ndarray, "states actions outcomes"]
    start: Float[np.ndarray, " states"]
    allowed: Any = None


def table(env: gymnasium.Env) -> Table:
    """The table of a Gymnasium environment that has one (`env.unwrapped.P`, or `rules`, a `Table`).

    Args:
        env: the environment.

    Raises:
        ValueError: for an environment without one.
    """
    if isinstance(known := getattr(env.unwrapped, "rules", None), Table):
        return known
    transitions, start = (getattr(env.unwrapped, name, None) for name in ("P", "initial_state_distrib"))
    if transitions is None or start is None:
        raise ValueError(f"{env} has no table of transitions (P); of Gymnasium's, FrozenLake, CliffWalking and Taxi do")
    states, actions = len(transitions), len(transitions[0])
    width = max(len(transitions[s][a]) for s in range(states) for a in range(actions))
    found = np.zeros((4, states, actions, width))
    for s in range(states):
        for a in range(actions):
            found[:, s, a, : len(transitions[s][a])] = np.array(transitions[s][a], float).T
    probability, next_state, reward, terminated = found
    mask = getattr(env.unwrapped, "action_mask", None)
    allowed = None if mask is None else np.stack([mask(state) for state in range(states)]) > 0
    chances = probability, next_state.astype(np.int32), reward.astype(np.float32), terminated > 0
    return Table(*chances, np.asarray(start), allowed)


def from_table(name: str, rules: Table, max_steps: int | None = None) -> Environment:
    """An environment from its table; observations are states.

    Args:
        name: name of the environment.
        rules: its table.
        max_steps: steps after which an episode is truncated; None for no limit.
    """
    states, actions, _ = rules.probability.shape
    upper = jnp.asarray(np.cumsum(rules.probability, -1)[..., :-1], jnp.float32)
    starts = jnp.asarray(np.cumsum(rules.start)[:-1], jnp.float32)
    next_state, reward, terminated = (jnp.asarray(part) for part in (rules.next_state, rules.reward, rules.terminated))
    masks = None if rules.allowed is None else jnp.asarray(rules.allowed)

    def drawn(key: Array, limits: Array) -> Array:
        return (jax.random.uniform(key) >= limits).sum()

    def mask(state: Array) -> Any:
        return None if masks is None else masks[state]

    def reset(key: Array) -> tuple[Array, Outcome]:
        state = drawn(key, starts).astype(jnp.int32)
        return state, Outcome(state, jnp.float32(0), np.False_, np.False_, mask(state))

    def step(state: Array, action: Array, key: Array) -> tuple[Array, Outcome]:
        place = state, action, drawn(key, upper[state, action])
        state = next_state[place]
        return state, Outcome(state, reward[place], terminated[place], np.False_, mask(state))

    spaces = gymnasium.spaces.Discrete(states), gymnasium.spaces.Discrete(actions)
    env = Environment(name, reset, step, *spaces)
    return env if max_steps is None else time_limit(env, max_steps)


def toy_text(name: str, **options: Any) -> Environment:
    """The compiled twin of a Gymnasium environment that has a table, with the same time limit.

    Args:
        name: its Gymnasium id, such as "FrozenLake-v1".
        **options: for `gymnasium.make`.

    Raises:
        ValueError: for an environment without a table.
    """
    env = gymnasium.make(name, **options)
    return from_table(name, table(env), env.spec.max_episode_steps if env.spec else None)


def greedy(values: Float[np.ndarray, " states"], rules: Table, discount: float) -> Int[np.ndarray, " states"]:
    """The policy that is greedy with respect to state values: an action per state.

    Args:
        values: value of each state.
        rules: the table of the environment.
        discount: γ.
    """
    outcomes = rules.reward + discount * ~rules.terminated * values[rules.next_state]
    return (rules.probability * outcomes).sum(-1).argmax(-1)


def expected_return(
    policy: Int[np.ndarray, " states"] | Float[np.ndarray, "states actions"],
    rules: Table,
    horizon: int,
    discount: float = 1.0,
) -> float:
    """The exact expected return of a policy.

    Args:
        policy: an action per state, or the probability of each action in each state.
        rules: the table of the environment.
        horizon: steps after which an episode is cut off.
        discount: γ.
    """
    chosen = policy if policy.ndim == 2 else np.eye(rules.probability.shape[1])[policy]
    reward = (chosen[..., None] * rules.probability * rules.reward).sum((1, 2))
    goes_on = _continuation(rules)
    there, total = rules.start.copy(), 0.0
    for time in range(horizon):
        total += discount**time * there @ reward
        there = (there[:, None] * chosen).ravel() @ goes_on
    return float(total)


def optimal_values(rules: Table, discount: float, tolerance: float = 1e-10) -> Float[np.ndarray, " states"]:
    """The value of each state under the optimal policy, by value iteration.

    Args:
        rules: the table of the environment.
        discount: γ.
        tolerance: stop when no value changes by as much in one sweep.

    Source: Sutton and Barto, section 4.4.
    """
    expected = (rules.probability * rules.reward).sum(-1)
    goes_on = _continuation(rules)
    values = np.zeros(len(rules.start))
    while True:
        better = (expected + discount * (goes_on @ values).reshape(expected.shape)).max(-1)
        if np.abs(better - values).max() < tolerance:
            return better
        values = better


def _continuation(rules: Table) -> sparse.csr_array:
    """The probability of each next state from each pair of state and action, [states * actions, states].

    Zero where the episode ends.
    """
    states, actions, _ = rules.probability.shape
    pair = np.arange(states * actions).reshape(states, actions, 1)
    places = np.broadcast_to(pair, rules.probability.shape).ravel(), rules.next_state.ravel()
    chances = (rules.probability * ~rules.terminated).ravel()
    matrix = sparse.csr_array((chances, places), shape=(states * actions, states))
    matrix.eliminate_zeros()
    return matrix
