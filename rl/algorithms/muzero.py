"""MuZero (Schrittwieser et al. 2020) with Gumbel search (Danihelka et al. 2022): search in a learned model."""

from typing import Any

import flax.linen as nn
import flax.struct
import gymnasium
import jax
import jax.numpy as jnp
import optax
from gymnasium import spaces
from jaxtyping import Array, PyTree

import jdl
from jdl.core import seam
from jdl.core.accumulators import Mean, merge_axis
from jdl.core.update import apply_gradients
from rl import normalize
from rl.envs.libraries import imported
from rl.learned_model import LearnedModel, applied
from rl.model_search import model_search
from rl.networks import torso
from rl.off_policy import check_counts
from rl.policy import Extras, by_env, moments, next_values
from rl.returns import n_step_returns
from rl.search import masked
from rl.spaces import real_valued, zeros
from rl.two_hot import two_hot
from rl.types import Algorithm, Experience, TimeStep
from rl.unrolls import Kept, Unrolled, unrolled


@flax.struct.dataclass
class MuZeroAgent:
    """Everything that changes while it learns.

    Attributes:
        params: parameters of the model.
        optimizer: state of the Optax optimizer.
        kept: leaves [window, time, env, ...]; the last rollouts (`rl.unrolls.Kept`).
        rollouts: scalar int32; rollouts so far.
        spread: scalar float32; the largest standard deviation that the value targets kept had so far.
        observations: `rl.normalize.Moments` of the observations; None if they are not normalized.
    """

    params: Any
    optimizer: Any
    kept: Kept
    rollouts: Any
    spread: Any
    observations: Any


