"""Transforms take a learner and return a learner; they change where and how fast it trains, never what it learns.

Exempt, because they cannot be otherwise: statistics over the batch (batch normalization) and random masks (dropout)
under `accumulate`, where each micro-batch has its own; random masks under `pmap`, independent in each replica.
"""

import contextlib
import functools
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, PyTree

from jdl.core import seam
from jdl.core.learner import Batch, Learner, Metrics, State, fold, step_key
from jdl.core.metrics import merge_axis
from jdl.core.runs_axis import Placement, over_runs, warn_if_runs_stay_on_one_core
from jdl.data.shuffle import shuffled_index
from jdl.nn.cpu.slow_convolutions import weight_gradient_convolutions
from jdl.runtime.compilation import use_compilation_cache
from jdl.runtime.memory import keep_scratch_memory


def jit(learner: Learner, *, donate: bool = True) -> Learner:
    """Compile a learner's functions; a step takes over the memory of the state it is given, unless donate=False."""
    use_compilation_cache()
    keep_scratch_memory()

    def compiled(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        signatures: list[PyTree] = []  # the types of the last argument's leaves, each time that they are new

        @functools.wraps(function)
        def traced(*arguments: Any) -> Any:
            signature = jax.tree.map(jax.typeof, arguments[-1])
            if signature not in signatures:
                signatures.append(signature)
            return function(*arguments)

        fast = jax.jit(traced, **options)

        @functools.wraps(function)
        def call(*arguments: Any) -> Any:
            # Within another transform, what was compiled before would not know of it.
            return fast(*arguments) if seam.untouched() else function(*arguments)

        call.lower, call.signatures = fast.lower, signatures  # type: ignore[attr-defined]
        return call

    return learner._replace(
        init=_compiled_quickly(learner.init),
        step=compiled(learner.step, donate_argnums=0 if donate else ()),
        evaluate=compiled(learner.evaluate),
        predict=compiled(learner.predict) if learner.predict else None,
    )


def _compiled_quickly(init: Callable[[Any], State]) -> Callable[[Any], State]:
    """What runs once: at LLVM's highest level a CPU's compiler takes minutes for random numbers of a hundred shapes."""

    @functools.cache
    def fast() -> Any:  # at the first call: asking for the backend starts JAX's devices
        fewer = {"xla_backend_optimization_level": 2} if jax.default_backend() == "cpu" else None
        return jax.jit(init, compiler_options=fewer)

    @functools.wraps(init)
    def call(key: Any) -> State:
        tracing = isinstance(jnp.zeros(()), Tracer)  # such options are refused inside another program
        return init(key) if tracing or not seam.untouched() else fast()(key)

    call.lower = lambda key: fast().lower(key)  # type: ignore[attr-defined]
    return call


def feed(learner: Learner, batch_size: int, augment: Callable[[Array, Batch], Batch] | None = None) -> Learner:
    """Draw shuffled batches on the device: `step` is then given the whole data set.

    Each epoch visits the examples in an order of its own and leaves out a remainder smaller than a batch. The place
    in the data is the state's step, the order follows from the state's key: nothing is stored.
    augment: `(key, batch) -> batch` (`jdl.data.augment`). Raises ValueError for a batch larger than the data.
    """
    if batch_size < 1:
        raise ValueError(f"feed(batch_size={batch_size}): a batch has at least 1 example")
    if learner.runs is not None:
        raise ValueError("feed goes inside, so that each run draws its own batches: seeds(feed(learner, ...), ...)")

    def step(state: State, data: Batch) -> tuple[State, Metrics]:
        size = len(jax.tree.leaves(data)[0])
        if batch_size > size:
            raise ValueError(
                f"feed(batch_size={batch_size}) is larger than the data ({size} examples); use at most {size}"
            )
        epoch, place = jnp.divmod(state.step // learner.steps, size // batch_size)
        positions = place * batch_size + jnp.arange(batch_size, dtype=jnp.int32)
        if learner.steps == 1:
            positions = seam.current().share(positions)
        else:  # a batch of several steps is shared out within each
            positions = jax.vmap(seam.current().share)(_split("feed", learner.steps, positions)).reshape(-1)
        indices = shuffled_index(fold(state.key, "shuffle"), epoch, positions, size)
        batch = jax.tree.map(lambda leaf: jnp.asarray(leaf)[indices], data)
        if augment is not None:
            batch = augment(fold(step_key(state), "augment"), batch)
        return learner.step(state, batch)

    return learner._replace(step=step).with_traits(fed=True, batch_size=batch_size)


def scan(learner: Learner, n: int) -> Learner:
    """n steps in one dispatch; the metrics of each step are stacked.

    A learner that draws its own batches (`feed`) is given the whole data every time; otherwise the batch holds n
    steps' examples, one step's after the other's.
    """
    _at_least_one("scan", n)

    def step(state: State, batch: Batch) -> tuple[State, Metrics]:
        if learner.traits.fed:
            one, batches, body = batch, None, lambda state, _: learner.step(state, batch)
        else:
            split = functools.partial(_split, f"scan(learner, {n})", n, axis=learner.traits.example_axis)
            batches = jax.tree.map(lambda leaf: jnp.moveaxis(split(leaf), learner.traits.example_axis, 0), batch)
            one = jax.tree.map(lambda leaf: leaf[0], batches)
            # A new function each time: lax.scan keeps traces by function, and those do not know of the seam.
            body = lambda state, batch: learner.step(state, batch)  # noqa: E731
        with _watching_convolutions("scan", learner.step, state, one):
            state, metrics = jax.lax.scan(body, state, batches, length=n)
        if learner.runs is not None:  # [n, runs, ...] -> [runs, n, ...]
            metrics = jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, 1), metrics)
        if learner.steps > 1:  # [..., n, steps, ...] -> [..., n * steps, ...]
            axis = 0 if learner.runs is None else 1
            metrics = jax.tree.map(lambda leaf: _join(leaf, axis), metrics)
        elif n == 1:
            metrics = jax.tree.map(lambda leaf: jnp.squeeze(leaf, 0 if learner.runs is None else 1), metrics)
        return state, metrics

    return learner._replace(step=step, steps=learner.steps * n)


