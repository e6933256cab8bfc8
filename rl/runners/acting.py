"""Compiled programs for acting."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import gymnasium
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from jdl.core.learner import Batch, State, fold, step_key
from jdl.core.runs_axis import over_runs
from jdl.runtime import processes
from rl.jaxprs import Pruned, blank, prune_unused, split
from rl.runners import draws
from rl.spaces import legal
from rl.types import Algorithm, Carry, TimeStep


def predictor(algorithm: Algorithm, action_space: gymnasium.Space) -> Callable[[State, Batch], Any]:
    """A learner's `predict`: greedy actions for observations [batch, ...].

    Args:
        algorithm: the algorithm that acts.
        action_space: space of the actions.

    Returns:
        `(state, batch) -> actions`, as the environment takes them. `batch` is the observations or has them as "input";
        then it may also have an "action_mask" [batch, actions], and the last "reward" [batch]. Observations may have
        their mask as a part of that name.
        Where `batch` has a "carry", what was remembered before or None, the result is a dict of "action" and "carry".
    """
    as_taken = legal(action_space)

    def predict(state: State, batch: Batch) -> Any:
        observation, mask, reward = batch, None, None
        if isinstance(batch, dict) and "input" in batch:
            observation, mask, reward = batch["input"], batch.get("action_mask"), batch.get("reward")
        if isinstance(observation, Mapping) and "action_mask" in observation:
            mask = observation["action_mask"]
        size = len(jax.tree.leaves(observation)[0])
        remembers = isinstance(batch, dict) and "input" in batch and "carry" in batch
        before = batch["carry"] if remembers else None
        carry = algorithm.initial_carry(size) if before is None else before
        timestep = TimeStep(observation, jnp.full(size, before is None), mask, reward)
        action, carry, _ = algorithm.act(state.agent, carry, timestep, state.key, True)
        return {"action": as_taken(action), "carry": carry} if remembers else as_taken(action)

    return predict


class Program(NamedTuple):
    """The functions with which the agents of all runs play a rollout; every array begins with an axis of runs.

    Without `Pruned`, the leaves of the optimizer and of the replay would be flattened and passed at every step.

    Attributes:
        draw: `(state, later) -> drawn`, the random numbers of the rollout that begins `later` updates after `state`;
            leaves [run, time, ...].
        act: `(leaves, (carry, timestep, drawn), t) -> (taken, action, carry, extras)` for step t of the rollout, each
            [run, env, ...]. `taken` is the action as the environment takes it, `action` as the policy chose it, or None
            if that is the same.
        recall: `(leaves, (carry, timestep, action)) -> extras` with timestep and action [run, time, env, ...]; None if
            the algorithm has no `recall`.
        result: shapes of the result of `act`.
        agents: shapes of all leaves of the agents.
    """

    draw: Callable[[State, int], Any]
    act: Pruned
    recall: Pruned | None
    result: Any
    agents: list[Any]

    @property
    def used(self) -> list[int]:
        """Indices of the leaves of an agent that `act` or `recall` uses."""
        return sorted({*self.act.used, *(self.recall.used if self.recall else [])})

    def blank(self) -> dict[int, Any]:
        """Leaves of the same shapes and types, for use before there is an agent."""
        return {i: blank(self.agents[i]) for i in self.used}


def program(
    algorithm: Algorithm, action_space: gymnasium.Space, carry: Carry, timestep: TimeStep, several: bool
) -> Program:
    """Compile the functions that play a rollout.

    Random numbers are drawn before the rollout (`rl.runners.draws`), and `Algorithm.recall` is computed after it. What
    remains of a step is a short chain of operations, which a CPU does not hand from core to core.

    Args:
        algorithm: the algorithm that acts.
        action_space: space of the actions.
        carry: recurrent states, leaves [run, env, ...]; only shapes and types are used.
        timestep: leaves [run, env, ...]; only shapes and types are used.
        several: agents and states have an axis of runs, too.
    """
    runs, num_steps = len(timestep.first), algorithm.num_steps
    as_taken = legal(action_space)

    def step(key: Array, agent: Any, carry: Carry, timestep: TimeStep) -> tuple[Any, Any, Carry, Any]:
        action, carry, extras = algorithm.act(agent, carry, timestep, key, False)
        taken = as_taken(action)
        return taken, None if taken is action else action, carry, extras

    key = jax.eval_shape(lambda: jax.random.key(0))
    agent, carry, timestep = jax.eval_shape(lambda: (algorithm.init(jax.random.key(0)), carry, timestep))
    draw_step, use = split(step, key, agent, *_shapes((carry, timestep), lambda shape: shape[1:]))
    if (count := processes.count()) > 1:  # each process has a part of the environments
        whole = _shapes((carry, timestep), lambda shape: (count * shape[1], *shape[2:]))
        draw_all_step, _ = split(step, key, agent, *whole)
        draw_step = draws.part_of(draw_all_step, draw_step, key, processes.index())

    def draw(state: State, later: Array) -> Any:
        key = fold(step_key(state.replace(step=state.step + later)), "act")
        return jax.vmap(draw_step)(jax.random.split(key, num_steps))

    def act(run: tuple[Any, Carry, TimeStep, Any], t: Array) -> tuple[Any, Any, Carry, Any]:
        agent, carry, timestep, drawn = run
        return use([leaf[t] for leaf in drawn], agent, carry, timestep)

    def map_over_runs(function: Callable[..., Any]) -> Callable[..., Any]:
        alone = not processes.several()  # each of several processes acts by itself
        mapped = over_runs(function, runs, placement=None, spread=alone, transform="on_host")
        return lambda agent, rest, *shared: mapped((agent if several else _with_runs_axis(agent), *rest), *shared)

    agents = _shapes(agent, lambda shape: (runs, *shape)) if several else agent
    drawn = _shapes(jax.eval_shape(jax.vmap(draw_step), _shapes(key, lambda _: (num_steps,))), lambda s: (runs, *s))
    pruned_act, result = prune_unused(map_over_runs(act), agents, (carry, timestep, drawn), 0)
    pruned_recall = None
    if algorithm.recall is not None:
        recall = algorithm.recall
        taken, drawn_action, *_ = result
        action = taken if drawn_action is None else drawn_action
        timesteps, actions = _shapes((timestep, action), lambda shape: (runs, num_steps, *shape[1:]))
        pruned_recall, _ = prune_unused(map_over_runs(lambda run: recall(*run)), agents, (carry, timesteps, actions))
    draw_all = jax.vmap(draw, (0, None)) if several else lambda state, later: _with_runs_axis(draw(state, later))
    return Program(jax.jit(draw_all), pruned_act, pruned_recall, result, jax.tree.leaves(agents))


def _with_runs_axis(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: leaf[None], tree)


def _shapes(tree: PyTree, changed: Callable[[tuple[int, ...]], tuple[int, ...]]) -> PyTree:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(changed(leaf.shape), leaf.dtype), tree)
