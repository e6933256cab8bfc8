"""`jdl sweep`."""

import dataclasses
import sys

from jdl.cli.command import of_name
from jdl.cli.console import finish_sweep, show_swept
from jdl.cli.main import main
from jdl.cli.options import read_by_field
from jdl.experiment import find, search_space
from jdl.experiment import sweep as sweeping


@dataclasses.dataclass(frozen=True)
class Options(sweeping.Options):
    """How to sweep, whatever the experiment."""

    json: bool = False
    """print the result as one JSON object, on the last line"""


def sweep(name: str, arguments: list[str]) -> int:
    """Run an experiment over a grid, on this machine or a Ray cluster: its name, then --grid.FIELD "VALUES" ...

    Args:
        name: the experiment
    """
    module = find.find(name)
    text = 'The values of each field, as "0.1 0.01"; all combinations are run.'
    chosen, texts = read_by_field("sweep", name, module, Options, arguments, "grid", "VALUES", text)
    kinds = search_space.fields(module.Config)
    grid = {field: search_space.values(field, text, kinds[field]) for field, text in texts.items()}
    try:
        swept = sweeping.sweep(module, grid, chosen.options, command=main, config=chosen.config, watch=show_swept)
    except KeyboardInterrupt:
        print("jdl: stopped; the same command continues the sweep", file=sys.stderr)
        return 130
    return finish_sweep(swept, chosen.options.json)


COMMAND = of_name(sweep)
