"""Image data sets: scikit-learn's digits, and Fashion-MNIST from files on this machine or downloaded."""

import gzip
import hashlib
import math
import os
import tempfile
import urllib.error
import urllib.request
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped

from jdl.data.dataset import Data, Dataset, Normalizer, split

HOME = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
ENVIRONMENT_VARIABLE = "JDL_FASHION_MNIST"
FASHION_CLASSES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
# SHA-256 of the decompressed content, because Debian's .gz files are compressed differently from the published ones.
CHECKSUMS = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
IDX_DTYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


def digits(split_seed: int = 0, fractions: Sequence[float] = (0.8, 0.0, 0.2), normalize: bool = False) -> Dataset:
    """Load 1797 handwritten digits in 10 classes, float32 `[examples, 8, 8, 1]` in [0, 1], from scikit-learn.

    Args:
        split_seed: determines which examples are in which part.
        fractions: the fractions for train, validation and test, as in `jdl.data.split`.
        normalize: whether to subtract the mean and divide by the standard deviation of the training part, both over
            all pixels.

    Raises:
        ValueError: as `jdl.data.split` does, such as for fractions that do not sum to 1.

    Source: Alpaydin and Kaynak, "Optical recognition of handwritten digits", UCI, 1998.
    """
    from sklearn.datasets import load_digits

    bunch: Any = load_digits()
    data = {"input": bunch.images.astype(np.float32)[..., None] / 16, "target": bunch.target.astype(np.int32)}
    train, validation, test = split(data, fractions, seed=split_seed)
    names = tuple(str(digit) for digit in range(10))
    return _image_dataset("digits", train, validation, test, names, normalize)


def fashion_mnist(
    folder: str | os.PathLike[str] | None = None,
    *,
    fetch: bool = False,
    validation: float = 0.0,
    split_seed: int = 0,
    normalize: bool = True,
    uint8: bool = False,
    verify: bool = True,
    base_url: str = HOME,
) -> Dataset:
    """Load Fashion-MNIST: 60,000 training and 10,000 test images of clothing in 10 classes, `[examples, 28, 28, 1]`.

    The four IDX files, gzipped or not, are read from `folder`, else from the folder in the environment variable
    JDL_FASHION_MNIST, else from Debian's package dataset-fashion-mnist, else from the user's cache.

    Args:
        folder: the folder of the files.
        fetch: whether to download files that are nowhere else into the user's cache (30 MB).
        validation: the fraction of the training examples, in [0, 1), that becomes the validation part, drawn class by
            class.
        split_seed: determines the validation part.
        normalize: whether to subtract the mean and divide by the standard deviation of the training part.
        uint8: whether to keep the pixels as bytes, in a quarter of the memory; they are then not normalized. Otherwise
            they are float32 in [0, 1] before normalization.
        verify: whether to compare the files with the published SHA-256.
        base_url: where to download from.

    Raises:
        FileNotFoundError: if files are missing; the message names them and the remedies.
        OSError: if a download fails.
        ValueError: for a validation fraction out of range, and for a file that is damaged or not the published one.

    Source: Xiao, Rasul and Vollgraf, "Fashion-MNIST: a novel image dataset for benchmarking machine learning
    algorithms", 2017.
    """
    if not 0 <= validation < 1:
        raise ValueError(f"validation is {validation}: it must be a fraction of the training part, in [0, 1).")
    source = _locate(folder, fetch, base_url)
    train = _load_part(source, "train", verify)
    test = _load_part(source, "t10k", verify)
    held_out = None
    if validation:
        train, _, held_out = split(train, (1 - validation, 0.0, validation), seed=split_seed)
    if not uint8:
        for part in (train, held_out, test):
            if part is not None:
                part["input"] = part["input"].astype(np.float32) / 255
    return _image_dataset("fashion_mnist", train, held_out, test, FASHION_CLASSES, normalize and not uint8)


def _image_dataset(
    name: str, train: Data, validation: Data | None, test: Data, class_names: tuple[str, ...], normalize: bool
) -> Dataset:
    normalizer = Normalizer.fit(train["input"], "per channel") if normalize else None
    if normalizer is not None:
        for part in (train, validation, test):
            if part is not None:
                part["input"] = normalizer(part["input"])
    return Dataset(train, validation, test, len(class_names), class_names, name, normalizer)


def read_idx(path: str | os.PathLike[str]) -> Shaped[np.ndarray, "..."]:
    """Read an IDX file, the format of MNIST, gzipped or not.

    Args:
        path: the file.

    Returns:
        An array of the shape and the numeric type that the file names.

    Raises:
        ValueError: for a file that is not an IDX file, is truncated, or has bytes to spare; the message names it.

    Source: "The IDX file format" on LeCun's page of MNIST.
    """
    return _parse_idx(_read(Path(path)), path)


