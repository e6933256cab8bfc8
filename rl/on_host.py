"""Algorithm and Gymnasium vector environment as a learner and its source: the source acts, the learner learns."""

import itertools
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import flax.struct
import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
from jax.interpreters.partial_eval import dce_jaxpr
from jaxtyping import Array, PyTree

from jdl.learner import Batch, Learner, State, fold, step_key
from jdl.metrics import Mean
from jdl.placement import over_runs
from jdl.ring import Ring
from rl import spaces
from rl.acting import predictor
from rl.types import Algorithm, Carry, Experience, TimeStep
from rl.vector import Seen, Stepped, Vector


@flax.struct.dataclass
class OnHostState:
    """What is learnt; the environments are the source's. `step` counts updates."""

    key: Any
    step: Any
    agent: Any


def on_host(
    algorithm: Algorithm,
    envs: gymnasium.vector.VectorEnv | Sequence[gymnasium.vector.VectorEnv],
    *,
    seed: int | Sequence[int] = 0,
) -> tuple[Learner, "Acting"]:
    """A learner and its source, for `jdl.fit(jdl.jit(learner), source, ...)`.

    envs: of any vectorisation and autoreset mode; for `jdl.seeds(learner, n, each=True)` a list of one for each run,
    and as many seeds (of the environments' resets; what the agent draws follows from the run's key). Rollout, update
    and metrics are those of `rl.on_device`. `evaluate` is `rl.evaluate`'s business. Raises ValueError for an
    environment in an unknown autoreset mode, one whose observations are not in its space, rewards that are not
    finite, and a mask that forbids everything.
    """
    several = not isinstance(envs, gymnasium.vector.VectorEnv)
    vectors = [Vector(one) for one in (envs if several else [envs])]  # type: ignore[union-attr]
    seeds = [seed] if isinstance(seed, int) else list(seed)
    if len(seeds) != len(vectors):
        raise ValueError(f"on_host: {len(vectors)} vector environment(s) and {len(seeds)} seed(s); give one seed each")
    learner = learn_on_host(algorithm, vectors[0].action_space)
    return learner, Acting(algorithm, vectors, seeds, several)


def learn_on_host(algorithm: Algorithm, action_space: gymnasium.Space) -> Learner:
    """The learner alone, for experience that `Acting` has gathered."""

    def init(key: Array) -> OnHostState:
        return OnHostState(key, jnp.zeros((), jnp.int32), algorithm.init(fold(key, "agent")))

    def step(state: OnHostState, batch: Batch) -> tuple[OnHostState, dict[str, Any]]:
        agent, metrics = algorithm.update(state.agent, batch["experience"], fold(step_key(state), "update"))
        returned, length, count = (jnp.asarray(x, jnp.float32) for x in batch["episodes"])
        episodes = {"return": Mean(returned, count), "length": Mean(length, count)}
        return OnHostState(state.key, state.step + 1, agent), {**episodes, **metrics}

    def evaluate(state: OnHostState, batch: Batch) -> Any:
        raise TypeError(
            "a learner on the host cannot play whole episodes itself; use rl.evaluate(algorithm, agent, env)"
        )

    return Learner(init, step, evaluate, predictor(algorithm, action_space), fed=True)


