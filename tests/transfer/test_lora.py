"""LoRA beside the model that it adapts: the same at first, its own weights never touched, merged into plain weights."""

import functools

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from filled import filled, quickly

import jdl
from jdl import transfer
from jdl.transfer.lora import LoRA, merge

IDS = jnp.arange(20, dtype=jnp.int32).reshape(2, 10) % 13
TOKENS = {"ids": IDS, "mask": IDS > 2}
IMAGES = jnp.asarray(np.random.default_rng(0).normal(size=(2, 8, 8, 3)), jnp.float32)
TINY = {"width": 16, "num_layers": 3, "num_heads": 2}
ATTENTION = ("query/kernel$", "value/kernel$")

# name: the model, its inputs, the patterns, (in + out) of what they match, summed over layers
MODELS = {
    "bert": (jdl.nn.BERT(13, 10, 16, 1, 2), (TOKENS,), ATTENTION, 2 * 32),
    "scanned": (jdl.nn.GPT(13, 10, **TINY, scan=True, remat=True), (IDS,), ATTENTION, 3 * 2 * 32),
    "all dense": (jdl.nn.Classifier(jdl.nn.LeNet5(7), 3), (jnp.ones((2, 28, 28, 1)),), ("kernel$",), None),
    "batch statistics": (jdl.nn.ResNet(5, (1,), width=4), (IMAGES,), ("head",), 4 + 5),
    "several inputs": (
        jdl.nn.Recurrent(4, "gru", 2),
        (jnp.ones((2, 3, 5)), jnp.array([3, 1])),
        ("input",),
        (5 + 12) + (4 + 12),
    ),
}


def adapted(name, noise=True):
    """An adapted model, its variables, and its inputs; with noise, as if it had been trained."""
    model, inputs, patterns, _ = MODELS[name]
    lora = LoRA(model, 2, patterns, alpha=6.0)
    variables = filled(lora, *inputs)
    if not noise:
        flat = flax.traverse_util.flatten_dict(variables, sep="/")
        cleared = {path: leaf * 0 if path.endswith("/B") else leaf for path, leaf in flat.items()}
        variables = flax.traverse_util.unflatten_dict(cleared, sep="/")
    return lora, variables, inputs


@functools.cache
def compiled(name):
    """The adapted model's `apply`, and the model's."""
    lora = adapted(name)[0]
    return quickly(lora.apply), quickly(lora.model.apply)


def plain(variables):
    return {"params": variables["base"], **{name: v for name, v in variables.items() if name not in ("params", "base")}}


@pytest.mark.parametrize("name", MODELS)
def test_at_first_it_is_the_model_to_the_bit(name):
    model, inputs, *_ = MODELS[name]
    _, variables, _ = adapted(name, noise=False)
    assert jax.tree.structure(plain(variables)) == jax.tree.structure(
        jax.eval_shape(model.init, jax.random.key(0), *inputs)
    )
    ours, models = compiled(name)
    jax.tree.map(np.testing.assert_array_equal, ours(variables, *inputs), models(plain(variables), *inputs))


def test_it_is_drawn_with_b_at_zero():
    lora = LoRA(nn.Dense(3), 2)
    init = quickly(lambda key: lora.init(key, jnp.ones((1, 1000))))
    variables = init(jax.random.key(0))
    assert not variables["params"]["kernel"]["B"].any()
    np.testing.assert_allclose(variables["params"]["kernel"]["A"].std(), 1000**-0.5, rtol=0.1)
    other = init(jax.random.key(1))
    assert not np.allclose(other["params"]["kernel"]["A"], variables["params"]["kernel"]["A"])


@pytest.mark.parametrize("name", MODELS)
def test_merged_weights_are_w_plus_a_b(name):
    lora, variables, inputs = adapted(name)
    merged = merge(lora, variables)
    base, adapters, whole = (
        flax.traverse_util.flatten_dict(tree, sep="/")
        for tree in (variables["base"], variables["params"], merged["params"])
    )
    for path, kernel in base.items():
        if f"{path}/A" in adapters:
            layers = range(len(kernel)) if kernel.ndim == 3 else [...]
            for layer in layers:
                added = 6 / 2 * np.asarray(adapters[f"{path}/A"][layer]) @ np.asarray(adapters[f"{path}/B"][layer])
                assert np.abs(added).max() > 0.01
                np.testing.assert_allclose(whole[path][layer], kernel[layer] + added, atol=1e-5)
        else:
            np.testing.assert_array_equal(whole[path], kernel)
    ours, models = compiled(name)
    outputs, alone, untouched = ours(variables, *inputs), models(merged, *inputs), models(plain(variables), *inputs)
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, atol=1e-5), outputs, alone)
    differs = [
        not np.allclose(a, b, atol=1e-3) for a, b in zip(*map(jax.tree.leaves, (outputs, untouched)), strict=True)
    ]
    assert all(differs)


@pytest.mark.parametrize("name", MODELS)
def test_as_many_parameters_as_the_rank_says(name):
    _, variables, _ = adapted(name)
    *_, expected = MODELS[name]
    if expected is None:
        kernels = [leaf for leaf in jax.tree.leaves(variables["base"]) if leaf.ndim == 2]  # convolutions are left alone
        assert len(kernels) == 4
        expected = sum(sum(kernel.shape) for kernel in kernels)
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == 2 * expected


