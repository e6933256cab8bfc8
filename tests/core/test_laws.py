"""The law: a transform changes where and how fast a learner trains, never what it learns."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from learners import CASES, Case, DropoutMLP, Linear, in_precision

import jdl
from jdl.core.accumulators import merge_axis, to_host
from jdl.core.learner import fold
from jdl.training.evaluate import compute

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


def train(learner: jdl.Learner, batches, key=None, start=None):
    """The state after some calls of step, and the metrics of each, in order."""
    learner = jdl.jit(learner, donate=False)
    state, metrics = start or learner.init(jax.random.key(7) if key is None else key), []
    for one in batches:
        state, measured = learner.step(state, one)
        metrics.append(plain(measured))
    return plain(state), metrics


@functools.cache
def start(name: str, x64: bool, exempt: bool = False):
    """The state that runs of a case begin with."""
    return jdl.jit(exact_case(name, x64, exempt).learner).init(jax.random.key(7))


@functools.cache
def trained(name: str, kind: str, x64: bool = False, exempt: bool = False, run: int | None = None):
    """The plain ways of training that transforms are held against, each trained once."""
    made = exact_case(name, x64, exempt)
    key = jax.random.key(7) if run is None else jax.random.fold_in(jax.random.key(7), run)
    begin = start(name, x64, exempt) if run is None else None
    if kind == "steps":
        return train(made.learner, [batch(made, i) for i in range(3)], key, begin)
    if kind == "fed":
        return train(jdl.feed(made.learner, BATCH), [made.data] * STEPS, key, begin)
    if kind == "scanned":
        return train(jdl.scan(made.learner, 3), [whole(made)], key, begin)
    if kind == "seeds":
        return train(jdl.seeds(made.learner, 2, spread=False), [batch(made, 0)])
    assert kind == "fed and scanned"
    return train(jdl.scan(jdl.feed(made.learner, BATCH), 2), [made.data] * 2, key, begin)


def whole(made: Case):
    """The examples of three batches."""
    return {key: leaf[: 3 * BATCH] for key, leaf in made.data.items()}


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


def some_slow(transforms, *slow):
    """Of nested transforms, those whose parts are held to the same law by themselves are among the slow tests."""
    return [pytest.param(name, marks=pytest.mark.slow) if name in slow else name for name in transforms]


def some_pairs(transforms, *slow):
    """As `some_slow`, with the cases; a slow transform of a slow case is for diagnosis, as either is seen by itself."""

    def mark(transform, name):
        both = (transform in slow) + (name in ("cnn_batch_norm", "adversarial"))
        return ((), pytest.mark.slow, pytest.mark.diagnosis)[both]

    pairs = [(transform, name) for transform in transforms for name in CASES]
    return pytest.mark.parametrize(("transform", "name"), [pytest.param(*pair, marks=mark(*pair)) for pair in pairs])


# To the bit ---------------------------------------------------------------------------------------------------------


@pytest.mark.medium
def test_scan_is_a_loop(name):
    state, metrics = trained(name, "steps")
    scanned, (stacked,) = trained(name, "scanned")
    same_bits(scanned, state)
    same_bits(stacked, jax.tree.map(lambda *leaves: np.stack(leaves), *metrics))


def test_feed_draws_what_batches_gives(name):
    made = case(name)
    key = jax.random.key(7)
    source = jdl.Batches(made.data, BATCH, key)
    state, metrics = train(made.learner, [source.next() for _ in range(STEPS)])
    fed, fed_metrics = trained(name, "fed")
    same_bits(fed, state)
    same_bits(fed_metrics, metrics)


@pytest.mark.parametrize("name", some_slow(CASES, "cnn_batch_norm", "adversarial"))
@pytest.mark.parametrize("spread", [pytest.param(False, marks=pytest.mark.slow), True])
def test_seeds_by_map_keep_every_runs_bits(name, spread):
    made = case(name)
    runs = 10  # over 8 devices: padded, and more than one on each
    together, metrics = train(
        jdl.seeds(jdl.scan(jdl.feed(made.learner, BATCH), 2), runs, placement="map", spread=spread), [made.data] * 2
    )
    for index in (0, 3, 9):
        alone, alone_metrics = trained(name, "fed and scanned", run=index)
        same_bits(run_of(together, index), alone)
        same_bits([run_of(m, index) for m in metrics], alone_metrics)


@pytest.mark.medium
@pytest.mark.parametrize("name", some_slow(CASES, "cnn_batch_norm", "adversarial"))
def test_chosen_seeds_repeat_single_runs(name):
    made = case(name)
    four, _ = train(jdl.seeds(made.learner, 4, placement="map"), [batch(made, 0)])
    one, _ = train(jdl.seeds(made.learner, [2], placement="map"), [batch(made, 0)])
    same_bits(run_of(one, 0), run_of(four, 2))
    assert not np.array_equal(four.key[0], four.key[1])


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"norm": "rms", "gated": True, "positions": "rotary"}], ids=["gpt", "llama"])
def test_a_softmax_keeps_every_runs_bits(options):
    """Its divisions are what XLA compiles in one way for a device and in another for several."""
    tokens = np.random.default_rng(0).integers(0, 13, (32, 24)).astype(np.int32)
    data = {"input": tokens, "target": np.roll(tokens, -1, 1)}
    model = jdl.nn.GPT(13, 24, 16, 2, 2, **options)
    learner = jdl.feed(jdl.supervised(model, jdl.losses.token_cross_entropy, optax.adamw(1e-2), example=data), 8)
    together, alone = (train(jdl.seeds(learner, runs, placement="map"), [data] * 2) for runs in ([0, 1], [1]))
    same_bits(run_of(together[0], 1), run_of(alone[0], 0))
    same_bits([run_of(m, 1) for m in together[1]], [run_of(m, 0) for m in alone[1]])


# Within rounding, in float64 ----------------------------------------------------------------------------------------


@pytest.mark.medium
@pytest.mark.parametrize("name", some_slow(CASES, "adversarial", "cnn_batch_norm"))
def test_seeds_by_vmap(name, x64):
    made = case(name, True)
    together, metrics = train(jdl.seeds(made.learner, 3, placement="vmap"), [batch(made, i) for i in range(3)])
    for index in (0, 2):
        alone, alone_metrics = trained(name, "steps", True, run=index)
        close(run_of(together, index), alone)
        close([run_of(m, index) for m in metrics], alone_metrics)


@pytest.mark.medium
def test_runs_with_data_of_their_own(x64):
    made = case("mlp_dropout", True)
    halves = {name: np.stack([leaf[:48], leaf[48:]]) for name, leaf in made.data.items()}
    several = jdl.jit(jdl.scan(jdl.seeds(made.learner, 2, each=True, placement="map"), 3), donate=False)
    one = jdl.jit(jdl.scan(made.learner, 3), donate=False)
    together, metrics = train(several, [halves])
    evaluated = jdl.evaluate(several, together, halves, batch_size=20)  # 48 examples: the last batch is padded
    for index in (0, 1):
        own = run_of(halves, index)
        key = jax.random.fold_in(jax.random.key(7), index)
        alone, alone_metrics = train(one, [own], key)
        close(run_of(together, index), alone)
        close([run_of(m, index) for m in metrics], alone_metrics)
        close(run_of(evaluated, index), jdl.evaluate(one, alone, own, batch_size=20))


@functools.cache
def exact_case(name: str, x64: bool, exempt: bool) -> Case:
    """The case, its random masks switched off where a transform is exempt from keeping them."""
    made = case(name, x64)
    if exempt and made.random:
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


@some_pairs(WHOLE_BATCH, "pmap in accumulate", "jit in accumulate", "shard of accumulate")
def test_the_whole_batch_counts_however_it_is_split(name, transform, x64):
    exempt = transform != "shard"
    made = exact_case(name, True, exempt)
    if "accumulate" in transform and made.batch_statistics:
        pytest.skip("statistics over the batch are exempt under accumulate (the transform's documentation says so)")
    state, metrics = trained(name, "steps", True, exempt)
    begin = None if "shard" in transform else start(name, True, exempt)  # shard places the state from the start
    split, split_metrics = train(WHOLE_BATCH[transform](made.learner), [batch(made, i) for i in range(3)], start=begin)
    close(split, state)
    close([computed(m) for m in split_metrics], [computed(m) for m in metrics])


OF_SEVERAL_STEPS = {
    "pmap of scan": lambda l: jdl.pmap(jdl.scan(l, 3)),
    "scan of pmap": lambda l: jdl.scan(jdl.pmap(l), 3),
    "scan of shard": lambda l: jdl.scan(jdl.shard(l), 3),
    "scan of scan": lambda l: jdl.scan(jdl.scan(l, 3), 1),
}


@some_pairs(OF_SEVERAL_STEPS, "scan of pmap", "scan of scan")
def test_several_steps_over_devices(name, transform, x64):
    made = exact_case(name, True, True)
    state, (metrics,) = trained(name, "scanned", True, True)
    split, (split_metrics,) = train(
        OF_SEVERAL_STEPS[transform](made.learner), [whole(made)], start=start(name, True, True)
    )
    close(split, state)
    close(computed(split_metrics), computed(metrics))


OF_DRAWN_BATCHES = {
    "pmap of feed": lambda l: jdl.pmap(jdl.feed(l, BATCH)),
    "feed of pmap": lambda l: jdl.feed(jdl.pmap(l), BATCH),
    "shard of feed": lambda l: jdl.shard(jdl.feed(l, BATCH)),
    "feed of shard": lambda l: jdl.feed(jdl.shard(l), BATCH),
    "pmap of scan of feed": lambda l: jdl.pmap(jdl.scan(jdl.feed(l, BATCH), 1)),
}


@pytest.mark.medium
@some_pairs(OF_DRAWN_BATCHES, "feed of pmap", "feed of shard", "pmap of scan of feed")
def test_drawn_batches_over_devices(name, transform, x64):
    made = exact_case(name, True, True)
    state, metrics = trained(name, "fed", True, True)
    split, split_metrics = train(
        OF_DRAWN_BATCHES[transform](made.learner), [made.data] * STEPS, start=start(name, True, True)
    )
    close(split, state)
    close([computed(m) for m in split_metrics], [computed(m) for m in metrics])


OF_RUNS = {
    "seeds of pmap": lambda l: jdl.seeds(jdl.pmap(l), 2, spread=False),
    "seeds of shard": lambda l: jdl.seeds(jdl.shard(l), 2, spread=False, placement="map"),
    "seeds of accumulate": lambda l: jdl.seeds(jdl.accumulate(l, 2), 2),
}


@pytest.mark.medium
@some_pairs(OF_RUNS, "seeds of shard")
def test_runs_of_split_batches(name, transform, x64):
    made = exact_case(name, True, True)
    if "accumulate" in transform and made.batch_statistics:
        pytest.skip("statistics over the batch are exempt under accumulate (the transform's documentation says so)")
    state, _ = trained(name, "seeds", True, True)
    split, _ = train(OF_RUNS[transform](made.learner), [batch(made, 0)])
    close(split, state)


def test_evaluation_is_the_same_everywhere(name, x64):
    made = case(name, True)
    state = start(name, True)
    alone = computed(jdl.jit(made.learner).evaluate(state, made.data))
    for transform in (jdl.pmap, jdl.shard):
        close(computed(jdl.jit(transform(made.learner)).evaluate(state, made.data)), alone)
    for same in (jdl.accumulate(made.learner, 2), jdl.scan(made.learner, 2)):
        assert same.evaluate is made.learner.evaluate
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


@pytest.mark.medium
def test_masks_under_pmap_differ_between_replicas():
    def loss(params, batch, key):
        return params * batch["input"].sum(), 1.0, {"draws": jdl.metrics.Mean.of(jax.random.uniform(key, (1,)) ** 2)}

    def step(state, batch):
        return state, jdl.gradients(loss, jnp.ones(()), batch, jax.random.key(0))[2]

    learner = jdl.pmap(jdl.Learner(lambda key: jnp.zeros(()), step, lambda state, batch: {}))
    _, metrics = learner.step(jnp.zeros(()), {"input": jnp.ones((8,))})
    draws = [float(jax.random.uniform(jax.random.fold_in(jax.random.key(0), i), (1,))[0]) for i in range(8)]
    np.testing.assert_allclose(metrics["draws"].compute(), np.mean(np.square(draws)), rtol=1e-6)


def test_a_traced_step_is_not_taken_for_another_transform(x64):
    """lax.scan keeps the traces of a function: those of a plain step must not serve an accumulated one."""
    made = case("linear", True)
    base = jdl.scan(made.learner, 2)
    begin = start("linear", True)

    def loops(learner):
        return str(jax.make_jaxpr(learner.step)(begin, batch(made, 0))).count("scan[")

    assert (loops(base), loops(jdl.accumulate(base, 2))) == (1, 2)
    assert (loops(jdl.accumulate(base, 2)), loops(base)) == (2, 1)


def test_a_state_may_begin_inside_another_program():
    learner = jdl.jit(case("mlp_dropout").learner)
    key = jax.random.key(7)
    inside = jax.jit(lambda key: (learner.init(key), learner.init(jax.random.key(8))))(key)  # traced, and a constant
    outside = learner.init(key), learner.init(jax.random.key(8))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-7), plain(inside), plain(outside))


@pytest.mark.parametrize("transform", [jdl.pmap, jdl.shard])
def test_a_batch_of_several_steps_is_shared_out_within_each(transform, x64):
    made = case("linear", True)
    several = jdl.feed(jdl.scan(made.learner, 2), 2 * BATCH)
    state, _ = train(several, [made.data], start=start("linear", True))
    split, _ = train(transform(several), [made.data], start=start("linear", True))
    close(split, state)


# Populations --------------------------------------------------------------------------------------------------------


def make(setting):
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
    _, (inside,) = train(jdl.seeds(jdl.scan(made.learner, 3), 2), [whole(made)])
    _, (outside,) = train(jdl.scan(jdl.seeds(made.learner, 2), 3), [whole(made)])
    assert inside["loss"].total.shape == (2, 3)
    same_bits(outside, inside)


def test_merged_metrics_of_steps_are_those_of_all_examples(x64):
    _, (stacked,) = trained("cnn_batch_norm", "scanned", True)
    merged = merge_axis(to_host(stacked), 0)
    assert merged["confusion"].counts.sum() == 3 * BATCH
