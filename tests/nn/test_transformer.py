"""Attention and its cache beside plain loops; what must not be seen, is not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from filled import filled, quickly
from hypothesis import given, settings
from hypothesis import strategies as st

from jdl import nn

KEY = jax.random.key(0)


def applied(model):
    """A compiled `apply`: operation by operation, most of the time would go into compiling each."""
    return quickly(model.apply, static_argnames=("decode", "mutable", "method"))


def attend_by_hand(variables, x, mask, heads, kv_heads, causal):
    """One query, one head at a time, in NumPy."""
    params = jax.tree.map(np.asarray, variables["params"])
    dense = lambda name, x: x @ params[name]["kernel"] + params[name]["bias"]  # noqa: E731
    query, key, value = (dense(name, x) for name in ("query", "key", "value"))
    features = query.shape[-1] // heads
    out = np.zeros(query.shape)
    for row in range(len(x)):
        for head in range(heads):
            own = slice(head * features, (head + 1) * features)
            shared = head // (heads // kv_heads)
            of = slice(shared * features, (shared + 1) * features)
            for time in range(x.shape[1]):
                seen = mask[row] & (np.arange(x.shape[1]) <= time if causal else True)
                scores = key[row][:, of] @ query[row, time, own] / np.sqrt(features)
                weights = np.where(seen, np.exp(scores - scores.max()), 0)
                out[row, time, own] = weights @ value[row][:, of] / weights.sum()
    return dense("out", out)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_attention_is_what_a_loop_computes(kv_heads, causal):
    x = jax.random.normal(KEY, (2, 6, 16))
    mask = jnp.array([[True] * 6, [True] * 4 + [False] * 2])
    attention = nn.MultiHeadAttention(4, kv_heads, causal=causal)
    variables = filled(attention, x)
    ours = applied(attention)(variables, x, mask=nn.padding_mask(mask))
    by_hand = attend_by_hand(variables, np.asarray(x), np.asarray(mask), 4, kv_heads, causal)
    np.testing.assert_allclose(ours, by_hand, atol=1e-5)


def test_rotary_products_know_distances_alone():
    query, key = jax.random.normal(KEY, (2, 1, 1, 1, 8))
    at = lambda x, place: nn.rotary(x, jnp.array([[place]]))[0, 0, 0]  # noqa: E731
    products = [at(query, place) @ at(key, place + 3) for place in (0, 5, 100)]
    np.testing.assert_allclose(products, products[0], rtol=1e-4)
    assert abs(at(query, 0) @ at(key, 4) - products[0]) > 1e-3
    with pytest.raises(ValueError, match="7: make it an even number"):
        nn.rotary(jnp.zeros((1, 1, 1, 7)), jnp.zeros((1, 1), jnp.int32))


GPTS = {
    "gpt": nn.GPT(13, 16, 16, 2, 4),
    "scanned": nn.GPT(13, 16, 16, 3, 4, scan=True),
    "llama": nn.GPT(13, 16, 16, 2, 4, 2, positions="rotary", norm="rms", gated=True, use_bias=False),
}


@pytest.mark.parametrize("name", GPTS)
def test_a_gpt_sees_no_later_token(name):
    model = GPTS[name]
    ids = jax.random.randint(KEY, (2, 10), 0, 13)
    variables = filled(model, ids)
    changed = ids.at[:, 6:].set((ids[:, 6:] + 1) % 13)
    one, other = (applied(model)(variables, given) for given in (ids, changed))
    np.testing.assert_array_equal(one[:, :6], other[:, :6])
    assert not np.allclose(one[:, 6:], other[:, 6:])


@pytest.mark.medium
@pytest.mark.parametrize("name", GPTS)
def test_decoding_from_the_cache_is_what_the_whole_sequence_gives(name):
    model = GPTS[name]
    ids = jax.random.randint(KEY, (2, 12), 0, 13)
    variables = filled(model, ids)
    whole = applied(model)(variables, ids)
    out, cache = applied(model)(variables, ids[:, :5], decode=True, mutable="cache")
    outputs = [out]
    for start, stop in ((5, 6), (6, 7), (7, 10), (10, 12)):
        out, cache = applied(model)({**variables, **cache}, ids[:, start:stop], decode=True, mutable="cache")
        outputs.append(out)
    np.testing.assert_allclose(jnp.concatenate(outputs, 1), whole, atol=1e-5)


@pytest.mark.parametrize("name", GPTS)
def test_prompts_of_different_lengths_decode_together(name):
    """Right-padded: what is generated behind the padding is what the prompt by itself gives."""
    model = GPTS[name]
    ids = jax.random.randint(KEY, (2, 9), 0, 13)
    variables = filled(model, ids)
    mask = jnp.array([[True] * 5, [True] * 3 + [False] * 2])
    prompt = jnp.where(mask, ids[:, :5], 0)
    first, cache = applied(model)(variables, {"ids": prompt, "mask": mask}, decode=True, mutable="cache")
    then, _ = applied(model)({**variables, **cache}, ids[:, 5:], decode=True, mutable="cache")
    alone = applied(model)(variables, jnp.concatenate([ids[1:, :3], ids[1:, 5:]], 1))[0]
    np.testing.assert_allclose(first[1, :3], alone[:3], atol=1e-5)
    np.testing.assert_allclose(then[1], alone[3:], atol=1e-5)


@pytest.mark.parametrize("name", GPTS)
def test_packed_sequences_do_not_see_each_other(name):
    model = GPTS[name]
    ids = jax.random.randint(KEY, (1, 9), 0, 13)
    variables = filled(model, ids)
    packed = {
        "ids": ids,
        "segments": jnp.array([[1, 1, 1, 1, 2, 2, 2, 0, 0]]),
        "positions": jnp.array([[0, 1, 2, 3, 0, 1, 2, 0, 0]]),
    }
    together = applied(model)(variables, packed)
    np.testing.assert_allclose(together[:, :4], applied(model)(variables, ids[:, :4]), atol=1e-5)
    np.testing.assert_allclose(together[:, 4:7], applied(model)(variables, ids[:, 4:7]), atol=1e-5)


_POOLED = nn.Pooled(nn.BERT(13, 8, 16, 1, 4))
VARIABLES, POOLED = filled(_POOLED, jnp.zeros((1, 8), jnp.int32)), applied(_POOLED)


@pytest.mark.medium
@settings(max_examples=10, deadline=None)
@given(st.lists(st.integers(1, 8), min_size=2, max_size=2), st.integers(0, 2**31))
def test_padding_changes_nothing(lengths, seed):
    ids = jax.random.randint(jax.random.key(seed), (2, 8), 0, 13)
    mask = jnp.arange(8) < jnp.array(lengths)[:, None]
    ours = POOLED(VARIABLES, {"ids": ids, "mask": mask})
    for row, length in enumerate(lengths):
        np.testing.assert_allclose(ours[row], POOLED(VARIABLES, ids[row : row + 1, :length])[0], atol=1e-5)


@pytest.mark.medium
def test_an_encoder_decoder_decodes_from_its_cache_and_reads_no_padding():
    model = nn.EncoderDecoder(13, 12, 16, 2, 4)
    source, target = jax.random.randint(KEY, (2, 2, 7), 0, 13)
    mask = jnp.array([[True] * 7, [True] * 4 + [False] * 3])
    tokens = {"ids": source, "mask": mask}
    variables = filled(model, {"source": tokens, "target": target})
    whole = applied(model)(variables, {"source": tokens, "target": target})
    alone = applied(model)(variables, {"source": source[1:, :4], "target": target[1:]})
    np.testing.assert_allclose(whole[1:], alone, atol=1e-5)
    memory = applied(model)(variables, tokens, method="encode")
    cache, outputs, step = {}, [], applied(model)
    for time in range(7):
        given = {**variables, **cache}
        out, cache = step(
            given, target[:, time : time + 1], memory, mask, decode=True, method="decode", mutable="cache"
        )
        outputs.append(out)
    np.testing.assert_allclose(jnp.concatenate(outputs, 1), whole, atol=1e-5)


def test_additive_attention_is_what_its_equations_say():
    query, states = jax.random.normal(KEY, (2, 3, 5)), jax.random.normal(jax.random.key(1), (2, 4, 6))
    mask = jnp.array([[True] * 4, [True, True, False, False]])
    layer = nn.AdditiveAttention(7)
    variables = filled(layer, query, states, mask)
    context, weights = applied(layer)(variables, query, states, mask)
    params = jax.tree.map(np.asarray, variables["params"])
    for row, time in np.ndindex(2, 3):
        hidden = np.tanh(
            query[row, time] @ params["query"]["kernel"]
            + states[row] @ params["states"]["kernel"]
            + params["states"]["bias"]
        )
        scores = np.where(mask[row], np.exp(hidden @ params["score"]["kernel"][:, 0]), 0)
        np.testing.assert_allclose(weights[row, time], scores / scores.sum(), atol=1e-5)
        np.testing.assert_allclose(context[row, time], scores / scores.sum() @ states[row], atol=1e-5)


def test_a_cache_that_is_too_small_is_named():
    attention = nn.MultiHeadAttention(2, causal=True, cache_length=3)
    x = jnp.zeros((1, 4, 8))
    variables = filled(attention, x)
    with pytest.raises(ValueError, match="4 tokens are given, the cache has room for 3; raise cache_length"):
        attention.apply(variables, x, decode=True, mutable="cache")
    with pytest.raises(ValueError, match="give MultiHeadAttention a cache_length"):
        nn.MultiHeadAttention(2).apply(variables, x, decode=True, mutable="cache")


def test_stochastic_depth_keeps_the_mean_and_drops_whole_examples():
    branch = jnp.ones((4000, 3))
    out = nn.StochasticDepth().apply({}, branch, 0.25, rngs={"dropout": KEY})
    kept = np.asarray(out)[:, 0] > 0
    np.testing.assert_allclose(out, np.where(kept, 1 / 0.75, 0)[:, None] * np.ones(3), rtol=1e-6)
    assert abs(kept.mean() - 0.75) < 4 * np.sqrt(0.75 * 0.25 / 4000)
