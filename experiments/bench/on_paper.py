"""GPT from 124M to 70B on up to 4,096 devices, on paper: weak and strong scaling, as a table and a figure.

    python -m experiments.bench.on_paper [--hardware h100] [--figure FILE]

Each point is a step compiled for so many devices (`jdl.parallel.plan.work`): bfloat16, layers scanned and recomputed,
AdamW, context 2,048 (1,024 of the two smallest), every array shared out over the devices (FSDP), from 7B on layers
over 8 of them too. Weak: two sequences a device (four for the smaller). Strong: 1,024 sequences in all. The times are
at best: compute, memory and network each busy all the time, beside each other.
"""

import argparse
import sys
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console
from rich.table import Table

import jdl
from jdl.parallel.hardware import HARDWARE
from jdl.parallel.plan import Work, devices_on_paper, work


class Size(NamedTuple):
    """A published shape."""

    name: str
    width: int
    layers: int
    heads: int
    context: int
    features: int | None = None
    kv_heads: int | None = None

    @property
    def model(self) -> jdl.nn.GPT:
        """A GPT-2, or from 7B on a Llama 2 (Touvron et al., 2023, table 1 and appendix A.2)."""
        if self.features is None:
            return jdl.nn.GPT(50_304, self.context, self.width, self.layers, self.heads, scan=True, remat=True)
        return jdl.nn.GPT(
            32_000, self.context, self.width, self.layers, self.heads, self.kv_heads, self.features,
            positions="rotary", norm="rms", gated=True, use_bias=False, tie_embeddings=False, scan=True, remat=True,
        )  # fmt: skip


SIZES = [
    Size("124M", 768, 12, 12, 1024),
    Size("1.5B", 1600, 48, 25, 1024),
    Size("7B", 4096, 32, 32, 2048, 11_008),
    Size("13B", 5120, 40, 40, 2048, 13_824),
    Size("70B", 8192, 80, 64, 2048, 28_672, 8),
]
DEVICES = (8, 64, 512, 4096)
STRONG = 1024  # sequences of a step


def learner(size: Size) -> jdl.Learner:
    """One run in bfloat16."""
    tokens = np.zeros((1, size.context), np.int32)
    one = jdl.supervised(
        size.model, jdl.losses.token_cross_entropy, optax.adamw(3e-4), example={"input": tokens, "target": tokens}
    )
    return jdl.mixed_precision(one, "bfloat16")


def planned(size: Size, devices: int, batch_size: int) -> Work:
    """A step over so many devices."""
    if size.features is None:
        return work(learner(size), "fsdp", str(devices), batch_size)
    return work(learner(size), "fsdp+tensor", f"{devices // 8}x8", batch_size)


def main() -> None:
    """The table, and the figure where a file is named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hardware", default="h100", choices=sorted(HARDWARE))
    parser.add_argument("--figure", default="")
    parser.add_argument("--sizes", nargs="*", default=[size.name for size in SIZES])
    parser.add_argument("--devices", nargs="*", type=int, default=list(DEVICES))
    arguments = parser.parse_args()
    devices_on_paper(max(arguments.devices))
    hardware = HARDWARE[arguments.hardware]
    table = Table("model", "scaling", "devices", "sequences", "GB a device", "step, ms", "bound", "MFU", "tokens/s")
    curves: dict[tuple[str, str], list[tuple[int, float]]] = {}
    for size in (size for size in SIZES if size.name in arguments.sizes):
        each = 2 if size.features else 4
        for scaling in ("weak", "strong"):
            for devices in arguments.devices:
                batch = devices * each if scaling == "weak" else STRONG
                if size.features is None and batch % devices:
                    continue  # a device would have less than a sequence
                found = planned(size, devices, batch)
                times = found.on(hardware)
                tokens = batch * size.context / times.seconds
                curves.setdefault((size.name, scaling), []).append((devices, tokens))
                memory = (found.arguments + found.temporaries) / 1e9
                fits = "" if found.fits(hardware) else " (too much)"
                row = (size.name, scaling, f"{devices:,}", f"{batch:,}", f"{memory:,.1f}{fits}")
                row += (f"{1e3 * times.seconds:,.1f}", times.bound, f"{found.mfu(hardware):.0%}", f"{tokens:,.3g}")
                table.add_row(*row)
                print(*row, file=sys.stderr, flush=True)
    Console(width=140).print(table)
    if arguments.figure:
        draw(curves, arguments.hardware, arguments.figure)


def draw(curves: dict[tuple[str, str], list[tuple[int, float]]], hardware: str, file: str) -> None:
    """Tokens a second over devices, a panel for each kind of scaling; dashes are in proportion to the first point."""
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, 2, figsize=(10, 4), sharey=True, layout="constrained")
    for panel, scaling in zip(panels, ("weak", "strong"), strict=True):
        for (name, kind), points in curves.items():
            if kind == scaling:
                devices, tokens = jnp.array(points).T
                (line,) = panel.plot(devices, tokens, marker="o", label=name)
                panel.plot(devices, tokens[0] * devices / devices[0], ls="--", lw=0.8, color=line.get_color())
        panel.set(xscale="log", yscale="log", xlabel=f"devices ({hardware})", title=f"{scaling} scaling")
    panels[0].set_ylabel("tokens a second, at best")
    panels[0].legend(frameon=False)
    figure.savefig(file, dpi=110)


if __name__ == "__main__":
    main()
