"""What the command shows: results, tables, JSON."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from jdl.core.statistics import mean_interval
from jdl.experiment.study import Study, Trial
from jdl.experiment.sweep import Swept, finals
from jdl.parallel.hardware import HARDWARE
from jdl.parallel.plan import Work
from jdl.runtime import processes
from jdl.training.runs import Run

console = Console()


def finish(finished: Run, as_json: bool) -> int:
    """Write the report of a finished run and show its result; returns the status of the command."""
    from jdl.report.report import write  # matplotlib takes a second to import

    if not processes.first():
        return 0
    path = write(finished)
    summary = summary_of(finished)
    rows = [(name, show_interval(interval)) for name, interval in finished.intervals.items()]
    show_table(("metric", f"mean of {len(finished.seeds)} seed(s), 95% interval"), rows)
    console.print(f"{summary['seconds']:.1f} s; report: {path}", soft_wrap=True)
    if as_json:
        print_json(summary)
    return 0


def show_trial(trial: Trial) -> None:
    """A line as each trial of a study ends."""
    settings = ", ".join(f"{name} {_show_setting(value)}" for name, value in trial.settings.items())
    value = trial.note if trial.state == "failed" else f"{trial.value:.5g}"
    console.print(f"trial {trial.number} {trial.state}: {value} ({settings})", soft_wrap=True, markup=False)


def _show_setting(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def finish_study(study: Study, as_json: bool) -> int:
    """Write the report of a study and show its best trials; returns the status of the command."""
    from jdl.report.report import write_study  # matplotlib takes a second to import

    path = write_study(study)
    metric, fields = study.description["metric"], list(study.description["space"])
    rows = []
    for trial in study.ranked[:5]:
        settings = [_show_setting(trial.settings[name]) for name in fields]
        rows.append((str(trial.number), trial.state, f"{trial.value:.5g}", *settings))
    show_table(("trial", "state", metric, *fields), rows)
    failed = sum(trial.state == "failed" for trial in study.trials)
    console.print(f"{len(study.trials)} trials, {failed} failed, in {study.path}; report: {path}", soft_wrap=True)
    if study.command:
        console.print(f"the best again: {study.command}", soft_wrap=True, markup=False)
    if as_json:
        trials = [{**trial._asdict(), "value": number_or_none(trial.value)} for trial in study.trials]
        best = None if study.best is None else trials[study.best.number]
        summary = {"study": str(study.path), "report": str(path), "best": best, "command": study.command}
        print_json({**summary, "importances": study.importances, "trials": trials})
    return 0


def show_swept(swept: Swept) -> None:
    """A line as each run of a sweep ends."""
    settings = ", ".join(f"{name} {_show_setting(value)}" for name, value in swept.settings.items())
    how = f"failed: {swept.failure}" if swept.failure else "finished"
    console.print(f"run {swept.run.name} {how} ({settings or f'seeds {swept.seeds}'})", soft_wrap=True, markup=False)


def finish_sweep(swept: Sequence[Swept], as_json: bool) -> int:
    """Show the settings of a sweep with their final metrics; returns the status of the command, 1 where runs failed."""
    found = [(settings, {name: mean_interval(values) for name, values in metrics.items()})
             for settings, metrics in finals(swept)]  # fmt: skip
    fields, metrics = list(found[0][0]), list(dict.fromkeys(name for _, one in found for name in one))
    rows = [
        (*(_show_setting(settings[name]) for name in fields),
         *(show_interval(one[name]) if name in one else "failed" for name in metrics))
        for settings, one in found
    ]  # fmt: skip
    show_table((*fields, *(f"{name} (mean, 95% interval)" for name in metrics)), rows)
    failed = [one for one in swept if one.failure]
    console.print(f"{len(swept)} runs, {len(failed)} failed, in {swept[0].run.parent}", soft_wrap=True)
    if as_json:
        runs = [{**one._asdict(), "run": str(one.run)} for one in swept]
        results = [
            {"settings": settings, "metrics": {name: [number_or_none(v) for v in one[name]] for name in one}}
            for settings, one in found
        ]
        print_json({"sweep": str(swept[0].run.parent), "runs": runs, "results": results})
    return 1 if failed else 0


def show_work(work: Work, batch_size: int) -> None:
    """A step on each device, and what it would take at best on devices that can be bought."""
    program = work.program
    examples = f" of {batch_size:,} examples" if batch_size else ""
    console.print(
        f"a step{examples}: {work.model_flops / 1e12:,.4g} TFLOPs in all; a device: "
        f"{program.flops / 1e12:,.4g} TFLOPs, {(work.arguments + work.temporaries) / 1e9:,.4g} GB at most "
        f"({work.temporaries / 1e9:,.4g} of activations, gradients and what is computed with)",
        soft_wrap=True, markup=False,
    )  # fmt: skip
    if program.unknown_loops:
        console.print(
            f"{program.unknown_loops} loop(s) of unknown length are counted once: a step takes more than this",
            soft_wrap=True,
        )
    merged: dict[tuple[str, int], tuple[int, float]] = {}
    for one in program.collectives:
        times, sent = merged.get((one.kind, len(one.group)), (0, 0.0))
        merged[one.kind, len(one.group)] = times + one.times, sent + one.bytes
    rows = [
        (kind, f"{devices}", f"{times:,}", f"{sent / 1e6:,.4g} MB") for (kind, devices), (times, sent) in merged.items()
    ]
    if rows:
        show_table(("collective", "among devices", "a step", "sent by each"), rows)
    rows = []
    for hardware in HARDWARE.values():
        times = work.on(hardware)
        fits = "" if work.fits(hardware) else f"; more than its {hardware.memory / 1e9:.0f} GB"
        rows.append(
            (hardware.name, *(f"{1e3 * seconds:,.4g}" for seconds in times), f"{1e3 * times.seconds:,.4g} ms",
             f"{times.bound}{fits}", f"{work.mfu(hardware):.0%}")
        )  # fmt: skip
    show_table(("at best on", "compute", "memory", "network", "step", "bound", "MFU"), rows)


def summary_of(run: Run) -> dict[str, Any]:
    """A run's result, for `--json`."""
    metrics = {
        name: {
            **{k: number_or_none(v) for k, v in interval._asdict().items()},
            "values": [number_or_none(v) for v in run.final[name]],
        }
        for name, interval in run.intervals.items()
    }
    return {"run": str(run.path), "seconds": (run.result or {}).get("seconds"), "metrics": metrics}


def number_or_none(value: Any) -> float | None:
    """A number as JSON has it: null where it is not finite."""
    number = float(value)
    return number if np.isfinite(number) else None


def show_interval(interval: Sequence[Any], sign: bool = False) -> str:
    """A mean and its interval, "0.93 [0.92, 0.94]"."""
    mean, low, high = (np.nan if value is None else float(value) for value in interval)
    spec = "+.4g" if sign else ".4g"
    return f"{mean:{spec}}" if low != low else f"{mean:{spec}} [{low:{spec}}, {high:{spec}}]"


def progress(run: Run) -> str:
    """How far a run is."""
    if run.result is not None:
        return "finished"
    steps = [row["step"] for row in run.rows]
    return f"at step {steps[-1]}" if steps else "started"


def show_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table."""
    table = Table(*columns)
    for row in rows:
        table.add_row(*row)
    console.print(table)


def print_json(value: Any) -> None:
    """Print a value on a line of its own."""
    print(json.dumps(value))
