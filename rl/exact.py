"""Exact returns of policies in environments whose transitions are known: computed, not sampled."""

from typing import Any

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from rl.envs.toy_text import Table, expected_return, greedy, optimal_values, table
from rl.types import Algorithm, TimeStep


def greedy_policies(algorithm: Algorithm, agents: Any, rules: Table) -> Int[np.ndarray, "runs states"]:
    """The greedy action of each agent in each state.

    Args:
        algorithm: the algorithm that trained the agents.
        agents: leaves [runs, ...], as `rl.train` returns them.
        rules: the transitions of the environment.
    """
    states = jnp.arange(len(rules.start))
    timestep = TimeStep(states, jnp.ones(len(states), bool), rules.allowed)
    agents = jax.device_put(jax.device_get(agents))
    return np.asarray(jax.vmap(lambda agent: algorithm.act(agent, (), timestep, jax.random.key(0), True)[0])(agents))


def exact_returns(algorithm: Algorithm, agents: Any, env: str) -> dict[str, np.ndarray]:
    """The exact return of each greedy agent, and the optimal return found by value iteration.

    Args:
        algorithm: the algorithm that trained the agents.
        agents: leaves [runs, ...], as `rl.train` returns them.
        env: id of one of Gymnasium's toy text environments.

    Returns:
        "return (exact)" and "return (optimum)", each [runs].
    """
    rules = table(gymnasium.make(env))
    horizon = gymnasium.spec(env).max_episode_steps or 1000
    found = [expected_return(policy, rules, horizon) for policy in greedy_policies(algorithm, agents, rules)]
    best = expected_return(greedy(optimal_values(rules, 0.999), rules, 0.999), rules, horizon)
    return {"return (exact)": np.array(found), "return (optimum)": np.full(len(found), best)}