class Acting:
    """A source of experience: acts in the environments with the current agent, one compiled call a step.

    A resumed run comes to where it was by taking the same actions from the same seeds. For environments where that
    leads elsewhere, which is tried out at the start, there is a warning, and new episodes begin.
    """

    def __init__(self, algorithm: Algorithm, vectors: list[Vector], seeds: list[int], several: bool) -> None:
        self.algorithm, self.vectors, self.several = algorithm, vectors, several
        self.num_envs = vectors[0].num_envs
        # Gymnasium seeds its sub-environments n, n + 1, ...: seeds side by side would share resets.
        self.seeds = [int(np.random.SeedSequence(seed).generate_state(1)[0] >> 1) for seed in seeds]
        self._act_of_agent = _act_of_runs(algorithm, vectors[0].action_space, len(vectors), several)
        self._keys = jax.jit(lambda state: _keys(state, algorithm.rollout, several))
        self._repeats = all(_repeats(vector, seed) for vector, seed in zip(vectors, self.seeds, strict=True))
        self._seen = [vector.reset(seed) for vector, seed in zip(vectors, self.seeds, strict=True)]
        carry = algorithm.initial_carry(self.num_envs)
        self._carry = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (len(vectors), *leaf.shape)), carry)
        self._storages: Iterator[_Storage] | None = None  # these three when the first agent shows its shapes
        self._act: Callable[..., Any] = self._act_of_agent
        self._needed: list[int] = []  # the leaves of an agent that acting looks at
        self._totals = np.zeros((2, len(vectors), self.num_envs))  # return and length of the episodes under way
        self._actions: list[np.ndarray] = []  # that were taken, [time, run, env, ...] of each rollout

    def next(self, state: State) -> Batch:
        """A rollout with the agent in `state`."""
        if self._storages is None:
            self._storages = self._preallocated(state)
        storage, carry = next(self._storages), self._carry
        leaves = jax.tree.leaves(state.agent)
        first_carry, agent, keys = carry, [leaves[i] for i in self._needed], self._keys(state)
        all_taken = []
        for t in range(self.algorithm.rollout):
            for run, seen in enumerate(self._seen):
                storage.see(run, t, seen)
            taken, action, carry, extras = self._act(agent, carry, keys, storage.timestep(t), t)
            taken = np.asarray(taken)
            all_taken.append(taken)
            storage.act(t, taken if action is None else action, extras)
            for run, vector in enumerate(self.vectors):
                step = vector.step(taken[run])
                storage.step(run, t, step)
                self._seen[run] = step.seen
        for run, seen in enumerate(self._seen):
            storage.see(run, self.algorithm.rollout, seen)
        self._carry = carry
        self._actions.append(np.stack(all_taken))
        storage.check(self.vectors)
        batch = {"experience": storage.experience(first_carry), "episodes": storage.episodes(self._totals)}
        return batch if self.several else jax.tree.map(lambda leaf: leaf[0], batch)

    def _preallocated(self, state: State) -> Iterator["_Storage"]:
        timestep = jax.tree.map(lambda *leaves: np.stack(leaves), *[TimeStep(*seen) for seen in self._seen])
        arguments = self._carry, self._keys(state), timestep, 0
        self._act, self._needed = _without_the_rest(self._act_of_agent, state.agent, *arguments)
        taken, action, _, extras = jax.eval_shape(self._act_of_agent, state.agent, *arguments)
        sizes = len(self.vectors), self.algorithm.rollout, taken if action is None else action, extras
        # Two, in turn: the update may still read the one while the other is written.
        return itertools.cycle([_Storage(self.vectors[0], *sizes), _Storage(self.vectors[0], *sizes)])

    def close(self) -> None:
        """Close the environments."""
        for vector in self.vectors:
            vector.close()

    def save(self) -> PyTree:
        """What brings the environments back, and the record of the episodes under way; actions only ever added to."""
        space = self.vectors[0].action_space
        one = np.zeros((0, len(self.vectors), self.num_envs, *(space.shape or ())), space.dtype)
        actions = np.concatenate([one, *self._actions])
        self._actions = [actions]
        log = Ring(actions[None], np.array([len(actions)]))
        seen = jax.tree.map(lambda *leaves: np.stack(leaves), *self._seen)
        return {"actions": log, "seen": seen, "carry": self._carry, "totals": self._totals.copy()}

    def restore(self, saved: PyTree) -> None:
        actions = np.asarray(saved["actions"].rows)[0]
        self._carry, self._actions = saved["carry"], [actions]
        if not self._repeats:
            # Other seeds than at the start, which would only be played once more.
            self._seen = [
                vector.reset(seed + len(actions)) for vector, seed in zip(self.vectors, self.seeds, strict=True)
            ]
            return
        self._totals = np.array(saved["totals"])
        for run, vector in enumerate(self.vectors):
            for taken in actions[:, run]:
                self._seen[run] = vector.step(taken).seen
        now = jax.tree.map(lambda *leaves: np.stack(leaves), *self._seen)
        if not jax.tree.all(jax.tree.map(np.array_equal, now, saved["seen"])):
            warnings.warn(
                f"{self.vectors[0].envs} did not come to where it was when its {len(actions)} steps were repeated; the "
                "run goes on, but not to the bits that it would have had",
                stacklevel=2,
            )


