"""Training steps per second of the network families beside PyTorch's, and decoding from the cache beside without.

Command:   python -m experiments.bench.models --torch-python PATH [--json] [--rounds 5] [--only mlp cnn ... decoding]
           PATH is a Python that has PyTorch and NumPy (`make bench-models` builds one).
Time:      about 10 minutes on 2 cores
Expected:  the table in experiments/bench/README.md

The same networks, batch and optimizer (Adam) on either side, in processes that take turns; PyTorch, on as many threads
as there are cores, has two, eager and compiled, of which the faster counts. Ours takes its steps in one dispatch.
"""

import argparse
import functools
import sys
import time
from collections.abc import Callable

from experiments.bench.measure import Row, Worker, compared, interleaved, rate, serve, show
from experiments.bench.noise import measured
from experiments.bench.torch_models import CONTEXT, HEADS, HIDDEN, LAYERS, SIZES, VOCABULARY, WIDTH, arrays

BARS = {"mlp": 1.3, "cnn": 1.0, "lstm": 0.9, "gpt": 0.8, "resnet18": 0.9}


def our_training(name: str) -> Callable[[], float]:
    """Steps per second of the framework."""
    import flax.linen as nn
    import jax
    import optax

    import jdl
    from experiments.bench.loops import CNN

    class Last(nn.Module):
        """An LSTM's last output, classified."""

        @nn.compact
        def __call__(self, x):
            return nn.Dense(10)(jdl.nn.Recurrent(HIDDEN)(x)[0][:, -1])

    model = {
        "mlp": jdl.nn.MLP((512, 512, 10)),
        "cnn": CNN(),
        "lstm": Last(),
        "gpt": jdl.nn.GPT(VOCABULARY, CONTEXT, WIDTH, LAYERS, HEADS),
        "resnet18": jdl.nn.ResNet18(10, stem="cifar"),
    }[name]
    batch, steps = arrays(name), SIZES[name][1]
    loss = jdl.losses.token_cross_entropy if name == "gpt" else jdl.losses.cross_entropy
    one = jdl.supervised(model, loss, optax.adam(1e-3), example=batch)
    training = jdl.jit(jdl.scan(jdl.feed(one, SIZES[name][0]), steps))
    state = [training.init(jax.random.key(0))]
    data = jax.device_put(batch)

    def measure() -> float:
        begin = time.perf_counter()
        state[0], metrics = training.step(state[0], data)
        metrics["loss"].total.block_until_ready()
        return steps / (time.perf_counter() - begin)

    return measure


def decoding(cached: bool, length: int = 256) -> Callable[[], float]:
    """Tokens per second of a GPT that writes `length` tokens, from its cache or by reading all of them each time."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    import jdl

    model = jdl.nn.GPT(VOCABULARY, length + 1, WIDTH, LAYERS, HEADS)
    prompt = np.zeros((1, 1), np.int32)
    variables = jax.jit(model.init)(jax.random.key(0), prompt)

    @jax.jit
    def recompute(ids):
        def step(ids, place):
            logits = model.apply(variables, ids)
            token = jax.lax.dynamic_index_in_dim(logits, place, 1, keepdims=False).argmax(-1)
            return jax.lax.dynamic_update_index_in_dim(ids, token.astype(ids.dtype), place + 1, 1), None

        return jax.lax.scan(step, ids, jnp.arange(length))[0]

    def measure() -> float:
        begin = time.perf_counter()
        if cached:
            jdl.text.generate(model, variables, prompt, length, temperature=0.0)
        else:
            recompute(jnp.zeros((1, length + 1), jnp.int32)).block_until_ready()
        return length / (time.perf_counter() - begin)

    return measure


def compile_seconds(layers: int, scan: bool) -> float:
    """How long a GPT's training step takes to compile."""
    import jax
    import numpy as np
    import optax

    import jdl

    ids = np.zeros((8, 64), np.int32)
    model = jdl.nn.GPT(VOCABULARY, 64, 64, layers, 4, scan=scan)
    one = jdl.supervised(model, jdl.losses.token_cross_entropy, optax.adam(1e-3), example={"input": ids, "target": ids})
    state = jax.eval_shape(one.init, jax.random.key(0))
    begin = time.perf_counter()
    jax.jit(one.step).lower(state, {"input": ids, "target": ids}).compile()
    return time.perf_counter() - begin


def compile_rows(rounds: int) -> list[Row]:
    """48 layers beside 4, scanned and not."""
    rows = []
    for scan, bar in ((True, 1.3), (False, 12.0)):
        measures = {layers: functools.partial(compile_seconds, layers, scan) for layers in (4, 48)}
        found = interleaved({str(layers): measure for layers, measure in measures.items()}, rounds)
        ratios = [deep / shallow for deep, shallow in zip(found["48"], found["4"], strict=True)]
        texts = [f"{sorted(found[layers])[rounds // 2]:.2f} s" for layers in ("48", "4")]
        name = f"compile 48 layers / 4, {'scanned' if scan else 'unrolled'}"
        rows.append(Row(name, ratios, bar, texts[0], texts[1], at_most=True))
    return rows


def training_row(name: str, torch_python: str, rounds: int) -> Row:
    """Beside the faster of eager and compiled PyTorch, round by round."""
    commands = {
        "ours": [sys.executable, "-m", "experiments.bench.models", "--worker", name],
        **{way: [torch_python, "-m", "experiments.bench.torch_models", name, way] for way in ("eager", "compiled")},
    }
    workers = {side: Worker(command) for side, command in commands.items()}
    rates = interleaved(workers, rounds)
    for worker in workers.values():
        worker.close()
    faster = max(("eager", "compiled"), key=lambda way: sorted(rates[way])[rounds // 2])
    row = compared(f"{name} / PyTorch, {faster}", rates["ours"], rates[faster], BARS[name])
    return row._replace(reference=", ".join(f"{rate(rates[way])} {way}" for way in ("eager", "compiled")))


def decoding_rows(rounds: int) -> list[Row]:
    """Text from the cache beside text recomputed from its beginning."""
    ways = {way: decoding(way == "cache") for way in ("cache", "prefix")}
    for measure in ways.values():
        measure()  # compiles
    rates = interleaved(ways, rounds)
    return [compared("256 tokens from the cache / recomputed", rates["cache"], rates["prefix"], 10, "tokens/s")]


def main() -> None:
    """Measure and print; or, as a worker, serve one side."""
    sections = [*BARS, "decoding", "compile"]
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--torch-python", default=sys.executable, metavar="PATH", help="a Python with PyTorch")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON on the last line")
    parser.add_argument("--rounds", type=int, default=5, help="how often each program has its turn")
    parser.add_argument("--only", nargs="+", choices=sections, default=sections, metavar="NAME")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        serve(our_training(options.worker))
        return

    def training(name: str, rounds: int) -> list[Row]:
        return [training_row(name, options.torch_python, rounds)]

    kinds = {name: functools.partial(training, name) for name in BARS} | {
        "decoding": decoding_rows,
        "compile": lambda rounds: compile_rows(min(rounds, 3)),
    }
    rows = measured({name: kinds[name] for name in sections if name in options.only}, options.rounds)
    show(rows, "networks beside PyTorch", options.json)


if __name__ == "__main__":
    main()
