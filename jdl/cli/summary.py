"""`jdl summary`."""

import dataclasses

from jdl.cli.command import of_name
from jdl.cli.console import console, print_json, show_table
from jdl.cli.options import read


@dataclasses.dataclass(frozen=True)
class Options:
    """What to show, whatever the model."""

    input: str = ""
    """the shape of one example, as 224,224,3; of a model with a vocabulary, the number of tokens"""
    depth: int | None = None
    """show modules within modules down to this depth; 0 shows the model alone"""
    json: bool = False
    """print the result as one JSON object, on the last line"""


def summary(name: str, arguments: list[str]) -> int:
    """Show a network's layers, parameters and FLOPs: its name, then --constructor-argument VALUE, --input 224,224,3.

    Args:
        name: a network of jdl.nn (ResNet50, GPT, ...), path/to/file.py:ClassName, or an experiment
    """
    from jdl.report.network import find  # an experiment is looked for and imported by it

    target = find(name)
    chosen = read("summary", name, target, Options, arguments)
    options = chosen.options
    if options.depth is not None and options.depth < 0:
        raise ValueError(f"--depth {options.depth}: 0 shows the model alone, 1 the modules right within it too")
    models = target.summaries(chosen.config, options.input)
    for model in models:
        show_table(("module", "kind", "output", "parameters", "FLOPs"), model.rows(options.depth))
        console.print(model.totals(), soft_wrap=True, markup=False)
    if options.json:
        print_json({"models": [model.as_json(options.depth) for model in models]})
    return 0


COMMAND = of_name(summary)