def _repeats(vector: Vector, seed: int, steps: int = 16) -> bool:
    """Whether the same actions from the same seed lead to the same; says so where they do not."""
    vector.envs.action_space.seed(0)
    actions = [vector.envs.action_space.sample() for _ in range(steps)]
    played = []
    for _ in range(2):
        first = vector.reset(seed)
        allowed = actions if first.action_mask is None else []  # those of a random sample may be forbidden
        played.append([first.observation, *[vector.step(action).seen.observation for action in allowed]])
    if jax.tree.all(jax.tree.map(np.array_equal, *played)):
        return True
    warnings.warn(
        f"{vector.envs} does not repeat itself when it is reset with the same seed: a run that is killed and resumed "
        "will begin new episodes, and not end in the same bits",
        stacklevel=4,
    )
    return False


def _keys(state: State, rollout: int, several: bool) -> Array:
    """A key for each step of a rollout; all at once, since one by one they would cost as much as the network."""

    def one(state: State) -> Array:
        return jax.random.split(fold(step_key(state), "act"), rollout)

    return jax.vmap(one)(state) if several else one(state)


def _without_the_rest(act: Callable[..., Any], agent: Any, *arguments: Any) -> tuple[Callable[..., Any], list[int]]:
    """`act`, compiled, of those leaves of the agent that it looks at, and their numbers.

    An optimiser's and a replay's leaves would be taken apart and handed over at every step, for nothing.
    """
    leaves, structure = jax.tree.flatten(agent)
    traced = jax.make_jaxpr(act)(agent, *arguments).jaxpr
    used = dce_jaxpr(traced, [True] * len(traced.outvars))[1]
    needed = [i for i in range(len(leaves)) if used[i]]
    shapes = jax.eval_shape(lambda: leaves)

    def of_needed(some: list[Any], *arguments: Any) -> Any:
        given = dict(zip(needed, some, strict=True))
        whole = [given[i] if i in given else _blank(shape) for i, shape in enumerate(shapes)]
        return act(jax.tree.unflatten(structure, whole), *arguments)

    return jax.jit(of_needed), needed


def _blank(shape: jax.ShapeDtypeStruct) -> Array:
    if jnp.issubdtype(shape.dtype, jax.dtypes.prng_key):
        return jax.random.split(jax.random.key(0), shape.shape)
    return jnp.zeros(shape.shape, shape.dtype)


def _act_of_runs(algorithm: Algorithm, action_space: gymnasium.Space, runs: int, several: bool) -> Callable[..., Any]:
    """(agent, carry, keys, timestep, t) -> action as environments take it, as drawn if other, carry, extras [run, ...].

    Agent and keys have an axis of runs if there are several, the others always.
    """
    as_taken = spaces.legal(action_space)

    def one(run: tuple[Any, Array, Carry, TimeStep], t: Array) -> tuple[Any, Any, Carry, Any]:
        agent, keys, carry, timestep = run
        action, carry, extras = algorithm.act(agent, carry, timestep, keys[t], False)
        taken = as_taken(action)
        return taken, None if taken is action else action, carry, extras

    placed = over_runs(one, runs, placement=None, spread=True, transform="on_host")

    def act(agent: Any, carry: Carry, keys: Array, timestep: TimeStep, t: Array) -> Any:
        if not several:
            agent, keys = jax.tree.map(lambda leaf: leaf[None], (agent, keys))
        return placed((agent, keys, carry, timestep), t)

    return act


