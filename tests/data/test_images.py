"""Image sources against the files themselves, and downloads against a server that misbehaves."""

import gzip
import hashlib
import http.server
import re
import struct
import threading
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from jdl.data import digits, fashion_mnist, read_idx
from jdl.data.sources import images as images_module

needs_debian_files = pytest.mark.skipif(
    not images_module.DEBIAN_FOLDER.is_dir(),
    reason=f"{images_module.DEBIAN_FOLDER} is absent: install the Debian package dataset-fashion-mnist",
)


def idx(array, code=0x08):
    """The bytes of an IDX file, written by struct as its page describes."""
    kind = {0x08: "B", 0x0B: "h", 0x0C: "i", 0x0D: "f", 0x0E: "d"}[code]
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, code, array.ndim, *array.shape)
    return header + struct.pack(f">{array.size}{kind}", *array.ravel().tolist())


# --- digits


def test_digits_are_scikit_learns():
    bunch = load_digits()
    dataset = digits(split_seed=2)
    train, test = train_test_split(np.arange(1797), test_size=0.2, stratify=bunch.target, random_state=2)
    assert dataset.validation is None
    assert dataset.num_classes == 10
    assert dataset.train["input"].shape == (1437, 8, 8, 1)
    assert dataset.train["input"].dtype == np.float32
    np.testing.assert_array_equal(dataset.train["input"][..., 0] * 16, bunch.images[train])
    np.testing.assert_array_equal(dataset.test["target"], bunch.target[test])
    assert dataset.train["input"].min() == 0
    assert dataset.train["input"].max() == 1


def test_digits_with_validation_and_normalized():
    dataset = digits(fractions=(0.6, 0.2, 0.2), normalize=True)
    assert len(dataset.validation["target"]) == 360
    assert set(dataset.validation["target"].tolist()) == set(range(10))
    np.testing.assert_allclose(dataset.train["input"].mean(), 0, atol=1e-5)
    back = dataset.normalizer.invert(dataset.test["input"])
    np.testing.assert_allclose(back, digits(fractions=(0.6, 0.2, 0.2)).test["input"], atol=1e-6)


# --- IDX


@pytest.mark.parametrize("code", [0x08, 0x0B, 0x0C, 0x0D, 0x0E])
@pytest.mark.parametrize("zipped", [False, True])
def test_read_idx(tmp_path, code, zipped):
    array = np.arange(24).reshape(2, 3, 4)
    path = tmp_path / "array"
    path.write_bytes(gzip.compress(idx(array, code), mtime=0) if zipped else idx(array, code))
    read = read_idx(path)
    np.testing.assert_array_equal(read, array)
    assert read.dtype.isnative
    assert read.flags.writeable


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not an IDX file: it begins with nothing"),
        (b"\x89PNG....", "not an IDX file: it begins with 89 50 4e 47"),
        (b"\0\0\x07\x01\0\0\0\0", "not an IDX file"),
        (b"\0\0\x08\x03\0\0\0", "truncated in its header: 7 bytes, where 16"),
        (idx(np.arange(6))[:-1], r"truncated: 13 bytes, where shape \(6,\) of uint8 makes 14"),
        (idx(np.arange(6)) + b"x", "bytes to spare: 15"),
        (gzip.compress(idx(np.arange(200)), mtime=0)[:-9], "truncated gzip"),
        (gzip.compress(idx(np.arange(99)), mtime=0)[:20] + b"garbage" * 4, "damaged or truncated gzip"),
    ],
)
def test_read_idx_refuses(tmp_path, content, message):
    path = tmp_path / "broken"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        read_idx(path)
    assert str(path) in str(caught.value)


# --- Fashion-MNIST, from small files in the same format


