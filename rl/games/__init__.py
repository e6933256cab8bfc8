"""Games for two players: the rules as pure functions, players to measure by, matches."""

from collections.abc import Callable

from rl.envs.libraries import among, imported
from rl.games.connect_four import connect_four, open_fours
from rl.games.game import Game, Player, Position, Positions, against, self_play, starts
from rl.games.match import Lines, Result, every_line, match, openings
from rl.games.network import BoardCNN, BoardMLP, PolicyValue
from rl.games.pgx_games import from_pgx
from rl.games.picture import picture
from rl.games.players import action_values, minimax, random_player
from rl.games.terminal import play
from rl.games.tic_tac_toe import tic_tac_toe

GAMES: dict[str, Callable[[], Game]] = {"tic_tac_toe": tic_tac_toe, "connect_four": connect_four}


def make(name: str) -> Game:
    """A game by its name.

    Args:
        name: one of `GAMES`, or a game of pgx: `pgx:othello`.

    Raises:
        LookupError: for a game that there is not, where the message lists those that there are, and if pgx is not
            installed.
        ValueError: for games of pgx that are not for two players, or have chance.
    """
    library, _, own = name.partition(":")
    if library == "pgx" and own:
        pgx = imported("pgx")
        return from_pgx(pgx.make(among(pgx.available_envs(), own, "pgx")))
    if name not in GAMES:
        raise LookupError(f"there is no game {name!r}; there are {', '.join(GAMES)}, and those of pgx (pgx:othello)")
    return GAMES[name]()


__all__ = [
    "GAMES",
    "BoardCNN",
    "BoardMLP",
    "Game",
    "Lines",
    "Player",
    "PolicyValue",
    "Position",
    "Positions",
    "Result",
    "action_values",
    "against",
    "connect_four",
    "every_line",
    "from_pgx",
    "make",
    "match",
    "minimax",
    "open_fours",
    "openings",
    "picture",
    "play",
    "random_player",
    "self_play",
    "starts",
    "tic_tac_toe",
]
