"""Packages made here and downloaded by the real pip from a folder, and every place where their data may be."""

import hashlib
import io
import os
import tarfile
import zipfile

import pytest

from jdl.data.sources import packages
from jdl.data.sources.packages import Package, download, locate

FILES = {
    "data/one.txt": b"one",
    "data/two.txt": b"two",
    "data/deep/three.txt": b"three",
    "more/data/four.txt": b"4",
    "toy.py": b"1 / 0",
}


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A folder that is pip's only index, an empty cache, and modules in the working folder that pip must not see."""
    for folder in ("index", "work"):
        (tmp_path / folder).mkdir()
    for name in ("pip.py", "random.py"):
        (tmp_path / "work" / name).write_text("raise SystemExit('a module of the working folder was imported')")
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("JDL_TOY_DATA", raising=False)
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    return tmp_path / "index"


def package(archive, members=("data/*.txt",), **changes):
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    source = archive.name.endswith(".tar.gz")
    return Package("toy-data", "1.0", digest, members, 0.1, source)._replace(**changes)


def source_archive(folder, files=FILES, marker=None, top="toy_data-1.0/"):
    """A source distribution; its setup.py, if run, leaves `marker` behind and fails."""
    setup = f"open({str(marker)!r}, 'w').close()\nraise SystemExit('setup.py was run')\n".encode()
    info = b"Metadata-Version: 2.1\nName: toy-data\nVersion: 1.0\n"
    path = folder / "toy_data-1.0.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        for name, content in {"setup.py": setup, "PKG-INFO": info, **files}.items():
            member = tarfile.TarInfo(top + name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def wheel(folder, files=FILES):
    path = folder / "toy_data-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as zipped:
        for name, content in files.items():
            zipped.writestr(name, content)
        zipped.writestr(
            "toy_data-1.0.dist-info/METADATA",
            "Metadata-Version: 2.1\nName: toy-data\nVersion: 1.0\nRequires-Python: <3\nRequires-Dist: absent\n",
        )
        zipped.writestr("toy_data-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
    return path


def found(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def cached(tmp_path):
    return sorted(path.name for path in (tmp_path / "cache/jdl/packages").iterdir())


@pytest.mark.parametrize("source", [True, False])
def test_fetch_fills_the_cache_once_and_runs_nothing(index, tmp_path, source):
    marker = tmp_path / "setup was run"
    archive = source_archive(index, marker=marker) if source else wheel(index)
    toy = package(archive)
    folder = locate(toy, fetch=True)
    assert folder == tmp_path / "cache/jdl/packages/toy-data-1.0"
    assert found(folder) == {"data/one.txt": b"one", "data/two.txt": b"two"}
    assert cached(tmp_path) == ["toy-data-1.0"]
    assert not marker.exists()
    archive.unlink()
    assert locate(toy) == locate(toy, fetch=True) == folder


def test_another_archive_is_refused_and_leaves_nothing(index, tmp_path):
    toy = package(wheel(index), sha256="0" * 64)
    with pytest.raises(ValueError, match=r"toy_data-1.0-py3-none-any.whl.*SHA-256 is [0-9a-f]{64}, where 0{64} is due"):
        locate(toy, fetch=True)
    assert cached(tmp_path) == []


def test_what_pip_says_is_in_the_error(index, tmp_path):
    toy = package(wheel(index), version="2.0")
    with pytest.raises(OSError, match=r"download toy-data==2.0 \(ERROR: No matching distribution.*JDL_TOY_DATA"):
        locate(toy, fetch=True)
    assert cached(tmp_path) == []


def test_without_pip(index, monkeypatch):
    toy = package(wheel(index))
    monkeypatch.setattr(packages.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="python -m ensurepip"):
        locate(toy, fetch=True)


@pytest.mark.parametrize("name", ["../evil.txt", "../../data/evil.txt", "data/../../../evil.txt"])
@pytest.mark.parametrize("make", [source_archive, wheel])
def test_nothing_is_written_outside(index, tmp_path, monkeypatch, make, name):
    archive = make(tmp_path, {**FILES, name: b"evil"})
    monkeypatch.setattr(packages, "_pip_download", lambda package, folder: archive)
    with pytest.raises(ValueError, match=r"not safe to unpack.*evil.txt"):
        download(package(archive, members=("data/*.txt", "*.txt", "*/*/*.txt")))
    assert not list(tmp_path.rglob("evil.txt"))
    assert cached(tmp_path) == []


def test_absolute_names_and_links(index, tmp_path, monkeypatch):
    archive = source_archive(tmp_path, top="/toy_data-1.0/")
    monkeypatch.setattr(packages, "_pip_download", lambda package, folder: archive)
    with pytest.raises(ValueError, match=r"not safe to unpack: it has /toy_data-1.0/setup.py"):
        download(package(archive))
    with tarfile.open(archive, "w:gz") as tar:
        link = tarfile.TarInfo("toy_data-1.0/data/link.txt")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    with pytest.raises(ValueError, match=r"has no data/\*.txt"):
        download(package(archive))
    assert cached(tmp_path) == []


def test_each_place_in_turn(index, tmp_path, monkeypatch):
    toy = package(wheel(index))
    with pytest.raises(FileNotFoundError, match=r"toy-data 1.0 are neither installed nor in .*folder=.*fetch=True"):
        locate(toy)

    def unpack(folder):
        with zipfile.ZipFile(index / "toy_data-1.0-py3-none-any.whl") as zipped:
            zipped.extractall(folder)
        return folder

    cache = unpack(tmp_path / "cache/jdl/packages/toy-data-1.0")
    assert locate(toy) == cache
    site = unpack(tmp_path / "site")
    monkeypatch.syspath_prepend(site)
    assert locate(toy) == site
    assert locate(toy._replace(name="toy_data")) == site  # the same name to a package index
    with pytest.raises(FileNotFoundError, match="neither installed nor"):
        locate(toy._replace(version="1.1"))
    mine = unpack(tmp_path / "mine")
    monkeypatch.setenv("JDL_TOY_DATA", str(mine))
    assert locate(toy) == mine
    assert locate(toy, folder=cache) == cache
    # A place that was named and is wrong is an error, though the other places have the files.
    with pytest.raises(FileNotFoundError, match=r"folder is .*nowhere, which has no data/\*.txt"):
        locate(toy, folder=tmp_path / "nowhere")
    (mine / "data/one.txt").unlink()
    (mine / "data/two.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"JDL_TOY_DATA is .*mine, which has no data/\*.txt"):
        locate(toy, fetch=True)


def test_a_cache_that_lacks_members_is_replaced(index, tmp_path):
    archive = wheel(index)
    fewer, more = package(archive), package(archive, ("data/*.txt", "data/deep/*.txt"))
    assert not (locate(fewer, fetch=True) / "data/deep").exists()
    with pytest.raises(FileNotFoundError):
        locate(more)
    assert (locate(more, fetch=True) / "data/deep/three.txt").read_bytes() == b"three"
    assert cached(tmp_path) == ["toy-data-1.0"]


def test_two_processes_at_once(index, tmp_path, monkeypatch):
    archive = wheel(tmp_path)
    toy = package(archive)

    def while_another_finishes(package, folder):
        (toy.cache / "data").mkdir(parents=True)
        (toy.cache / "data/one.txt").write_bytes(b"the other's")
        return archive

    monkeypatch.setattr(packages, "_pip_download", while_another_finishes)
    assert found(download(toy)) == {"data/one.txt": b"the other's"}
    assert cached(tmp_path) == ["toy-data-1.0"]


def test_an_interrupted_download_leaves_no_cache(index, tmp_path, monkeypatch):
    toy = package(wheel(index))

    def full(path):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as context:
        context.setattr(packages, "_sync", full)
        with pytest.raises(OSError, match="No space left"):
            locate(toy, fetch=True)
    assert cached(tmp_path) == []
    assert len(found(locate(toy, fetch=True))) == 2