@pytest.fixture
def small(tmp_path, monkeypatch):
    """Four small files in place of Fashion-MNIST's, checksums to match, and no other place to find any."""
    random = np.random.default_rng(0)
    contents = {}
    for prefix, num_examples in (("train", 60), ("t10k", 20)):
        contents[f"{prefix}-images-idx3-ubyte"] = idx(random.integers(0, 256, (num_examples, 4, 4)))
        contents[f"{prefix}-labels-idx1-ubyte"] = idx(np.arange(num_examples) % 10)
    sums = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    assert sums.keys() == images_module.CHECKSUMS.keys()
    monkeypatch.setattr(images_module, "CHECKSUMS", sums)
    monkeypatch.setattr(images_module, "DEBIAN_FOLDER", tmp_path / "debian")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("JDL_FASHION_MNIST", raising=False)
    return contents


def write(folder, contents, zipped=False):
    folder.mkdir(parents=True)
    for name, content in contents.items():
        path = folder / (f"{name}.gz" if zipped else name)
        path.write_bytes(gzip.compress(content, mtime=0) if zipped else content)
    return folder


def pixels(dataset):
    return dataset.test["input"][..., 0]


def test_fashion_mnist_is_found_in_each_place(small, tmp_path, monkeypatch):
    expected = np.frombuffer(small["t10k-images-idx3-ubyte"][16:], np.uint8).reshape(20, 4, 4)
    with pytest.raises(FileNotFoundError, match=r"folder=.*dataset-fashion-mnist.*fetch=True"):
        fashion_mnist()
    for zipped, place in ((True, tmp_path / "cache/jdl/fashion-mnist"), (False, tmp_path / "debian")):
        write(place, small, zipped)
        np.testing.assert_array_equal(pixels(fashion_mnist(uint8=True)), expected)
    mine = write(tmp_path / "mine", small)
    np.testing.assert_array_equal(pixels(fashion_mnist(mine, uint8=True)), expected)
    monkeypatch.setenv("JDL_FASHION_MNIST", str(mine))
    np.testing.assert_array_equal(pixels(fashion_mnist(uint8=True)), expected)
    # A place that was named and is wrong is an error, though the other places have the files.
    (mine / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(FileNotFoundError, match=r"JDL_FASHION_MNIST is .*no t10k-labels-idx1-ubyte"):
        fashion_mnist()
    with pytest.raises(FileNotFoundError, match=r"folder is .*nowhere, which has no train-images"):
        fashion_mnist(tmp_path / "nowhere")


def test_fashion_mnist_refuses_other_content(small, tmp_path):
    wrong = small["train-images-idx3-ubyte"][:-1] + b"!"
    folder = write(tmp_path / "mine", small | {"train-images-idx3-ubyte": wrong}, zipped=True)
    with pytest.raises(ValueError, match=r"train-images-idx3-ubyte.gz is not the published .*verify=False"):
        fashion_mnist(folder)
    assert fashion_mnist(folder, verify=False, uint8=True).train["input"].ravel()[-1] == ord("!")
    mixed = small | {"train-images-idx3-ubyte": small["t10k-images-idx3-ubyte"]}
    with pytest.raises(ValueError, match=r"\['input'\] has 20.*\['target'\] has 60"):
        fashion_mnist(write(tmp_path / "mixed", mixed), verify=False)


def test_fashion_mnist_options(small, tmp_path):
    folder = write(tmp_path / "mine", small)
    raw = fashion_mnist(folder, uint8=True, validation=0.5)
    unit = fashion_mnist(folder, normalize=False, validation=0.5)
    normal = fashion_mnist(folder, validation=0.5)
    assert raw.train["input"].dtype == np.uint8
    assert raw.normalizer is unit.normalizer is None
    np.testing.assert_array_equal(np.bincount(raw.validation["target"]), np.full(10, 3))
    for part in ("train", "validation", "test"):
        images = getattr(raw, part)["input"]
        np.testing.assert_allclose(getattr(unit, part)["input"], images / 255, rtol=1e-6)
        np.testing.assert_allclose(normal.normalizer.invert(getattr(normal, part)["input"]), images / 255, atol=1e-6)
    np.testing.assert_allclose(normal.train["input"].std(), 1, rtol=1e-5)
    other = fashion_mnist(folder, uint8=True, validation=0.5, split_seed=1)
    assert not np.array_equal(other.train["input"], raw.train["input"])
    with pytest.raises(ValueError, match=r"validation is 1.0"):
        fashion_mnist(folder, validation=1.0)


# --- downloads


@pytest.fixture
def server():
    """A web server on the loopback; `server.replies` maps a path to (status, bytes, length it declares)."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.server.asked.append(self.path)
            status, content, length = self.server.replies.get(self.path, (404, b"", 0))
            self.send_response(status)
            if length is not None:
                self.send_header("Content-Length", str(length))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *arguments):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.replies, server.asked = {}, []
        server.url = f"http://127.0.0.1:{server.server_port}/"
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def serve(server, contents):
    zipped = {name: gzip.compress(content, mtime=0) for name, content in contents.items()}
    server.replies = {f"/{name}.gz": (200, body, len(body)) for name, body in zipped.items()}


def cached(tmp_path):
    return sorted(path.name for path in (tmp_path / "cache/jdl/fashion-mnist").iterdir())


def test_fetch_fills_the_cache_once(small, server, tmp_path):
    serve(server, small)
    fetched = fashion_mnist(fetch=True, base_url=server.url, uint8=True)
    assert len(fetched.train["target"]) == 60
    assert cached(tmp_path) == sorted(f"{name}.gz" for name in small)
    assert len(server.asked) == 4
    again = fashion_mnist(uint8=True)
    fashion_mnist(fetch=True, base_url=server.url)
    np.testing.assert_array_equal(again.train["input"], fetched.train["input"])
    assert len(server.asked) == 4


@pytest.mark.parametrize("fault", ["truncated", "truncated silently", "wrong content", "missing"])
def test_a_failed_fetch_leaves_nothing_behind_and_can_go_on(small, server, tmp_path, fault):
    serve(server, small)
    path = "/t10k-images-idx3-ubyte.gz"
    status, body, length = server.replies[path]
    server.replies[path], error, message = {
        "truncated": ((status, body[:-20], length), OSError, "IncompleteRead"),
        "truncated silently": ((status, body[:-20], None), ValueError, "truncated gzip"),
        "wrong content": (server.replies["/t10k-labels-idx1-ubyte.gz"], ValueError, "SHA-256 of its content"),
        "missing": ((404, b"", 0), OSError, "404"),
    }[fault]
    with pytest.raises(error, match=message) as caught:
        fashion_mnist(fetch=True, base_url=server.url)
    assert re.search("t10k-images-idx3-ubyte.gz", str(caught.value))
    # What came before is whole and kept; what failed has left no file, under any name.
    assert cached(tmp_path) == ["train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"]
    serve(server, small)
    fashion_mnist(fetch=True, base_url=server.url)
    assert server.asked.count("/train-images-idx3-ubyte.gz") == 1
    assert len(cached(tmp_path)) == 4


def test_fetch_without_a_server(small):
    with pytest.raises(OSError, match=r"downloading http://127.0.0.1:9/train-images"):
        fashion_mnist(fetch=True, base_url="http://127.0.0.1:9/")


# --- the real files


@needs_debian_files
def test_fashion_mnist_as_published(monkeypatch):
    monkeypatch.delenv("JDL_FASHION_MNIST", raising=False)
    dataset = fashion_mnist(validation=0.1)
    shapes = [part["input"].shape for part in (dataset.train, dataset.validation, dataset.test)]
    assert shapes == [(54000, 28, 28, 1), (6000, 28, 28, 1), (10000, 28, 28, 1)]
    np.testing.assert_array_equal(np.bincount(dataset.validation["target"]), np.full(10, 600))
    # Mean and deviation of the training pixels as they are commonly quoted.
    np.testing.assert_allclose(dataset.normalizer.mean.item(), 0.2860, atol=1e-3)
    np.testing.assert_allclose(dataset.normalizer.std.item(), 0.3530, atol=1e-3)
    assert dataset.class_names[9] == "Ankle boot"
    labels = read_idx(Path(images_module.DEBIAN_FOLDER) / "train-labels-idx1-ubyte.gz")
    assert labels[:3].tolist() == [9, 0, 0]
