"""SARSA (Rummery and Niranjan 1994; Sutton and Barto, section 6.4)."""

import gymnasium
import jax.numpy as jnp

from rl.exploration import Schedule
from rl.renamed import renamed
from rl.tabular import tabular
from rl.types import Algorithm


@renamed(rollout="num_steps")
def sarsa(
    observation_space: gymnasium.Space,
    action_space: gymnasium.Space,
    *,
    learning_rate: float | Schedule = 0.1,
    epsilon: float | Schedule = 0.1,
    discount: float = 0.99,
    num_steps: int = 16,
    initial: float = 0.0,
    bonus: float | Schedule = 0.0,
) -> Algorithm:
    """Tabular SARSA: back up the value of the action taken next.

    After the last step of a rollout, and after a truncation, the next action is drawn from the policy.

    Args:
        observation_space: Discrete.
        action_space: Discrete.
        learning_rate: a number, or a function of how often a state and action were visited.
        epsilon: probability of a random action, a number or a function of the steps of all environments together
            (an Optax schedule).
        discount: γ.
        num_steps: steps of each environment per rollout; an update backs them up in order.
        initial: see `rl.q_learning`.
        bonus: see `rl.q_learning`.

    Raises:
        ValueError: for spaces that are not Discrete.
    """
    return tabular(
        observation_space,
        action_space,
        lambda values, probabilities, action, allowed: jnp.take_along_axis(values, action[:, None], -1)[:, 0],
        learning_rate=learning_rate,
        epsilon=epsilon,
        discount=discount,
        num_steps=num_steps,
        initial=initial,
        bonus=bonus,
    )