def accumulate(learner: Learner, n: int) -> Learner:
    """One update from n micro-batches, one in memory at a time: sums are added and divided once."""
    _at_least_one("accumulate", n)

    def reduction(summed: seam.SummedGradients) -> seam.SummedGradients:
        def accumulated(params: PyTree, batch: Batch, key: Array) -> seam.Summed:
            micro_batches = jax.tree.map(functools.partial(_split, f"accumulate(learner, {n})", n), batch)

            def add(sums: PyTree, part: tuple[Array, Batch]) -> tuple[PyTree, tuple[Array, PyTree]]:
                index, micro_batch = part
                result = summed(params, micro_batch, jax.random.fold_in(key, index))
                sums = jax.tree.map(jnp.add, sums, (result.gradients, result.total))
                return sums, (result.weight, result.auxiliary)

            shapes = jax.eval_shape(lambda: summed(params, jax.tree.map(lambda leaf: leaf[0], micro_batches), key))
            zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), (shapes.gradients, shapes.total))
            (grads, total), (weights, stacked) = jax.lax.scan(add, zeros, (jnp.arange(n), micro_batches))
            auxiliary = seam.merge_auxiliary(stacked, weights, merge_axis)
            return seam.Summed(grads, total, weights.sum(), auxiliary)

        return accumulated

    def step(state: State, batch: Batch) -> tuple[State, Metrics]:
        with seam.within(reduction=reduction):
            return learner.step(state, batch)

    return learner._replace(step=step)


def seeds(
    learner: Learner,
    n: int | Sequence[int],
    *,
    each: bool = False,
    placement: Placement | None = None,
    spread: bool | int = True,
) -> Learner:
    """n independent runs in one program; the state, metrics and predictions get a leading axis of runs.

    Run i starts from the key `fold_in(key, i)`, whatever the other runs are: `seeds(learner, [5])` repeats run 5 of
    eight. each: batches (and data, also for evaluation) have a leading axis of runs, one run's each, as for splits
    that differ between runs; otherwise all runs are given the same. placement: "map" keeps each run's bits, "vmap"
    runs them together; by default what is fast on this kind of device. spread: over all devices; or over so many
    groups of them, within which each run is spread by a transform of its own (`shard`, `pmap`, `distribute`).
    """
    numbers = tuple(range(n)) if isinstance(n, int) else tuple(n)
    if not numbers or min(numbers) < 0:
        raise ValueError(f"seeds(learner, {n}): give at least 1 run, as a number or as a list of seeds from 0 up")
    runs, inner = len(numbers), learner.runs
    place = functools.partial(over_runs, runs=runs, placement=placement, spread=spread, transform="seeds")

    # A learner that itself holds several runs has one axis for them all, the outer ones first.
    def outer(tree: PyTree) -> PyTree:
        return tree if inner is None else jax.tree.map(lambda leaf: leaf.reshape(runs, inner, *leaf.shape[1:]), tree)

    def flat(tree: PyTree) -> PyTree:
        return tree if inner is None else jax.tree.map(lambda leaf: _join(leaf, 0), tree)

    def over(function: Callable[[State, Batch], PyTree]) -> Callable[[State, Batch], PyTree]:
        def call(state: State, batch: Batch) -> PyTree:
            _check_runs(batch, runs)
            return flat(place(lambda pair: function(*pair))((outer(state), batch)))

        return call if each else lambda state, batch: flat(place(function)(outer(state), batch))

    def init(key: Array) -> State:
        keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, jnp.array(numbers, jnp.uint32))
        return flat(place(learner.init)(keys))

    def step(state: State, batch: Batch) -> tuple[State, Metrics]:
        warn_if_runs_stay_on_one_core(runs, "seeds")
        one = jax.tree.map(lambda leaf: leaf[0], batch) if each else batch
        with _watching_runs("seeds", runs, placement, learner.step, outer(state), one):
            return over(learner.step)(state, batch)

    return learner._replace(
        init=init,
        step=step,
        evaluate=over(learner.evaluate),
        predict=over(learner.predict) if learner.predict else None,
        runs=runs * (inner or 1),
    ).with_traits(example_axis=learner.traits.example_axis + each)


