"""An algorithm and a Gymnasium vector environment as a learner and its source: the source acts, the learner learns."""

import itertools
import warnings
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import IO, Any, NamedTuple

import flax.struct
import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from jdl.core.accumulators import Mean
from jdl.core.learner import Batch, Learner, State, Traits, fold, step_key
from jdl.core.ring import Ring
from jdl.runtime import processes
from jdl.runtime.cores import another_core
from rl.runners.acting import predictor, program
from rl.runners.storage import Storage
from rl.runners.vector import Seen, Vector
from rl.types import Algorithm, Carry, Experience, TimeStep


@flax.struct.dataclass
class OnHostState:
    """The state of the learner; the environments belong to the source.

    Attributes:
        key: the key of the run.
        step: scalar int32; updates so far.
        agent: the algorithm's agent.
    """

    key: Any
    step: Any
    agent: Any


def on_host(
    algorithm: Algorithm,
    envs: gymnasium.vector.VectorEnv | Sequence[gymnasium.vector.VectorEnv],
    *,
    seed: int | Sequence[int] = 0,
    ahead: bool = False,
) -> tuple[Learner, "Acting"]:
    """A learner and its source, for `jdl.fit(jdl.jit(learner), source, ...)`.

    Rollout, update and metrics are those of `rl.on_device`. The learner has no `evaluate`; use `rl.evaluate`.

    With several processes (`jdl launch`), each process has the same number of environments and learns from those of
    all processes; the algorithm's `num_envs` counts them all. The results equal those of one process with all
    environments, if each environment has its own random generator. Gymnasium's natively vectorized environments share
    one.

    Args:
        algorithm: the algorithm, made for the spaces of a single environment.
        envs: a vector environment with any vectorization and autoreset mode; for `jdl.seeds(learner, n, each=True)` a
            list with one per run.
        seed: for the resets of the environments; with a list of environments, a list with one per run. The agent's
            random numbers come from the key of the run instead.
        ahead: play the next rollout while the device learns from the current one, with the agent from one update ago.

    Raises:
        ValueError: for another number of seeds than of environments, an environment that does not state its autoreset
            mode, observations outside its space, and a mask that forbids every action. `Acting.next` raises it for
            rewards that are not finite, too.
    """
    several = isinstance(envs, Sequence)
    vectors = [Vector(one) for one in (envs if several else [envs])]  # type: ignore[union-attr]
    seeds = [seed] if isinstance(seed, int) else list(seed)
    if len(seeds) != len(vectors):
        raise ValueError(f"on_host: {len(vectors)} vector environment(s) and {len(seeds)} seed(s); give one seed each")
    learner = learn_on_host(algorithm, vectors[0].action_space)
    return learner, Acting(algorithm, vectors, seeds, several, ahead)


def learn_on_host(algorithm: Algorithm, action_space: gymnasium.Space) -> Learner:
    """The learner alone, for experience that `Acting` collects.

    Args:
        algorithm: the algorithm.
        action_space: space of the actions, for `predict`.
    """

    def init(key: Array) -> OnHostState:
        return OnHostState(key, jnp.zeros((), jnp.int32), algorithm.init(fold(key, "agent")))

    def step(state: OnHostState, batch: Batch) -> tuple[OnHostState, dict[str, Any]]:
        agent, metrics = algorithm.update(state.agent, batch["experience"], fold(step_key(state), "update"))
        # With several processes there is one number from each.
        returned, length, count = (jnp.asarray(x, jnp.float32).sum() for x in batch["episodes"])
        episodes = {"return": Mean(returned, count), "length": Mean(length, count)}
        return OnHostState(state.key, state.step + 1, agent), {**episodes, **metrics}

    def evaluate(state: OnHostState, batch: Batch) -> Any:
        raise TypeError(
            "a learner on the host cannot play whole episodes itself; use rl.evaluate(algorithm, agent, env)"
        )

    return Learner(
        init, step, evaluate, predictor(algorithm, action_space), traits=Traits(fed=True, lanes="/replay/ring/")
    )


class Rollout(NamedTuple):
    """A rollout, and where the next one begins.

    Attributes:
        experience: leaves [run, time, env, ...]; without an axis of time for `last` and `carry`.
        storage: the arrays that hold it.
        actions: [time, run, env, ...]; as the environments took them.
        seen: for each run, the next input of the agent.
        carry: leaves [run, env, ...]; recurrent states after the rollout.
    """

    experience: Experience
    storage: Storage
    actions: np.ndarray
    seen: list[Seen]
    carry: Carry


