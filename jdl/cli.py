"""The command `jdl`: find, run, resume, repeat, look at and compare experiments.

An error is one line; with --traceback, anywhere, also where it came from.
"""

import contextlib
import math
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from jdl import experiment, processes, search_space, statistics
from jdl import sweep as sweeping
from jdl import tune as tuning
from jdl.console import (
    console,
    finish,
    finish_study,
    finish_sweep,
    number_or_none,
    print_json,
    progress,
    show_interval,
    show_swept,
    show_table,
    show_trial,
    show_work,
    summary_of,
)
from jdl.options import PlanOptions, RunOptions, SummaryOptions, SweepOptions, TuneOptions, read, read_by_field
from jdl.placement import ask_for_devices, cores
from jdl.preemption import leaving
from jdl.profiling import profile
from jdl.runs import Run, together
from jdl.study import Study, is_study

_Json = Annotated[bool, tyro.conf.arg(help="print the result as one JSON object, on the last line")]
_RunPath = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN", help="a run directory")]


_RANGES = (
    'What to search. RANGE is "LOW HIGH" (uniform), "log LOW HIGH" (each order of magnitude equally likely) or the '
    'values to choose from, "32 64 128" ("choice 32 64" for two). An experiment may declare its own as SPACE.'
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the command; user errors end it with one message and status 2."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        with leaving():
            status = _dispatch(arguments)
    except (LookupError, ValueError, TypeError, OSError, ImportError) as error:
        if "--traceback" in arguments:
            raise
        message = error.args[0] if isinstance(error, LookupError) and error.args else error
        kind = f"{type(error).__name__}: " if isinstance(error, KeyError | IndexError | TypeError) else ""
        print(f"jdl: {kind}{message} (--traceback shows where)", file=sys.stderr)
        status = 2
    except KeyboardInterrupt:
        print("jdl: stopped; `jdl runs` lists the run, `jdl resume RUN` continues it", file=sys.stderr)
        status = 130
    except Exception as error:
        if not processes.several():
            raise
        traceback.print_exc()
        if processes.is_lost(error):
            print(
                "jdl: another process, or the way to it, was lost, so this one stops; start all of them again with "
                "`jdl launch ... resume RUN` to go on from the last checkpoint",
                file=sys.stderr,
            )
        status = 1
    if status and processes.several():
        processes.leave(status)  # the others wait for this one, and notice
    sys.exit(status)


def _dispatch(arguments: list[str]) -> int:
    arguments = [argument for argument in arguments if argument != "--traceback"]
    if arguments[:1] == ["launch"] and len(arguments) > 1:
        return _launch(arguments[1:])
    named = {"run": _run, "tune": _tune, "sweep": _sweep, "summary": _summarize, "plan": _plan}
    if arguments and arguments[0] in named and len(arguments) > 1 and not arguments[1].startswith("-"):
        return named[arguments[0]](arguments[1], arguments[2:])
    commands: dict[str, Callable[..., int]] = {
        "list": list_experiments,
        "run": run,
        "tune": tune,
        "sweep": sweep,
        "launch": launch,
        "resume": resume,
        "replay": replay,
        "runs": list_runs,
        "report": report,
        "compare": compare,
        "summary": summary,
        "plan": plan,
    }
    return tyro.extras.subcommand_cli_from_dict(commands, prog="jdl", args=arguments, description=__doc__)


def run(name: Annotated[str, tyro.conf.Positional]) -> int:
    """Run an experiment: its name, a dotted path or a file, then --any.config.field VALUE; `jdl run NAME --help`.

    Args:
        name: the experiment
    """
    return _run(name, [])


def _run(name: str, arguments: list[str]) -> int:
    ask_for_devices(cores())  # first: an experiment that touches JAX when it is imported would start it with one device
    module = experiment.find(name)
    chosen = read("run", name, module, RunOptions, arguments)
    options = chosen.options
    numbers = options.seed_list or tuple(range(options.seeds))
    if not numbers or min(numbers) < 0:
        raise ValueError(f"--seeds {options.seeds}: give at least 1 run (or --seed-list with seeds from 0 up)")
    begun = experiment.begun(module, chosen.config, numbers, options.run_dir) if options.run_dir else None
    if begun is None:
        experiment.settle(chosen.config)
    else:
        experiment.settle_run(begun)
    with profile(options.profile) if options.profile is not None else contextlib.nullcontext():
        if begun is not None:
            return _go_on(begun, options.json)
        prepared = experiment.prepare(module, chosen.config, numbers, options.run_dir, options.log)
        return finish(experiment.begin(prepared), options.json)


def _go_on(run: Run, as_json: bool) -> int:
    if run.result is None:
        before = run.environment
        for line in experiment.environment_differences(before, run.resumed()):
            print(f"jdl: the environment has changed since the run was made: {line}", file=sys.stderr)
    return finish(experiment.execute(run), as_json)


def launch() -> int:
    """Run a command as several processes of one program: jdl launch --processes 2 run NAME ...; `jdl launch --help`."""
    return _launch(["--help"])


def _launch(arguments: list[str]) -> int:
    from jdl import launch as launching

    start = next((i for i, word in enumerate(arguments) if word in ("run", "resume") or word.endswith(".py")), None)
    said = arguments if start is None else arguments[:start]
    options = tyro.cli(launching.Options, prog="jdl launch", args=said, description=launching.__doc__)
    if start is None:
        raise ValueError("launch takes a command: `jdl launch --processes 2 run NAME`, `resume RUN`, or a script.py")
    return launching.launch(options, arguments[start:], _dispatch)


def tune(name: Annotated[str, tyro.conf.Positional]) -> int:
    """Search an experiment's hyper-parameters: its name, then --space.FIELD RANGE ...; `jdl tune NAME --help`.

    Args:
        name: the experiment
    """
    return _tune(name, [])


def _tune(name: str, arguments: list[str]) -> int:
    ask_for_devices(cores())
    module = experiment.find(name)
    chosen, texts = read_by_field("tune", name, module, TuneOptions, arguments, "space", "RANGE", _RANGES)
    space = search_space.from_text(texts, module.Config)
    experiment.settle(chosen.config)
    options = chosen.options
    try:
        study = tuning.search(module, options, space=space, config=chosen.config, watch=show_trial)
    except KeyboardInterrupt:
        print("jdl: stopped; the same command continues the search", file=sys.stderr)
        return 130
    return finish_study(study, options.json)


def sweep(name: Annotated[str, tyro.conf.Positional]) -> int:
    """Run an experiment over a grid, on this machine or a Ray cluster: its name, then --grid.FIELD "VALUES" ...

    Args:
        name: the experiment
    """
    return _sweep(name, [])


def _sweep(name: str, arguments: list[str]) -> int:
    module = experiment.find(name)
    text = 'The values of each field, as "0.1 0.01"; all combinations are run.'
    chosen, texts = read_by_field("sweep", name, module, SweepOptions, arguments, "grid", "VALUES", text)
    kinds = search_space.fields(module.Config)
    grid = {field: search_space.values(field, text, kinds[field]) for field, text in texts.items()}
    try:
        swept = sweeping.sweep(module, grid, chosen.options, config=chosen.config, watch=show_swept)
    except KeyboardInterrupt:
        print("jdl: stopped; the same command continues the sweep", file=sys.stderr)
        return 130
    return finish_sweep(swept, chosen.options.json)


def resume(run: _RunPath, /, devices: str = "", mesh: str = "", json: _Json = False) -> int:
    """Continue a run that was stopped, from its last checkpoint, to the bits it would have had.

    Args:
        devices: go on in another mode than its config's (single, data, fsdp ...), over all devices; up to rounding
        mesh: go on over so many devices (8, or 4x2); up to rounding
    """
    ask_for_devices(cores())
    found = Run(run)
    experiment.require_experiment(found)
    if devices or mesh:
        processes.by_first(lambda: experiment.move(found, devices, mesh))
    found = together(run)
    experiment.settle_run(found)
    return _go_on(found, json)


def replay(run: _RunPath, /, json: _Json = False) -> int:
    """Repeat a run from its directory, in a new one beside it, and say whether the metrics agree to the bit."""
    ask_for_devices(cores())
    found = Run(run)
    experiment.require_experiment(found)
    experiment.settle_run(found)
    if found.description.get("before"):
        print(f"jdl: {found.path} moved between devices on its way: the last bits may differ", file=sys.stderr)
    copy, differences = experiment.replay(found)
    verdict = "every metric agrees to the bit" if not differences else f"{len(differences)} metrics differ"
    lines = [f"{run} repeated in {copy.path}: {verdict}", *differences[:20]]
    lines += [
        f"environment: {line}" for line in experiment.environment_differences(Run(run).environment, copy.environment)
    ]
    console.print("\n  ".join(lines), soft_wrap=True, markup=False)
    if json:
        print_json({"run": str(copy.path), "agrees": not differences, "differences": differences})
    return 1 if differences else 0


def list_experiments(json: _Json = False) -> int:
    """List the experiments in ./experiments, with the first line of each."""
    rows = list(experiment.descriptions().items())
    if not rows:
        raise LookupError(f"there is no folder ./{experiment.FOLDER} with experiments here; change to one that has it")
    if json:
        print_json({"experiments": dict(rows)})
        return 0
    show_table(("experiment", "what it is"), rows)
    return 0


def list_runs(folder: Annotated[Path, tyro.conf.Positional] = Path("runs"), json: _Json = False) -> int:
    """List the runs in a folder: experiment, seeds, state, final metrics.

    Args:
        folder: where to look, at any depth
    """
    found = [Run(file.parent) for file in sorted(folder.rglob("config.json"))]
    found = [run for run in found if "part" not in run.description]
    if json:
        print_json({"runs": [summary_of(run) for run in found]})
        return 0
    rows = []
    for run in found:
        shown = "  ".join(f"{name} {show_interval(interval)}" for name, interval in list(run.intervals.items())[:3])
        rows.append((str(run.path.relative_to(Path.cwd(), walk_up=True)), str(len(run.seeds)), progress(run), shown))
    show_table(("run", "seeds", "state", "final metrics (mean, 95% interval)"), rows)
    return 0


def report(runs: tyro.conf.Positional[tuple[Path, ...]], /, json: _Json = False) -> int:
    """Write the report of each run, or of each study of `jdl tune`, and print where it lies."""
    from jdl.report import write, write_study  # matplotlib takes a second to import

    written = [str(write_study(Study(path)) if is_study(path) else write(Run(path))) for path in runs]
    if json:
        print_json({"reports": written})
    else:
        console.print("\n".join(written), soft_wrap=True)
    return 0


def compare(runs: tyro.conf.Positional[tuple[Path, ...]], /, json: _Json = False) -> int:
    """Compare runs with the first: difference of means, probability of improvement, interquartile means, with 95%."""
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
            f"{show_interval(line['iqm'])}, was {show_interval(line['iqm_against'])}",
        )
        for line in compared
    ]
    console.print(f"compared with {first.path.name}")
    columns = ("run", "metric", "difference of means (95%)", "probability of a larger value (95%)")
    show_table((*columns, "interquartile mean (95%)"), rows)
    return 0


