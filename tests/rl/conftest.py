"""rlax, whose functions are what ours are held to."""

import importlib
import importlib.util
import sys
import types

import pytest


@pytest.fixture(scope="module")
def rlax():
    """`(name) -> module`. Its package imports one that knows no JAX of today; the functions need but chex."""
    found = importlib.util.find_spec("rlax")
    if found is None:
        pytest.skip("rlax is not installed")
    package = types.ModuleType("rlax")
    package.__path__ = found.submodule_search_locations
    sys.modules["rlax"] = package
    sys.modules["distrax"] = types.ModuleType("distrax")  # named, and not used, by the functions that are looked at
    yield lambda module: importlib.import_module(f"rlax._src.{module}")
    for name in [name for name in sys.modules if name.split(".")[0] in ("rlax", "distrax")]:
        del sys.modules[name]
