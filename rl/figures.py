"""Figures of trained agents, for the report of a run: what they do, what they earn, what they expect and remember."""

from typing import Any, NamedTuple

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces

import jdl
from rl.envs.shared_policy import agents_of
from rl.runners.vector import Vector, make_vec
from rl.spaces import legal
from rl.types import Agent, Algorithm, TimeStep

_BINS = 30  # of a continuous action
_PANELS = 6  # limit; an action of more dimensions shows the first
_STATES = 4  # of an episode, whose returns are shown
_STEPS = 100  # of an episode, whose observations are replaced one by one
_REPLACED = 4  # times that each is
_COLORS = ("#3b6fb6", "#d9622b", "#3c8d5a", "#8b5fb0", "#b3862b", "#c2486f")
_FAINT = "#8a94a3"


class Actions:
    """Counts the actions of an evaluation (`rl.evaluate(watch=)`).

    Attributes:
        counts: [run, dimension, bin]; None for actions that are not counted: those without bounds, and sequences.
    """

    def __init__(self, space: gymnasium.Space, runs: int) -> None:
        self.runs, self.low, self.width, self.middle = runs, 0.0, 1.0, 0.0
        bins = self._bins(space)
        self.counts = None if bins is None else np.zeros((runs, *bins), int)

    def _bins(self, space: gymnasium.Space) -> tuple[int, int] | None:
        """Dimensions, and bins of each; sets where the bins begin, how wide they are, and where values lie."""
        match space:
            case spaces.Discrete():
                self.low = space.start
                return 1, int(space.n)
            case spaces.MultiDiscrete() if len(space.nvec.shape) == 1:
                self.low = space.start
                return len(space.nvec), int(space.nvec.max())
            case spaces.MultiBinary() if len(space.shape) == 1:
                return space.shape[0], 2
            case spaces.Box() if space.is_bounded() and np.prod(space.shape) > 0:
                self.low = space.low.ravel()
                self.width, self.middle = np.maximum((space.high.ravel() - self.low) / _BINS, 1e-12), 0.5
                return len(self.low), _BINS
        return None

    def __call__(self, action: np.ndarray, running: np.ndarray) -> None:
        """Count the actions of one step.

        Args:
            action: [env, ...]; the environments of the first run come first.
            running: [env], bool; others are not counted.
        """
        if self.counts is None:
            return
        _, dimensions, bins = self.counts.shape
        place = ((action.reshape(len(action), dimensions) - self.low) / self.width).astype(int).clip(0, bins - 1)
        run = np.arange(len(action)) * self.runs // len(action)
        index = (run[:, None] * dimensions + np.arange(dimensions)) * bins + place
        self.counts += np.bincount(index[running].ravel(), minlength=self.counts.size).reshape(self.counts.shape)

    @property
    def centers(self) -> np.ndarray:
        """The value of each bin, [dimension, bin]."""
        assert self.counts is not None
        _, dimensions, bins = self.counts.shape
        low, width = (np.broadcast_to(np.asarray(each, float), dimensions)[:, None] for each in (self.low, self.width))
        return low + width * (np.arange(bins) + self.middle)


class Episode(NamedTuple):
    """An episode of one agent.

    Attributes:
        action: [time, ...]; as the environment took it.
        reward: [time].
        carry: leaves [time, ...]; what was remembered after each step.
        beliefs: returns and probabilities [time, actions, n], and the discount; None without `Algorithm.beliefs`.
        ended: whether it went to its end.
        timestep: leaves [time, ...]; the input of each action.
        chosen: [time, ...]; the actions as the policy chose them, before `rl.spaces.legal`.
    """

    action: np.ndarray
    reward: np.ndarray
    carry: Any
    beliefs: Any
    ended: bool
    timestep: TimeStep
    chosen: np.ndarray


