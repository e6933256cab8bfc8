"""Transforms take a learner and return a learner. They change where and how fast it trains, never what it learns.

There are two exceptions. Under `accumulate`, each micro-batch has its own batch statistics (batch normalization) and
random masks (dropout). Under `pmap`, each replica draws its own random masks.
"""

import functools
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from jdl.core import seam
from jdl.core.accumulators import merge_axis
from jdl.core.compiled import Compiled, CompiledOnce
from jdl.core.learner import Batch, Learner, Metrics, State, fold, step_key
from jdl.core.runs_axis import Placement, over_runs, warn_if_runs_stay_on_one_core
from jdl.data.shuffle import shuffled_index
from jdl.nn.cpu.slow_convolutions import weight_gradient_convolutions
from jdl.runtime.compilation import use_compilation_cache
from jdl.runtime.memory import keep_scratch_memory


def jit(learner: Learner, *, donate: bool = True) -> Learner:
    """Compile a learner's functions. Apply this last, around all other transforms.

    Inside another transform the functions run uncompiled, as parts of that transform's program. Compiled programs are
    cached on disk.

    Args:
        learner: the learner to compile.
        donate: whether `step` reuses the memory of the state that it is given, which then cannot be read any more.
    """
    use_compilation_cache()
    keep_scratch_memory()

    return learner._replace(
        init=CompiledOnce(learner.init),
        step=Compiled(learner.step, donate_argnums=0 if donate else ()),
        evaluate=Compiled(learner.evaluate),
        predict=Compiled(learner.predict) if learner.predict else None,
    )


