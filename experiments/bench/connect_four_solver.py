"""The solver's side of `experiments.bench.connect_four`, in an environment of its own: positions and values of moves.

Standard library and bitbully alone (whose license, AGPL, is why it is apart). Draws random positions until each stratum
has so many, and prints them as JSON: the moves that lead there, and the value of each move, 1 for a move after which
perfect play wins, 0 for a draw, -1 for a loss.
"""

import argparse
import json
import random
from typing import Any

# By the stones on the board (up to 14, up to 28) and the moves that are left in perfect play (below 14, up to 28), as
# Pons' test sets are divided. Not all nine there are: late positions have few moves left.
STRATA = ("begin-easy", "begin-medium", "begin-hard", "middle-easy", "middle-medium", "end-easy")


def stratum(stones: int, left: int) -> str:
    """The name of a position's stratum."""
    when = "begin" if stones <= 14 else "middle" if stones <= 28 else "end"
    return f"{when}-{'easy' if left < 14 else 'medium' if left <= 28 else 'hard'}"


def main() -> None:
    """Print the positions."""
    from bitbully import BitBully, Board  # type: ignore

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1000, help="positions of each stratum")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    draw, solver = random.Random(given.seed), BitBully()
    found: dict[str, list[Any]] = {name: [] for name in STRATA}
    seen = set()
    while min(map(len, found.values())) < given.count:
        moves: list[int] = []
        board = Board()
        for _ in range(draw.randint(0, 41)):
            moves.append(draw.choice(board.legal_moves()))
            board.play(moves[-1])
            if board.is_game_over():
                break
        key = json.dumps(board.to_array())
        if board.is_game_over() or key in seen:
            continue
        seen.add(key)
        scores = solver.score_all_moves(board)
        best = max(scores.values())
        name = stratum(len(moves), solver.score_to_moves_left(best, board))
        if name in found and len(found[name]) < given.count:
            values = {column: (score > 0) - (score < 0) for column, score in scores.items()}
            found[name].append({"moves": moves, "values": values})
    print(json.dumps(found))


if __name__ == "__main__":
    main()