def save(
    algorithm: Algorithm,
    agent: Agent,
    env: str,
    run: jdl.Run,
    returns: np.ndarray,
    counted: Actions,
    *,
    seed: int = 0,
) -> None:
    """Save the figures of trained agents in the directory of their run, for its report.

    Actions of the evaluation, returns of each seed; for an algorithm that learns a distribution of the return, what the
    first agent expects in some states of an episode; for one with a memory, what it remembers over that episode, and
    which of the observations before them its actions depend on.

    Args:
        algorithm: the algorithm.
        agent: the agent of the first seed, without an axis of runs.
        env: id of the Gymnasium environment, or a name of a library's.
        run: the run.
        returns: [seed, episode]; of the evaluation.
        counted: the actions of the evaluation.
        seed: of the episode.
    """
    if counted.counts is not None:
        about = "Share of all steps of the evaluation; bars are means over the seeds, dots are seeds."
        run.save_figure("Actions", actions_picture(counted), about)
    if len(returns) > 1 and returns.shape[1] > 1:
        about = "Episodes of the evaluation: median, quartiles, and the range of the middle 90%."
        run.save_figure("Returns of each seed", returns_picture(returns, run.seeds), about)
    remembers = bool(jax.tree.leaves(jax.eval_shape(lambda: algorithm.initial_carry(1))))
    if algorithm.beliefs is None and not remembers:
        return
    episode = played(algorithm, agent, env, seed=seed)
    if episode.beliefs is not None:
        about = (
            "Distribution functions of the discounted return of each action, in four states of a greedy episode of the "
            "first seed; the action taken is bold. Dashed: the return that followed."
        )
        run.save_figure("Returns that the agent expects", beliefs_picture(episode), about)
    if remembers:
        about = (
            "A greedy episode of the first seed; a row for each number that the actor remembers, sorted by its mean."
        )
        run.save_figure("Memory over an episode", memory_picture(episode), about)
    if remembers and algorithm.recall is not None:
        about = (
            "The same episode: how much the log-probability of each action (row) changes where one observation "
            f"(column) is replaced by others, mean of {_REPLACED}. On the diagonal, the observation acted on."
        )
        run.save_figure(
            "Influence of earlier observations", influence_picture(influence(algorithm, agent, episode)), about
        )


def played(algorithm: Algorithm, agent: Agent, env: str, *, seed: int = 0, max_steps: int = 500) -> Episode:
    """Play a greedy episode; of several agents that share a policy, that of the first.

    Args:
        algorithm: the algorithm.
        agent: the agent, without an axis of runs.
        env: id of the Gymnasium environment, or a name of a library's.
        seed: of the environment's reset and of the agent.
        max_steps: steps after which the episode is cut off.
    """
    world = Vector(make_vec(env, agents_of(env)))
    as_taken, key = legal(world.action_space), jax.random.key(seed)

    @jax.jit
    def act(carry: Any, timestep: TimeStep, time: int) -> tuple[Any, Any, Any, Any]:
        chosen, carry, _ = algorithm.act(agent, carry, timestep, jax.random.fold_in(key, time), True)
        return as_taken(chosen), carry, algorithm.beliefs(agent, timestep) if algorithm.beliefs else None, chosen

    def first(leaf: Any) -> np.ndarray:
        return np.asarray(leaf)[0] if np.ndim(leaf) else np.asarray(leaf)

    seen, carry = world.reset(seed), algorithm.initial_carry(world.num_envs)
    steps, ended = [], False
    for time in range(max_steps):
        timestep = TimeStep(*seen)
        action, carry, beliefs, chosen = act(carry, timestep, time)
        step = world.step(np.asarray(action))
        steps.append(jax.tree.map(first, (action, step.reward, carry, beliefs, timestep, chosen)))
        seen, ended = step.seen, bool(step.terminated[0] | step.truncated[0])
        if ended:
            break
    world.close()
    action, reward, carry, beliefs, timestep, chosen = jax.tree.map(lambda *leaves: np.stack(leaves), *steps)
    return Episode(action, reward, carry, beliefs, ended, timestep, chosen)


