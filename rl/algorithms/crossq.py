"""CrossQ (Bhatt et al. 2024): soft actor-critic without target networks; batch normalization in its critics."""

from typing import Any, cast

import flax.linen as nn
import gymnasium
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

import jdl
from jdl.core.accumulators import Last, Mean
from jdl.core.update import apply_gradients
from rl.bounds import bounds
from rl.continuous import LEAST, every, explored, soft_actor_loss, torsos, weight_of_entropy
from rl.distributions import Squashed
from rl.exploration import Noise
from rl.networks import Actor, Critic, ensemble
from rl.off_policy import Learning, ReplayAgent, check_counts, off_policy, own_part
from rl.replay.replay import Memory, replay
from rl.replay.transitions import Transitions
from rl.spaces import zeros
from rl.types import Algorithm, Carry, TimeStep


def crossq(
    observation_space: gymnasium.Space,
    action_space: gymnasium.Space,
    network: nn.Module | None = None,
    *,
    num_envs: int,
    optimizer: optax.GradientTransformation | None = None,
    actor_optimizer: optax.GradientTransformation | None = None,
    width: int = 2048,
    temperature: float | None = None,
    target_entropy: float | None = None,
    critics: int = 2,
    num_steps: int = 1,
    updates_per_rollout: int | None = None,
    batch_size: int = 256,
    capacity: int = 1_000_000,
    learning_starts: int = 5000,
    discount: float | Array = 0.99,
    policy_delay: int = 3,
    n_step: int = 1,
    noise: Noise | None = None,
    stack: int = 1,
    memory: Memory = "device",
    normalize_observations: bool = False,
) -> Algorithm:
    """CrossQ for Box actions.

    The critics value the pairs (s, a) of a batch and the pairs (s', a') that follow in one pass, so that both are
    normalized by the same statistics; what follows is the goal, without a gradient. The actor sees the critics with
    their running statistics, which are frozen outside of updates. The actor itself is not normalized. The paper's
    renormalization equals this normalization in the first 100,000 updates.

    Under `jdl.accumulate` each micro-batch has its own statistics.

    Args:
        observation_space: see `rl.sac`.
        action_space: see `rl.sac`.
        network: see `rl.sac`; what is normalized in a critic is what follows its torso.
        num_envs: see `rl.sac`.
        optimizer: of the critics; by default Adam(1e-3) with β₁ = 0.5.
        actor_optimizer: of the actor and the temperature; by default the same as the critics'.
        width: features of the layers of a critic, two or, after a torso, one. On a CPU 256 or 512 is affordable.
        temperature: see `rl.sac`.
        target_entropy: see `rl.sac`.
        critics: how many; the least of their values counts.
        num_steps: see `rl.sac`.
        updates_per_rollout: see `rl.sac`.
        batch_size: see `rl.sac`.
        capacity: see `rl.sac`.
        learning_starts: see `rl.sac`.
        discount: see `rl.sac`.
        policy_delay: updates of the critics for each update of the actor.
        n_step: see `rl.sac`.
        noise: see `rl.sac`.
        stack: see `rl.sac`.
        memory: see `rl.sac`.
        normalize_observations: see `rl.sac`.

    Raises:
        ValueError: as `rl.sac`.

    Source: Bhatt et al. 2024, section 3 and table 2.
    """
    if optimizer is None:
        optimizer = optax.adam(1e-3, b1=0.5)
    if actor_optimizer is None:
        actor_optimizer = optimizer
    check_counts("crossq", policy_delay=policy_delay, critics=critics, width=width)
    if temperature is not None and temperature < 0:
        raise ValueError(f"crossq(temperature={temperature}): at least 0; None to learn it")
    box = bounds(action_space)
    actor_net = Actor(torsos(observation_space, network, (256, 256))[0], box.size)
    _, torso, widths = torsos(observation_space, network, (width, width))
    training, frozen = (
        ensemble(Critic(torso, widths, normalized=True, training=training), critics) for training in (True, False)
    )
    buffer = replay(
        observation_space,
        action_space,
        capacity=capacity,
        num_envs=num_envs,
        n_step=n_step,
        stack=stack,
        memory=memory,
    )
    sought = -float(box.size) if target_entropy is None else target_entropy

    def init(key: Array) -> tuple[PyTree, PyTree, Any]:
        actor_key, critics_key = jax.random.split(key)
        example = zeros(observation_space, 1)
        actor = {"network": actor_net.init(actor_key, example)["params"]}
        if temperature is None:
            actor["log_temperature"] = jnp.zeros(())
        made = frozen.init(critics_key, example, jnp.zeros((1, box.size)))
        params = {"actor": actor, "critics": made["params"], "statistics": made["batch_stats"]}
        return params, (), {"actor": actor_optimizer.init(actor), "critics": optimizer.init(made["params"])}

    def policy(actor: PyTree, observation: Any) -> Squashed:
        mean, log_std = cast(tuple, actor_net.apply({"params": actor["network"]}, observation))
        return Squashed(mean, log_std, box)

    def act(agent: ReplayAgent, carry: Carry, timestep: TimeStep, key: Array, greedy: bool) -> tuple[Any, Carry, Any]:
        distribution = policy(agent.params["actor"], timestep.observation)
        if greedy:
            return box.action(distribution.mode()), carry, ()
        draw_key, key = jax.random.split(key)
        units = distribution.sample(draw_key)
        action, carry = explored(box, agent, units, timestep, carry, key, noise, learning_starts)
        return action, carry, ()

    def learn(learning: Learning, batch: Transitions, key: Array) -> tuple[Learning, None, dict[str, Any]]:
        params, _, states, count = learning
        actor, critic_params, statistics = params["actor"], params["critics"], params["statistics"]
        noises = jax.random.normal(key, (2, batch_size, box.size))
        units, log_prob = policy(actor, batch.next_observation).from_noise(noises[0])
        following = {"units": units, "entropy": -weight_of_entropy(actor, temperature) * log_prob}
        part = own_part({"transitions": batch, "following": following, "noise": noises[1]}, batch_size)

        def critic_loss(params: PyTree, part: dict[str, Any], key: Array) -> tuple[Array, Array, dict[str, Any]]:
            """Both pairs in one pass; the goal comes out of the same networks, and is no way back into them."""
            batch, following = part["transitions"], part["following"]
            both = jax.tree.map(lambda *x: jnp.concatenate(x), batch.observation, batch.next_observation)
            units = jnp.concatenate([box.units(batch.action), following["units"]])
            given = {"params": params, "batch_stats": statistics}
            outputs, changed = cast(tuple, training.apply(given, both, units, mutable=["batch_stats"]))
            now, then = jnp.split(outputs, 2, axis=1)
            goals = LEAST.following(then) + following["entropy"][:, None]
            goals = jax.lax.stop_gradient(batch.reward[:, None] + batch.discount[:, None] * goals)
            weight = batch.weight.sum()
            value = Mean((LEAST.value(now) * batch.weight).sum(), weight)
            measured = {"value": value, "statistics": changed["batch_stats"]}
            return (LEAST.loss(now, goals) * batch.weight).sum(), weight, measured

        grads, loss, measured = jdl.gradients(critic_loss, critic_params, part, key)
        critic_params, critic_state = apply_gradients(
            optimizer, grads, states["critics"], critic_params, loss, critic_loss, part, key
        )
        # Flax promotes running statistics to wider types, and a state must keep its types.
        statistics = jax.tree.map(lambda new, old: new.astype(old.dtype), measured.pop("statistics"), statistics)

        def value(observation: Any, units: Array) -> Array:
            """By the critics as they are outside of training."""
            given = {"params": critic_params, "batch_stats": statistics}
            return LEAST.value(cast(Array, frozen.apply(given, observation, units)))

        actor_loss = soft_actor_loss(policy, value, temperature, sought)

        def improve() -> tuple[PyTree, Any, dict[str, Mean]]:
            grads, mean, measured = jdl.gradients(actor_loss, actor, part, key, separable=True)
            return *apply_gradients(
                actor_optimizer, grads, states["actor"], actor, mean, actor_loss, part, key
            ), measured

        count = count + 1
        actor, actor_state, improved = every(policy_delay, count, improve, (actor, states["actor"]))
        params = {"actor": actor, "critics": critic_params, "statistics": statistics}
        learning = Learning(params, (), {"actor": actor_state, "critics": critic_state}, count)
        return learning, None, {"loss": loss, **measured, **improved}

    def also(agent: ReplayAgent) -> dict[str, Last]:
        return {"temperature": Last(jnp.asarray(weight_of_entropy(agent.params["actor"], temperature), jnp.float32))}

    return off_policy(
        "crossq",
        observation_space,
        buffer,
        init=init,
        act=act,
        learn=learn,
        initial_carry=lambda envs: () if noise is None else noise.init(envs, box.size),
        also=also,
        num_steps=num_steps,
        updates_per_rollout=num_steps * num_envs if updates_per_rollout is None else updates_per_rollout,
        batch_size=batch_size,
        learning_starts=learning_starts,
        discount=discount,
        normalize_observations=normalize_observations,
    )
