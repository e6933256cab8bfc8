"""Eight CPU devices, so that replicas and shards are real; no compilation cache, so that tests see compilation."""

import os

os.environ["JDL_COMPILATION_CACHE"] = "off"
os.environ.setdefault("WANDB_MODE", "offline")
# One piece of code generation instead of many in parallel: a third less compile time, the same programs.
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_cpu_parallel_codegen_split_count=1"

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)


_LONGEST = "test_readme.py", "test_kill.py", "test_probes.py", "test_agents.py", "test_on_host.py"  # minutes each


def pytest_collection_modifyitems(items):
    """The longest files first, or one worker would be left with one of them at the end."""
    rank = {name: number for number, name in enumerate(_LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.name, len(rank)))


@pytest.fixture
def x64():
    """64-bit numbers, so that rounding cannot fail a law and a wrong sum cannot hide."""
    with jax.enable_x64(True):
        yield
