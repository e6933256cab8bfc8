"""Generate text from a prompt, token by token, with a cache."""

import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from jdl.nn.layers.tokens import Tokens


def sample(
    logits: Float[Array, "*batch vocabulary"],
    key: Key[Array, ""],
    temperature: float | Array = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> Int[Array, "*batch"]:
    """Draw a token from logits.

    Args:
        temperature: divides the logits; 0 takes the likeliest token
        top_k: draw only from the k likeliest tokens (Fan et al. 2018)
        top_p: draw only from the fewest tokens whose probabilities reach p, after temperature and top_k (Holtzman et
            al. 2020, section 3.1)
    """
    likeliest = logits.argmax(-1)
    # Where the temperature is zero, divide by one instead; the draw is not used then.
    logits = logits.astype(jnp.float32) / jnp.where(jnp.asarray(temperature) > 0, temperature, 1)
    if top_k is not None:
        least = jax.lax.top_k(logits, min(top_k, logits.shape[-1]))[0][..., -1:]
        logits = jnp.where(logits < least, -jnp.inf, logits)
    if top_p is not None:
        order = jnp.sort(logits, axis=-1, descending=True)
        probabilities = jax.nn.softmax(order)
        needed = jnp.cumsum(probabilities, -1) - probabilities < top_p  # the likelier tokens do not reach p
        least = jnp.where(needed, order, jnp.inf).min(-1, keepdims=True)
        logits = jnp.where(logits < least, -jnp.inf, logits)
    return jnp.where(jnp.asarray(temperature) > 0, jax.random.categorical(key, logits), likeliest)


def generate(
    model: nn.Module,
    variables: Mapping[str, PyTree],
    prompt: Any,
    length: int,
    key: Key[Array, ""] | int = 0,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    end: int | None = None,
) -> Int[np.ndarray, "batch length"]:
    """Continue prompts by `length` tokens; after the token `end` a sequence repeats it.

    Each shape is compiled once into one program, which reads the prompt at once and then generates one token at a
    time with the cache.

    Args:
        model: a language model with a cache (`jdl.nn.GPT`, `jdl.text.RecurrentLanguageModel`)
        variables: its variables, by collection
        prompt: ids `[batch, time]`, or `{"ids", "mask"}` for prompts of different lengths, with padding at the end
        length: number of tokens to generate
        key: random key, or a seed for one
        temperature: as in `sample`
        top_k: as in `sample`
        top_p: as in `sample`
        end: token after which a sequence is finished; None for no such token

    Raises:
        ValueError: for ids outside the vocabulary, for more tokens than the model's context, for a mask with padding
            before tokens, and for options out of range
    """
    context = getattr(model, "context", None)
    tokens = Tokens.of(prompt if isinstance(prompt, Mapping) else np.asarray(prompt), context)
    if hasattr(model, "check_inputs"):
        model.check_inputs(tokens)
    batch, time = tokens.ids.shape
    if time < 1 or length < 1:
        raise ValueError(f"a prompt of {time} tokens is to be continued by {length}; both are at least 1")
    if context is not None and time + length > context:
        raise ValueError(
            f"a prompt of {time} tokens and {length} more are longer than the model's context of {context}; shorten "
            "the prompt, or generate fewer"
        )
    if temperature < 0 or (top_k is not None and top_k < 1) or (top_p is not None and not 0 < top_p <= 1):
        raise ValueError(
            f"temperature={temperature}, top_k={top_k}, top_p={top_p}: temperature is at least 0, top_k at least 1, "
            "top_p in (0, 1]"
        )
    mask = np.ones((batch, time), bool) if tokens.mask is None else np.asarray(tokens.mask, bool)
    if not mask.any(1).all() or (np.diff(mask.astype(int), axis=1) > 0).any():
        raise ValueError("the mask of a prompt is true for its tokens, at least one, and false for the padding behind")
    key = jax.random.key(key) if isinstance(key, int) else key
    ids = jnp.asarray(tokens.ids)
    given = {name: value for name, value in variables.items() if name != "cache"}
    out = _generate(model, given, ids, jnp.asarray(mask), length, key, jnp.float32(temperature), top_k, top_p, end)
    return np.asarray(out)


@functools.partial(jax.jit, static_argnames=("model", "length", "top_k", "top_p", "end"))
def _generate(
    model: nn.Module,
    variables: Mapping[str, PyTree],
    ids: Int[Array, "batch time"],
    mask: Bool[Array, "batch time"],
    length: int,
    key: Array,
    temperature: Array,
    top_k: int | None,
    top_p: float | None,
    end: int | None,
) -> Int[Array, "batch length"]:
    prompt = {"ids": ids, "mask": mask}
    logits, state = model.apply(variables, prompt, decode=True, mutable=["cache"])
    last = mask.sum(1) - 1
    logits = jnp.take_along_axis(logits, last[:, None, None], 1)[:, 0]

    def draw(logits: Array, ended: Array, number: Array) -> tuple[Array, Array]:
        token = sample(logits, jax.random.fold_in(key, number), temperature, top_k, top_p).astype(ids.dtype)
        if end is not None:
            token = jnp.where(ended, end, token)
            ended = ended | (token == end)
        return token, ended

    def step(carry: tuple[PyTree, Array, Array], number: Array) -> tuple[tuple[PyTree, Array, Array], Array]:
        cache, token, ended = carry
        logits, state = model.apply({**variables, "cache": cache}, token[:, None], decode=True, mutable=["cache"])
        following, ended = draw(logits[:, 0], ended, number)
        return (state["cache"], following, ended), following

    first, ended = draw(logits, jnp.zeros(len(ids), bool), jnp.int32(0))
    _, rest = jax.lax.scan(step, (state["cache"], first, ended), jnp.arange(1, length))
    return jnp.concatenate([first[:, None], rest.T], 1)
