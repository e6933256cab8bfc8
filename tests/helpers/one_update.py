"""One update of an off-policy algorithm on a rollout of random numbers, and all that an oracle needs to repeat it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from gymnasium import spaces

from rl.replay.replay import replay
from rl.types import Experience, TimeStep

SEEN, ACTIONS = spaces.Box(-np.inf, np.inf, (3,), np.float32), spaces.Box(-1, 1, (2,), np.float32)
RATE, DISCOUNT, TAU, BATCH, TIME = 0.1, 0.9, 0.25, 8, 16
OPTIONS = {
    "num_envs": 1, "num_steps": TIME, "updates_per_rollout": 1, "batch_size": BATCH, "capacity": 64,
    "learning_starts": 1, "discount": DISCOUNT, "optimizer": optax.sgd(RATE),
}  # fmt: skip


def rollout(actions=ACTIONS):
    random = np.random.default_rng(0)
    seen = jnp.asarray(random.normal(size=(TIME + 1, 1, 3)), jnp.float32)
    if isinstance(actions, spaces.Discrete):
        action = jnp.asarray(random.integers(0, int(actions.n), (TIME, 1)), jnp.int32)
    else:
        action = jnp.asarray(random.uniform(-0.9, 0.9, size=(TIME, 1, 2)), jnp.float32)
    ends = jnp.arange(TIME)[:, None] % 5 == 4
    nothing = jnp.zeros((TIME, 1), bool)
    return Experience(
        timestep=TimeStep(seen[:-1], jnp.roll(ends, 1, 0)), action=action, extras=(),
        reward=jnp.asarray(random.normal(size=(TIME, 1)), jnp.float32), terminated=ends, truncated=nothing,
        valid=~nothing, next_observation=seen[1:], last=TimeStep(seen[-1], ends[-1]), carry=(),
    )  # fmt: skip


def shaken(tree):
    keys = iter(jax.random.split(jax.random.key(2), len(jax.tree.leaves(tree))))
    return jax.tree.map(lambda x: x + 0.3 * jax.random.normal(next(keys), x.shape), tree)


def updated(algorithm, actions=ACTIONS):
    """The agent before and after an update, the transitions it learned from, and the key of that update."""
    agent = algorithm.init(jax.random.key(1))
    # Targets of their own: else they equal the critics, and a mistake about which is which does not show.
    agent = agent.replace(target=shaken(agent.target))
    if "statistics" in agent.params:
        statistics = jax.tree.map(jnp.abs, shaken(agent.params["statistics"]))
        agent = agent.replace(params=agent.params | {"statistics": statistics})
    key, experience = jax.random.key(3), rollout(actions)
    after, _ = algorithm.update(agent, experience, key)
    buffer = replay(SEEN, actions, capacity=64, num_envs=1)
    own = jax.random.split(key, 1)[0]
    batch = buffer.sample(buffer.add(buffer.init(), experience), own, BATCH, DISCOUNT, 1.0)
    assert (batch.discount == 0).any()
    assert (batch.discount == DISCOUNT).any()
    return agent, after, batch, own