def feed(learner: Learner, batch_size: int, augment: Callable[[Array, Batch], Batch] | None = None) -> Learner:
    """Draw shuffled batches on the device. `step` is then given the whole data set in place of a batch.

    Each epoch visits the examples in a different order and leaves out a remainder smaller than a batch. The place in
    the data follows from `state.step` and the order from `state.key`, so nothing has to be stored.

    Args:
        learner: a learner of one run; apply `seeds` afterwards, so that each run draws its own batches.
        batch_size: examples per call of the learner's step. After `scan`, a call takes several updates.
        augment: `(key, batch) -> batch`, applied to each batch (`jdl.data.augment`).

    Raises:
        ValueError: for a batch size below 1 and a learner of several runs; in `step`, for a batch larger than the
            data.
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
        else:  # replicas divide the batch of each step
            positions = jax.vmap(seam.current().share)(_split_axis("feed", learner.steps, positions)).reshape(-1)
        indices = shuffled_index(fold(state.key, "shuffle"), epoch, positions, size)
        batch = jax.tree.map(lambda leaf: jnp.asarray(leaf)[indices], data)
        if augment is not None:
            batch = augment(fold(step_key(state), "augment"), batch)
        return learner.step(state, batch)

    return learner._replace(step=step).with_traits(fed=True, batch_size=max(1, batch_size // learner.steps))


def scan(learner: Learner, n: int) -> Learner:
    """Take n steps per call, as one compiled loop, which saves the time of n − 1 calls.

    The metrics of `step` get an axis of steps, after that of runs if there is one. A learner that draws its own batches
    (`feed`) is given the same whole data set for every step. Any other learner is given the batches of n steps
    concatenated: `[n * batch, ...]`.

    Args:
        learner: the learner to loop over.
        n: steps per call; 1 gives the same shapes as without `scan`.

    Raises:
        ValueError: for n below 1; in `step`, for a batch that n does not divide.
    """
    _at_least_one("scan", n)

    def step(state: State, batch: Batch) -> tuple[State, Metrics]:
        # A new function each time: lax.scan caches traces by function, whatever notes are in the seam.
        one = _watched("scan", learner.step)
        if learner.traits.fed:
            state, metrics = jax.lax.scan(lambda state, _: one(state, batch), state, None, length=n)
        else:
            split = functools.partial(_split_axis, f"scan(learner, {n})", n, axis=learner.traits.example_axis)
            batches = jax.tree.map(lambda leaf: jnp.moveaxis(split(leaf), learner.traits.example_axis, 0), batch)
            state, metrics = jax.lax.scan(one, state, batches, length=n)
        if learner.runs is not None:  # [n, runs, ...] -> [runs, n, ...]
            metrics = jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, 1), metrics)
        if learner.steps > 1:  # [..., n, steps, ...] -> [..., n * steps, ...]
            axis = 0 if learner.runs is None else 1
            metrics = jax.tree.map(lambda leaf: _merge_axes(leaf, axis), metrics)
        elif n == 1:
            metrics = jax.tree.map(lambda leaf: jnp.squeeze(leaf, 0 if learner.runs is None else 1), metrics)
        return state, metrics

    return learner._replace(step=step, steps=learner.steps * n)


def accumulate(learner: Learner, n: int) -> Learner:
    """Make one update from n micro-batches, of which only one at a time takes memory for activations.

    The gradients, losses and weights of the micro-batches are summed and divided once, so the update is that of the
    whole batch, also with masks.

    Args:
        learner: a learner whose step computes gradients by `jdl.gradients`, such as `supervised`.
        n: the number of micro-batches that each batch is divided into.

    Raises:
        ValueError: for n below 1; in `step`, for a batch that n does not divide.
    """
    _at_least_one("accumulate", n)

    def reduction(summed: seam.SummedGradients) -> seam.SummedGradients:
        def accumulated(params: PyTree, batch: Batch, key: Array) -> seam.Summed:
            micro_batches = jax.tree.map(functools.partial(_split_axis, f"accumulate(learner, {n})", n), batch)

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
    """Train n independent runs in one program. The state, metrics and predictions get a leading axis of runs.

    Run i starts from the key `jax.random.fold_in(key, i)`, whatever the other runs are: `seeds(learner, [5])` repeats
    run 5 of `seeds(learner, 8)`. If the learner already holds several runs (`population`), there is one axis for all of
    them, with the runs of seed 0 first.

    Args:
        learner: the learner to repeat.
        n: the number of runs, or the list of their seeds.
        each: whether each run has its own data. Batches, also those for evaluation, then have a leading axis of runs.
            By default all runs are given the same data.
        placement: "map" computes the runs of a device one after another, with the same bits as a run alone; "vmap"
            computes them at once. By default "map" on a CPU and "vmap" elsewhere, where each is faster.
        spread: True to divide the runs among all devices; False to leave the devices to a transform inside, such as
            `pmap`; or the number of groups of devices to divide the runs among, with a transform inside (`shard`,
            `pmap`, `distribute`) that spreads each run over the devices of its group.

    Raises:
        ValueError: for no runs, negative seeds, groups that do not divide the runs, and, in `step`, batches without
            the axis of runs that `each` asks for.
    """
    numbers = tuple(range(n)) if isinstance(n, int) else tuple(n)
    if not numbers or min(numbers) < 0:
        raise ValueError(f"seeds(learner, {n}): give at least 1 run, as a number or as a list of seeds from 0 up")
    runs, inner = len(numbers), learner.runs
    place = functools.partial(over_runs, runs=runs, placement=placement, spread=spread, transform="seeds")

    # A learner that already holds several runs gets a single axis for all of them, the outer runs first.
    def outer(tree: PyTree) -> PyTree:
        return tree if inner is None else jax.tree.map(lambda leaf: leaf.reshape(runs, inner, *leaf.shape[1:]), tree)

    def flat(tree: PyTree) -> PyTree:
        return tree if inner is None else jax.tree.map(lambda leaf: _merge_axes(leaf, 0), tree)

    def over(function: Callable[[State, Batch], PyTree]) -> Callable[[State, Batch], PyTree]:
        def call(state: State, batch: Batch) -> PyTree:
            _check_runs(batch, runs)
            return flat(place(lambda pair: function(*pair))((outer(state), batch)))

        return call if each else lambda state, batch: flat(place(function)(outer(state), batch))

    def init(key: Array) -> State:
        keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, jnp.array(numbers, jnp.uint32))
        return flat(place(learner.init)(keys))

    def step(state: State, batch: Batch) -> tuple[State, Metrics]:
        warn_if_runs_stay_on_one_core(runs, placement, "seeds")
        looped = _runs_are_looped_over(runs, placement)
        return over(_watched("seeds", learner.step) if looped else learner.step)(state, batch)

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
    """Train one run for each setting of hyper-parameters, in one program.

        population(lambda rate: supervised(model, loss, optax.adam(rate), example=batch), jnp.logspace(-4, -2, 8))

    All runs start from the same key, so that they differ by the setting alone. For several seeds of each setting, use
    `seeds(population(...), n)`.

    Args:
        make: `(setting) -> learner` of one run. The values in the setting are traced scalars, so they cannot decide
            shapes or Python branches.
        hyperparameters: a pytree of arrays with a leading axis of settings.
        placement: as in `seeds`.
        spread: as in `seeds`.

    Returns:
        A learner whose state, metrics and predictions have a leading axis of settings.

    Raises:
        ValueError: for arrays of different lengths, no settings, and a `make` whose learner holds several runs.
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
        warn_if_runs_stay_on_one_core(runs, placement, "population")
        one = lambda run, batch: make(run[0]).step(run[1], batch)  # noqa: E731
        looped = _runs_are_looped_over(runs, placement)
        return place(_watched("population", one) if looped else one)((settings, state), batch)

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


