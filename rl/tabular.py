"""The part that tabular methods share: a table of action values, ε-greedy acting, and the update of visited entries."""

from collections.abc import Callable
from typing import Any

import flax.struct
import gymnasium
import jax
import jax.numpy as jnp
from gymnasium import spaces
from jaxtyping import Array, Float

from jdl.core.accumulators import Last, Mean
from rl.exploration import Schedule, at, epsilon_greedy
from rl.types import Algorithm, Carry, Experience, TimeStep

# (values [env, actions], probabilities of the behavior policy [env, actions], next action [env],
# allowed [env, actions]) -> value of the next state [env]
type Backup = Callable[[Array, Array, Array, Array], Array]


@flax.struct.dataclass
class TabularAgent:
    """Everything that changes while a table is learned.

    Attributes:
        values: [states, actions], float32; action values.
        visits: [states, actions], float32; how often each state and action were visited.
        steps: scalar int32; steps of all environments together.
    """

    values: Any
    visits: Any
    steps: Any


def tabular(
    observation_space: gymnasium.Space,
    action_space: gymnasium.Space,
    backup: Backup,
    *,
    learning_rate: float | Schedule,
    epsilon: float | Schedule,
    discount: float,
    num_steps: int,
    initial: float,
    bonus: float | Schedule,
) -> Algorithm:
    """A table learned by one-step backups.

    Args:
        observation_space: Discrete.
        action_space: Discrete.
        backup: the estimated value of the next state, from its action values and the action taken there.
        learning_rate: see `rl.q_learning`.
        epsilon: see `rl.q_learning`.
        discount: see `rl.q_learning`.
        num_steps: see `rl.q_learning`.
        initial: see `rl.q_learning`.
        bonus: see `rl.q_learning`.

    Raises:
        ValueError: for spaces that are not Discrete.
    """
    for name, space in (("observation", observation_space), ("action", action_space)):
        if not isinstance(space, spaces.Discrete):
            raise ValueError(
                f"the {name} space {space} is not Discrete; tables are for small finite spaces (try rl.dqn)"
            )
    states, actions = int(observation_space.n), int(action_space.n)  # type: ignore[attr-defined]
    first_state = int(observation_space.start)  # type: ignore[attr-defined]

    def init(key: Array) -> TabularAgent:
        values = jnp.full((states, actions), initial, jnp.float32)
        return TabularAgent(values, jnp.zeros((states, actions)), jnp.zeros((), jnp.int32))

    def worth_trying(agent: TabularAgent, state: Array) -> Float[Array, "env actions"]:
        return agent.values[state] + at(bonus, agent.steps) / jnp.sqrt(agent.visits[state] + 1)

    def behavior(agent: TabularAgent, state: Array, allowed: Array) -> Float[Array, "env actions"]:
        return epsilon_greedy(worth_trying(agent, state), allowed, at(epsilon, agent.steps))

    def allowed_actions(mask: Any, count: int) -> Array:
        return jnp.ones((count, actions), bool) if mask is None else jnp.asarray(mask, bool)

    def act(
        agent: TabularAgent, carry: Carry, timestep: TimeStep, key: Array, greedy: bool
    ) -> tuple[Array, Carry, tuple[()]]:
        state = timestep.observation - first_state
        allowed = allowed_actions(timestep.action_mask, len(state))
        if greedy:
            return jnp.where(allowed, worth_trying(agent, state), -jnp.inf).argmax(-1), carry, ()
        return jax.random.categorical(key, jnp.log(behavior(agent, state, allowed))), carry, ()

    def update(agent: TabularAgent, experience: Experience, key: Array) -> tuple[TabularAgent, dict[str, Any]]:
        time, count = experience.reward.shape
        ends = (experience.terminated | experience.truncated).at[-1].set(True)
        following = jnp.concatenate([experience.action[1:], experience.action[-1:]])

        def step(agent: TabularAgent, now: tuple[Any, ...]) -> tuple[TabularAgent, tuple[Array, Array]]:
            t, state, action, reward, terminated, valid, after, mask, end, next_action = now
            values = agent.values[after]
            allowed = allowed_actions(mask, count)
            probabilities = behavior(agent, after, allowed)
            # At the end of an episode or of the rollout the next action is unknown: draw it from the same policy.
            drawn = jax.random.categorical(jax.random.fold_in(key, t), jnp.log(probabilities))
            worth = backup(values, probabilities, jnp.where(end, drawn, next_action), allowed)
            error = reward + discount * jnp.where(terminated, 0, worth) - agent.values[state, action]
            # Average over environments that visit the same state and action: a sum would overshoot. Only these entries
            # are computed, not the whole table.
            same = (state[:, None] == state) & (action[:, None] == action) & (valid > 0)
            number = same.sum(-1)
            visits = agent.visits[state, action] + number
            change = jnp.where(same, error, 0).sum(-1) / jnp.maximum(number, 1)
            changed = agent.values[state, action] + at(learning_rate, visits) * change
            agent = TabularAgent(
                agent.values.at[state, action].set(changed),
                agent.visits.at[state, action].set(visits),
                agent.steps + valid.sum().astype(jnp.int32),
            )
            return agent, ((jnp.abs(error) * valid).sum(), valid.sum())

        mask = experience.next_action_mask
        agent, (errors, counted) = jax.lax.scan(
            step,
            agent,
            (
                jnp.arange(time),
                experience.timestep.observation - first_state,
                experience.action,
                experience.reward,
                experience.terminated,
                experience.valid.astype(jnp.float32),
                experience.next_observation - first_state,
                mask,
                ends,
                following,
            ),
        )
        share = jnp.asarray(at(epsilon, agent.steps), jnp.float32)
        return agent, {"error": Mean(errors.sum(), counted.sum()), "epsilon": Last(share)}

    return Algorithm(init, lambda num_envs: (), act, update, num_steps)
