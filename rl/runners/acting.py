"""Compiled programs for acting."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import gymnasium
import jax
import jax.numpy as jnp
from jax.interpreters.partial_eval import dce_jaxpr
from jaxtyping import Array, PyTree

from jdl.core.learner import Batch, State, fold, step_key
from jdl.core.runs_axis import over_runs
from jdl.runtime import processes
from rl.runners import draws
from rl.spaces import legal
from rl.types import Algorithm, Carry, TimeStep


def predictor(algorithm: Algorithm, action_space: gymnasium.Space) -> Callable[[State, Batch], Any]:
    """A learner's `predict`: greedy actions for observations [batch, ...].

    Args:
        algorithm: the algorithm that acts.
        action_space: space of the actions.

    Returns:
        `(state, batch) -> actions`, as the environment takes them. `batch` is the observations or has them as "input".
    """
    as_taken = legal(action_space)

    def predict(state: State, batch: Batch) -> Any:
        observation = batch["input"] if isinstance(batch, dict) and "input" in batch else batch
        size = len(jax.tree.leaves(observation)[0])
        mask = observation.get("action_mask") if isinstance(observation, Mapping) else None
        timestep = TimeStep(observation, jnp.ones(size, bool), mask)
        action, _, _ = algorithm.act(state.agent, algorithm.initial_carry(size), timestep, state.key, True)
        return as_taken(action)

    return predict


class OfLeaves(NamedTuple):
    """A compiled function of an agent and other arguments that is passed only the agent's leaves that it reads.

    Otherwise the leaves of the optimizer and the replay would be flattened and passed at every step for nothing.

    Attributes:
        read: indices of the leaves it reads, in the order of `jax.tree.leaves(agent)`.
        compiled: `(leaves, *arguments) -> result`, for a list of these leaves.
    """

    read: list[int]
    compiled: Callable[..., Any]

    def __call__(self, leaves: Mapping[int, Any], *arguments: Any) -> Any:
        return self.compiled([leaves[i] for i in self.read], *arguments)


class Program(NamedTuple):
    """The functions with which the agents of all runs play a rollout; every array begins with an axis of runs.

    Attributes:
        draw: `(state, later) -> drawn`, the random numbers of the rollout that begins `later` updates after `state`;
            leaves [run, time, ...].
        act: `(leaves, (carry, timestep, drawn), t) -> (taken, action, carry, extras)` for step t of the rollout, each
            [run, env, ...]. `taken` is the action as the environment takes it, `action` as the policy chose it, or None
            if that is the same.
        recall: `(leaves, (carry, timestep, action)) -> extras` with timestep and action [run, time, env, ...]; None if
            the algorithm has no `recall`.
        acted: shapes of the result of `act`.
        agents: shapes of all leaves of the agents.
    """

    draw: Callable[[State, int], Any]
    act: OfLeaves
    recall: OfLeaves | None
    acted: Any
    agents: list[Any]

    @property
    def read(self) -> list[int]:
        """Indices of the leaves of an agent that `act` or `recall` reads."""
        return sorted({*self.act.read, *(self.recall.read if self.recall else [])})

    def blank(self) -> dict[int, Any]:
        """Leaves of the same shapes and types, for use before there is an agent."""
        return {i: _blank(self.agents[i]) for i in self.read}


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
    draw_step, use = draws.split(step, key, agent, *_shapes((carry, timestep), lambda shape: shape[1:]))
    if (count := processes.count()) > 1:  # each process has a part of the environments
        whole = _shapes((carry, timestep), lambda shape: (count * shape[1], *shape[2:]))
        draw_all_step, _ = draws.split(step, key, agent, *whole)
        draw_step = draws.part_of(draw_all_step, draw_step, key, processes.index())

    def draw(state: State, later: Array) -> Any:
        key = fold(step_key(state.replace(step=state.step + later)), "act")
        return jax.vmap(draw_step)(jax.random.split(key, num_steps))

    def act(run: tuple[Any, Carry, TimeStep, Any], t: Array) -> tuple[Any, Any, Carry, Any]:
        agent, carry, timestep, drawn = run
        return use([leaf[t] for leaf in drawn], agent, carry, timestep)

    def of_runs(function: Callable[..., Any]) -> Callable[..., Any]:
        alone = not processes.several()  # each of several processes acts by itself
        placed = over_runs(function, runs, placement=None, spread=alone, transform="on_host")
        return lambda agent, rest, *shared: placed((agent if several else _of_one(agent), *rest), *shared)

    agents = _shapes(agent, lambda shape: (runs, *shape)) if several else agent
    drawn = _shapes(jax.eval_shape(jax.vmap(draw_step), _shapes(key, lambda _: (num_steps,))), lambda s: (runs, *s))
    acting, acted = _of_leaves(of_runs(act), agents, (carry, timestep, drawn), 0)
    recalling = None
    if algorithm.recall is not None:
        recall = algorithm.recall
        taken, drawn_action, *_ = acted
        action = taken if drawn_action is None else drawn_action
        timesteps, actions = _shapes((timestep, action), lambda shape: (runs, num_steps, *shape[1:]))
        recalling, _ = _of_leaves(of_runs(lambda run: recall(*run)), agents, (carry, timesteps, actions))
    draw_all = jax.vmap(draw, (0, None)) if several else lambda state, later: _of_one(draw(state, later))
    return Program(jax.jit(draw_all), acting, recalling, acted, jax.tree.leaves(agents))


def _of_leaves(function: Callable[..., Any], agent: Any, *arguments: Any) -> tuple[OfLeaves, Any]:
    """Compile a function of an agent for the leaves that it reads; also returns the shapes of its result."""
    shapes, structure = jax.tree.flatten(agent)
    traced, result = jax.make_jaxpr(function, return_shape=True)(agent, *arguments)
    used = dce_jaxpr(traced, [True] * len(traced.outvars))[1]
    read = [i for i in range(len(shapes)) if used[i]]

    def of_read(leaves: list[Any], *arguments: Any) -> Any:
        given = dict(zip(read, leaves, strict=True))
        whole = [given[i] if i in given else _blank(shape) for i, shape in enumerate(shapes)]
        return function(jax.tree.unflatten(structure, whole), *arguments)

    return OfLeaves(read, jax.jit(of_read)), result


def _blank(shape: jax.ShapeDtypeStruct) -> Array:
    if jnp.issubdtype(shape.dtype, jax.dtypes.prng_key):
        return jax.random.split(jax.random.key(0), shape.shape)
    return jnp.zeros(shape.shape, shape.dtype)


def _of_one(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: leaf[None], tree)


def _shapes(tree: PyTree, changed: Callable[[tuple[int, ...]], tuple[int, ...]]) -> PyTree:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(changed(leaf.shape), leaf.dtype), tree)