@pytest.mark.medium
def test_only_adapters_are_trained_through_every_transform():
    x = np.random.default_rng(0).normal(size=(32, 6)).astype(np.float32)
    data = {"input": x, "target": (x[:, 0] > 0).astype(np.int32)}
    body = jdl.nn.MLP((8, 4))
    trained = filled(body, jnp.asarray(x))
    model = jdl.nn.Classifier(LoRA(body, 2), 2)
    learner = jdl.supervised(
        model,
        jdl.losses.cross_entropy,
        optax.adam(0.01),
        example=data,
        variables={"base": {"encoder": trained["params"]}},
    )
    training = jdl.jit(jdl.seeds(jdl.scan(jdl.feed(learner, 16), 5), 2, spread=False))
    first = training.init(jax.random.key(0))
    begun = jax.tree.map(np.asarray, first.params)  # before its memory is given away
    state, _ = training.step(first, data)
    expected = jax.tree.map(lambda leaf: np.stack([leaf] * 2), {"encoder": trained["params"]})
    jax.tree.map(np.testing.assert_array_equal, state.collections["base"], expected)
    flat = flax.traverse_util.flatten_dict(state.params, sep="/")
    moments = [leaf for leaf in jax.tree.leaves(state.optimizer) if leaf.ndim > 1]
    assert len(moments) == 2 * len(flat)
    start = flax.traverse_util.flatten_dict(begun, sep="/")
    assert all(not np.array_equal(leaf, start[path]) for path, leaf in flat.items())
    # To serve: the encoder's part, merged, with the head beside it.
    run = jax.tree.map(lambda leaf: leaf[0], {"params": state.params, **state.collections})
    merged = transfer.graft(merge(model.encoder, transfer.take(run, "encoder")), "encoder")
    merged["params"]["head"] = run["params"]["head"]
    served = jdl.nn.Classifier(body, 2).apply(merged, jnp.asarray(x))
    np.testing.assert_allclose(served, training.predict(state, x)[0], atol=1e-5)


def test_modes_keys_and_collections_pass_through():
    class Inner(nn.Module):
        @nn.compact
        def __call__(self, x, deterministic: bool = True):
            x = nn.BatchNorm(use_running_average=deterministic, name="norm")(nn.Dense(4, name="dense")(x))
            if not self.is_initializing():
                self.sow("metrics", "mean", x.mean())
            return nn.Dropout(0.5, deterministic=deterministic)(x)

    x = np.random.default_rng(0).normal(size=(16, 3)).astype(np.float32)
    lora = LoRA(Inner(), 1)
    variables = filled(lora, x)
    call = lambda seed, train: lora.apply(  # noqa: E731
        variables, x, train=train, rngs={"dropout": jax.random.key(seed)}, mutable=["batch_stats", "metrics", "base"]
    )
    (one, changed), (other, _) = call(0, True), call(1, True)
    assert not np.array_equal(one, other)
    assert (one == 0).mean() == pytest.approx(0.5, abs=0.25)
    hidden = x @ merge(lora, variables)["params"]["dense"]["kernel"] + variables["base"]["dense"]["bias"]
    expected = 0.99 * variables["batch_stats"]["norm"]["mean"] + 0.01 * hidden.mean(0)
    np.testing.assert_allclose(changed["batch_stats"]["norm"]["mean"], expected, atol=1e-5)
    assert changed["metrics"]["mean"][0].shape == ()
    evaluated, changed = call(0, False)
    jax.tree.map(np.testing.assert_array_equal, changed["batch_stats"], variables["batch_stats"])
    np.testing.assert_array_equal(evaluated, lora.apply(variables, x))  # without anything mutable, the outputs alone


def test_a_gpt_decodes_from_its_cache():
    lora, variables, _ = adapted("scanned")
    ids = jnp.asarray(IDS)
    apply = quickly(lora.apply, static_argnames=("decode", "mutable"))
    first, cache = apply(variables, ids[:, :6], decode=True, mutable="cache")
    then, _ = apply({**variables, **cache}, ids[:, 6:], decode=True, mutable="cache")
    np.testing.assert_allclose(jnp.concatenate([first, then], 1), apply(variables, ids), atol=1e-4)


def test_a_half_precision_base_keeps_its_type_and_learns_in_single():
    model = nn.Dense(3, param_dtype=jnp.bfloat16)
    variables = filled(LoRA(model, 2), np.ones((1, 4)))
    assert {leaf.dtype for leaf in jax.tree.leaves(variables["params"])} == {jnp.dtype(jnp.float32)}
    assert merge(LoRA(model, 2), variables)["params"]["kernel"].dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        (LoRA(nn.Dense(3), 0), r"LoRA\(rank=0\): a rank is at least 1"),
        (LoRA(nn.Dense(3), 2, ("qeury",)), "the pattern 'qeury' matches no dense kernel; there are kernel"),
        (LoRA(nn.LayerNorm(), 2), "the pattern 'kernel\\$' matches no dense kernel; there are none"),
    ],
)
def test_what_cannot_be_adapted_is_told(lora, message):
    with pytest.raises(ValueError, match=message):
        lora.init(jax.random.key(0), np.ones((1, 4), np.float32))


def test_variables_of_another_model_are_told():
    lora, variables, inputs = adapted("bert")
    for call in (lambda given: merge(lora, given), lambda given: lora.apply(given, *inputs)):
        with pytest.raises(ValueError, match=r'a LoRA has the collections "params" .* given were params; pass'):
            call({"params": variables["params"]})


def test_ids_are_checked_by_the_model_within():
    model = jdl.nn.Classifier(LoRA(jdl.nn.Pooled(jdl.nn.BERT(13)), 2), 2)
    with pytest.raises(ValueError, match=r"token id 99 .* outside the vocabulary of 13"):
        model.check_inputs(np.array([[99]]))
    LoRA(nn.Dense(3), 2).check_inputs(np.ones((1, 4)))  # which checks nothing
