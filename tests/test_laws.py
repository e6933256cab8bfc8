"""The law: a transform changes where and how fast a learner trains, never what it learns."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from learners import CASES, Case, in_precision

import jdl
from jdl.evaluate import compute
from jdl.learner import fold
from jdl.metrics import merge_axis, to_host

BATCH = 32
STEPS = 4
CLOSE = {"rtol": 1e-9, "atol": 1e-9}


@functools.cache
def case(name: str, x64: bool = False) -> Case:
    made = CASES[name]()
    return made._replace(data=in_precision(made.data, np.float64 if x64 else np.float32))


def batch(made: Case, index: int, size: int = BATCH) -> dict[str, np.ndarray]:
    return {name: leaf[index * size : (index + 1) * size] for name, leaf in made.data.items()}


def plain(tree):
    """Arrays as numpy, keys as their bits."""
    return jax.tree.map(
        lambda leaf: np.asarray(jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf),
        tree,
    )


def train(learner: jdl.Learner, batches, key=None):
    """The state after some calls of step, and the metrics of each, in order."""
    learner = jdl.jit(learner)
    state, metrics = learner.init(jax.random.key(7) if key is None else key), []
    for one in batches:
        state, measured = learner.step(state, one)
        metrics.append(plain(measured))
    return plain(state), metrics


def same_bits(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


def close(one, other):
    jax.tree.map(functools.partial(np.testing.assert_allclose, **CLOSE), one, other)


def computed(metrics):
    """What metrics compute: two ways of summing may differ in their parts and agree in the result."""
    return compute(to_host(metrics))


def run_of(tree, index):
    return jax.tree.map(lambda leaf: leaf[index], tree)


@pytest.fixture(params=list(CASES))
def name(request):
    return request.param


# To the bit ---------------------------------------------------------------------------------------------------------


def test_scan_is_a_loop(name):
    made = case(name)
    state, metrics = train(made.learner, [batch(made, i) for i in range(3)])
    whole = {key: leaf[: 3 * BATCH] for key, leaf in made.data.items()}
    scanned, (stacked,) = train(jdl.scan(made.learner, 3), [whole])
    same_bits(scanned, state)
    same_bits(stacked, jax.tree.map(lambda *leaves: np.stack(leaves), *metrics))


def test_feed_draws_what_batches_gives(name):
    made = case(name)
    key = jax.random.key(7)
    source = jdl.Batches(made.data, BATCH, key)
    state, metrics = train(made.learner, [source.next() for _ in range(STEPS)])
    fed, fed_metrics = train(jdl.feed(made.learner, BATCH), [made.data] * STEPS)
    same_bits(fed, state)
    same_bits(fed_metrics, metrics)


@pytest.mark.parametrize("spread", [False, True])
def test_seeds_by_map_keep_every_runs_bits(name, spread):
    made = case(name)
    runs = 10  # over 8 devices: padded, and more than one on each
    together, metrics = train(
        jdl.seeds(jdl.scan(jdl.feed(made.learner, BATCH), 2), runs, placement="map", spread=spread), [made.data] * 2
    )
    for index in (0, 3, 9):
        alone, alone_metrics = train(
            jdl.scan(jdl.feed(made.learner, BATCH), 2), [made.data] * 2, jax.random.fold_in(jax.random.key(7), index)
        )
        same_bits(run_of(together, index), alone)
        same_bits([run_of(m, index) for m in metrics], alone_metrics)


def test_chosen_seeds_repeat_single_runs(name):
    made = case(name)
    four, _ = train(jdl.seeds(made.learner, 4, placement="map"), [batch(made, 0)])
    one, _ = train(jdl.seeds(made.learner, [2], placement="map"), [batch(made, 0)])
    same_bits(run_of(one, 0), run_of(four, 2))
    assert not np.array_equal(four.key[0], four.key[1])


# Within rounding, in float64 ----------------------------------------------------------------------------------------


def test_seeds_by_vmap(name, x64):
    made = case(name, True)
    together, metrics = train(jdl.seeds(made.learner, 3, placement="vmap"), [batch(made, i) for i in range(2)])
    for index in range(3):
        key = jax.random.fold_in(jax.random.key(7), index)
        alone, alone_metrics = train(made.learner, [batch(made, i) for i in range(2)], key)
        close(run_of(together, index), alone)
        close([run_of(m, index) for m in metrics], alone_metrics)


def exact_case(name, exempt) -> Case:
    """The case, its random masks switched off where the transform is exempt from keeping them."""
    made = case(name, True)
    if exempt and made.random:
        import optax
        from learners import DropoutMLP

        learner = jdl.supervised(
            DropoutMLP(rate=0.0), jdl.losses.cross_entropy, optax.adam(1e-2), example=made.data,
            metrics={"accuracy": jdl.metrics.accuracy},
        )  # fmt: skip
        return made._replace(learner=learner)
    return made


WHOLE_BATCH = {
    "accumulate": lambda l: jdl.accumulate(l, 4),
    "pmap": jdl.pmap,
    "shard": jdl.shard,
    "accumulate in pmap": lambda l: jdl.pmap(jdl.accumulate(l, 2)),
    "pmap in accumulate": lambda l: jdl.accumulate(jdl.pmap(l), 2),
    "jit in accumulate": lambda l: jdl.accumulate(jdl.jit(l), 4),
    "shard of accumulate": lambda l: jdl.shard(jdl.accumulate(l, 2)),
}


@pytest.mark.parametrize("transform", WHOLE_BATCH)
def test_the_whole_batch_counts_however_it_is_split(name, transform, x64):
    made = exact_case(name, exempt=transform != "shard")
    if "accumulate" in transform and made.batch_statistics:
        pytest.skip("statistics over the batch are exempt under accumulate (the transform's documentation says so)")
    batches = [batch(made, i) for i in range(3)]
    state, metrics = train(made.learner, batches)
    split, split_metrics = train(WHOLE_BATCH[transform](made.learner), batches)
    close(split, state)
    close([computed(m) for m in split_metrics], [computed(m) for m in metrics])


OF_SEVERAL_STEPS = {
    "pmap of scan": lambda l: jdl.pmap(jdl.scan(l, 3)),
    "scan of pmap": lambda l: jdl.scan(jdl.pmap(l), 3),
    "scan of shard": lambda l: jdl.scan(jdl.shard(l), 3),
    "scan of scan": lambda l: jdl.scan(jdl.scan(l, 3), 1),
}


@pytest.mark.parametrize("transform", OF_SEVERAL_STEPS)
def test_several_steps_over_devices(name, transform, x64):
    made = exact_case(name, exempt=True)
    whole = {key: leaf[: 3 * BATCH] for key, leaf in made.data.items()}
    state, (metrics,) = train(jdl.scan(made.learner, 3), [whole])
    split, (split_metrics,) = train(OF_SEVERAL_STEPS[transform](made.learner), [whole])
    close(split, state)
    close(computed(split_metrics), computed(metrics))


OF_DRAWN_BATCHES = {
    "pmap of feed": lambda l: jdl.pmap(jdl.feed(l, BATCH)),
    "feed of pmap": lambda l: jdl.feed(jdl.pmap(l), BATCH),
    "shard of feed": lambda l: jdl.shard(jdl.feed(l, BATCH)),
    "feed of shard": lambda l: jdl.feed(jdl.shard(l), BATCH),
    "pmap of scan of feed": lambda l: jdl.pmap(jdl.scan(jdl.feed(l, BATCH), 1)),
}


@pytest.mark.parametrize("transform", OF_DRAWN_BATCHES)
def test_drawn_batches_over_devices(name, transform, x64):
    made = exact_case(name, exempt=True)
    state, metrics = train(jdl.feed(made.learner, BATCH), [made.data] * STEPS)
    split, split_metrics = train(OF_DRAWN_BATCHES[transform](made.learner), [made.data] * STEPS)
    close(split, state)
    close([computed(m) for m in split_metrics], [computed(m) for m in metrics])


OF_RUNS = {
    "seeds of pmap": lambda l: jdl.seeds(jdl.pmap(l), 2, spread=False),
    "seeds of shard": lambda l: jdl.seeds(jdl.shard(l), 2, spread=False, placement="map"),
    "seeds of accumulate": lambda l: jdl.seeds(jdl.accumulate(l, 2), 2),
}


@pytest.mark.parametrize("transform", OF_RUNS)
def test_runs_of_split_batches(name, transform, x64):
    made = exact_case(name, exempt=True)
    if "accumulate" in transform and made.batch_statistics:
        pytest.skip("statistics over the batch are exempt under accumulate (the transform's documentation says so)")
    state, _ = train(jdl.seeds(made.learner, 2, spread=False), [batch(made, 0)])
    split, _ = train(OF_RUNS[transform](made.learner), [batch(made, 0)])
    close(split, state)


def test_evaluation_is_the_same_everywhere(name, x64):
    made = case(name, True)
    state = jdl.jit(made.learner).init(jax.random.key(0))
    alone = computed(jdl.jit(made.learner).evaluate(state, made.data))
    for transform in (jdl.pmap, jdl.shard, lambda l: jdl.accumulate(l, 2), lambda l: jdl.scan(l, 2)):
        close(computed(jdl.jit(transform(made.learner)).evaluate(state, made.data)), alone)
    in_parts = jdl.evaluate(made.learner, state, made.data, batch_size=40)  # 96 examples: the last batch is padded
    if name == "adversarial":
        assert np.isfinite(in_parts["verdict"])
    else:
        close(in_parts, alone)


# What is exempt is what the documentation says, no more -----------------------------------------------------------


def test_masks_under_accumulate_are_those_of_a_loop_over_micro_batches(x64):
    made = case("mlp_dropout", True)
    key = jax.random.key(3)
    params = {"w": jnp.ones((4,))}
    data = {"input": jnp.asarray(made.data["input"][:32].reshape(32, -1)[:, :4])}

    def loss(params, batch, key):
        kept = jax.random.bernoulli(fold(key, "dropout"), 0.5, batch["input"].shape)
        return ((batch["input"] * kept) @ params["w"]).sum(), 8.0

    learner = jdl.Learner(
        init=lambda key: params,
        step=lambda state, batch: (jdl.gradients(loss, state, batch, key)[0], {}),
        evaluate=lambda state, batch: {},
    )
    found, _ = jdl.accumulate(learner, 4).step(params, data)
    parts = [{"input": data["input"][i * 8 : (i + 1) * 8]} for i in range(4)]
    looped = [jax.grad(lambda p, i=i: loss(p, parts[i], jax.random.fold_in(key, i))[0])(params) for i in range(4)]
    close(found, jax.tree.map(lambda *g: sum(g) / 32, *looped))


def test_masks_under_pmap_differ_between_replicas():
    def loss(params, batch, key):
        return params * batch["input"].sum(), 1.0, {"draws": jdl.metrics.Mean.of(jax.random.uniform(key, (1,)) ** 2)}

    def step(state, batch):
        return state, jdl.gradients(loss, jnp.ones(()), batch, jax.random.key(0))[2]

    learner = jdl.pmap(jdl.Learner(lambda key: jnp.zeros(()), step, lambda state, batch: {}))
    _, metrics = learner.step(jnp.zeros(()), {"input": jnp.ones((8,))})
    draws = [float(jax.random.uniform(jax.random.fold_in(jax.random.key(0), i), (1,))[0]) for i in range(8)]
    np.testing.assert_allclose(metrics["draws"].compute(), np.mean(np.square(draws)), rtol=1e-6)


# Populations --------------------------------------------------------------------------------------------------------


def make(setting):
    import optax
    from learners import Linear

    data = case("linear", True).data
    return jdl.supervised(
        Linear(), jdl.losses.squared_error, optax.sgd(setting["rate"], momentum=setting["momentum"]), example=data
    )


SETTINGS = {"rate": np.array([0.1, 0.01, 0.001]), "momentum": np.array([0.0, 0.9, 0.5])}


@pytest.mark.parametrize("placement", ["map", "vmap"])
def test_population_is_one_run_a_setting(placement, x64):
    made = case("linear", True)
    batches = [batch(made, i) for i in range(3)]
    together, _ = train(jdl.population(make, SETTINGS, placement=placement), batches)
    for index in range(3):
        alone, _ = train(make(run_of(SETTINGS, index)), batches)
        close(run_of(together, index), alone)


def test_seeds_of_a_population_have_one_axis_of_runs(x64):
    made = case("linear", True)
    both = jdl.seeds(jdl.population(make, SETTINGS), 2)
    assert both.runs == 6
    together, (metrics,) = train(both, [batch(made, 0)])
    assert metrics["loss"].total.shape == (6,)
    alone, _ = train(make(run_of(SETTINGS, 2)), [batch(made, 0)], jax.random.fold_in(jax.random.key(7), 1))
    close(run_of(together, 1 * 3 + 2), alone)
    outputs = jdl.jit(both).predict(jdl.jit(both).init(jax.random.key(0)), batch(made, 0))
    assert outputs.shape == (6, BATCH)


def test_scan_of_seeds_puts_the_runs_first():
    made = case("linear")
    whole = {key: leaf[: 3 * BATCH] for key, leaf in made.data.items()}
    _, (inside,) = train(jdl.seeds(jdl.scan(made.learner, 3), 2), [whole])
    _, (outside,) = train(jdl.scan(jdl.seeds(made.learner, 2), 3), [whole])
    assert inside["loss"].total.shape == (2, 3)
    same_bits(outside, inside)


def test_merged_metrics_of_steps_are_those_of_all_examples(x64):
    made = case("cnn_batch_norm", True)
    whole = {key: leaf[: 3 * BATCH] for key, leaf in made.data.items()}
    _, (stacked,) = train(jdl.scan(made.learner, 3), [whole])
    merged = merge_axis(to_host(stacked), 0)
    assert merged["confusion"].counts.sum() == 3 * BATCH
