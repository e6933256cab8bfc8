"""Games for two players who take turns, as pure functions of one position; `jax.vmap` plays many."""

from collections.abc import Callable
from typing import Any, NamedTuple

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces
from jaxtyping import Array, Bool, Float, Int, PyTree

from rl.envs.environment import Environment, Outcome

Position = Any  # a pytree of arrays
Player = Callable[[Array, Position], Array]  # (key, positions [game, ...]) -> actions [game]; the key may go unused


class Game(NamedTuple):
    """A game without chance and without hidden parts, where one player's win is the other's loss.

    Every function is of a single position, without an axis of games.

    Attributes:
        name: the name by which `rl.games.make` knows it.
        start: `() -> position`; the first player is to move.
        step: `(position, action) -> position`. The players take turns. A position that has ended stays as it is.
        observe: `(position) -> [...]`, float32: the position as the player to move sees it, who need not know whether
            he is the first or the second.
        legal: `(position) -> [actions]`, bool. Where the game has ended it means nothing, but is not empty.
        ended: `(position) -> bool`.
        outcome: `(position) -> float32`: 1 if the player to move has won, -1 if he has lost, else 0. In most games a
            player loses by the other's move, so it is -1 or 0.
        actions: number of actions.
        mirrored: `(observation, actions [actions]) -> (observation, actions)`, a symmetry of the game; None without.
        shown: `(position) -> str`, a board for the terminal. Not compiled.
    """

    name: str
    start: Callable[[], Position]
    step: Callable[[Position, Any], Position]
    observe: Callable[[Position], Float[Array, "*observation"]]
    legal: Callable[[Position], Bool[Array, " actions"]]
    ended: Callable[[Position], Bool[Array, ""]]
    outcome: Callable[[Position], Float[Array, ""]]
    actions: int
    mirrored: Callable[[Array, Array], tuple[Array, Array]] | None
    shown: Callable[[Position], str]


def starts(game: Game, count: int) -> Position:
    """The start of several games, leaves [game, ...].

    Args:
        game: the game.
        count: how many.
    """
    return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (count, *jnp.shape(leaf))), game.start())


def self_play(game: Game, opening_moves: int = 0) -> Environment:
    """An environment whose agent plays both sides in turn, and is rewarded for the move that wins.

    Its observations are positions, leaves [...], for algorithms that search (`rl.alphazero`). Two who play well see few
    positions of a game; random moves at the beginning show them others.

    Args:
        game: the game.
        opening_moves: a game begins after 0 to so many random moves, each number as often. They end it nowhere: a move
            that would is not drawn, and a game that every move would end begins where it stands.

    Raises:
        ValueError: for a negative number of moves.
    """
    if opening_moves < 0:
        raise ValueError(f"self_play(opening_moves={opening_moves}): 0 or more")

    def reset(key: Array) -> tuple[Position, Outcome]:
        start = game.start()
        number_key, key = jax.random.split(key)
        number = jax.random.randint(number_key, (), 0, opening_moves + 1)

        def move(place: Array, position: Position) -> Position:
            after = jax.vmap(game.step, (None, 0))(position, jnp.arange(game.actions))
            goes_on = game.legal(position) & ~jax.vmap(game.ended)(after)
            action = jax.random.categorical(jax.random.fold_in(key, place), jnp.where(goes_on, 0.0, -jnp.inf))
            moved = jax.tree.map(lambda leaf: leaf[action], after)
            return _where((place < number) & goes_on.any(), moved, position)

        position = jax.lax.fori_loop(0, opening_moves, move, start)
        return position, _seen(game, position, position, jnp.float32(0))

    def step(position: Position, action: Any, key: Array) -> tuple[Position, Outcome]:
        after = game.step(position, action)
        return after, _seen(game, after, after, -game.outcome(after))

    return Environment(game.name, reset, step, Positions(game.name), spaces.Discrete(game.actions))


def against(game: Game, opponent: Player) -> Environment:
    """An environment where the agent plays one side, drawn by lot, and the opponent answers within the same step.

    Any algorithm can learn in it. Its observations are `game.observe`'s; the reward at the end is 1, 0 or -1.

    Args:
        game: the game.
        opponent: `(key, positions [game, ...]) -> actions [game]`.
    """

    def answered(position: Position, key: Array) -> Position:
        one = jax.tree.map(lambda leaf: leaf[None], position)
        return game.step(position, opponent(key, one)[0])

    def reset(key: Array) -> tuple[Position, Outcome]:
        lot, key = jax.random.split(key)
        start = game.start()
        position = _where(jax.random.bernoulli(lot), answered(start, key), start)
        return position, _seen(game, position, game.observe(position), jnp.float32(0))

    def step(position: Position, action: Any, key: Array) -> tuple[Position, Outcome]:
        moved = game.step(position, action)
        after = _where(game.ended(moved), moved, answered(moved, key))
        reward = jnp.where(game.ended(moved), -game.outcome(moved), game.outcome(after))
        return after, _seen(game, after, game.observe(after), reward)

    seen = jax.eval_shape(lambda: game.observe(game.start()))
    space = spaces.Box(-np.inf, np.inf, seen.shape, np.float32)
    return Environment(f"{game.name} against an opponent", reset, step, space, spaces.Discrete(game.actions))


def _seen(game: Game, position: Position, observation: Any, reward: Array) -> Outcome:
    return Outcome(observation, reward.astype(jnp.float32), game.ended(position), np.False_, game.legal(position))


def _where(condition: Any, one: PyTree, other: PyTree) -> PyTree:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), one, other)


class Positions(gymnasium.Space):
    """The space of a game's positions: only algorithms that search can take them.

    Args:
        name: the game's.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def __repr__(self) -> str:
        return (
            f"Positions({self.name}), of a game for two: rl.alphazero takes it, others rl.games.against(game, opponent)"
        )


def lines(board: Int[Array, "rows columns"], length: int) -> Bool[Array, ""]:
    """Whether a board of 0 and 1 has a line of ones: across, up or diagonal.

    Args:
        board: 1 or True where a player has a stone.
        length: stones in a line.
    """
    rows, columns = board.shape
    found = []
    for down, right in ((0, 1), (1, 0), (1, 1), (1, -1)):
        tall, wide = rows - down * (length - 1), columns - abs(right) * (length - 1)
        if tall < 1 or wide < 1:
            continue
        left = (length - 1) if right < 0 else 0
        shifted = [board[down * i : down * i + tall, left + right * i : left + right * i + wide] for i in range(length)]
        line = shifted[0] > 0
        for other in shifted[1:]:
            line &= other > 0
        found.append(line.any())
    return jnp.stack(found).any()