def summary(name: Annotated[str, tyro.conf.Positional]) -> int:
    """Show a network's layers, parameters and FLOPs: its name, then --constructor-argument VALUE, --input 224,224,3.

    Args:
        name: a network of jdl.nn (ResNet50, GPT, ...), path/to/file.py:ClassName, or an experiment
    """
    return _summarize(name, [])


def _summarize(name: str, arguments: list[str]) -> int:
    from jdl.summary import find  # an experiment is looked for and imported by it

    target = find(name)
    chosen = read("summary", name, target, SummaryOptions, arguments)
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


def plan(name: Annotated[str, tyro.conf.Positional]) -> int:
    """Show what a run would take of each device, bytes, collectives, time: its name, then --devices fsdp --mesh 256.

    The experiment's config has the fields `devices`, `mesh` and `batch_size` (of all devices together); the devices
    needn't be there, and nothing is run.

    Args:
        name: the experiment
    """
    return _plan(name, [])


def _plan(name: str, arguments: list[str]) -> int:
    from jdl.plan import plan as made
    from jdl.plan import show, work

    _let_mesh_be(arguments)
    module = experiment.find(name)
    chosen = read("plan", name, module, PlanOptions, arguments)
    config = chosen.config
    if not hasattr(module, "learner") or not (hasattr(config, "devices") and hasattr(config, "mesh")):
        raise ValueError(
            f"{name} cannot be planned: it needs a learner(config), and a Config with the fields "
            'devices: jdl.Mode = "auto" and mesh: str = ""'
        )
    learner = module.learner(config)
    found = made(learner, config.devices, config.mesh)
    listed = [one for one in found.arrays if chosen.options.all or "params" in one.path.split("/")]
    rows = [(one.path, show(one), f"{one.bytes:,}", f"{one.bytes_per_device:,}") for one in listed]
    show_table(("array", "shape", "bytes", "a device"), rows)
    sums = [f"{kind} {whole / 1e6:,.3f} MB, {each / 1e6:,.3f} a device" for kind, (whole, each) in found.bytes.items()]
    console.print("; ".join(sums), soft_wrap=True, markup=False)
    shown = found.as_json()
    batch_size = getattr(config, "batch_size", None) if learner.example else 0
    if learner.example is not None and batch_size is not None:
        one_step = work(learner, config.devices, config.mesh, batch_size)
        show_work(one_step, batch_size)
        shown["step"] = one_step.as_json()
    else:
        console.print("no step is planned: the Config has no batch_size, or the learner no example", soft_wrap=True)
    if chosen.options.json:
        print_json(shown)
    return 0


def _let_mesh_be(arguments: list[str]) -> None:
    """Ask for as many devices as --mesh says, before anything uses JAX."""
    from jdl.plan import devices_on_paper

    words = [part for word in arguments for part in word.split("=", 1)]
    mesh = words[words.index("--mesh") + 1] if "--mesh" in words[:-1] else ""
    numbers = [int(part) for part in mesh.split("x") if part.isdecimal()]
    devices_on_paper(max(1, math.prod(numbers)))


def _iqm(run: Run, name: str) -> statistics.Interval:
    return statistics.iqm_interval(np.asarray(run.final[name])[:, None])


def comparisons(first: Run, other: Run) -> list[tuple[str, statistics.Interval, statistics.Interval]]:
    """For each final metric that both runs have: other minus first, and the probability that other is larger."""
    for run in (first, other):
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
