"""Compiled programs are kept on disk in the folder that the user chose, in the user's cache, or not at all."""

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.compilation_cache import compilation_cache

from jdl.runtime.compilation import use_compilation_cache

SETTINGS = (
    "jax_compilation_cache_dir",
    "jax_persistent_cache_min_compile_time_secs",
    "jax_persistent_cache_min_entry_size_bytes",
)


@pytest.fixture
def user(monkeypatch, tmp_path):
    """As in a process that has not chosen anything yet."""
    before = {name: getattr(jax.config, name) for name in SETTINGS}
    for name in ("JDL_COMPILATION_CACHE", *(setting.upper() for setting in SETTINGS)):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    jax.config.update("jax_compilation_cache_dir", None)
    yield tmp_path
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def compiled(folder):
    jax.jit(lambda x: jnp.sin(x) + len(folder.name))(jnp.ones(3)).block_until_ready()
    return [file.name for file in folder.rglob("*") if file.is_file()]


def test_even_a_small_program_is_kept_in_the_users_cache(user):
    use_compilation_cache()
    assert any("lambda" in name for name in compiled(user / "jdl" / "jax"))


def test_a_folder_and_limits_of_the_users_own_stay(user, monkeypatch):
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "7")
    jax.config.update("jax_compilation_cache_dir", str(user / "own"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 7.0)
    use_compilation_cache()
    assert jax.config.jax_compilation_cache_dir == str(user / "own")
    assert jax.config.jax_persistent_cache_min_compile_time_secs == 7


def test_it_can_be_turned_off(user, monkeypatch):
    monkeypatch.setenv("JDL_COMPILATION_CACHE", "off")
    use_compilation_cache()
    assert jax.config.jax_compilation_cache_dir is None
    assert compiled(user) == []
