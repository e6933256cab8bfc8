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
    initial: float = 0.0,
    bonus: float | Schedule = 0.0,
) -> Algorithm:
    """Tabular Q-learning: back up the highest action value of the next state, whichever action is taken there.

    Args:
        observation_space: Discrete.
        action_space: Discrete.
        learning_rate: a number, or a function of how often a state and action were visited.
        epsilon: probability of a random action, a number or a function of the steps of all environments together
            (an Optax schedule).
        discount: γ.
        num_steps: steps of each environment per rollout; an update backs them up in order.
        initial: the values before learning. Above what can be reached, every action is tried, and those that disappoint
            are left (Sutton and Barto, section 2.6).
        bonus: c; actions are chosen, also greedily, by their value + c / √(1 + visits): above 0 for what is little
            known (section 2.7), below 0 against it. A number, or a function of the steps of all environments.

    Raises:
        ValueError: for spaces that are not Discrete.
    """
    return tabular(
        observation_space,
        action_space,
        lambda values, probabilities, action, allowed: jnp.where(allowed, values, -jnp.inf).max(-1),
        learning_rate=learning_rate,
        epsilon=epsilon,
        discount=discount,
        num_steps=num_steps,
        initial=initial,
        bonus=bonus,
    )
