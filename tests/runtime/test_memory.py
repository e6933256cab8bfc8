"""The C library keeps what steps give back; seen in page faults, in a process of its own."""

import json
import os
import platform
import subprocess
import sys

import pytest

PROGRAM = """
import json, resource
import jax, jax.numpy as jnp
import jdl
from jdl.runtime.memory import keep_scratch_memory

jdl.host_devices(1)
step = jax.jit(lambda x: (jnp.sin(x)[:, None] * jnp.cos(x)).cumsum(0)[-1])  # 64 MB of scratch memory
x = jnp.ones(4000)
for _ in range(20):
    x = step(x).block_until_ready()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(50):
    x = step(x).block_until_ready()
print(json.dumps([keep_scratch_memory(), resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before]))
"""


def faults(**variables):
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"} | {"JAX_PLATFORMS": "cpu"}
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, env=environment | variables
    )
    return json.loads(result.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc, nothing is changed")
@pytest.mark.slow
def test_scratch_memory_is_kept():
    kept, few = faults()
    assert kept
    chosen, many = faults(MALLOC_ARENA_MAX="8")  # a user who has chosen is left alone
    assert not chosen
    assert few < many / 5, (few, many)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc, nothing is changed")
def test_nothing_is_changed_beside_an_accelerator():
    program = "import jax; from jdl.runtime.memory import keep_scratch_memory; print(keep_scratch_memory())"
    environment = os.environ | {"JAX_PLATFORMS": "cuda,cpu"}
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment
    )
    assert result.stdout.strip() == "False"
