"""Tic-tac-toe: three in a row on a board of 3 x 3. Perfect play is a draw."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int8

from rl.games.game import Game, lines


class Board(NamedTuple):
    """A position.

    Attributes:
        stones: [3, 3], int8; 1 for the player to move, -1 for the other, 0 for empty.
        lost: the player before has made a line.
    """

    stones: Int8[Array, "3 3"]
    lost: Bool[Array, ""]


def tic_tac_toe() -> Game:
    """Tic-tac-toe; action 3 r + c puts a stone in row r, from the bottom as on a keypad, and column c."""

    def start() -> Board:
        return Board(jnp.zeros((3, 3), jnp.int8), jnp.zeros((), bool))

    def step(board: Board, action: Array) -> Board:
        placed = board.stones.reshape(9).at[action].set(1).reshape(3, 3)
        over = ended(board)
        return Board(jnp.where(over, board.stones, -placed), jnp.where(over, board.lost, lines(placed == 1, 3)))

    def observe(board: Board) -> Float[Array, "3 3 2"]:
        return jnp.stack([board.stones == 1, board.stones == -1], -1).astype(jnp.float32)

    def legal(board: Board) -> Bool[Array, " 9"]:
        return (board.stones.reshape(9) == 0) | ended(board)

    def ended(board: Board) -> Bool[Array, ""]:
        return board.lost | (board.stones != 0).all()

    def outcome(board: Board) -> Float[Array, ""]:
        return jnp.where(board.lost, -1.0, 0.0)

    def mirrored(observation: Array, actions: Array) -> tuple[Array, Array]:
        return observation[:, ::-1], actions.reshape(3, 3)[:, ::-1].reshape(9)

    return Game("tic_tac_toe", start, step, observe, legal, ended, outcome, 9, mirrored, _shown)


def _shown(board: Board) -> str:
    stones = np.asarray(board.stones)
    first = np.count_nonzero(stones) % 2 == 0  # who is to move
    marks = {0: " ", 1: "X" if first else "O", -1: "O" if first else "X"}
    cells = [marks[int(stone)].strip() or str(place) for place, stone in enumerate(stones.reshape(9))]
    rows = [" " + " | ".join(cells[start : start + 3]) for start in (6, 3, 0)]
    return "\n---+---+---\n".join(rows)
