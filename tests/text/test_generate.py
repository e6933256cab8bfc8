"""Sampling beside plain loops; generation from the cache beside recomputing the prefix."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jdl
from jdl.text import generate, sample

KEY = jax.random.key(0)
IDS = np.arange(10, dtype=np.int32).reshape(2, 5)
MODELS = {
    "gpt": jdl.nn.GPT(13, 16, 16, 2, 4),
    "llama": jdl.nn.GPT(13, 16, 16, 2, 4, 2, positions="rotary", norm="rms", scan=True),
    **{cell: jdl.text.RecurrentLanguageModel(13, 8, cell, width=4) for cell in ("lstm", "gru")},
}


def drawn(logits, **options):
    """The tokens that ever come, of 500 draws."""
    tokens = jax.jit(jax.vmap(lambda key: sample(jnp.asarray(logits), key, **options)))(jax.random.split(KEY, 500))
    return np.unique(tokens).tolist()


def test_what_may_be_drawn():
    logits = np.log([0.05, 0.4, 0.15, 0.3, 0.1])
    assert drawn(logits) == [0, 1, 2, 3, 4]
    assert drawn(logits, temperature=0.0) == [1]
    assert drawn(logits, top_k=2) == [1, 3]
    assert drawn(logits, top_k=9) == [0, 1, 2, 3, 4]
    assert drawn(logits, top_p=0.69) == [1, 3]
    assert drawn(logits, top_p=0.71) == [1, 2, 3]  # 0.4 + 0.3 does not reach it
    assert drawn(logits, top_p=1e-6) == [1]
    assert drawn(logits, top_k=3, top_p=0.85) == [1, 2, 3]  # after top_k they are 0.47, 0.35, 0.18


def test_probabilities_are_those_of_the_temperature():
    logits = jnp.log(jnp.array([0.2, 0.5, 0.3]))
    draw = jax.jit(jax.vmap(lambda key: sample(logits, key, temperature=0.5)))
    counts = np.bincount(draw(jax.random.split(KEY, 20_000)), minlength=3) / 20_000
    expected = np.array([0.04, 0.25, 0.09]) / 0.38
    np.testing.assert_allclose(counts, expected, atol=4 * np.sqrt(0.25 / 20_000))


@pytest.mark.medium
@pytest.mark.parametrize("name", MODELS)
def test_from_the_cache_comes_what_the_whole_prefix_gives(name):
    model = MODELS[name]
    variables = jax.jit(model.init)(KEY, IDS)
    mask = np.array([[True] * 5, [True] * 3 + [False] * 2])
    ours = generate(model, variables, {"ids": IDS, "mask": mask}, 6, temperature=0.0)
    whole = jax.jit(model.apply)
    for row, length in enumerate((5, 3)):
        ids = IDS[row, :length].tolist()
        for _ in range(6):
            padded = np.array([ids + [0] * (12 - len(ids))])  # what is behind does not matter, and one shape compiles
            ids.append(int(whole(variables, padded)[0, len(ids) - 1].argmax()))
        assert ours[row].tolist() == ids[length:]


def test_a_draw_repeats_with_its_key_and_stops_at_the_end():
    model = MODELS["lstm"]
    variables = jax.jit(model.init)(KEY, IDS)
    one, same, other = (generate(model, variables, IDS, 8, key) for key in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, other)
    end = int(one[0, 2])
    stopped = generate(model, variables, IDS, 8, 1, end=end)
    first = one[0].tolist().index(end)
    assert stopped[0, : first + 1].tolist() == one[0, : first + 1].tolist()
    assert (stopped[0, first:] == end).all()


@pytest.mark.parametrize(
    ("prompt", "options", "message"),
    [
        (IDS, {"length": 12}, "a prompt of 5 tokens and 12 more are longer than the model's context of 16"),
        (IDS + 9, {"length": 2}, "is outside the vocabulary of 13"),
        (IDS, {"length": 2, "temperature": -1.0}, "temperature=-1.0"),
        (IDS, {"length": 2, "top_p": 0.0}, "top_p=0.0"),
        (IDS, {"length": 2, "top_k": 0}, "top_k=0"),
        (IDS[:, :0], {"length": 2}, "a prompt of 0 tokens"),
        ({"ids": IDS, "mask": IDS > 0}, {"length": 2}, "the mask of a prompt is true for its tokens"),
    ],
)
def test_bad_input_is_named(prompt, options, message):
    with pytest.raises(ValueError, match=message):
        generate(MODELS["gpt"], {}, prompt, **options)
