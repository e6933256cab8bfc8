"""Eight CPU devices, so that replicas and shards are real; compiled programs are kept for the length of the session."""

import os
from pathlib import Path

os.environ["JDL_COMPILATION_CACHE"] = "off"  # the user's own; processes that tests start compile for themselves
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


@pytest.fixture(autouse=True, scope="session")
def compiled_once(tmp_path_factory):
    """The same learners are compiled again and again. A folder for each worker: JAX writes these files in place."""
    jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("compiled")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


# Held to tolerances, not to bits, by very many small programs: there the compiler may save its effort. All else, and
# what is slow, is compiled as a user's program is.
_BY_VALUE = {
    "nn", "data", "text", "test_distributions.py", "test_losses.py", "test_metrics.py", "test_modes.py",
    "test_optimizers.py", "test_precision.py", "test_replay.py", "test_returns.py", "test_summary.py",
    "test_supervised.py",
}  # fmt: skip


@pytest.hookimpl(tryfirst=True)  # before fixtures of any scope, which compile too
def pytest_runtest_setup(item):
    by_value = not _BY_VALUE.isdisjoint(item.path.relative_to(Path(__file__).parent).parts)
    little = by_value and not item.get_closest_marker("slow")
    jax.config.update("jax_disable_most_optimizations", little)


@pytest.fixture
def x64():
    """64-bit numbers, so that rounding cannot fail a law and a wrong sum cannot hide."""
    with jax.enable_x64(True):
        yield
