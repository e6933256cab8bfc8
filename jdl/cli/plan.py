"""`jdl plan`."""

import argparse
import dataclasses
import math

from jdl.cli.command import of_name
from jdl.cli.console import console, print_json, show_table
from jdl.cli.options import read
from jdl.experiment import find
from jdl.parallel.hardware import HARDWARE
from jdl.parallel.plan import Plan, Work, devices_on_paper, show, work
from jdl.parallel.plan import plan as planned


@dataclasses.dataclass(frozen=True)
class Options:
    """What to show, whatever the experiment."""

    all: bool = False
    """list the optimizer's arrays and the rest of the state, too"""
    json: bool = False
    """print the result as one JSON object, on the last line"""


def plan(name: str, arguments: list[str]) -> int:
    """Show what a run would take of each device, bytes, collectives, time: its name, then --devices fsdp --mesh 256.

    The experiment's config has the fields `devices`, `mesh` and `batch_size` (of all devices together); the devices
    need not be there, and nothing is run.

    Args:
        name: the experiment
    """
    devices_on_paper(_devices(arguments))  # first: an experiment that touches JAX when it is imported would start it
    module = find.find(name)
    chosen = read("plan", name, module, Options, arguments)
    config = chosen.config
    if not hasattr(module, "learner") or not (hasattr(config, "devices") and hasattr(config, "mesh")):
        raise ValueError(
            f"{name} cannot be planned: it needs a learner(config), and a Config with the fields "
            'devices: jdl.Mode = "auto" and mesh: str = ""'
        )
    learner = module.learner(config)
    found = planned(learner, config.devices, config.mesh)
    _show_arrays(found, chosen.options.all)
    shown = found.as_json()
    batch_size = getattr(config, "batch_size", None) if learner.traits.example else 0
    if learner.traits.example is not None and batch_size is not None:
        one_step = work(learner, config.devices, config.mesh, batch_size)
        show_work(one_step, batch_size)
        shown["step"] = one_step.as_json()
    else:
        console.print("no step is planned: the Config has no batch_size, or the learner no example", soft_wrap=True)
    if chosen.options.json:
        print_json(shown)
    return 0


def _show_arrays(found: Plan, every: bool) -> None:
    listed = [one for one in found.arrays if every or "params" in one.path.split("/")]
    rows = [(one.path, show(one), f"{one.bytes:,}", f"{one.bytes_per_device:,}") for one in listed]
    show_table(("array", "shape", "bytes", "per device"), rows, fold=("array", "shape"))
    sums = [
        f"{kind} {whole / 1e6:,.3f} MB, {each / 1e6:,.3f} per device" for kind, (whole, each) in found.bytes.items()
    ]
    console.print("; ".join(sums), soft_wrap=True, markup=False)


def show_work(work: Work, batch_size: int) -> None:
    """Show what a step costs each device, and the least time that it would take on known hardware.

    Args:
        work: the costs.
        batch_size: the examples of a step, on all devices together; 0 if it takes none.
    """
    program = work.program
    examples = f" of {batch_size:,} examples" if batch_size else ""
    console.print(
        f"a step{examples}: {work.model_flops / 1e12:,.4g} TFLOPs in all; per device: "
        f"{program.flops / 1e12:,.4g} TFLOPs, {(work.arguments + work.temporaries) / 1e9:,.4g} GB at most "
        f"({work.temporaries / 1e9:,.4g} of activations, gradients and other intermediate arrays)",
        soft_wrap=True, markup=False,
    )  # fmt: skip
    if program.unknown_loops:
        console.print(
            f"{program.unknown_loops} loop(s) of unknown length are counted once: a step takes more than this",
            soft_wrap=True,
        )
    _show_collectives(work)
    rows = []
    for hardware in HARDWARE.values():
        times = work.on(hardware)
        fits = "" if work.fits(hardware) else f"; more than its {hardware.memory / 1e9:.0f} GB"
        rows.append(
            (hardware.name, *(f"{1e3 * seconds:,.4g}" for seconds in (*times, times.seconds)),
             f"{times.bound}{fits}", f"{work.mfu(hardware):.0%}")
        )  # fmt: skip
    show_table(("best ms on", "compute", "memory", "network", "step", "bound", "MFU"), rows, fold=("bound",))


def _show_collectives(work: Work) -> None:
    merged: dict[tuple[str, int], tuple[int, float]] = {}
    for one in work.program.collectives:
        times, sent = merged.get((one.kind, len(one.group)), (0, 0.0))
        merged[one.kind, len(one.group)] = times + one.times, sent + one.bytes
    rows = [
        (kind, f"{devices}", f"{times:,}", f"{sent / 1e6:,.4g} MB") for (kind, devices), (times, sent) in merged.items()
    ]
    if rows:
        show_table(("collective", "among devices", "per step", "sent by each"), rows)


def _devices(arguments: list[str]) -> int:
    """The number of devices of the mesh that a command line gives, 1 without a mesh."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--mesh", default="")
    mesh = parser.parse_known_args(arguments)[0].mesh
    return max(1, math.prod(int(part) for part in mesh.split("x") if part.isdecimal()))


COMMAND = of_name(plan)
