"""Q-learning (Watkins 1989; Sutton and Barto, section 6.5)."""

import gymnasium
import jax.numpy as jnp

from rl.exploration import Schedule
from rl.renamed import renamed
from rl.tabular import tabular
from rl.types import Algorithm


@renamed(rollout="num_steps")
def q_learning(
    observation_space: gymnasium.Space,
    action_space: gymnasium.Space,
    *,
    learning_rate: float | Schedule = 0.1,
    epsilon: float | Schedule = 0.1,
    discount: float = 0.99,
    num_steps: int = 1,
) -> Algorithm:
    """Back up the best action of the state that was reached, whatever was done there.

    learning_rate: a number, or a function of how often a state and action were visited. epsilon: the share of random
    actions, a number or a function of the steps taken by all environments together (Optax's schedules). num_steps
    between updates, in order. Raises ValueError for spaces that are not Discrete.
    """
    return tabular(
        observation_space,
        action_space,
        lambda values, probabilities, action, allowed: jnp.where(allowed, values, -jnp.inf).max(-1),
        learning_rate=learning_rate,
        epsilon=epsilon,
        discount=discount,
        num_steps=num_steps,
    )
