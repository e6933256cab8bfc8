"""Steps per second beside PyTorch's, eager, on as many threads as there are cores.

Command:   python -m experiments.bench.torch_peer --torch-python PATH [--json] [--rounds 7]
           PATH is a Python that has PyTorch and NumPy, and needs nothing else (`make bench-torch` builds one).
Time:      about 3 minutes on 2 cores
Expected:  the table in experiments/bench/README.md

The same networks, data, batch size, optimizer (Adam) and order of work on either side: batches are gathered from
NumPy arrays in memory. The two sides are processes that take turns. Ours has two ways to train, the plain loop and
`scan(feed(...))`.
"""

import argparse
import functools
import os
import sys
import time
from collections.abc import Callable

from experiments.bench.measure import Row, Worker, compared, interleaved, serve, show
from experiments.bench.noise import measured
from experiments.bench.torch_models import network

BARS = {"mlp": 1.3, "cnn": 1.0}


def torch_training(name: str) -> Callable[[], float]:
    """Steps per second of a PyTorch loop over batches from memory."""
    import numpy as np
    import torch  # type: ignore  # in an environment of its own

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.manual_seed(0)
    count, steps = (12_800, 400) if name == "mlp" else (1_280, 30)
    random = np.random.default_rng(0)
    shape = (count, 784) if name == "mlp" else (count, 1, 28, 28)
    inputs, targets = random.random(shape, np.float32), random.integers(0, 10, count)
    model = network(name)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

    def measure() -> float:
        begin, per_epoch, order = time.perf_counter(), count // 128, np.arange(count)
        losses = []
        for number in range(steps):
            place = number % per_epoch
            if place == 0:
                order = random.permutation(count)
            indices = order[place * 128 : (place + 1) * 128]
            batch, target = torch.from_numpy(inputs[indices]), torch.from_numpy(targets[indices])
            loss = torch.nn.functional.cross_entropy(model(batch), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        torch.stack(losses).mean().item()
        return steps / (time.perf_counter() - begin)

    return measure


def our_training(name: str, way: str) -> Callable[[], float]:
    """Steps per second of the framework."""
    from experiments.bench import loops  # JAX is not on the other side

    task = loops.tasks()[name]
    return loops.our_loop(task) if way == "loop" else loops.our_scan_in_fit(task)


def training_rows(name: str, torch_python: str, rounds: int) -> list[Row]:
    """Both of our ways to train a network beside PyTorch's."""
    workers = {
        side: Worker([python, "-m", "experiments.bench.torch_peer", "--worker", name, side])
        for side, python in {"loop": sys.executable, "scan": sys.executable, "torch": torch_python}.items()
    }
    rates = interleaved(workers, rounds)
    for worker in workers.values():
        worker.close()
    label = {"mlp": "MLP 784-512-512-10", "cnn": "CNN 28x28"}[name]
    return [compared(f"{way} / PyTorch: {label}", rates[way], rates["torch"], BARS[name]) for way in ("loop", "scan")]


def main() -> None:
    """Measure and print; or, as a worker, serve one side."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--torch-python", default=sys.executable, metavar="PATH", help="a Python with PyTorch")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON on the last line")
    parser.add_argument("--rounds", type=int, default=7, help="how often each program has its turn")
    parser.add_argument("--worker", nargs=2, metavar=("NETWORK", "SIDE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        name, side = options.worker
        serve(torch_training(name) if side == "torch" else our_training(name, side))
        return
    sections = {name: functools.partial(training_rows, name, options.torch_python) for name in BARS}
    rows = measured(sections, options.rounds)
    show(rows, "the framework beside PyTorch, eager", options.json)


if __name__ == "__main__":
    main()
