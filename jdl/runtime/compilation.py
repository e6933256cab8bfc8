"""The persistent compilation cache: an experiment that starts a second time does not compile again."""

import os
from pathlib import Path

import jax
from jax.experimental.compilation_cache import compilation_cache


def use_compilation_cache() -> None:
    """Keep compiled programs on disk, whatever their size and compile time, unless the user chose otherwise.

    The folder is JAX's own setting (`JAX_COMPILATION_CACHE_DIR`) if there is one, else `jdl/jax` in the user's cache.
    `JDL_COMPILATION_CACHE=off` leaves JAX as it is. `jdl.jit` calls this.
    """
    if os.environ.get("JDL_COMPILATION_CACHE") == "off":
        return
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    if "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES" not in os.environ:
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
    if jax.config.jax_compilation_cache_dir is not None:
        return
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jdl" / "jax"
    jax.config.update("jax_compilation_cache_dir", str(cache))
    compilation_cache.reset_cache()  # an earlier compilation may have set it up without a folder
