"""A game as a picture: every position, where the search looked, and what it thought."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from rl.games.game import Game, Position

if TYPE_CHECKING:  # which imports `rl.games.game`
    from rl.search import Searched

_COLUMNS = 7
_FIRST, _SECOND = "#d62728", "#e8b500"


def picture(game: Game, search: Callable[[Array, Position], Searched], *, opening: tuple[int, ...] = ()) -> Any:
    """Draw a game that a searching agent plays with itself; for boards seen as [rows, columns, 2].

    Beside each board: the value that the search found for the player to move, and the share of its simulations that
    began with each action.

    Args:
        game: the game.
        search: `(key, positions [game, ...]) -> Searched`.
        opening: actions to begin with.

    Returns:
        A Matplotlib figure, for `run.save_figure`.
    """
    from matplotlib.figure import Figure

    positions, searches, actions = _played(game, search, opening)
    rows = -(-len(positions) // _COLUMNS)
    figure = Figure((2 * _COLUMNS, 3 * rows), layout="constrained")
    axes = figure.subplots(2 * rows, _COLUMNS, squeeze=False, height_ratios=[3, 1] * rows)
    for axis in axes.ravel():
        axis.set_axis_off()
    for number, position in enumerate(positions):
        row, column = divmod(number, _COLUMNS)
        board, bars = axes[2 * row, column], axes[2 * row + 1, column]
        _draw_board(board, np.asarray(game.observe(position)), number)
        found = searches[number]
        if found is None:
            said = "opening" if number < len(actions) else _ending(game, position)
            board.set_title(f"{number}: {said}", fontsize=8)
            continue
        board.set_title(f"{number}: plays {actions[number]}, value {float(found.value[0]):+.2f}", fontsize=8)
        bars.set_axis_on()
        bars.bar(np.arange(game.actions), np.asarray(found.visits[0]), color=_color(number))
        bars.set_ylim(0, 1)
        bars.set_xticks(range(game.actions))
        bars.tick_params(labelsize=6)
    return figure


def _played(
    game: Game, search: Callable[[Array, Position], Searched], opening: tuple[int, ...]
) -> tuple[list[Position], list[Searched | None], list[int]]:
    compiled, step = jax.jit(search), jax.jit(game.step)
    positions, searches, actions = [game.start()], [], []
    while not game.ended(positions[-1]):
        found = None
        if len(actions) < len(opening):
            action = opening[len(actions)]
        else:
            one = jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], positions[-1])
            found = jax.device_get(compiled(jax.random.key(len(actions)), one))
            action = int(found.action[0])
        searches.append(found)
        actions.append(action)
        positions.append(step(positions[-1], action))
    return positions, [*searches, None], actions


def _draw_board(axis: Any, planes: np.ndarray, number: int) -> None:
    """Stones of who is to move (plane 0) and of the other (plane 1); row 0 of the board is drawn at the bottom."""
    rows, columns, _ = planes.shape
    for plane, color in ((0, _color(number)), (1, _color(number + 1))):
        y, x = np.nonzero(planes[:, :, plane])
        axis.scatter(x, y, s=900 / max(rows, columns), color=color)
    for place in range(rows + 1):
        axis.plot([-0.5, columns - 0.5], [place - 0.5] * 2, color="#bbbbbb", lw=0.6, zorder=0)
    for place in range(columns + 1):
        axis.plot([place - 0.5] * 2, [-0.5, rows - 0.5], color="#bbbbbb", lw=0.6, zorder=0)
    axis.set_xlim(-0.6, columns - 0.4)
    axis.set_ylim(-0.6, rows - 0.4)
    axis.set_aspect("equal")


def _color(number: int) -> str:
    return _SECOND if number % 2 else _FIRST


def _ending(game: Game, position: Position) -> str:
    return {1: "won by who is to move", 0: "drawn", -1: "lost by who is to move"}[int(game.outcome(position))]