def population(
    make: Callable[[Any], Learner],
    hyperparameters: PyTree,
    *,
    placement: Placement | None = None,
    spread: bool | int = True,
) -> Learner:
    """One run a hyper-parameter setting, in one program: `make` is given traced scalars.

    hyperparameters: a pytree of arrays with a leading axis of settings. All runs start from the same key, so that
    they differ by the setting alone; for several seeds of each, `seeds(population(...), n)`.
    """
    sizes = {len(leaf) for leaf in jax.tree.leaves(hyperparameters)}
    if len(sizes) != 1 or sizes == {0}:
        raise ValueError(
            f"population: the leading axes are {sorted(sizes)}; give each hyper-parameter as many settings"
        )
    runs = sizes.pop()
    settings = jax.tree.map(jnp.asarray, hyperparameters)
    template = make(jax.tree.map(lambda leaf: leaf[0], settings))
    if template.runs is not None:
        raise ValueError("population: make returns a learner of one run; for more use seeds(population(...), n)")
    place = functools.partial(over_runs, runs=runs, placement=placement, spread=spread, transform="population")

    def each(name: str) -> Callable[..., Any]:
        return place(lambda run, *shared: getattr(make(run[0]), name)(run[1], *shared))

    def init(key: Array) -> State:
        return place(lambda setting, key: make(setting).init(key))(settings, key)

    def step(state: State, batch: Batch) -> tuple[State, Metrics]:
        warn_if_runs_stay_on_one_core(runs, "population")
        with _watching_runs("population", runs, placement, template.step, state, batch):
            return each("step")((settings, state), batch)

    return template._replace(
        init=init,
        step=step,
        evaluate=lambda state, batch: each("evaluate")((settings, state), batch),
        predict=(lambda state, batch: each("predict")((settings, state), batch)) if template.predict else None,
        runs=runs,
    )


def _check_runs(batch: Batch, runs: int) -> None:
    for leaf in jax.tree.leaves(batch):
        if jnp.ndim(leaf) == 0 or len(leaf) != runs:
            raise ValueError(
                f"seeds(each=True) takes batches with a leading axis of {runs} runs, this one has shape "
                f"{jnp.shape(leaf)}; stack one run's data each"
            )


def _at_least_one(transform: str, n: int) -> None:
    if n < 1:
        raise ValueError(f"{transform}(learner, {n}): n is at least 1")


def _split(transform: str, n: int, leaf: Any, axis: int = 0) -> Array:
    """[n * size, ...] -> [n, size, ...], in order; or so at another axis."""
    if jnp.ndim(leaf) <= axis or leaf.shape[axis] % n:
        raise ValueError(
            f"{transform} splits a batch's axis {axis}, of examples, in {n}, and this one has shape {jnp.shape(leaf)}; "
            f"make it a multiple of {n} (for batches drawn from a whole data set, put feed inside)"
        )
    return jnp.reshape(leaf, (*leaf.shape[:axis], n, leaf.shape[axis] // n, *leaf.shape[axis + 1 :]))


def _join(leaf: Array, axis: int) -> Array:
    return leaf.reshape(*leaf.shape[:axis], -1, *leaf.shape[axis + 2 :])


@contextlib.contextmanager
def _watching_convolutions(transform: str, step: Callable, state: State, batch: Batch) -> Iterator[None]:
    """Around a loop over `step` on a CPU, where XLA's weight gradient of a convolution is many times slower: warn."""
    if jax.default_backend() != "cpu" or seam.current().watched:
        yield
        return
    with seam.within(watched=True):  # the outermost loop sees what the inner ones hold
        found = weight_gradient_convolutions(jax.make_jaxpr(step)(state, batch))
        if found:
            warnings.warn(
                f"{transform}: the weight gradients of {len(found)} plain convolution(s) ({found[0]}) run 7 to 60 "
                "times slower inside a loop on a CPU; use jdl.nn.Conv, or pass "
                "conv_general_dilated=jdl.nn.conv_general_dilated to flax.linen.Conv",
                stacklevel=4,
            )
        yield


def _watching_runs(
    transform: str, runs: int, placement: Placement | None, step: Callable, states: State, batch: Batch
) -> contextlib.AbstractContextManager:
    if runs <= jax.local_device_count() or placement == "vmap":
        return contextlib.nullcontext()  # no loop over runs
    one = jax.eval_shape(lambda tree: jax.tree.map(lambda leaf: leaf[0], tree), states)
    return _watching_convolutions(transform, step, one, batch)