class Acting:
    """A source of experience: acts in the environments with the current agent, one compiled call per step.

    When a run is resumed, the environments return to where they were by repeating the recorded actions from the same
    seeds. Whether environments repeat themselves is tested at the start. If they do not, there is a warning, and a
    resumed run begins new episodes.

    Args:
        algorithm: the algorithm that acts.
        vectors: the vector environment of each run.
        seeds: the seed of each run's environments.
        several: agents, states and batches have an axis of runs.
        ahead: a thread plays the next rollout while the device learns from the current one, with the agent from one
            update ago.
    """

    def __init__(
        self, algorithm: Algorithm, vectors: list[Vector], seeds: list[int], several: bool, ahead: bool = False
    ) -> None:
        self.algorithm, self.vectors, self.several = algorithm, vectors, several
        self.num_envs = vectors[0].num_envs
        # Gymnasium seeds its sub-environments n, n + 1, ...: consecutive seeds would share resets.
        before = processes.index() * self.num_envs
        self.seeds = [before + int(np.random.SeedSequence(seed).generate_state(1)[0] >> 1) for seed in seeds]
        self._repeats = all(_repeats(vector, seed) for vector, seed in zip(vectors, self.seeds, strict=True))
        self._seen = [vector.reset(seed) for vector, seed in zip(vectors, self.seeds, strict=True)]
        carry = algorithm.initial_carry(self.num_envs)
        self._carry = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (len(vectors), *leaf.shape)), carry)
        timestep = jax.tree.map(lambda *leaves: np.stack(leaves), *[TimeStep(*seen) for seen in self._seen])
        self._program = program(algorithm, vectors[0].action_space, self._carry, timestep, several)
        # Two, used in turn: an update may still read one of them while the other is written.
        self._storages = itertools.cycle([
            Storage(vectors[0], len(vectors), algorithm.num_steps, self._program.result) for _ in range(2)
        ])  # fmt: skip
        self._totals = np.zeros((2, len(vectors), self.num_envs))  # return and length so far of the episodes under way
        self._actions: list[np.ndarray] = []  # as taken, [time, run, env, ...] for each rollout
        self._core: IO[str] | None = None
        self._thread = ThreadPoolExecutor(1, "acting", self._move) if ahead else None
        self._under_way: Future[Rollout] | None = None
        self._ahead: dict[int, Any] | None = None  # the leaves of the agent that plays the rollout under way

    def next(self, state: State) -> Batch:
        """A rollout and the episodes that ended in it.

        Args:
            state: the state whose agent acts. With `ahead`, the agent from one update ago acts; the first two rollouts
                are both played by the first agent.

        Raises:
            ValueError: for rewards that are not finite, and for a mask that forbids every action.
        """
        if self._thread is None:
            rollout = self._play(self._leaves(state), self._drawn(state, 0), self._seen, self._carry)
        else:
            if self._under_way is None:  # at the start, or after a resume
                self._begin(self._copies(state) if self._ahead is None else self._placed(state), state, 0)
            assert self._under_way is not None
            rollout = self._under_way.result()
        rollout.storage.check(self.vectors)
        self._seen, self._carry = rollout.seen, rollout.carry
        self._actions.append(rollout.actions)
        batch = {"experience": rollout.experience, "episodes": rollout.storage.episodes(self._totals)}
        if self._thread is not None:
            self._begin(self._copies(state), state, 1)
        batch = batch if self.several else jax.tree.map(lambda leaf: leaf[0], batch)
        return _of_all(batch, int(self.several))

    def _move(self) -> None:
        self._core = another_core()

    def _leaves(self, state: State) -> dict[int, Any]:
        leaves = jax.tree.leaves(state.agent)
        return {i: processes.local(leaves[i]) for i in self._program.used}

    def _drawn(self, state: State, later: int) -> Any:
        return self._program.draw(processes.local(state.replace(agent=())), later)

    def _copies(self, state: State) -> dict[int, Any]:
        """Copies of `_leaves`: the next update reuses the agent's memory (its state is donated)."""
        return _copied(self._leaves(state))

    def _placed(self, state: State) -> dict[int, Any]:
        """The leaves restored from a checkpoint, on the devices of the state's leaves."""
        assert self._ahead is not None
        return {i: jax.device_put(self._ahead[i], leaf.sharding) for i, leaf in self._leaves(state).items()}

    def _begin(self, leaves: dict[int, Any], state: State, later: int) -> None:
        assert self._thread is not None
        drawn, self._ahead = self._drawn(state, later), leaves
        self._under_way = self._thread.submit(self._play, leaves, drawn, self._seen, self._carry)

    def _play(self, leaves: dict[int, Any], drawn: Any, seen: list[Seen], carry: Carry) -> Rollout:
        jax.block_until_ready(leaves)  # then the update before last has read the storage written now
        storage, seen, first_carry = next(self._storages), list(seen), carry
        taken = []
        for t in range(self.algorithm.num_steps):
            for run, one in enumerate(seen):
                storage.see(run, t, one)
            now, action, carry, extras = self._program.act(leaves, (carry, storage.timestep(t), drawn), t)
            taken.append(np.asarray(now))
            storage.act(t, taken[-1] if action is None else action, extras)
            for run, vector in enumerate(self.vectors):
                step = vector.step(taken[-1][run])
                storage.step(run, t, step)
                seen[run] = step.seen
        for run, one in enumerate(seen):
            storage.see(run, self.algorithm.num_steps, one)
        extras = None
        if self._program.recall is not None:
            extras = self._program.recall(leaves, (first_carry, storage.timesteps(), storage.action))
        seen = jax.tree.map(np.array, seen)  # copies: an environment may overwrite its arrays
        return Rollout(storage.experience(first_carry, extras), storage, np.stack(taken), seen, carry)

    def close(self) -> None:
        """Close the environments."""
        if self._thread is not None:
            self._thread.shutdown()
        if self._core is not None:
            self._core.close()
        for vector in self.vectors:
            vector.close()

    def save(self) -> PyTree:
        """The actions that bring the environments back, and the records of the episodes under way.

        The log of actions only grows, so a checkpoint appends to it (`jdl.core.ring`).
        """
        space = self.vectors[0].action_space
        one = np.zeros((0, len(self.vectors), self.num_envs, *(space.shape or ())), space.dtype)
        actions = np.concatenate([one, *self._actions])
        self._actions = [actions]
        log = Ring(processes.joined(actions, 2)[None], np.array([len(actions)]))
        seen = jax.tree.map(lambda *leaves: processes.joined(np.stack(leaves), 1), *self._seen)
        carry = jax.tree.map(lambda leaf: processes.joined(np.asarray(leaf), 1), self._carry)
        saved = {"actions": log, "seen": seen, "carry": carry, "totals": processes.joined(self._totals.copy(), 2)}
        if self._thread is not None:
            begun = self._ahead is not None
            leaves = self._ahead if self._ahead is not None else self._program.blank()
            saved["ahead"] = {"begun": np.array(begun), "agent": [leaves[i] for i in self._program.used]}
        return saved

    def restore(self, saved: PyTree) -> None:
        """Bring the environments back to where they were when `saved` was returned by `save`.

        Warns if repeating the actions leads to other observations. Environments that do not repeat themselves begin new
        episodes instead.
        """
        actions = processes.part(np.asarray(saved["actions"].rows)[0], 2)
        self._carry = jax.tree.map(lambda leaf: processes.part(np.asarray(leaf), 1), saved["carry"])
        self._actions = [actions]
        if self._thread is not None and saved["ahead"]["begun"]:
            self._ahead = dict(zip(self._program.used, saved["ahead"]["agent"], strict=True))
        if not self._repeats:
            # Other seeds than at the start, whose episodes have been played already.
            self._seen = [
                vector.reset(seed + len(actions)) for vector, seed in zip(self.vectors, self.seeds, strict=True)
            ]
            return
        self._totals = np.array(processes.part(np.asarray(saved["totals"]), 2))
        for run, vector in enumerate(self.vectors):
            for taken in actions[:, run]:
                self._seen[run] = vector.step(taken).seen
        now = jax.tree.map(lambda *leaves: np.stack(leaves), *self._seen)
        before = jax.tree.map(lambda leaf: processes.part(np.asarray(leaf), 1), saved["seen"])
        if not jax.tree.all(jax.tree.map(np.array_equal, now, before)):
            warnings.warn(
                f"{self.vectors[0].envs} did not come to where it was when its {len(actions)} steps were repeated; the "
                "run goes on, but not to the bits that it would have had",
                stacklevel=2,
            )


