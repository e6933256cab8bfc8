"""`jdl compare`."""

from pathlib import Path

import numpy as np
import tyro

from jdl.cli.command import Command, Json
from jdl.cli.console import console, number_or_none, print_json, show_interval, show_table
from jdl.core import statistics
from jdl.experiment.population import refuse_to_compare
from jdl.training.runs import Run


def compare(runs: tyro.conf.Positional[tuple[Path, ...]], /, json: Json = False) -> int:
    """Compare runs with the first: difference of means, probability of improvement, IQMs, with 95% intervals."""
    if len(runs) < 2:
        raise ValueError(f"compare takes at least 2 run directories, {len(runs)} given")
    first, *others = [Run(path) for path in runs]
    compared = []
    for other in others:
        for name, difference, probability in comparisons(first, other):
            compared.append(
                {
                    "run": str(other.path),
                    "against": str(first.path),
                    "metric": name,
                    "difference": {k: number_or_none(v) for k, v in difference._asdict().items()},
                    "probability_larger": {k: number_or_none(v) for k, v in probability._asdict().items()},
                    "iqm": [number_or_none(v) for v in _iqm(other, name)],
                    "iqm_against": [number_or_none(v) for v in _iqm(first, name)],
                }
            )
    if json:
        print_json({"comparisons": compared})
        return 0
    rows = [
        (
            Path(line["run"]).name,
            line["metric"],
            show_interval(tuple(line["difference"].values()), sign=True),
            show_interval(tuple(line["probability_larger"].values())),
            show_interval(line["iqm"]),
            show_interval(line["iqm_against"]),
        )
        for line in compared
    ]
    console.print(f"compared with {first.path.name}; 95% intervals", soft_wrap=True, markup=False)
    columns = ("run", "metric", "difference of means", "P(larger)", "IQM", f"IQM of {first.path.name}")
    show_table(columns, rows, fold=("run", "metric"))
    return 0


def _iqm(run: Run, name: str) -> statistics.Interval:
    return statistics.iqm_interval(np.asarray(run.final[name])[:, None])


def comparisons(first: Run, other: Run) -> list[tuple[str, statistics.Interval, statistics.Interval]]:
    """Compare the final metrics that two runs share (Agarwal et al. 2021).

    Returns:
        For each metric its name, the difference of means (other minus first) and the probability that a seed of `other`
        has a larger value than a seed of `first`.

    Raises:
        ValueError: for a run without a result or of several settings, and for runs that have no final metric in common.
    """
    for run in (first, other):
        refuse_to_compare(run)
        if run.result is None:
            raise ValueError(f"{run.path} has no result yet; finish it with `jdl resume {run.path}`")
    one, two = ({name: np.asarray(values) for name, values in run.final.items()} for run in (first, other))
    shared = [name for name in one if name in two]
    if not shared:
        raise ValueError(f"{first.path} and {other.path} have no final metric in common ({list(one)}; {list(two)})")
    return [
        (
            name,
            statistics.difference_of_means(two[name], one[name]),
            statistics.probability_of_improvement(two[name][:, None], one[name][:, None]),
        )
        for name in shared
    ]


COMMAND = Command(compare)
