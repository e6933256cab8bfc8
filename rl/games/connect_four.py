"""Connect four: four in a row on a board of 6 x 7 whose stones fall down. The first player wins with perfect play."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int8

from rl.games.game import Game, lines


class Board(NamedTuple):
    """A position.

    Attributes:
        stones: [6, 7], int8, row 0 at the bottom; 1 for the player to move, -1 for the other, 0 for empty.
        lost: the player before has made a line.
    """

    stones: Int8[Array, "6 7"]
    lost: Bool[Array, ""]


def connect_four() -> Game:
    """Connect four; the action is the column, from 0 at the left."""
    column = np.arange(7)

    def start() -> Board:
        return Board(jnp.zeros((6, 7), jnp.int8), jnp.zeros((), bool))

    def step(board: Board, action: Array) -> Board:
        height = (board.stones != 0).sum(0)
        falls = (np.arange(6)[:, None] == height) & (column == action)
        placed = jnp.where(falls, jnp.int8(1), board.stones)
        over = ended(board)
        return Board(jnp.where(over, board.stones, -placed), jnp.where(over, board.lost, lines(placed == 1, 4)))

    def observe(board: Board) -> Float[Array, "6 7 2"]:
        return jnp.stack([board.stones == 1, board.stones == -1], -1).astype(jnp.float32)

    def legal(board: Board) -> Bool[Array, " 7"]:
        return (board.stones[-1] == 0) | ended(board)

    def ended(board: Board) -> Bool[Array, ""]:
        return board.lost | (board.stones[-1] != 0).all()

    def outcome(board: Board) -> Float[Array, ""]:
        return jnp.where(board.lost, -1.0, 0.0)

    def mirrored(observation: Array, actions: Array) -> tuple[Array, Array]:
        return observation[:, ::-1], actions[::-1]

    return Game("connect_four", start, step, observe, legal, ended, outcome, 7, mirrored, _shown)


def open_fours(board: Board) -> Float[Array, ""]:
    """A guess of the value for the player to move: lines of four that only one player has stones in.

    A line counts 10 times as much for each stone more. It is what `minimax` is given to look at the end of its depth.

    Args:
        board: a position that has not ended.
    """
    total = jnp.float32(0)
    for down, right in ((0, 1), (1, 0), (1, 1), (1, -1)):
        tall, wide, left = 6 - 3 * down, 7 - 3 * abs(right), 3 if right < 0 else 0
        cells = jnp.stack(
            [board.stones[down * i : down * i + tall, left + right * i : left + right * i + wide] for i in range(4)]
        )
        own, others = (cells == 1).sum(0), (cells == -1).sum(0)
        worth = lambda count, other: jnp.where((other == 0) & (count > 0), 10.0 ** (count - 4.0), 0).sum()  # noqa: E731
        total += worth(own, others) - worth(others, own)
    return jnp.tanh(total)


def _shown(board: Board) -> str:
    stones = np.asarray(board.stones)
    first = np.count_nonzero(stones) % 2 == 0  # who is to move
    marks = {0: ".", 1: "X" if first else "O", -1: "O" if first else "X"}
    rows = [" ".join(marks[int(stone)] for stone in row) for row in stones[::-1]]
    return "\n".join([*rows, " ".join(map(str, range(7)))])
