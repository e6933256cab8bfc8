"""Mistakes in connect four: of agents of a run, minimax and Monte-Carlo tree search, by a perfect solver.

    make bench-connect-four RUN=runs/alphazero/...

A mistake is a move after which perfect play ends worse than it could have: a win that becomes a draw or a loss, or a
draw that becomes a loss. How many moves a win takes does not count. Positions are drawn at random, a thousand of each
of six strata; those with only one value of all moves, where no mistake can be made, are among them.
"""

import argparse
import json
import subprocess
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jdl
from experiments.rl import alphazero
from jdl.core.statistics import mean_interval
from jdl.experiment.config import decode
from rl import games, search

SOLVER = Path(__file__).with_name("connect_four_solver.py")
BATCH = 250


def solved(python: str, count: int, cache: Path) -> dict[str, list[dict[str, Any]]]:
    """Positions with the value of each move, from the solver or from the file where they were kept."""
    if not cache.is_file():
        made = subprocess.run([python, str(SOLVER), "--count", str(count)], check=True, capture_output=True, text=True)
        cache.parent.mkdir(parents=True, exist_ok=True)
        cache.write_text(made.stdout)
    return json.loads(cache.read_text())


def positions(game: games.Game, moves: list[list[int]]) -> games.Position:
    """The positions that lists of moves lead to, leaves [position, ...]."""
    longest = max(map(len, moves))
    padded = jnp.asarray([[*one, *[-1] * (longest - len(one))] for one in moves])

    def play(actions: jax.Array) -> games.Position:
        def step(position: games.Position, action: jax.Array) -> tuple[games.Position, None]:
            after = game.step(position, action)
            return jax.tree.map(lambda a, b: jnp.where(action < 0, a, b), position, after), None

        return jax.lax.scan(step, game.start(), actions)[0]

    return jax.vmap(play)(padded)


def share_of_mistakes(game: games.Game, player: games.Player, solved: list[dict[str, Any]]) -> float:
    """How often a player's move is a mistake."""
    begin = positions(game, [one["moves"] for one in solved])
    act, chosen = jax.jit(player), []
    for place in range(0, len(solved), BATCH):
        part = jax.tree.map(lambda leaf, place=place: leaf[place : place + BATCH], begin)
        chosen += np.asarray(act(jax.random.key(place), part)).tolist()
    pairs = zip(solved, chosen, strict=True)
    return float(np.mean([one["values"][str(move)] < max(one["values"].values()) for one, move in pairs]))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", help="a run of alphazero --game connect_four")
    parser.add_argument("--solver-python", required=True, help="a Python with bitbully")
    parser.add_argument("--count", type=int, default=1000, help="positions of each stratum")
    given = parser.parse_args()
    strata = solved(given.solver_python, given.count, Path(".cache") / f"connect_four-{given.count}.json")
    game = games.connect_four()
    players: dict[str, list[games.Player]] = {
        "random": [games.random_player(game)],
        "minimax, 5 moves": [games.minimax(game, 5, games.open_fours)],
        "MCTS, 1000 simulations": [search.mcts(game, 1000)],
    }
    run = jdl.load(given.run)
    config = decode(alphazero.Config, run.config)
    counts = {name: alphazero.settings(config)[name] for name in ("simulations", "considered")}
    evaluate = search.evaluation(alphazero.network(config, game))
    params = [alphazero.of_seed(run.state.agent.params, index) for index in range(len(run.seeds))]
    players["the network alone"] = [search.policy_player(game, evaluate, one) for one in params]
    players[f"AlphaZero, {counts['simulations']} simulations"] = [
        search.search_player(game, evaluate, one, **counts) for one in params
    ]
    print(f"| mistakes, % of {given.count} | {' | '.join(strata)} |\n|---|{'---|' * len(strata)}")
    for name, several in players.items():
        cells = []
        for one in strata.values():
            shares = [100 * share_of_mistakes(game, player, one) for player in several]
            between = mean_interval(np.asarray(shares))
            cells.append(
                f"{between.mean:.1f}" + (f" [{between.low:.1f}, {between.high:.1f}]" if len(shares) > 1 else "")
            )
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
