"""Modules that `jdl` shows under shorter names than their rooms': `from jdl.metrics import Mean`."""

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from types import ModuleType
from typing import Any


class PublicModules(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds a module by the name that `jdl` shows it under."""

    def __init__(self, places: dict[str, str]) -> None:
        self.places = places

    def find_spec(
        self, fullname: str, path: Any, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        return importlib.util.spec_from_loader(fullname, self) if fullname in self.places else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        module = importlib.import_module(self.places[spec.name])
        spec.loader_state = module.__spec__  # which the import system is about to overwrite
        return module

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        module.__spec__ = module.__spec__.loader_state


def show(**places: str) -> None:
    """Let `jdl.NAME` be imported as the module that it is."""
    sys.meta_path.append(PublicModules({f"jdl.{name}": place for name, place in places.items()}))