class _Storage:
    """A rollout, written step by step into arrays [run, time, env, ...] that are there from the start."""

    def __init__(self, vector: Vector, runs: int, rollout: int, action: Any, extras: Any) -> None:
        shape = runs, rollout, vector.num_envs
        longer = runs, rollout + 1, vector.num_envs

        def like(leaf: Any) -> np.ndarray:  # [run, env, ...] -> with an axis of time
            return np.zeros((runs, rollout, *leaf.shape[1:]), leaf.dtype)

        self.observation = spaces.zeros(vector.observation_space, *longer)
        self.first = np.zeros(longer, bool)
        self.mask = np.zeros((*longer, sum(spaces.choices(vector.action_space))), bool) if vector.masked else None
        self.action, self.extras = like(action), jax.tree.map(like, extras)
        self.reward = np.zeros(shape, np.float32)
        self.terminated, self.truncated, self.valid = (np.zeros(shape, bool) for _ in range(3))
        # Where a reset takes a step of its own, what was reached is what is seen next.
        self.reached = None if vector.resets_take_a_step else spaces.zeros(vector.observation_space, *shape)
        self.reached_mask = None if self.mask is None or self.reached is None else self.mask[:, 1:].copy()

    def see(self, run: int, t: int, seen: Seen) -> None:
        _write(self.observation, run, t, seen.observation)
        self.first[run, t] = seen.first
        if self.mask is not None:
            self.mask[run, t] = seen.action_mask

    def timestep(self, t: int) -> TimeStep:
        mask = None if self.mask is None else self.mask[:, t]
        return TimeStep(jax.tree.map(lambda leaf: leaf[:, t], self.observation), self.first[:, t], mask)

    def act(self, t: int, action: Any, extras: Any) -> None:
        self.action[:, t] = action
        for stored, new in zip(jax.tree.leaves(self.extras), jax.tree.leaves(extras), strict=True):
            stored[:, t] = new

    def step(self, run: int, t: int, step: Stepped) -> None:
        self.reward[run, t], self.valid[run, t] = step.reward, step.valid
        self.terminated[run, t], self.truncated[run, t] = step.terminated, step.truncated
        if self.reached is not None:
            _write(self.reached, run, t, step.reached)
        if self.reached_mask is not None:
            self.reached_mask[run, t] = step.reached_mask

    def check(self, vectors: list[Vector]) -> None:
        """Raises ValueError for rewards that are not finite."""
        if np.isfinite(self.reward).all():
            return
        run, time, env = (int(i) for i in np.argwhere(~np.isfinite(self.reward))[0])
        raise ValueError(
            f"environment {env} of {vectors[run].envs} gave the reward {self.reward[run, time, env]} for the action "
            f"{self.action[run, time, env]}; a reward is a finite number"
        )

    def experience(self, carry: Carry) -> Experience:
        def upto(tree: Any) -> Any:
            return jax.tree.map(lambda leaf: leaf[:, :-1], tree)

        def after(tree: Any) -> Any:
            return jax.tree.map(lambda leaf: leaf[:, 1:], tree)

        mask = None if self.mask is None else self.mask[:, :-1]
        return Experience(
            timestep=TimeStep(upto(self.observation), self.first[:, :-1], mask),
            action=self.action,
            extras=self.extras,
            reward=self.reward,
            terminated=self.terminated,
            truncated=self.truncated & ~self.terminated,
            valid=self.valid,
            next_observation=after(self.observation) if self.reached is None else self.reached,
            last=self.timestep(-1),
            carry=carry,
            next_action_mask=after(self.mask) if self.reached_mask is None else self.reached_mask,
        )

    def episodes(self, totals: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Sums of return and length, and number, of the episodes that ended [run]; totals keep those under way."""
        ended = self.terminated | self.truncated
        sums = np.zeros((3, len(ended)))
        start = np.zeros(totals.shape[1:], int)  # [run, env], where the episode under way began
        for run, env, time in np.argwhere(ended.swapaxes(1, 2)):
            now = slice(start[run, env], time + 1)
            valid = self.valid[run, now, env]
            finished = totals[:, run, env] + (self.reward[run, now, env] @ valid.astype(float), valid.sum())
            sums[:, run] += *finished, 1
            totals[:, run, env], start[run, env] = 0, time + 1
        under_way = (np.arange(ended.shape[1])[:, None] >= start[:, None]) & self.valid
        totals[0] += (self.reward * under_way).sum(1)
        totals[1] += under_way.sum(1)
        return sums[0], sums[1], sums[2]


def _write(storage: Any, run: int, t: int, observation: Any) -> None:
    if isinstance(storage, np.ndarray):
        storage[run, t] = observation
        return
    parts = zip(jax.tree.leaves(storage), jax.tree.leaves(observation), strict=True)
    for stored, new in parts:
        stored[run, t] = new
