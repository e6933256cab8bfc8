"""Eight CPU devices, so that replicas and shards are real; no compilation cache, so that tests see compilation."""

import os

os.environ["JDL_COMPILATION_CACHE"] = "off"
os.environ.setdefault("WANDB_MODE", "offline")

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)


@pytest.fixture
def x64():
    """64-bit numbers, so that rounding cannot fail a law and a wrong sum cannot hide."""
    with jax.enable_x64(True):
        yield
