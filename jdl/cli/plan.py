"""`jdl plan`."""

import argparse
import dataclasses
import math

from jdl.cli.command import of_name
from jdl.cli.console import console, print_json, show_table, show_work
from jdl.cli.options import read
from jdl.experiment import find
from jdl.parallel.plan import devices_on_paper, show, work
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
    needn't be there, and nothing is run.

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
    listed = [one for one in found.arrays if chosen.options.all or "params" in one.path.split("/")]
    rows = [(one.path, show(one), f"{one.bytes:,}", f"{one.bytes_per_device:,}") for one in listed]
    show_table(("array", "shape", "bytes", "a device"), rows)
    sums = [f"{kind} {whole / 1e6:,.3f} MB, {each / 1e6:,.3f} a device" for kind, (whole, each) in found.bytes.items()]
    console.print("; ".join(sums), soft_wrap=True, markup=False)
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


def _devices(arguments: list[str]) -> int:
    """How many devices the mesh of a command line has."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--mesh", default="")
    mesh = parser.parse_known_args(arguments)[0].mesh
    return max(1, math.prod(int(part) for part in mesh.split("x") if part.isdecimal()))


COMMAND = of_name(plan)