def influence(algorithm: Algorithm, agent: Agent, episode: Episode, *, seed: int = 0) -> np.ndarray:
    """How much each action depends on each observation until then, for an algorithm with `Algorithm.recall`.

    Each observation of the first hundred steps in turn is replaced by others of the episode, and the change of the
    log-probability of every action is measured.

    Args:
        algorithm: the algorithm.
        agent: the agent, without an axis of runs.
        episode: of that agent.
        seed: of the choice of replacements.

    Returns:
        Mean absolute changes, [time of the action, time of the observation].

    Source: occlusion (Zeiler and Fergus 2014, section 4.2), of times instead of places.
    """
    recall, steps = algorithm.recall, min(len(episode.reward), _STEPS)
    assert recall is not None
    timestep, chosen = jax.tree.map(lambda leaf: jnp.asarray(leaf[:steps]), (episode.timestep, episode.chosen))

    def log_probs(observation: Any, count: int) -> Any:
        rest, action = jax.tree.map(
            lambda leaf: jnp.broadcast_to(leaf[:, None], (steps, count, *leaf.shape[1:])),
            (timestep._replace(observation=None), chosen),
        )
        return recall(agent, algorithm.initial_carry(count), rest._replace(observation=observation), action).log_prob

    @jax.jit
    def changes(others: Any) -> Any:
        def replaced(leaf: Any) -> Any:
            itself = jnp.eye(steps, dtype=bool).reshape(steps, steps, *(1,) * (leaf.ndim - 1))
            return jnp.where(itself, leaf[others], leaf[:, None])

        as_seen = jax.tree.map(lambda leaf: leaf[:, None], timestep.observation)
        return jnp.abs(log_probs(jax.tree.map(replaced, timestep.observation), steps) - log_probs(as_seen, 1))

    draws = np.random.default_rng(seed)
    return np.mean([changes(draws.permutation(steps)) for _ in range(_REPLACED)], axis=0)


def actions_picture(counted: Actions) -> Any:
    """How often each action was taken: a panel for each of the first dimensions.

    Args:
        counted: the actions, of a space that is counted.

    Returns:
        A Matplotlib figure.
    """
    assert counted.counts is not None
    shares = counted.counts / np.maximum(counted.counts.sum(-1, keepdims=True), 1)
    panels = min(shares.shape[1], _PANELS)
    figure, axes = _panels(panels, 1.6 + 2.6 * panels if panels > 1 else 4.6, 2.8)
    for dimension, axis in enumerate(axes):
        x = counted.centers[dimension]
        width = 0.8 * (x[1] - x[0]) if len(x) > 1 else 0.8
        axis.bar(x, shares[:, dimension].mean(0), width, color=_COLORS[0], alpha=0.55)
        if len(shares) > 1:
            axis.plot(x, shares[:, dimension].T, linestyle="", marker="o", markersize=3, color=_COLORS[0])
        if len(x) <= 20:
            axis.set_xticks(x)
        axis.set_xlabel("action" if panels == 1 else f"action, number {dimension + 1}")
    axes[0].set_ylabel("share of steps")
    return figure


def returns_picture(returns: np.ndarray, seeds: Any) -> Any:
    """The returns of the episodes of each seed, side by side.

    Args:
        returns: [seed, episode].
        seeds: their names.

    Returns:
        A Matplotlib figure.
    """
    figure, (axis,) = _panels(1, max(4.6, 1.4 + 0.45 * len(returns)), 3.0)
    line = {"color": _COLORS[0]}
    axis.boxplot(
        list(returns), whis=(5, 95), widths=0.6, tick_labels=[str(seed) for seed in seeds], boxprops=line,
        whiskerprops=line, capprops=line, medianprops={"color": _COLORS[1], "linewidth": 1.8},
        flierprops={"marker": ".", "markersize": 3, "markeredgecolor": _FAINT},
    )  # fmt: skip
    axis.set_xlabel("seed")
    axis.set_ylabel("return")
    return figure


