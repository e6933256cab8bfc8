"""Players to measure others by: one that moves at random, and minimax to a depth."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array

from rl.games.game import Game, Player, Position


def random_player(game: Game) -> Player:
    """A player whose moves are all equally likely.

    Args:
        game: the game.
    """

    def play(key: Array, positions: Position) -> Array:
        legal = jax.vmap(game.legal)(positions)
        return jax.random.categorical(key, jnp.where(legal, 0.0, -jnp.inf))

    return play


def minimax(game: Game, depth: int, heuristic: Callable[[Position], Array] | None = None) -> Player:
    """A player who looks at every line of so many moves, and draws lots among the best.

    Args:
        game: the game.
        depth: moves to look ahead, at least 1.
        heuristic: `(position) -> value`, of a position that has not ended for the player to move, between -1 and 1; by
            default 0.

    Raises:
        ValueError: for a depth below 1, and for one that gives more than a million lines, since all are kept at once.
    """
    if depth < 1 or game.actions**depth > 1_000_000:
        raise ValueError(
            f"minimax(depth={depth}): at least 1, and {game.name} has {game.actions}^{depth} lines of that many moves, "
            "of which at most a million can be looked at"
        )

    def play(key: Array, positions: Position) -> Array:
        several = max(1, 100_000 // game.actions**depth)  # all lines of so many positions are kept at once
        values = jax.lax.map(lambda one: action_values(game, one, depth, heuristic), positions, batch_size=several)
        best = values >= values.max(-1, keepdims=True) - 1e-6
        return jax.random.categorical(key, jnp.where(best, 0.0, -jnp.inf))

    return play


def action_values(
    game: Game, position: Position, depth: int, heuristic: Callable[[Position], Array] | None = None
) -> Array:
    """The minimax value of each action of one position, [actions]; -inf for those that are not legal.

    A win that is one move nearer is worth a thousandth more, so that a winner wins and a loser holds out.

    Args:
        game: the game.
        position: a single position.
        depth: moves to look ahead.
        heuristic: as for `minimax`.
    """
    children = jax.vmap(game.step, (None, 0))(position, jnp.arange(game.actions))
    values = -jax.vmap(lambda child: _value(game, child, depth - 1, heuristic))(children)
    return jnp.where(game.legal(position), values, -jnp.inf)


def _value(game: Game, position: Position, depth: int, heuristic: Callable[[Position], Array] | None) -> Array:
    if depth == 0:
        inner = jnp.float32(0) if heuristic is None else heuristic(position)
    else:
        inner = action_values(game, position, depth, heuristic).max()
    return jnp.where(game.ended(position), game.outcome(position), 0.999 * inner)