def _repeats(vector: Vector, seed: int, steps: int = 16) -> bool:
    """Whether the same actions from the same seed lead to the same observations; warns if they do not."""
    vector.envs.action_space.seed(0)
    actions = [vector.envs.action_space.sample() for _ in range(steps)]
    played = []
    for _ in range(2):
        first = vector.reset(seed)
        allowed = actions if first.action_mask is None else []  # random actions may be forbidden: compare resets alone
        played.append([first.observation, *[vector.step(action).seen.observation for action in allowed]])
    if jax.tree.all(jax.tree.map(np.array_equal, *played)):
        return True
    warnings.warn(
        f"{vector.envs} does not repeat itself when it is reset with the same seed: a run that is killed and resumed "
        "will begin new episodes, and not end in the same bits",
        stacklevel=4,
    )
    return False


def _of_all(batch: Batch, axis: int) -> Batch:
    """The batch of all processes together; `axis` is that of the environments in leaves without an axis of time."""
    if not processes.several():
        return batch
    experience = batch["experience"]
    whole = processes.side_by_side(experience._replace(last=None, carry=None), axis + 1)
    last, carry = processes.side_by_side((experience.last, experience.carry), axis)
    episodes = jax.tree.map(lambda leaf: np.asarray(leaf)[..., None], batch["episodes"])
    return {
        "experience": whole._replace(last=last, carry=carry),
        "episodes": processes.side_by_side(episodes, axis),
    }


@jax.jit
def _copied(tree: PyTree) -> PyTree:
    return jax.tree.map(jnp.copy, tree)