def beliefs_picture(episode: Episode) -> Any:
    """The return that each action was expected to have, in some states of an episode, beside the one that followed.

    Args:
        episode: of an algorithm with `Algorithm.beliefs`.

    Returns:
        A Matplotlib figure.
    """
    returns, probabilities, discount = episode.beliefs
    followed = discounted_returns(episode.reward, float(discount[0]))
    times = np.unique(np.linspace(0, len(followed) - 1, _STATES + 1, dtype=int)[:_STATES])
    figure, axes = _panels(len(times), 3.0 * len(times), 2.9)
    for axis, time in zip(axes, times, strict=True):
        for action in range(min(returns.shape[1], len(_COLORS))):
            order = np.argsort(returns[time, action])
            x, share = returns[time, action][order], np.cumsum(probabilities[time, action][order])
            bold = 2.4 if action == episode.action[time] else 1.0
            axis.step(x, share, where="post", color=_COLORS[action], linewidth=bold, label=f"action {action}")
        axis.axvline(followed[time], color="#1f2733", linestyle="--", linewidth=1)
        axis.set_title(f"step {time}", loc="left", fontsize=9)
        axis.set_xlabel("discounted return")
    axes[0].set_ylabel("probability of at most this")
    axes[0].legend(frameon=False, fontsize=7, loc="upper left")
    return figure


def memory_picture(episode: Episode) -> Any:
    """What the actor remembers over an episode.

    Args:
        episode: of an algorithm with a carry, whose first part is the actor's.

    Returns:
        A Matplotlib figure.
    """
    carry = episode.carry[0] if isinstance(episode.carry, tuple) else episode.carry
    parts = jax.tree.leaves(carry)
    names = ("cell", "hidden") if len(parts) == 2 else ("",) * len(parts)
    figure, axes = _panels(len(parts), 4.6 * len(parts), 3.2)
    for axis, name, part in zip(axes, names, parts, strict=True):
        rows = part.reshape(len(part), -1).T
        rows = rows[np.argsort(rows.mean(1))]
        limit = max(float(np.abs(rows).max()), 1e-6)
        shown = axis.imshow(rows, aspect="auto", cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest")
        figure.colorbar(shown, ax=axis, shrink=0.8)
        axis.set_title(name, loc="left", fontsize=9)
        axis.set_xlabel("step")
        axis.grid(visible=False)
    axes[0].set_ylabel("number remembered")
    return figure


def influence_picture(changes: np.ndarray) -> Any:
    """Which observations the actions of an episode depend on.

    Args:
        changes: [time of the action, time of the observation], of `influence`.

    Returns:
        A Matplotlib figure.
    """
    figure, (axis,) = _panels(1, 4.6, 3.8)
    # A few actions on the brink would leave all others white.
    limit = max(float(np.quantile(np.tril(changes).max(1), 0.9)), 1e-6)
    shown = axis.imshow(changes, cmap="Blues", vmin=0, vmax=limit, interpolation="nearest")
    figure.colorbar(shown, ax=axis, shrink=0.8, extend="max")
    axis.set_xlabel("step of the observation")
    axis.set_ylabel("step of the action")
    axis.grid(visible=False)
    return figure


def discounted_returns(reward: np.ndarray, discount: float) -> np.ndarray:
    """The discounted sum of the rewards from each step on, [time].

    Args:
        reward: [time].
        discount: γ.
    """
    total, found = 0.0, []
    for now in reward[::-1]:
        total = float(now) + discount * total
        found.append(total)
    return np.array(found[::-1])


def _panels(count: int, width: float, height: float) -> tuple[Any, list[Any]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = list(np.ravel(figure.subplots(1, count, squeeze=False)))
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.spines[["left", "bottom"]].set_color(_FAINT)
        axis.tick_params(labelsize=8)
        axis.grid(axis="y", color="#e8ebf0", linewidth=0.8)
        axis.set_axisbelow(True)
    return figure, axes
