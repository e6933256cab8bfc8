"""A game in the terminal: a person against a player."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from rl.games.game import Game, Player


def play(
    game: Game,
    player: Player,
    *,
    first: bool = True,
    seed: int = 0,
    read: Callable[[str], str] = input,
    write: Callable[[str], None] = print,
) -> int:
    """Play a game against a player; what is typed is the number of an action, or q to stop.

    Args:
        game: the game.
        player: the opponent.
        first: whether the person moves first.
        seed: of the player.
        read: asks for a line.
        write: shows text.

    Returns:
        1 if the person has won, -1 if he has lost, 0 for a draw or a game that was stopped.
    """
    position, persons_turn, number = game.start(), first, 0
    answer, step = jax.jit(player), jax.jit(game.step)
    while not game.ended(position):
        write(f"\n{game.shown(position)}\n")
        if persons_turn:
            chosen = _asked(game, np.asarray(game.legal(position)), read, write)
            if chosen is None:
                return 0
        else:
            one = jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], position)
            chosen = int(answer(jax.random.fold_in(jax.random.key(seed), number), one)[0])
            write(f"plays {chosen}")
        position, persons_turn, number = step(position, chosen), not persons_turn, number + 1
    outcome = int(game.outcome(position)) * (1 if persons_turn else -1)
    write(f"\n{game.shown(position)}\n\n{ {1: 'You have won.', 0: 'A draw.', -1: 'You have lost.'}[outcome] }")
    return outcome


def _asked(game: Game, legal: np.ndarray, read: Callable[[str], str], write: Callable[[str], None]) -> int | None:
    """A legal action, asked for until one is given; None to stop."""
    allowed = np.flatnonzero(legal).tolist()
    while True:
        try:
            word = read("your move: ").strip()
        except EOFError:
            return None
        if word in ("q", "quit"):
            return None
        if word.isdigit() and int(word) in allowed:
            return int(word)
        write(f"{word!r} is no move here: give one of {' '.join(map(str, allowed))}, or q to stop")
