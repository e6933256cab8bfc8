"""Matches between players: from many openings, each with both sides changed, and every line of a small game."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from rl.games.game import Game, Player, Position, starts
from rl.games.players import random_player


class Result(NamedTuple):
    """The games of a match, as the first of its players sees them.

    Attributes:
        won: number of games won.
        drawn: number of games drawn.
        lost: number of games lost.
        distinct: number of different games: players without chance repeat themselves.
    """

    won: int
    drawn: int
    lost: int
    distinct: int

    @property
    def score(self) -> float:
        """Points per game, from 0 to 1; a draw counts a half."""
        return (self.won + self.drawn / 2) / (self.won + self.drawn + self.lost)


def openings(game: Game, count: int, moves: int, seed: int = 0) -> Position:
    """Different positions, leaves [game, ...], each after so many random moves that end no game.

    Where the game has fewer such positions than asked for, some are there twice.

    Args:
        game: the game.
        count: how many.
        moves: how many random moves.
        seed: of the moves.

    Raises:
        ValueError: if hardly any game goes on for so many moves.
    """
    mover = random_player(game)

    @jax.jit
    def draw(key: Array) -> tuple[Position, Array]:
        positions = starts(game, 4 * count)
        for number in range(moves):
            action = mover(jax.random.fold_in(key, number), positions)
            positions = jax.vmap(game.step)(positions, action)
        return positions, jax.vmap(game.ended)(positions)

    positions, ended = jax.device_get(draw(jax.random.key(seed)))
    going = np.flatnonzero(~ended)
    if not len(going):
        raise ValueError(f"openings(moves={moves}): no game of {game.name} goes on for so long; give fewer")
    rows = np.concatenate([np.reshape(leaf, (4 * count, -1)) for leaf in jax.tree.leaves(positions)], -1)[going]
    _, first = np.unique(rows, axis=0, return_index=True)
    chosen = np.resize(going[np.sort(first)], count)
    return jax.tree.map(lambda leaf: jnp.asarray(leaf[chosen]), positions)


def match(game: Game, one: Player, other: Player, *, games: int = 100, opening_moves: int = 2, seed: int = 0) -> Result:
    """Play games between two players; each opening twice, so that each has both sides.

    Args:
        game: the game.
        one: the player whose result it is.
        other: the opponent.
        games: how many games, an even number.
        opening_moves: random moves before the players begin; 0 for all games from the start.
        seed: of the openings and the players.

    Raises:
        ValueError: for an odd number of games, or fewer than 2.
    """
    if games < 2 or games % 2:
        raise ValueError(f"match(games={games}): an even number, since each opening is played with both sides")
    begin = openings(game, games // 2, opening_moves, seed)
    results = [_played(game, pair, begin, jax.random.key(seed)) for pair in ((one, other), (other, one))]
    outcomes = np.concatenate([results[0][0], -results[1][0]])
    histories = [np.stack(history, -1) for _, history in results]
    width = max(history.shape[-1] for history in histories)
    padded = np.concatenate(
        [np.pad(one, ((0, 0), (0, width - one.shape[-1])), constant_values=-1) for one in histories]
    )
    distinct = len({(number // len(histories[0]), *line) for number, line in enumerate(padded.tolist())})
    won, drawn, lost = (int((outcomes == value).sum()) for value in (1, 0, -1))
    return Result(won, drawn, lost, distinct)


def _played(game: Game, players: tuple[Player, Player], begin: Position, key: Array) -> tuple[np.ndarray, list[Any]]:
    """Outcomes [game] for the player who moves first here, and the actions of each move, [game]."""

    def move(player: Player) -> Any:
        def go(key: Array, positions: Position) -> tuple[Position, Array, Array]:
            action = jnp.where(jax.vmap(game.ended)(positions), -1, player(key, positions))
            positions = jax.vmap(game.step)(positions, action)
            return positions, action, jax.vmap(game.ended)(positions)

        return jax.jit(go)

    moves, positions, history = [move(player) for player in players], begin, []
    outcomes, over = np.zeros(len(jax.tree.leaves(begin)[0])), np.zeros(len(jax.tree.leaves(begin)[0]), bool)
    while not over.all():
        first_moves = len(history) % 2 == 0
        positions, action, ended = moves[len(history) % 2](jax.random.fold_in(key, len(history)), positions)
        now = np.asarray(ended) & ~over
        of_next = np.asarray(jax.vmap(game.outcome)(positions))  # an ended game stays, but who would move changes
        outcomes[now] = (-of_next if first_moves else of_next)[now]
        over |= now
        history.append(np.asarray(action))
    return outcomes, history


class Lines(NamedTuple):
    """Every game that a player without chance can get into, as the first and as the second to move.

    Attributes:
        positions: number of different positions in which the player moved.
        won: number of different positions at which a game ended and the player had won.
        drawn: the same for a draw.
        lost: the same for a loss; 0 for a player who cannot be beaten.
    """

    positions: int
    won: int
    drawn: int
    lost: int


def every_line(game: Game, player: Player, *, seed: int = 0, at_once: int = 128) -> Lines:
    """Play against every possible reply, on both sides, for games small enough.

    Args:
        game: the game.
        player: a player; one that uses chance is seen with one key.
        seed: of the player.
        at_once: positions that are played on together.
    """

    def reached(positions: Position) -> tuple[Position, Array, Array]:
        return positions, jax.vmap(game.ended)(positions), jax.vmap(game.outcome)(positions)

    @jax.jit
    def own(positions: Position) -> tuple[Any, Array]:
        after = jax.vmap(game.step)(positions, player(jax.random.key(seed), positions))
        return reached(after), jnp.ones(at_once, bool)

    @jax.jit
    def replies(positions: Position) -> tuple[Any, Array]:
        after = jax.vmap(jax.vmap(game.step, (None, 0)), (0, None))(positions, jnp.arange(game.actions))
        after = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), after)
        return reached(after), jax.vmap(game.legal)(positions).reshape(-1)

    counts = {"positions": 0, 1: 0, 0: 0, -1: 0}
    for first in (True, False):
        positions, turn = jax.device_get(starts(game, 1)), first
        while size := len(jax.tree.leaves(positions)[0]):
            counts["positions"] += size * turn
            positions, ended, outcome = _after(own if turn else replies, positions, at_once)
            for value in (1, 0, -1):
                counts[value] += int(((-1 if turn else 1) * outcome[ended] == value).sum())
            positions = jax.tree.map(lambda leaf, on=~ended: leaf[on], positions)
            turn = not turn
    return Lines(counts["positions"], counts[1], counts[0], counts[-1])


def _after(move: Any, positions: Position, at_once: int) -> tuple[Any, ...]:
    """The different positions after a move, with whether and how they ended; of one program, whatever their number."""
    size, parts = len(jax.tree.leaves(positions)[0]), []
    for start in range(0, size, at_once):
        part = jax.tree.map(lambda leaf, start=start: leaf[start : start + at_once], positions)
        there = min(at_once, size - start)
        filled = jax.tree.map(lambda leaf: np.resize(leaf, (at_once, *leaf.shape[1:])), part)
        found, allowed = jax.device_get(move(filled))
        each = len(allowed) // at_once  # positions after one
        kept = np.flatnonzero(allowed[: there * each])
        parts.append(jax.tree.map(lambda leaf, kept=kept: leaf[kept], found))
    together = jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)
    rows = np.concatenate([np.reshape(leaf, (len(leaf), -1)) for leaf in jax.tree.leaves(together[0])], -1)
    _, first = np.unique(rows, axis=0, return_index=True)
    return jax.tree.map(lambda leaf: leaf[np.sort(first)], together)
