"""Eight CPU devices, so that replicas and shards are real; compiled programs are kept for the length of the session."""

import os
from pathlib import Path

os.environ["JDL_COMPILATION_CACHE"] = "off"  # the user's own
os.environ.setdefault("WANDB_MODE", "offline")
# Two workers share two cores: more threads of NumPy and scikit-learn would wait for one another, spinning.
os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")
# One piece of code generation instead of many in parallel: a third less compile time. Loops that are not unrolled and
# operations that are not joined to vectors: a tenth less of all the tests' time. The bits are the same.
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + (
    " --xla_cpu_parallel_codegen_split_count=1"
    " --xla_backend_extra_options=xla_cpu_disable_slp_vectorizer,xla_cpu_disable_loop_unrolling"
)

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)


_LONGEST = "test_pages.py", "test_kill.py", "test_probes.py", "test_agents.py", "test_laws.py"  # minutes each


def pytest_collection_modifyitems(items):
    """The longest files first, or one worker would be left with one of them at the end."""
    rank = {name: number for number, name in enumerate(_LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.name, len(rank)))


@pytest.fixture(autouse=True, scope="session")
def compiled_once(tmp_path_factory):
    """The same learners are compiled again and again, also in processes that tests start.

    A folder for each worker: JAX writes these files in place.
    """
    folder = str(tmp_path_factory.mktemp("compiled"))
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = folder
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"


@pytest.fixture(autouse=True, scope="session")
def recorded_elsewhere(tmp_path_factory):
    """Data sets that tests record do not lie among the user's own."""
    os.environ["MINARI_DATASETS_PATH"] = str(tmp_path_factory.mktemp("minari"))


# Their subject is what the compiler makes of programs that should agree to the bit, or of the whole of a program: they
# and what is slow are compiled as a user's program is. All else is very many small programs, held to tolerances or
# run twice: there the compiler may save its effort.
_AS_A_USERS = {
    "parallel", "report", "runtime", "test_agents.py", "test_draws.py", "test_jaxprs.py", "test_laws.py",
    "test_over_devices.py", "test_profiling.py", "test_runs_axis.py", "test_segments.py",
}  # fmt: skip


_PROBES = {
    "test_continuous.py",
    "test_modes.py",
    "test_policies_with_memory.py",
    "test_probes.py",
    "test_value_heads.py",
}

# The programs that these start compile more than they compute, and none is held to bits.
_START_PROGRAMS = {"docs", "experiments", "test_host_processes.py"}


@pytest.hookimpl(tryfirst=True)  # before fixtures of any scope, which compile too
def pytest_runtest_setup(item):
    where = {*item.path.relative_to(Path(__file__).parent).parts}
    whole = not _AS_A_USERS.isdisjoint(where) or item.get_closest_marker("slow")
    to_a_tolerance = "x64" in item.fixturenames or not where.isdisjoint(_PROBES)
    jax.config.update("jax_disable_most_optimizations", not whole or to_a_tolerance)
    os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = str(not _START_PROGRAMS.isdisjoint(where))


@pytest.fixture
def x64():
    """64-bit numbers, so that rounding cannot fail a law and a wrong sum cannot hide."""
    with jax.enable_x64(True):
        yield
