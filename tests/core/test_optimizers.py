"""Every optimizer of the toolbox through one battery; schedules beside their formulas; what is evaluated."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jdl
from jdl.core.accumulators import Mean
from jdl.core.optimizers import optimizer, schedule
from jdl.core.supervised import TrainState, evaluated_params

RANDOM = np.random.default_rng(0)
RATES = {
    "sgd": 0.1,
    "momentum": 0.03,
    "nesterov": 0.03,
    "rmsprop": 0.05,
    "adam": 0.1,
    "adamw": 0.1,
    "lion": 0.05,
    "muon": 0.1,
    "schedule_free": 0.3,
    "sam": 0.03,
}
DECAYING = ("adamw", "lion", "muon", "schedule_free", "sam")
PARAMS = {
    "layer": {"kernel": RANDOM.normal(size=(4, 3)).astype(np.float32), "bias": np.ones(3, np.float32)},
    "head": {"kernel": RANDOM.normal(size=(3, 2)).astype(np.float32), "bias": np.ones(2, np.float32)},
}


def squares(params):
    return sum(((leaf - 0.3) ** 2).sum() for leaf in jax.tree.leaves(params))


def own_decay(name):
    """An optimizer with decay has to be named for SAM, whose default base has none."""
    return {"base": "adamw"} if name == "sam" else {}


def descend(rule, loss, params, steps):
    """Where an optimizer arrives, by a compiled scan (which holds the state to its shapes and types)."""

    def step(carry, _):
        params, state = carry
        updates, state = rule.update(jax.grad(loss)(params), state, params)
        return (optax.apply_updates(params, updates), state), None

    start = jax.tree.map(jnp.asarray, params)
    (params, state), _ = jax.jit(lambda: jax.lax.scan(step, (start, rule.init(start)), length=steps))()
    return evaluated_params(TrainState(None, None, params, {}, state))


def falling(name, steps):
    """To zero, so that also steps of a fixed length arrive; SAM updates in every other step."""
    if name == "schedule_free":
        return RATES[name]
    return schedule("cosine", RATES[name], steps // 2 if name == "sam" else steps)


@pytest.mark.parametrize("name", RATES)
def test_least_squares(name):
    inputs = RANDOM.normal(size=(50, 4))
    targets = inputs @ RANDOM.normal(size=(4, 3)) + 0.5 + 0.1 * RANDOM.normal(size=(50, 3))
    best, residuals, *_ = np.linalg.lstsq(np.c_[inputs, np.ones(50)], targets)

    def loss(params):
        return ((inputs @ params["kernel"] + params["bias"] - targets) ** 2).sum() / 50

    options = {"rho": 1e-3} if name == "sam" else {}
    found = descend(optimizer(name, falling(name, 600), **options), loss, PARAMS["layer"], 600)
    np.testing.assert_allclose(found["kernel"], best[:4], atol=5e-3)
    np.testing.assert_allclose(found["bias"], best[4], atol=5e-3)
    assert loss(found) < residuals.sum() / 50 * 1.001


@pytest.mark.parametrize("name", RATES)
def test_a_curved_valley(name):  # Rosenbrock's function, its valley a tenth as steep, in each column
    def loss(params):
        x, y = params["kernel"]
        return ((1 - x) ** 2 + 10 * (y - x**2) ** 2).sum()

    start = {"kernel": np.array([[-1.0, 0.0], [1.0, 1.5]], np.float32)}
    options = {"rho": 1e-3} if name == "sam" else {"b1": 0.95} if name == "schedule_free" else {}
    rates = (
        schedule("cosine", 5e-3, 6000 // (1 + (name == "sam")))
        if name in ("sgd", "sam", "momentum", "nesterov")
        else falling(name, 6000)
    )
    found = descend(optimizer(name, rates, **options), loss, start, 6000)
    np.testing.assert_allclose(found["kernel"], 1, atol=0.05)
    assert loss(found) < 1e-3 * loss(start)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("name", RATES)
def test_types_are_kept_whatever_the_learning_rate_is(name, dtype):
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), PARAMS)

    def updated(rate, params):
        rule = optimizer(name, rate)
        start = rule.init(params)
        updates, state = rule.update(params, start, params)
        return start, state, optax.apply_updates(params, updates)

    for rate in (0.1, schedule("linear", 0.1, 10, warmup=2), None):
        given = (lambda params, rate=rate: updated(rate, params), params)
        given = given if rate is not None else (updated, jax.ShapeDtypeStruct((), jnp.float32), params)
        start, state, after = jax.eval_shape(*given)
        jax.tree.map(lambda new, old: None if (new.shape, new.dtype) == (old.shape, old.dtype) else 1 / 0, state, start)
        assert {leaf.dtype for leaf in jax.tree.leaves(after)} == {jnp.dtype(dtype)}


class Small(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(2, name="head")(nn.relu(nn.Dense(4)(x)))


def data(size=64):
    inputs = np.random.default_rng(1).normal(size=(size, 3)).astype(np.float32)
    return {"input": inputs, "target": (inputs[:, 0] > inputs[:, 1]).astype(np.int32)}


def learner(rule, **options):
    metrics = {"accuracy": jdl.metrics.accuracy}
    return jdl.supervised(Small(), jdl.losses.cross_entropy, rule, example=data(), metrics=metrics, **options)


@pytest.mark.parametrize("name", RATES)
def test_a_traced_learning_rate_is_the_number(name):
    rates = jnp.array([0.3, 0.01])
    decay = {} if name not in DECAYING else {"weight_decay": 0.1} | own_decay(name)
    arrive = lambda rate: descend(optimizer(name, rate, **decay), squares, PARAMS, 4)  # noqa: E731
    together = jax.vmap(arrive)(rates)
    alone = jax.tree.map(lambda *leaves: np.stack(leaves), *[arrive(float(rate)) for rate in rates])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), together, alone)


@pytest.mark.medium
def test_a_population_sweeps_peaks_and_decays():
    def make(setting):
        rate = schedule("cosine", setting["peak"], 20, warmup=2)
        rule = optimizer("schedule_free", rate, weight_decay=setting["weight_decay"])
        return jdl.scan(jdl.feed(learner(rule), 16), 5)

    sweep = {"peak": np.array([0.3, 0.01], np.float32), "weight_decay": np.array([0.0, 0.1], np.float32)}
    together = jdl.jit(jdl.population(make, sweep, placement="map"))
    state, _ = together.step(together.init(jax.random.key(0)), data())
    alone = jdl.jit(make({"peak": 0.01, "weight_decay": 0.1}))
    expected, _ = alone.step(alone.init(jax.random.key(0)), data())
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[1], b, rtol=1e-4, atol=1e-6), state.params, expected.params)


@pytest.mark.parametrize("scheduled", [False, True])
@pytest.mark.parametrize("name", DECAYING)
def test_only_matching_paths_decay(name, scheduled):
    """Without a gradient what moves is what decays: by the learning rate times the decay in each update."""
    updates = 4
    rates = np.full(updates, 0.1) if not scheduled else 0.1 * (1 - np.arange(updates) / 10)
    rate = schedule("linear", 0.1, 10) if scheduled else 0.1
    rule = optimizer(name, rate, weight_decay=0.2, decayed=("layer/kernel$", "head/bias"), **own_decay(name))
    nothing = lambda params: 0.0 * sum(leaf.sum() for leaf in jax.tree.leaves(params))  # noqa: E731
    found = descend(rule, nothing, PARAMS, updates * (2 if name == "sam" else 1))
    factor = np.prod(1 - 0.2 * rates)
    if name == "schedule_free":  # z decays by y's share, the average is weighed by the largest rate so far, squared
        x, z, weights = 1.0, 1.0, 0.0
        for step in range(updates):
            # Optax's own count: the average begins with the second value of the schedule.
            weight = (0.1 if not scheduled else rate(1)) ** 2
            y, weights = 0.1 * z + 0.9 * x, weights + weight
            z = z - 0.2 * rates[step] * y
            x = x + weight / weights * (z - x)
        factor = x
    for path, expected in (("layer/kernel", factor), ("layer/bias", 1), ("head/kernel", 1), ("head/bias", factor)):
        layer, leaf = path.split("/")
        np.testing.assert_allclose(found[layer][leaf], PARAMS[layer][leaf] * expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("ours", "optaxs"),
    [
        (optimizer("nesterov", 0.1, momentum=0.8), optax.sgd(0.1, momentum=0.8, nesterov=True)),
        (optimizer("momentum", 0.1), optax.sgd(0.1, momentum=0.9)),
        (optimizer("rmsprop", 0.1, decay=0.8), optax.rmsprop(0.1, decay=0.8)),
        (optimizer("adam", 0.1, b2=0.9), optax.adam(0.1, b2=0.9)),
        (optimizer("adamw", 0.1, b2=0.9), optax.adamw(0.1, b2=0.9, weight_decay=0.0)),
        (optimizer("lion", 0.1), optax.lion(0.1, weight_decay=0.0)),
        (optimizer("muon", 0.1, hidden="kernel$", beta=0.9), optax.contrib.muon(0.1, beta=0.9)),
        (
            optimizer("schedule_free", 0.1, weight_decay=0.1, decayed="", b2=0.9),
            optax.contrib.schedule_free_adamw(0.1, weight_decay=0.1, b2=0.9),
        ),
    ],
)
def test_it_is_optaxs(ours, optaxs):
    found, expected = (descend(rule, squares, PARAMS, 5) for rule in (ours, optaxs))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), found, expected)


def test_muon_takes_hidden_matrices_and_adam_the_rest():
    found = descend(optimizer("muon", 0.1), squares, PARAMS, 5)
    muon = descend(optax.contrib.muon(0.1), squares, PARAMS, 5)
    adam = descend(optax.nadamw(0.1, weight_decay=0.0), squares, PARAMS, 5)  # with Muon's own look ahead
    for layer, leaf, expected in (("layer", "kernel", muon), ("layer", "bias", adam), ("head", "kernel", adam)):
        np.testing.assert_allclose(found[layer][leaf], expected[layer][leaf], rtol=1e-5)
    assert not np.allclose(muon["head"]["kernel"], adam["head"]["kernel"], rtol=1e-3)


def test_sam_is_the_papers_loop():
    loss = lambda params: (squares(params) - 1) ** 2  # noqa: E731  # one whose gradient turns
    found = descend(optimizer("sam", 0.01, base="sgd", rho=0.1), loss, PARAMS, 12)
    params = PARAMS
    for _ in range(6):
        climb = jax.grad(loss)(params)
        norm = np.sqrt(sum((leaf**2).sum() for leaf in jax.tree.leaves(climb)))
        above = jax.tree.map(lambda own, up, norm=norm: own + 0.1 * up / norm, params, climb)
        params = jax.tree.map(lambda own, down: own - 0.01 * down, params, jax.grad(loss)(above))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), found, params)


@pytest.mark.parametrize(("name", "clip_norm"), [("schedule_free", 1.0), ("sam", None)])
def test_what_is_evaluated_is_where_training_has_arrived(name, clip_norm):
    one = jdl.jit(learner(optimizer(name, 0.05), clip_norm=clip_norm), donate=False)
    state, arrived = one.init(jax.random.key(0)), []
    for _ in range(3):
        state, _ = one.step(state, data())
        arrived.append(state)
    odd, even = arrived[2], arrived[1]
    if name == "sam":
        np.testing.assert_array_equal(evaluated_params(even)["head"]["kernel"], even.params["head"]["kernel"])
        assert not np.allclose(odd.params["head"]["kernel"], even.params["head"]["kernel"])
        expected = even.params  # the third step climbed
    else:
        z = odd.optimizer[-1].z  # the last link of a chain that clips first
        expected = jax.tree.map(lambda y, z: y + (1 / 0.9 - 1) * (y - z), odd.params, z)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), evaluated_params(odd), expected)
    logits = Small().apply({"params": expected}, data()["input"])
    np.testing.assert_allclose(one.predict(odd, data()), logits, rtol=1e-4, atol=1e-5)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, data()["target"])
    np.testing.assert_allclose(one.evaluate(odd, data())["loss"].compute(), losses.mean(), rtol=1e-4)


def test_an_average_is_of_what_training_has_arrived_at():
    one = jdl.jit(learner(optimizer("sam", 0.05, base="sgd"), average_decay=0.5), donate=False)
    state = start = one.init(jax.random.key(0))
    for _ in range(2):
        state, _ = one.step(state, data())
    first, last = start.params["head"]["kernel"], state.params["head"]["kernel"]
    np.testing.assert_allclose(state.average["head"]["kernel"], (first + last) / 2, rtol=1e-5)
    assert evaluated_params(state) is state.average


@pytest.mark.parametrize("name", ["muon", "schedule_free", "sam"])
def test_training(name):
    training = jdl.jit(jdl.seeds(jdl.scan(jdl.feed(learner(optimizer(name, falling(name, 200))), 16), 20), 2))
    fitted = jdl.fit(training, data(), steps=200)
    assert (jdl.evaluate(training, fitted.state, data())["accuracy"] > 0.9).all()


def test_schedules_are_their_formulas():
    def values(name, **options):
        return np.array([schedule(name, 2.0, 100, **options)(jnp.int32(step)) for step in range(0, 121, 5)])

    steps = np.arange(0, 121, 5)
    left = np.clip((steps - 20) / 80, 0, 1)
    for name, falls in (
        ("constant", np.ones(25)),
        ("linear", 1 - left * 0.9),
        ("cosine", 0.1 + 0.9 * (1 + np.cos(np.pi * left)) / 2),
        ("inverse_sqrt", np.sqrt(20 / np.maximum(steps, 20))),
    ):
        expected = np.where(steps < 20, 2 * steps / 20, 2 * falls)
        np.testing.assert_allclose(values(name, warmup=20, end=0.1), expected, rtol=1e-5)
        np.testing.assert_allclose(values(name, warmup=0.2, end=0.1), expected, rtol=1e-5)
    rise = 1 / 25 + (1 - 1 / 25) * (1 - np.cos(np.pi * np.minimum(steps / 20, 1))) / 2
    cycle = np.where(steps < 20, rise, 0.1 + 0.9 * (1 + np.cos(np.pi * left)) / 2)
    np.testing.assert_allclose(values("one_cycle", warmup=20, end=0.1), 2 * cycle, rtol=1e-5)
    np.testing.assert_array_equal(values("one_cycle"), values("one_cycle", warmup=30))
    np.testing.assert_allclose(values("cosine")[[0, 20]], [2, 0], atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.data(), st.sampled_from(["constant", "linear", "cosine", "inverse_sqrt", "one_cycle"]))
def test_every_schedule_peaks_where_its_warm_up_ends(draw, name):
    steps = draw.draw(st.integers(2, 5000))
    warmup, end = draw.draw(st.integers(1, steps - 1)), draw.draw(st.floats(0, 1))
    rate = schedule(name, 3.0, steps, warmup=warmup, end=end)
    places = np.unique([*RANDOM.integers(0, steps, 12), warmup, steps, steps + 5])
    values = {int(place): float(rate(int(place))) for place in places}
    assert min(values.values()) >= 0
    np.testing.assert_allclose([values[warmup], max(values.values())], 3, rtol=1e-4)
    if name in ("linear", "cosine", "one_cycle"):
        np.testing.assert_allclose([values[steps], values[steps + 5]], 3 * end, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: optimizer("adma", 0.1), "no optimizer 'adma'; choose one of sgd, .*schedule_free, sam"),
        (lambda: optimizer("adam", 0.1, weight_decay=0.1), "weight_decay=0.1.*choose one of adamw, .*penalty="),
        (lambda: optimizer("sam", 0.1, weight_decay=0.1), r"optimizer\('momentum', weight_decay=0.1"),
        (lambda: optimizer("adam", 0.1, momentum=0.9), "'adam'.* no option momentum; it takes b1, b2"),
        (lambda: optimizer("muon", 0.1, b1=0.9, mask=None), "'muon'.* no option b1"),
        (lambda: optimizer("schedule_free", 0.1, b3=0.9), "'schedule_free'.* no option b3; it takes b1, b2, eps"),
        (lambda: optimizer("sam", 0.1, b3=0.9), "'momentum'.* no option b3; it takes momentum"),
        (lambda: optimizer("sam", 0.1, rho=-1.0), "rho=-1.0 is not a number from 0 up"),
        (lambda: optimizer("sam", 0.1, sync_period=1), "sync_period=1.*at least 2"),
        (lambda: optimizer("sgd", -0.1), "learning_rate=-0.1 is not a number from 0 up"),
        (lambda: optimizer("adamw", float("nan")), "learning_rate=nan is not a number"),
        (lambda: optimizer("adamw", 0.1, weight_decay=-1.0), "weight_decay=-1.0 is not a number from 0 up"),
        (lambda: optimizer("adamw", 0.1, weight_decay=1.0, decayed="kernle").init(PARAMS), "'kernle' matches no param"),
        (lambda: optimizer("muon", 0.1, hidden="kernle").init(PARAMS), "'kernle' matches no param"),
        (lambda: optimizer("muon", 0.1, hidden="bias").init(PARAMS), 'hidden=.bias.*no matrix matches; use "adamw"'),
        (lambda: schedule("cosin", 0.1, 10), "no schedule 'cosin'; choose one of constant, linear, cosine"),
        (lambda: schedule("cosine", 0.1, 0), "steps=0.*at least 1"),
        (lambda: schedule("cosine", 0.1, 10, warmup=10), "warmup=10, steps=10.*below steps"),
        (lambda: schedule("cosine", 0.1, 10, warmup=-1), "warmup=-1"),
        (lambda: schedule("cosine", 0.1, 10, warmup=2.5), "warmup=2.5"),
        (lambda: schedule("cosine", 0.1, 10, warmup=0.99), "warmup=0.99.*leaves at least one"),
        (lambda: schedule("cosine", 0.1, 10, end=1.5), "end=1.5.*share of the peak"),
        (lambda: schedule("cosine", -0.1, 10), "peak=-0.1 is not a number from 0 up"),
        (lambda: schedule("inverse_sqrt", 0.1, 10), "inverse_sqrt.*warm-up; give one"),
        (lambda: schedule("one_cycle", 0.1, 1), "one_cycle.*no step"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# --- transformations that want more than gradients

DATA = {"input": np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32)}
DATA["target"] = DATA["input"] @ np.array([[1.0], [-2.0], [0.5], [0.0]], np.float32)
WANTING = {
    "lbfgs": optax.lbfgs(),
    "polyak": optax.polyak_sgd(),
    "momo": optax.contrib.momo(),
    "sophia": optax.contrib.sophia(0.1, update_interval=1),
    "backtracking": optax.chain(optax.sgd(1.0), optax.scale_by_backtracking_linesearch(10)),
    "zoom": optax.chain(optax.sgd(1.0), optax.scale_by_zoom_linesearch(10)),
    "sam in a chain": optax.chain(optax.clip(1.0), optax.contrib.sam(optax.sgd(0.1), optax.sgd(0.05), sync_period=2)),
    "sam, opaque": optax.contrib.sam(optax.sgd(0.1), optax.sgd(0.05), opaque_mode=True),
    "plateau": optax.chain(optax.adam(0.1), optax.contrib.reduce_on_plateau(accumulation_size=5)),
    "several": optax.MultiSteps(optax.adam(0.1), 2).gradient_transformation(),
    "partition": optax.partition({"all": optax.lbfgs()}, lambda params: jax.tree.map(lambda _: "all", params)),
}


def regression(optimizer):
    return jdl.supervised(nn.Dense(1), jdl.losses.squared_error, optimizer, example=DATA)


QUICK = ("lbfgs", "sam in a chain", "plateau")


@pytest.mark.medium
@pytest.mark.parametrize("name", [pytest.param(one, marks=() if one in QUICK else pytest.mark.slow) for one in WANTING])
def test_transformations_that_want_more_than_gradients(name):
    for learner in (regression(WANTING[name]), jdl.accumulate(regression(WANTING[name]), 2)):
        training = jdl.jit(jdl.seeds(jdl.scan(jdl.feed(learner, 64), 60), 2))
        _, metrics = training.step(training.init(jax.random.key(0)), DATA)
        losses = metrics["loss"].compute()
        assert (losses[:, -1] < 0.3 * losses[:, 0]).all()


@pytest.mark.medium
def test_a_line_search_over_replicas_is_that_of_one():
    found = []
    with jax.enable_x64(True):
        data = {name: leaf.astype(float) for name, leaf in DATA.items()}
        model = nn.Dense(1, param_dtype=jnp.float64)
        for spread in (lambda one: one, lambda one: jdl.pmap(one, jax.devices()[:4])):
            one = jdl.supervised(model, jdl.losses.squared_error, optax.lbfgs(), example=data)
            training = jdl.jit(spread(jdl.feed(one, 64)))
            state = training.init(jax.random.key(0))
            for _ in range(4):
                state, _ = training.step(state, data)
            found.append(jax.tree.leaves(jax.device_get(state.params)))
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9)


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        (optax.lookahead(optax.sgd(0.1), 5, 0.5), "optax.lookahead keeps two sets of parameters, .*average_decay"),
        (
            optax.contrib.differentially_private_aggregate(1.0, 0.1, key=jax.random.key(0)),
            "it wants the gradients of each example",
        ),
        (optax.contrib.scale_by_muon(), "it takes matrices alone: .*optax.partition"),
    ],
)
def test_transformations_that_cannot_serve_are_refused_by_name(optimizer, message):
    training = regression(optimizer)
    with pytest.raises(ValueError, match=f"this optimizer cannot serve in a learner: {message}"):
        training.step(training.init(jax.random.key(0)), DATA)


@pytest.mark.medium
def test_the_rate_falls_on_a_plateau_of_the_validation_metric_of_each_run(tmp_path):
    optimizer = jdl.optimizers.reduce_on_plateau(optax.sgd(0.1), factor=0.5, patience=2)
    # Labels of noise: the second half of a fit cannot improve.
    random = np.random.default_rng(1)
    validation = {"input": DATA["input"], "target": random.normal(size=(64, 1)).astype(np.float32)}
    training = jdl.jit(jdl.seeds(jdl.feed(regression(optimizer), 16), 3))
    whole = jdl.fit(training, DATA, steps=60, validation=validation, evaluate_every=4, run=tmp_path / "whole")
    scores = np.array([row["validation/loss"] for row in whole.rows if "validation/loss" in row])  # [points, runs]
    for run in range(3):
        scale, best, since = 1.0, np.inf, 0
        for score in scores[:, run].astype(np.float32):
            best, since = (score, 0) if score < best else (best, since + 1)
            if since >= 2:
                scale, since = scale * 0.5, 0
        assert whole.state.optimizer.scale[run] == scale < 1
    part = jdl.fit(training, DATA, steps=32, validation=validation, evaluate_every=4, checkpoint_every=32,
                   run=tmp_path / "parted")  # fmt: skip
    assert part.state.optimizer.scale.max() <= 1
    again = jdl.fit(training, DATA, steps=60, validation=validation, evaluate_every=4, run=tmp_path / "parted",
                    resume=True)  # fmt: skip
    np.testing.assert_array_equal(again.state.optimizer.scale, whole.state.optimizer.scale)
    for one, other in zip(jax.tree.leaves(whole.state.params), jax.tree.leaves(again.state.params), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_plateau_of_what_grows_and_of_training():
    optimizer = jdl.optimizers.reduce_on_plateau(optax.sgd(0.0), patience=1)
    learner = jdl.feed(regression(optimizer)._replace(evaluate=lambda state, batch: {"score": Mean(1.0, 1.0)}), 16)
    fitted = jdl.fit(jdl.jit(learner), DATA, steps=6, validation=DATA, evaluate_every=2,
                     monitor=jdl.Monitor("score", "max"))  # fmt: skip
    np.testing.assert_allclose(fitted.state.optimizer.scale, 0.01)  # the first is the best, two are not better
    with pytest.raises(ValueError, match=r'no validation=; give it, or reduce_on_plateau\(of="training"\)'):
        jdl.fit(jdl.jit(learner), DATA, steps=6)
    optimizer = jdl.optimizers.reduce_on_plateau(optax.sgd(0.0), of="training", patience=1, window=2)
    fitted = jdl.fit(jdl.jit(jdl.feed(regression(optimizer), 64)), DATA, steps=12)
    assert optax.tree.get(fitted.state.optimizer, "scale") < 1e-2
    for wrong in ({"factor": 1.0}, {"patience": 0}, {"window": 0}):
        with pytest.raises(ValueError, match="the factor lies between 0 and 1"):
            jdl.optimizers.reduce_on_plateau(optax.sgd(0.1), **wrong)
