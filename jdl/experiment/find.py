"""Experiments, found by name: modules with a `Config` and a `main(config, run)`.

An experiment is a Python file with

- `Config`: a frozen dataclass, with a default for every field. If a config has a true `one_core`, the process is kept
  on one core.
- `main(config, run)`: trains, and returns the final metrics by name, each a number or one value per seed.
- `learner(config)`, optional: the learner of one seed, with which a loaded run predicts.

Experiments lie in ./experiments and its folders. If there is no such folder, those installed with jdl are found.
"""

import ast
import dataclasses
import difflib
import hashlib
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from jdl.experiment.config import check

FOLDER = Path("experiments")
INSTALLED = Path(__file__).parents[1] / "experiments"  # in a wheel; a clone has ./experiments
_REQUIRED = {"Config", "main"}
# Experiments of version 0.1 that are a choice of another one now. The next version forgets them.
_MERGED = {
    "q_learning": "td --method q_learning",
    "sarsa": "td --method sarsa",
    "expected_sarsa": "td --method expected_sarsa",
}


class Found(NamedTuple):
    """An experiment in a folder.

    Attributes:
        file: the experiment's file.
        description: the first line of its docstring; for a file that is not valid Python, the error.
    """

    file: Path
    description: str

    @property
    def name(self) -> str:
        """The shortest name, which no other experiment has."""
        return self.file.stem

    @property
    def domain(self) -> str:
        """The folder within the folder of all experiments, such as "rl"; empty if the file lies directly there."""
        parent = self.file.parent.relative_to(home())
        return "" if parent == Path() else parent.as_posix()


def home() -> Path:
    """Return the folder in which experiments are found: ./experiments, else the one installed with jdl."""
    return FOLDER if FOLDER.is_dir() or not INSTALLED.is_dir() else INSTALLED


def experiments(domain: str = "") -> list[Found]:
    """List the experiments without importing them. Other modules in the folders are left out.

    Args:
        domain: a folder such as "rl"; by default all folders.

    Raises:
        LookupError: for a folder that does not exist.
    """
    root = home() / domain
    if domain and not root.is_dir():
        folders = sorted({found.domain for found in experiments()} - {""})
        raise LookupError(f"there is no folder {root}; there are {', '.join(folders) or 'none'}")
    found = []
    for file in sorted(root.rglob("*.py")) if root.is_dir() else []:
        if any(part.startswith((".", "__")) for part in file.relative_to(home()).parts):
            continue
        try:
            tree = ast.parse(file.read_text())
        except (SyntaxError, UnicodeDecodeError) as error:
            found.append(Found(file, f"cannot be read as Python: {error}"))
            continue
        if _defined(tree) >= _REQUIRED:
            found.append(Found(file, (ast.get_docstring(tree) or "").strip().split("\n")[0]))
    return found


def names() -> list[str]:
    """List the names of all experiments."""
    return [found.name for found in experiments()]


def find(name: str) -> ModuleType:
    """Import an experiment.

    Args:
        name: its name (`dqn` or `rl/dqn`), a dotted path (`experiments.rl.dqn`) or a file (`path/to/it.py`).

    Raises:
        LookupError: if there is none of that name, with the nearest name, or if there are several.
        TypeError: for a module that is no experiment.
    """
    if name.endswith(".py"):
        if not Path(name).is_file():
            raise LookupError(f"there is no experiment file {name}{_merged_hint(Path(name).stem)}")
        return _checked(load_file(Path(name)), name)
    files = _files(name)
    if len(files) > 1:
        choices = " or ".join(file.relative_to(home()).with_suffix("").as_posix() for file in files)
        raise LookupError(f"{len(files)} experiments are called {name!r}; give {choices}")
    if files:
        return _checked(load_file(files[0], _dotted(files[0])), name)
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        spec = None
    if spec is None or "." not in name:
        raise LookupError(_none_called(name))
    return _checked(importlib.import_module(name), name)


def name_of(module: ModuleType) -> str:
    """Return the name by which a command line in the current directory finds an experiment."""
    file = Path(str(module.__file__)).absolute()
    if [match.absolute() for match in _files(file.stem)] == [file]:
        return file.stem
    return str(file.relative_to(Path.cwd()) if file.is_relative_to(Path.cwd()) else file)


def load_file(file: Path, name: str | None = None, package: str = "", path: Sequence[str] = ()) -> ModuleType:
    """Execute a file as a module.

    Args:
        file: the file.
        name: the module's name; by default made from the file's.
        package: the package that its relative imports start from.
        path: folders to import from, after the current directory and the folder of the file.

    Raises:
        LookupError: if the file is no Python module.
    """
    for folder in (str(Path.cwd()), str(file.parent.absolute()), *path):
        if folder not in sys.path:
            sys.path.append(folder)
    digest = hashlib.sha256(str(file.absolute()).encode()).hexdigest()[:8]
    name = name or ".".join(filter(None, (package, f"{file.stem}_{digest}")))
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise LookupError(f"{file} cannot be loaded as a Python module")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def _defined(tree: ast.Module) -> set[str]:
    """List the names that a module defines at its top level: classes, functions and values."""
    named = {node.name for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef)}
    assigned = [target for node in tree.body if isinstance(node, ast.Assign) for target in node.targets]
    return named | {node.id for target in assigned for node in ast.walk(target) if isinstance(node, ast.Name)}


def _files(name: str) -> list[Path]:
    """List the files that a name without dots may mean: `dqn`, or with its folder `rl/dqn`."""
    if "." in name or not name:
        return []
    inner = [file for file in home().rglob(f"{name}.py") if "__pycache__" not in file.parts]
    direct = home() / f"{name}.py"
    return [direct] if direct in inner else sorted(inner)


def _dotted(file: Path) -> str:
    """Return the dotted name of the experiment in a file, from which its relative imports start."""
    root = "experiments" if home() == FOLDER else "jdl.experiments"
    return ".".join([root, *file.relative_to(home()).with_suffix("").parts])


def _none_called(name: str) -> str:
    """Write the error message for an unknown experiment."""
    if merged := _merged_hint(name.replace("/", ".").rpartition(".")[2]):
        return f"there is no experiment {name!r}{merged}"
    known = names()
    nearest = difflib.get_close_matches(name.rpartition("/")[2], known, 1)
    hint = f"did you mean {nearest[0]}?" if nearest else "give its name, a dotted path or a file ending in .py"
    listed = f"{_shown(home())} has {', '.join(known)}" if known else f"there is no folder ./{FOLDER} here"
    return f"there is no experiment {name!r}; {hint} ({listed})"


def _merged_hint(name: str) -> str:
    """Say what runs an experiment that is a choice of another one now; empty for all other names."""
    words = _MERGED.get(name)
    return f"; it is a choice of another experiment now: jdl run {words}" if words else ""


def _shown(folder: Path) -> str:
    return f"./{folder}" if folder == FOLDER else "jdl"


def _checked(module: ModuleType, name: str) -> ModuleType:
    missing = [part for part in sorted(_REQUIRED) if not hasattr(module, part)]
    if missing:
        raise TypeError(f"{name} is no experiment: it has no {' and no '.join(missing)}; see experiments/basics/xor.py")
    config = module.Config
    frozen = dataclasses.is_dataclass(config) and getattr(config, "__dataclass_params__").frozen  # noqa: B009
    if not frozen:
        raise TypeError(f"the Config of {name} is no frozen dataclass; write @dataclasses.dataclass(frozen=True)")
    check(module.Config)
    return module
