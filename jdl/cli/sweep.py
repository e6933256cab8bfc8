"""`jdl sweep`."""

import dataclasses
import sys
from collections.abc import Sequence

from jdl.cli.command import of_name
from jdl.cli.console import console, number_or_none, print_json, show_interval, show_setting, show_table
from jdl.cli.main import main
from jdl.cli.options import read_by_field
from jdl.core.statistics import mean_interval
from jdl.experiment import find, search_space
from jdl.experiment import sweep as sweeping
from jdl.experiment.sweep import Swept


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
        swept = sweeping.sweep(module, grid, chosen.options, command=main, config=chosen.config, watch=_show_run)
    except KeyboardInterrupt:
        print("jdl: stopped; the same command continues the sweep", file=sys.stderr)
        return 130
    return _finish(swept, chosen.options.json)


def _show_run(swept: Swept) -> None:
    settings = ", ".join(f"{name} {show_setting(value)}" for name, value in swept.settings.items())
    how = f"failed: {swept.failure}" if swept.failure else "finished"
    console.print(f"run {swept.run.name} {how} ({settings or f'seeds {swept.seeds}'})", soft_wrap=True, markup=False)


def _finish(swept: Sequence[Swept], as_json: bool) -> int:
    """Show the settings of a sweep with their final metrics; returns the exit status, 1 if runs failed."""
    found = [
        (settings, {name: mean_interval(values) for name, values in metrics.items()})
        for settings, metrics in sweeping.finals(swept)
    ]
    fields, metrics = list(found[0][0]), list(dict.fromkeys(name for _, one in found for name in one))
    rows = [
        [show_setting(settings[name]) for name in fields]
        + [show_interval(one[name]) if name in one else "failed" for name in metrics]
        for settings, one in found
    ]
    show_table((*fields, *metrics), rows)
    failed = [one for one in swept if one.failure]
    counts = f"{len(swept)} runs, {len(failed)} failed"
    console.print(
        f"means over the seeds, with 95% intervals; {counts}, in {swept[0].run.parent}", soft_wrap=True, markup=False
    )
    if as_json:
        runs = [{**one._asdict(), "run": str(one.run)} for one in swept]
        results = [
            {"settings": settings, "metrics": {name: [number_or_none(v) for v in one[name]] for name in one}}
            for settings, one in found
        ]
        print_json({"sweep": str(swept[0].run.parent), "runs": runs, "results": results})
    return 1 if failed else 0


COMMAND = of_name(sweep)