def muzero(
    observation_space: gymnasium.Space,
    action_space: gymnasium.Space,
    network: nn.Module | None = None,
    *,
    num_envs: int,
    optimizer: optax.GradientTransformation | None = None,
    num_steps: int = 32,
    simulations: int = 16,
    considered: int = 16,
    minibatches: int = 32,
    batch_size: int = 256,
    window: int = 128,
    unroll_steps: int = 5,
    n_step: int = 10,
    discount: float = 0.99,
    width: int = 64,
    value_limit: float = 1000.0,
    bins: int = 51,
    value_weight: float = 0.25,
    least_range: float = 0.3,
    normalize_observations: bool = False,
) -> Algorithm:
    """MuZero for Discrete actions.

    A model of the environment is learned from rollouts. Acting, also greedily, is a search in it, and the policy of the
    model learns what the search found. An agent may act with other `simulations` than those that it learned with:
    `rl.evaluate(rl.muzero(..., simulations=0), agent, env)` plays by its policy alone.

    Args:
        observation_space: any space that `rl.networks.torso` or the given network takes.
        action_space: Discrete.
        network: a torso, by default `rl.networks.torso`; the model's layers follow it (`rl.learned_model`).
        num_envs: number of environments of the runner.
        optimizer: by default AdamW(1e-3, weight decay 1e-4), gradients clipped to a global norm of 5.
        num_steps: steps of each environment per rollout.
        simulations: states that a search reaches; 0 acts by the policy alone, and cannot learn.
        considered: actions that a search tries first, at most.
        minibatches: updates per rollout.
        batch_size: examples in each.
        window: rollouts that examples are drawn from.
        unroll_steps: K, actions over which the model is unrolled.
        n_step: rewards in a value target, before the value that the search found.
        discount: γ.
        width: numbers in a state of the model.
        value_limit: rewards and discounted returns beyond it, on either side, count as the limit; the metric
            "beyond_limit" is the share of targets that do.
        bins: logits of a reward, and of a value.
        value_weight: weight of the value loss.
        least_range: a search stretches the values of actions to [0, 1] from their lowest to their highest, at least
            from this many standard deviations of all values. Near 0, the errors of a model that knows little yet become
            certainties, and what they speak against is never tried.
        normalize_observations: by running moments; real-valued parts alone.

    Raises:
        LookupError: if mctx is not installed.
        ValueError: for unsupported spaces, and for counts below 1.
    """
    if not isinstance(action_space, spaces.Discrete):
        box = isinstance(action_space, spaces.Box)
        raise ValueError(
            f"the action space {action_space} is not Discrete; MuZero searches single choices (try "
            f"{'rl.sac or ' if box else ''}rl.ppo)"
        )
    if optimizer is None:
        optimizer = optax.chain(optax.clip_by_global_norm(5.0), optax.adamw(1e-3, weight_decay=1e-4))
    check_counts("muzero", num_envs=num_envs, num_steps=num_steps, minibatches=minibatches, batch_size=batch_size)
    check_counts("muzero", considered=considered, window=window, unroll_steps=unroll_steps, n_step=n_step, width=width)
    if simulations < 0:
        raise ValueError(f"muzero(simulations={simulations}): at least 1, or 0 to act by the policy alone")
    imported("mctx")  # else its lack would show when the first step is compiled
    actions = int(action_space.n)
    numbers = two_hot(value_limit, bins)
    body = torso(observation_space) if network is None else network
    model = LearnedModel(body, actions, bins, width)
    parts = applied(model)
    position_weight = jnp.full(unroll_steps + 1, 1 / unroll_steps).at[0].set(1)

    def init(key: Array) -> MuZeroAgent:
        example = zeros(observation_space, 1)
        params = model.init(key, example)["params"]
        one = jax.tree.map(lambda leaf: leaf[0], example)
        number, truth = jnp.zeros(()), jnp.zeros((), bool)
        step = Kept(
            one,
            jnp.zeros((), jnp.int32),
            number,
            number,
            jnp.zeros(actions),
            jnp.zeros(actions, bool),
            truth,
            truth,
            truth,
        )
        shape = window, num_steps, num_envs
        kept = jax.tree.map(lambda leaf: jnp.zeros((*shape, *leaf.shape), leaf.dtype), step)
        normalizer = normalize.initial(one, real_valued(observation_space)) if normalize_observations else None
        return MuZeroAgent(params, optimizer.init(params), kept, jnp.zeros((), jnp.int32), jnp.zeros(()), normalizer)

    def seen(agent: MuZeroAgent, observation: Any) -> Any:
        return observation if agent.observations is None else normalize.normalized(agent.observations, observation)

    def act(
        agent: MuZeroAgent, carry: Any, timestep: TimeStep, key: Array, greedy: bool
    ) -> tuple[Array, Any, dict[str, Array]]:
        represent, _, predict = parts(agent.params)
        state = represent(seen(agent, timestep.observation))
        allowed = timestep.action_mask
        if not simulations:
            logits, _ = predict(state)
            logits = logits if allowed is None else jnp.where(allowed, logits, -jnp.inf)
            return logits.argmax(-1) if greedy else jax.random.categorical(key, logits), carry, {}
        found = model_search(
            model,
            numbers,
            agent.params,
            key,
            state,
            allowed,
            discount=discount,
            simulations=simulations,
            considered=considered,
            least_range=least_range * agent.spread,
            gumbel_scale=0.0 if greedy else 1.0,
        )
        return found.action, carry, {"weights": found.weights, "value": found.value}

    def update(agent: MuZeroAgent, experience: Experience, key: Array) -> tuple[MuZeroAgent, dict[str, Mean]]:
        place = agent.rollouts % window
        kept = jax.tree.map(lambda old, new: old.at[place].set(new), agent.kept, _kept(agent, experience))
        normalizer = agent.observations
        if normalizer is not None:
            normalizer = normalize.updated(normalizer, experience.timestep.observation, experience.valid)
        agent = agent.replace(kept=kept, observations=normalizer)  # type: ignore[attr-defined]
        there = jnp.minimum(agent.rollouts + 1, window)
        # Never less than before: the values of an agent that always does the same are all alike.
        spread = jnp.maximum(agent.spread, moments(kept.value, kept.valid)[1])

        def minibatch(state: tuple[PyTree, Any], key: Array) -> tuple[tuple[PyTree, Any], Any]:
            params, optimizer_state = state
            draw_key, own_key = jax.random.split(key)
            drawn = jax.random.randint(draw_key, (3, batch_size), 0, jnp.array([[there], [num_steps], [num_envs]]))
            own = seam.current().share(jnp.arange(batch_size))  # under `jdl.pmap`, this replica's part
            rollout, time, env = drawn[:, own]
            part = unrolled(kept, rollout, time, env, unroll_steps)
            part = part._replace(observation=seen(agent, part.observation))
            grads, mean, measured = jdl.gradients(loss, params, part, own_key, separable=True)
            return apply_gradients(optimizer, grads, optimizer_state, params, mean, loss, part, own_key), measured

        (params, optimizer_state), measured = jax.lax.scan(
            minibatch, (agent.params, agent.optimizer), jax.random.split(key, minibatches)
        )
        agent = MuZeroAgent(params, optimizer_state, kept, agent.rollouts + 1, spread, normalizer)
        return agent, merge_axis(measured, 0)

    def loss(params: PyTree, part: Unrolled, key: Array) -> tuple[Array, Array, dict[str, Mean]]:
        represent, step, predict = parts(params)

        def transition(state: Array, action: Array) -> tuple[Array, tuple[Array, Array]]:
            state, reward = step(_half_gradient(state), action)
            return state, (state, reward)

        first = represent(part.observation)
        _, (later, reward) = jax.lax.scan(transition, first, part.action.T)
        states, reward = by_env((jnp.concatenate([first[None], later]), reward))  # [batch, position, ...]
        logits, value = predict(states)
        # What is forbidden in some states is not to seem bad in others, as it would if its logits were to fall.
        log_probs = jax.nn.log_softmax(masked(logits, part.allowed))
        surprise = -(part.weights * log_probs).sum(-1)
        own_entropy = jax.scipy.special.entr(part.weights).sum(-1)
        value_loss = optax.softmax_cross_entropy(value, numbers.encode(part.value))
        reward_loss = optax.softmax_cross_entropy(reward, numbers.encode(part.reward))
        known = part.known.astype(jnp.float32)
        # After the end of an episode there is nothing to choose: no policy is learned there.
        at_policy, at_value, at_reward = part.real * position_weight, known * position_weight, known[:, :-1]
        each = (surprise * at_policy + value_weight * value_loss * at_value).sum()
        total = each + (reward_loss * at_reward / unroll_steps).sum()
        beyond = jnp.abs(part.value) > value_limit
        counted = {
            "policy_loss": (surprise, part.real),
            "value_loss": (value_loss, known),
            "reward_loss": (reward_loss, known[:, :-1]),
            "search_gain": (surprise - own_entropy, part.real),
            "value": (numbers.decode(value), part.real),
            "beyond_limit": (beyond, part.real),
        }
        means = {name: Mean((x * where).sum(), where.sum().astype(jnp.float32)) for name, (x, where) in counted.items()}
        return total, known[:, 0].sum(), means

    def _kept(agent: MuZeroAgent, experience: Experience) -> Kept:
        """What is learned from a rollout, leaves [time, env, ...]."""
        if not simulations:
            raise ValueError("muzero(simulations=0) acts by its policy alone, and finds nothing to learn; at least 1")
        if experience.reward.shape[1] != num_envs:
            raise ValueError(
                f"muzero(num_envs={num_envs}): a rollout has {experience.reward.shape[1]} environments; give the "
                "runner the same number"
            )
        represent, _, predict = parts(agent.params)

        def values(observation: Any, carry: Any) -> Array:
            return numbers.decode(predict(represent(seen(agent, observation)))[1])

        found = Extras(None, experience.extras["value"])
        following = next_values(values, experience._replace(extras=found))
        target = n_step_returns(
            experience.reward, following, experience.terminated, experience.truncated, discount, n_step
        )
        allowed, weights = experience.timestep.action_mask, experience.extras["weights"]
        return Kept(
            observation=experience.timestep.observation,
            action=experience.action,
            reward=experience.reward,
            value=target,
            weights=weights,
            allowed=jnp.ones(weights.shape, bool) if allowed is None else allowed,
            terminated=experience.terminated,
            truncated=experience.truncated,
            valid=experience.valid,
        )

    def beliefs(agent: MuZeroAgent, timestep: TimeStep) -> tuple[Array, Array, float]:
        represent, step, predict = parts(agent.params)
        state = represent(seen(agent, timestep.observation))
        each = jnp.broadcast_to(jnp.arange(actions), (len(state), actions))
        after, reward = step(jnp.repeat(state[:, None], actions, 1), each)
        returns = numbers.decode(reward)[..., None] + discount * numbers.places
        return returns, jax.nn.softmax(predict(after)[1]), discount

    return Algorithm(init, lambda num_envs: (), act, update, num_steps, beliefs=beliefs)


def _half_gradient(state: Array) -> Array:
    """The same, with half of the gradient: else that of the first state would grow with each step (appendix G)."""
    return state / 2 + jax.lax.stop_gradient(state / 2)
