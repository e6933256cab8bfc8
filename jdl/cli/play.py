"""`jdl play`."""

from typing import Annotated

import tyro

from jdl.cli.command import Command, RunPath
from jdl.experiment import execute
from jdl.experiment.config import decode
from jdl.experiment.load import load


def play(
    game: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="GAME")],
    run: RunPath,
    /,
    second: bool = False,
    seed: int | None = None,
) -> int:
    """Play a game in the terminal against the agent of a run.

    Args:
        game: the game, such as connect_four
        second: the agent moves first
        seed: the agent's, by default the first of the run's seeds
    """
    loaded = load(run)
    execute.require_experiment(loaded)
    module = execute.load_copy(loaded)
    if not hasattr(module, "play"):
        raise LookupError(
            f"{run} is a run of {loaded.description['experiment']}, which plays no game (it has no function `play`)"
        )
    seed = loaded.seeds[0] if seed is None else seed
    if seed not in loaded.seeds:
        raise ValueError(f"--seed {seed}: the seeds of {run} are {', '.join(map(str, loaded.seeds))}")
    module.play(decode(module.Config, loaded.config), loaded, game, loaded.seeds.index(seed), not second)
    return 0


COMMAND = Command(play)