def _split_axis(transform: str, n: int, leaf: Any, axis: int = 0) -> Array:
    """Reshape [n * size, ...] to [n, size, ...], or do so at another axis."""
    if jnp.ndim(leaf) <= axis or leaf.shape[axis] % n:
        raise ValueError(
            f"{transform} splits a batch's axis {axis}, of examples, in {n}, and this one has shape {jnp.shape(leaf)}; "
            f"make it a multiple of {n} (for batches drawn from a whole data set, put feed inside)"
        )
    return jnp.reshape(leaf, (*leaf.shape[:axis], n, leaf.shape[axis] // n, *leaf.shape[axis + 1 :]))


def _merge_axes(leaf: Array, axis: int) -> Array:
    """Reshape [n, size, ...] to [n * size, ...], or do so at another axis."""
    return leaf.reshape(*leaf.shape[:axis], -1, *leaf.shape[axis + 2 :])


def _watched(transform: str, step: Callable[[PyTree, Batch], PyTree]) -> Callable[[PyTree, Batch], PyTree]:
    """The step, for a loop: warn of convolutions that XLA makes many times slower inside a loop on a CPU.

    Only their weight gradients are concerned.
    """

    def call(state: PyTree, batch: Batch) -> PyTree:
        if jax.default_backend() != "cpu" or seam.current().watched:
            return step(state, batch)
        with seam.within(watched=True):  # the outermost loop sees the operations of the inner ones
            # What is looked at here is what the loop uses: a step takes seconds to trace, so once must do.
            traced = jax.jit(lambda state, batch: step(state, batch), inline=True)
            found = weight_gradient_convolutions(traced.trace(state, batch).jaxpr)
            if found:
                warnings.warn(
                    f"{transform}: the weight gradients of {len(found)} plain convolution(s) ({found[0]}) run 7 to 60 "
                    "times slower inside a loop on a CPU; use jdl.nn.Conv, or pass "
                    "conv_general_dilated=jdl.nn.conv_general_dilated to flax.linen.Conv",
                    stacklevel=2,
                )
            return traced(state, batch)

    return call


def _runs_are_looped_over(runs: int, placement: Placement | None) -> bool:
    return runs > jax.local_device_count() and placement != "vmap"