def _read(path: Path) -> bytes:
    content = path.read_bytes()
    if content[:2] != b"\x1f\x8b":
        return content
    try:
        return gzip.decompress(content)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path} is a damaged or truncated gzip file ({error}): get it again.") from error


def _parse_idx(content: bytes, path: str | os.PathLike[str]) -> np.ndarray:
    # Two zero bytes, the type, the number of axes; the length of each axis, 4 bytes big-endian; the values.
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] not in IDX_DTYPES or content[3] == 0:
        raise ValueError(
            f"{path} is not an IDX file: it begins with {content[:4].hex(' ') or 'nothing'}, where 00 00, a "
            f"type ({', '.join(f'{code:02x}' for code in IDX_DTYPES)}) and a number of axes are due."
        )
    dtype, num_axes = np.dtype(IDX_DTYPES[content[2]]), content[3]
    start = 4 + 4 * num_axes
    if len(content) < start:
        raise ValueError(f"{path} is truncated in its header: {len(content)} bytes, where {start} are due.")
    shape = tuple(int(length) for length in np.frombuffer(content, ">u4", num_axes, offset=4))
    due = start + math.prod(shape) * dtype.itemsize
    if len(content) != due:
        fault = "is truncated" if len(content) < due else "has bytes to spare"
        raise ValueError(f"{path} {fault}: {len(content)} bytes, where shape {shape} of {dtype.name} makes {due}.")
    # Copy, to have the machine's byte order and a writable array.
    return np.frombuffer(content, dtype, offset=start).reshape(shape).astype(dtype.newbyteorder("="))


def _load_part(folder: Path, prefix: str, verify: bool) -> Data:
    names = [name for name in CHECKSUMS if name.startswith(prefix)]
    arrays = []
    for name in names:
        path = _find(folder, name)
        assert path is not None  # `_locate` checked that it exists
        content = _read(path)
        if verify:
            _verify(content, name, path, "get it again, or pass verify=False if it is meant to differ")
        arrays.append(_parse_idx(content, path))
    images, labels = arrays
    if images.ndim != 3 or labels.ndim != 1:
        raise ValueError(
            f"{folder}: {names[0]} has shape {images.shape} and {names[1]} {labels.shape}, where "
            f"[examples, height, width] and [examples] are due."
        )
    return {"input": images[..., None], "target": labels.astype(np.int32)}


def _verify(content: bytes, name: str, where: object, remedy: str) -> None:
    digest = hashlib.sha256(content).hexdigest()
    if digest != CHECKSUMS[name]:
        raise ValueError(
            f"{where} is not the published {name}: the SHA-256 of its content is {digest}, where "
            f"{CHECKSUMS[name]} is due; {remedy}."
        )


def _find(folder: Path, name: str) -> Path | None:
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)


def _missing(folder: Path) -> list[str]:
    return [name for name in CHECKSUMS if _find(folder, name) is None]


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jdl" / "fashion-mnist"


def _locate(folder: str | os.PathLike[str] | None, fetch: bool, base_url: str) -> Path:
    ways = (
        f"pass folder= (or set {ENVIRONMENT_VARIABLE}) to where the files are, install the Debian package "
        f"dataset-fashion-mnist, or pass fetch=True to download 30 MB from {base_url}"
    )
    from_environment = os.environ.get(ENVIRONMENT_VARIABLE)
    # If the user names a folder, do not silently use another.
    for named, origin in ((folder, "folder"), (from_environment, ENVIRONMENT_VARIABLE)):
        if named:
            if missing := _missing(Path(named)):
                raise FileNotFoundError(f"{origin} is {named}, which has no {', '.join(missing)} (.gz): {ways}.")
            return Path(named)
    cache = _cache_folder()
    for candidate in (DEBIAN_FOLDER, cache):
        if not _missing(candidate):
            return candidate
    if not fetch:
        raise FileNotFoundError(f"Fashion-MNIST is neither in {DEBIAN_FOLDER} nor in {cache}: {ways}.")
    for name in _missing(cache):
        _download(f"{base_url.rstrip('/')}/{name}.gz", cache / f"{name}.gz", name)
    return cache


def _download(url: str, path: Path, name: str) -> None:
    """Download to a temporary name, verify, sync and rename, so that `path` is complete or absent, whatever happens."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with urllib.request.urlopen(url, timeout=60) as response:
            content = response.read()  # raises IncompleteRead if it is shorter than Content-Length
    except Exception as error:  # URLError, HTTPException, a timeout and others
        if isinstance(error, urllib.error.HTTPError):
            error.close()  # it keeps the connection open
        raise OSError(f"downloading {url} failed ({type(error).__name__}: {error}): try again later.") from error
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f"{path.name}.", suffix=".part")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        _verify(_read(Path(temporary)), name, url, "the server does not have the file that is wanted")
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    # Sync the folder, too, so that the new name is on the disk.
    parent = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(parent)
    finally:
        os.close(parent)
