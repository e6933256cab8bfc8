"""`jdl tune`."""

import dataclasses
import sys

from jdl.cli.command import of_name
from jdl.cli.console import finish_study, show_trial
from jdl.cli.options import read_by_field
from jdl.experiment import execute, find, search_space
from jdl.experiment import tune as tuning
from jdl.runtime.cores import use_every_core

_RANGES = (
    'What to search. RANGE is "LOW HIGH" (uniform), "log LOW HIGH" (each order of magnitude equally likely) or the '
    'values to choose from, "32 64 128" ("choice 32 64" for two). An experiment may declare its own as SPACE.'
)


@dataclasses.dataclass(frozen=True)
class Options(tuning.Options):
    """How to search, whatever the experiment."""

    json: bool = False
    """print the result as one JSON object, on the last line"""


def tune(name: str, arguments: list[str]) -> int:
    """Search an experiment's hyper-parameters: its name, then --space.FIELD RANGE ...; `jdl tune NAME --help`.

    Args:
        name: the experiment
    """
    use_every_core()
    module = find.find(name)
    chosen, texts = read_by_field("tune", name, module, Options, arguments, "space", "RANGE", _RANGES)
    space = search_space.from_text(texts, module.Config)
    execute.settle(chosen.config)
    options = chosen.options
    try:
        study = tuning.search(module, options, space=space, config=chosen.config, watch=show_trial)
    except KeyboardInterrupt:
        print("jdl: stopped; the same command continues the search", file=sys.stderr)
        return 130
    return finish_study(study, options.json)


COMMAND = of_name(tune)
