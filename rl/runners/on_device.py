"""An algorithm and a JAX environment as one learner: acting, environment and update are one compiled program."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jdl.core import seam
from jdl.core.accumulators import Mean
from jdl.core.learner import Batch, Learner, Traits, fold, step_key
from rl.envs.environment import Environment, Outcome, auto_reset
from rl.runners import draws
from rl.runners.acting import predictor
from rl.spaces import choices, legal
from rl.types import Algorithm, Experience, TimeStep

# Paths of the state's arrays that have an axis of environments, or of lanes in a replay.
_LANES = r"^(environments|timestep|carry|returned|length)(/|$)|/replay/ring/"


@flax.struct.dataclass
class OnDeviceState:
    """The agent and the environments.

    Attributes:
        key: the key of the run.
        step: scalar int32; updates so far, each of `num_steps` x `num_envs` environment steps.
        agent: the algorithm's agent.
        environments: leaves [env, ...]; states of the environments.
        timestep: leaves [env, ...]; the next input of the agent.
        carry: leaves [env, ...]; recurrent state of the agent.
        returned: [env], float32; sum of the rewards of the episode under way.
        length: [env], int32; steps of the episode under way.
    """

    key: Any
    step: Any
    agent: Any
    environments: Any
    timestep: Any
    carry: Any
    returned: Any
    length: Any


def on_device(
    algorithm: Algorithm, env: Environment, num_envs: int, *, max_steps: int = 10_000, greedy: bool = True
) -> Learner:
    """A learner whose step is a rollout and an update; it needs no data (`jdl.fit(jdl.jit(learner), None, ...)`).

    Its metrics are those of the algorithm, and `return` and `length` of the training episodes that ended. `evaluate`
    plays one episode for each number in `batch["episode"]` (`rl.episodes(100)`), each from its own key. `predict` acts
    greedily on a batch of observations. `jdl.distribute` splits the environments over the devices, and in every mode
    except "pmap" the lanes of a replay, too.

    Args:
        algorithm: the algorithm, made for the spaces of `env`.
        env: the environment, without auto-reset.
        num_envs: number of environments.
        max_steps: limit on the length of an episode in `evaluate`.
        greedy: in `evaluate`, take greedy actions instead of sampling.

    Raises:
        ValueError: for `num_envs` below 1. The compiled step raises it for an action mask that forbids every action.
    """
    if num_envs < 1:
        raise ValueError(f"on_device(num_envs={num_envs}): at least 1 environment")
    step_env = jax.vmap(auto_reset(env))
    as_taken = legal(env.action_space)

    def init(key: Array) -> OnDeviceState:
        environments, outcome = jax.vmap(env.reset)(jax.random.split(fold(key, "reset"), num_envs))
        return OnDeviceState(
            key=key,
            step=jnp.zeros((), jnp.int32),
            agent=algorithm.init(fold(key, "agent")),
            environments=environments,
            timestep=_seen(outcome, jnp.ones(num_envs, bool)),
            carry=algorithm.initial_carry(num_envs),
            returned=jnp.zeros(num_envs),
            length=jnp.zeros(num_envs, jnp.int32),
        )

    def step(state: OnDeviceState, batch: Batch = None) -> tuple[OnDeviceState, dict[str, Any]]:
        key = step_key(state)
        # Split all keys of the rollout at once: step by step, splitting costs as much as the environments.
        act_keys = jax.random.split(fold(key, "act"), algorithm.num_steps)
        env_keys = jax.random.split(fold(key, "environment"), (algorithm.num_steps, num_envs))

        def play(now: tuple[Any, ...], keys: tuple[Array, Array]) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
            environments, timestep, carry, returned, length = now
            action, carry, extras = algorithm.act(state.agent, carry, timestep, keys[0], False)
            environments, outcome, seen = step_env(environments, as_taken(action), keys[1])
            ended = outcome.terminated | outcome.truncated
            returned, length = returned + outcome.reward, length + 1
            finished = (jnp.where(ended, returned, 0), jnp.where(ended, length, 0), ended)
            now = (environments, _seen(seen, ended), carry, jnp.where(ended, 0, returned), jnp.where(ended, 0, length))
            return now, (timestep, action, extras, outcome, finished)

        now = (state.environments, state.timestep, state.carry, state.returned, state.length)
        now, (timestep, action, extras, outcome, finished) = draws.scan(play, now, (act_keys, env_keys))
        environments, last, carry, returned, length = now
        if timestep.action_mask is not None:
            _stop_if_nothing_is_allowed(env, timestep.action_mask)
        if algorithm.recall is not None:
            extras = algorithm.recall(state.agent, state.carry, timestep, action)
        # Under `jdl.pmap` each replica has played a part of the environments and learns from all of them.
        timestep, action, extras, outcome, finished = seam.whole((timestep, action, extras, outcome, finished), axis=1)
        last_of_all, first_carry = seam.whole((last, state.carry))
        experience = Experience(
            timestep=timestep,
            action=action,
            extras=extras,
            reward=outcome.reward,
            terminated=outcome.terminated,
            truncated=outcome.truncated,
            valid=jnp.ones(outcome.reward.shape, bool),  # resets take no step
            next_observation=outcome.observation,
            last=last_of_all,
            carry=first_carry,
            next_action_mask=outcome.action_mask,
        )
        agent, metrics = algorithm.update(state.agent, experience, fold(key, "update"))
        ended = finished[2].sum().astype(jnp.float32)
        episodes = {"return": Mean(finished[0].sum(), ended), "length": Mean(finished[1].sum().astype(float), ended)}
        state = OnDeviceState(state.key, state.step + 1, agent, environments, last, carry, returned, length)
        return state, {**episodes, **metrics}

    def evaluate(state: OnDeviceState, batch: Batch) -> dict[str, Mean]:
        numbers = batch["episode"]
        mask = jnp.asarray(batch.get("mask", np.ones(len(numbers))), jnp.float32)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(fold(state.key, "evaluate"), numbers)
        returned, length = _episodes(algorithm, env, state.agent, keys, max_steps, greedy)
        count = mask.sum()
        return {"return": Mean((returned * mask).sum(), count), "length": Mean((length * mask).sum(), count)}

    traits = Traits(fed=True, lanes=_LANES, example=())
    return Learner(init, step, evaluate, predictor(algorithm, env.action_space), traits=traits)


def episodes(count: int) -> dict[str, np.ndarray]:
    """A batch of episode numbers, on which `fit(validation=...)` and `jdl.evaluate` evaluate an agent.

    Args:
        count: number of episodes.

    Raises:
        ValueError: for `count` below 1.
    """
    if count < 1:
        raise ValueError(f"episodes({count}): at least 1 episode to evaluate an agent on")
    return {"episode": np.arange(count, dtype=np.int32)}


def _episodes(
    algorithm: Algorithm, env: Environment, agent: Any, keys: Array, max_steps: int, greedy: bool
) -> tuple[Array, Array]:
    """Return and length of one episode per key, [episode]; all are played in parallel until the last one ends."""
    count = len(keys)
    as_taken = legal(env.action_space)
    environments, outcome = jax.vmap(env.reset)(jax.vmap(lambda key: fold(key, "reset"))(keys))

    def going(now: tuple[Any, ...]) -> Array:
        return (now[0] < max_steps) & now[3].any()

    def play(now: tuple[Any, ...]) -> tuple[Any, ...]:
        time, environments, timestep, running, carry, returned, length = now
        at = jax.vmap(jax.random.fold_in, (0, None))(keys, time)
        action, carry, _ = algorithm.act(agent, carry, timestep, fold(at[0], "act"), greedy)
        environments, outcome = jax.vmap(env.step)(environments, as_taken(action), at)
        returned = returned + jnp.where(running, outcome.reward, 0)
        length = length + running
        running = running & ~(outcome.terminated | outcome.truncated)
        seen = _seen(outcome, jnp.zeros(count, bool))
        return time + 1, environments, seen, running, carry, returned, length

    begin = jnp.ones(count, bool)
    first = (0, environments, _seen(outcome, begin), begin, algorithm.initial_carry(count))
    *_, returned, length = jax.lax.while_loop(going, play, (*first, jnp.zeros(count), jnp.zeros(count)))
    return returned, length


def _stop_if_nothing_is_allowed(env: Environment, mask: Array) -> None:
    """Stop the program with a ValueError if a mask [time, env, actions] leaves a choice without an allowed option."""
    parts = jnp.split(mask, np.cumsum(choices(env.action_space))[:-1], axis=-1)
    stuck = ~jnp.stack([part.any(-1) for part in parts]).all()

    def stop(stuck: Any) -> None:
        if np.any(stuck):  # under vmap both branches run
            raise ValueError(
                f"an action mask of {env.name} forbids every action; an episode with nothing left to do has terminated"
            )

    jax.lax.cond(stuck, lambda: jax.debug.callback(stop, stuck), lambda: None)


def _seen(outcome: Outcome, first: Array) -> TimeStep:
    return TimeStep(outcome.observation, first, outcome.action_mask)
