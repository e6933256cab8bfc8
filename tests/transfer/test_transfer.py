"""Transfer: what moves and how fast beside plain loops of Optax; weights cut and grafted; frozen bodies."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from filled import filled, quickly
from hypothesis import given, settings
from hypothesis import strategies as st

import jdl
from jdl import transfer

RANDOM = np.random.default_rng(0)
PARAMS = {
    "tokens": {"embedding": RANDOM.normal(size=(5, 3))},
    "blocks": {f"layer_{n}": {"kernel": RANDOM.normal(size=(3, 3)), "bias": np.zeros(3)} for n in range(2)},
    "head": {"kernel": RANDOM.normal(size=(3, 2))},
}
PARAMS = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), PARAMS)
GRADIENTS = [
    jax.tree.map(lambda leaf: jnp.asarray(RANDOM.normal(size=leaf.shape), leaf.dtype), PARAMS) for _ in "12345"
]


def trained(optimizer, params=PARAMS, gradients=GRADIENTS):
    """The parameters after each update."""
    state, seen = optimizer.init(params), []
    for gradient in gradients:
        updates, state = optimizer.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        seen.append(params)
    return seen, state


def same(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_what_is_frozen_never_changes_and_has_no_state():
    broken = jax.tree.map(lambda leaf: leaf, GRADIENTS)
    for gradient in broken:
        gradient["tokens"] = {"embedding": jnp.full((5, 3), jnp.nan)}
    optimizer = transfer.freeze(optax.adamw(0.1, weight_decay=0.5), "tokens", r"layer_\d/bias")
    seen, state = trained(optimizer, gradients=broken)
    plain, _ = trained(optax.adamw(0.1, weight_decay=0.5))
    for one, other in zip(seen, plain, strict=True):
        same(one["tokens"], PARAMS["tokens"])
        for layer in ("layer_0", "layer_1"):
            same(one["blocks"][layer]["bias"], PARAMS["blocks"][layer]["bias"])
            same(one["blocks"][layer]["kernel"], other["blocks"][layer]["kernel"])
        same(one["head"], other["head"])
    # Adam's two moments of the other three parameters, and one count.
    assert sorted(leaf.shape for leaf in jax.tree.leaves(state)) == [(), *[(3, 2)] * 2, *[(3, 3)] * 4]


@settings(max_examples=10, deadline=None)
@given(st.floats(0, 2), st.floats(0, 2), st.floats(0, 2))
def test_factors_are_learning_rates(body, head, rest):
    factors = {"blocks/": body, "head": head}
    optimizer = optax.chain(optax.adamw(0.1, weight_decay=0.5), transfer.scale_by_path(factors, default=rest))
    ours = trained(optimizer)[0][-1]
    for name, factor in (("blocks", body), ("head", head), ("tokens", rest)):
        alone, _ = trained(
            optax.adamw(0.1 * factor, weight_decay=0.5), PARAMS[name], [gradient[name] for gradient in GRADIENTS]
        )
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), ours[name], alone[-1])


def test_layers_decay_towards_the_input():
    factors = transfer.layerwise_decay(1 / 2.6, ["tokens", "layer_0", "layer_1", "head"])
    np.testing.assert_allclose(list(factors.values()), [2.6**-3, 2.6**-2, 2.6**-1, 1])
    assert list(factors) == ["tokens", "layer_0", "layer_1", "head"]
    stacked = transfer.layerwise_decay(1 / 2.6, ["tokens", ("layers", 2), "head"])
    np.testing.assert_allclose(stacked["layers"], [2.6**-2, 2.6**-1])
    assert stacked["tokens"] == pytest.approx(2.6**-3)
    for wrong in (0.0, 1.5):
        with pytest.raises(ValueError, match=rf"layerwise_decay\(decay={wrong}\): give a factor above 0 and at most 1"):
            transfer.layerwise_decay(wrong, ["head"])
    traced = jax.jit(lambda decay: transfer.layerwise_decay(decay, ["tokens", "head"]))(0.5)
    assert traced == {"tokens": 0.5, "head": 1}


def test_a_scanned_stack_decays_as_its_layers_do():
    stack = lambda params: {**params, **jdl.pretrained.stack_layers({"params": params})["params"]}  # noqa: E731
    layers = transfer.layerwise_decay(0.5, ["tokens", "layer_0", "layer_1", "head"])
    scanned = transfer.layerwise_decay(0.5, ["tokens", ("blocks/layers", 2), "head"])
    one = trained(optax.chain(optax.sgd(0.1), transfer.scale_by_path(layers)))[0][-1]
    gradients = [stack(gradient) for gradient in GRADIENTS]
    other = trained(optax.chain(optax.sgd(0.1), transfer.scale_by_path(scanned)), stack(PARAMS), gradients)[0][-1]
    same(stack(one), other)
    wrong = transfer.scale_by_path({"blocks": [0.1, 0.2, 0.3]}, default=1.0)
    with pytest.raises(ValueError, match=r"3 factors for a parameter of shape \(2, 3\); a sequence has one for each"):
        wrong.init(stack(PARAMS))


def test_parameters_rest_until_their_first_update():
    first = {"tokens": 4, "layer_0": 2, "layer_1": 1}
    schedule = optax.linear_schedule(0.1, 0.01, 5)
    seen, _ = trained(transfer.unfreeze_gradually(optax.adam(schedule), first))
    # By hand: Adam sees every gradient, and its update is thrown away before the first.
    adam = optax.adam(schedule)
    params, state = PARAMS, adam.init(PARAMS)
    for count, gradient in enumerate(GRADIENTS):
        updates, state = adam.update(gradient, state)
        for name, begin in first.items():
            group = updates if name == "tokens" else updates["blocks"]
            if count < begin:
                group[name] = jax.tree.map(jnp.zeros_like, group[name])
        params = optax.apply_updates(params, updates)
        same(seen[count], params)
    same(seen[3]["tokens"], PARAMS["tokens"])
    assert not np.array_equal(seen[4]["tokens"]["embedding"], PARAMS["tokens"]["embedding"])
    with pytest.raises(ValueError, match="'head' has its first update at -1; the first of all is 0"):
        transfer.unfreeze_gradually(adam, {"head": -1})


def test_patterns_for_what_is_frozen_may_stand_within():
    rates = transfer.layerwise_decay(0.5, ["tokens", "layer_0", "layer_1", "head"])
    inner = transfer.unfreeze_gradually(optax.chain(optax.adam(0.1), transfer.scale_by_path(rates)), {"tokens": 2})
    frozen, _ = trained(transfer.freeze(inner, "tokens"))
    free, _ = trained(inner)
    same(frozen[-1]["blocks"], free[-1]["blocks"])
    same(frozen[-1]["tokens"], PARAMS["tokens"])


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        (
            transfer.freeze(optax.sgd(1.0), "haed"),
            "the pattern 'haed' matches no parameter; there are blocks/layer_0/b",
        ),
        (transfer.scale_by_path({"haed": 1.0}), "the pattern 'haed' matches no parameter"),
        (transfer.unfreeze_gradually(optax.sgd(1.0), {"haed": 1}), "the pattern 'haed' matches no parameter"),
        (
            transfer.scale_by_path({"layer": 1.0, "kernel": 0.5}, 1.0),
            "layer_0/kernel is matched by 'layer' and 'kernel'",
        ),
        (
            transfer.scale_by_path({"layer": 1.0, "tokens": 0.5}),
            "head/kernel is matched by none of 'layer', 'tokens'; add",
        ),
    ],
)
def test_patterns_that_do_not_fit_are_told_at_the_start(optimizer, message):
    with pytest.raises(ValueError, match=message):
        optimizer.init(PARAMS)


def test_grafts_are_taken_out_again_and_heads_are_cut():
    variables = {"params": PARAMS, "batch_stats": {"norm": {"mean": jnp.ones(2)}}}
    grafted = transfer.graft(variables, "encoder/encoder")
    same(grafted["params"]["encoder"]["encoder"]["head"], PARAMS["head"])
    same(transfer.take(grafted, "encoder/encoder"), variables)
    same(transfer.take(grafted, "encoder/encoder/norm"), {"batch_stats": {"mean": jnp.ones(2)}})
    with pytest.raises(ValueError, match="nothing stands at 'encoder/body'; there are params/encoder/encoder/blocks"):
        transfer.take(grafted, "encoder/body")
    left = transfer.cut(variables, "^params/head/", "bias$")
    assert left.keys() == variables.keys()
    assert left["params"].keys() == {"tokens", "blocks"}
    assert left["params"]["blocks"]["layer_1"].keys() == {"kernel"}
    same(left["params"]["tokens"], PARAMS["tokens"])
    with pytest.raises(
        ValueError, match="the pattern 'haed' matches no parameter; there are params/blocks/layer_0/bias"
    ):
        transfer.cut(variables, "haed")


class Body(nn.Module):
    @nn.compact
    def __call__(self, x, train: bool = False):
        calls.append(x.shape)
        x = nn.BatchNorm(use_running_average=not train, name="norm")(nn.Dense(4, name="dense")(x))
        return nn.Dropout(0.5, deterministic=not train)(x)


calls = []
INPUTS = RANDOM.normal(size=(10, 3)).astype(np.float32)
DATA = {"input": INPUTS, "target": (INPUTS[:, 0] > 0).astype(np.int32)}


@pytest.mark.parametrize("batch_size", [4, 5, 10, 100])
def test_features_are_those_of_each_example(batch_size):
    variables = filled(Body(), INPUTS)
    expected = Body().apply(variables, INPUTS)
    calls.clear()
    found = transfer.features(Body(), variables, DATA, batch_size)
    assert isinstance(found, np.ndarray)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert calls == [(min(batch_size, 10), 3)]  # one trace, so one program
    np.testing.assert_array_equal(transfer.features(Body(), variables, INPUTS, batch_size), found)


def test_features_may_be_trees():
    class Two(nn.Module):
        def __call__(self, x):
            return {"sum": x["a"] + x["b"], "a": x["a"]}

    found = transfer.features(Two(), {}, {"a": INPUTS, "b": INPUTS}, 4)
    np.testing.assert_array_equal(found["sum"], 2 * INPUTS)


@pytest.mark.parametrize("options", [{}, {"frozen": True}, {"fixed_statistics": True}], ids=str)
def test_a_frozen_body_runs_as_in_evaluation_and_so_do_fixed_statistics(options):
    model = jdl.nn.Classifier(Body(), 2, **options)
    body = filled(Body(), INPUTS)
    start = transfer.graft(body, "encoder")
    learner = jdl.supervised(model, jdl.losses.cross_entropy, optax.sgd(0.5), example=DATA, variables=start)
    learner = jdl.jit(learner, donate=False)
    first = learner.init(jax.random.key(0))
    state, metrics = learner.step(first, DATA)
    after = transfer.take({"params": state.params, **state.collections}, "encoder")
    changed = jax.tree.map(lambda one, other: not np.array_equal(one, other), after, body)
    assert changed["params"]["dense"]["kernel"] == (not options.get("frozen"))
    if not options:
        assert changed["batch_stats"]["norm"] == {"mean": True, "var": True}
        return
    assert not any(jax.tree.leaves(changed if options.get("frozen") else changed["batch_stats"]))
    assert not np.array_equal(state.params["head"]["kernel"], first.params["head"]["kernel"])
    # Without dropout and on running statistics: training's loss is evaluation's.
    np.testing.assert_allclose(metrics["loss"].compute(), learner.evaluate(first, DATA)["loss"].compute(), rtol=1e-6)


def test_bodies_that_know_no_mode_take_heads():
    images = jnp.asarray(RANDOM.normal(size=(2, 28, 28, 1)), jnp.float32)
    for body in (jdl.nn.LeNet5(7), nn.Sequential([lambda x: x.reshape(len(x), -1), nn.Dense(7)])):
        model = jdl.nn.Classifier(body, 3, dropout=0.5)
        variables = filled(model, images)
        assert model.apply(variables, images).shape == (2, 3)
        drop = {"dropout": jax.random.key(0)}
        assert model.apply(variables, images, train=True, rngs=drop).shape == (2, 3)
    pooled = jdl.nn.Pooled(nn.Embed(13, 4))
    assert pooled.apply(filled(pooled, np.zeros((2, 5), np.int32)), np.zeros((2, 5), np.int32)).shape == (2, 4)


@pytest.mark.medium
def test_a_bert_is_fine_tuned():
    ids = RANDOM.integers(0, 13, (64, 6)).astype(np.int32)
    data = {"input": ids, "target": (ids[:, 0] > 6).astype(np.int32)}
    bert = jdl.nn.BERT(13, 6, 16, 1, 2, dropout=0.0)
    body = filled(bert, ids[:1])
    model = jdl.nn.Classifier(jdl.nn.Pooled(bert, "first"), 2)
    rates = transfer.layerwise_decay(0.8, ["/(tokens|positions|types|norm)/", "layer_0/", "pooler|head"])
    optimizer = optax.chain(optax.adamw(3e-3), transfer.scale_by_path(rates))
    frozen = r"/(tokens|positions|types)/"
    learner = jdl.supervised(
        model,
        jdl.losses.cross_entropy,
        transfer.freeze(optimizer, frozen),
        example=data,
        variables=transfer.graft(body, "encoder/encoder"),
    )
    step = quickly(learner.step)
    state = quickly(learner.init)(jax.random.key(0))
    for _ in range(100):
        state, metrics = step(state, data)
    after = transfer.take({"params": state.params}, "encoder/encoder")["params"]
    flat = jax.tree_util.tree_leaves_with_path(after)
    for (path, leaf), before in zip(flat, jax.tree.leaves(body["params"]), strict=True):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        assert np.array_equal(leaf, before) == bool(re.search(frozen, f"/{name}")), name
    assert metrics["loss"].compute() < 0.4
