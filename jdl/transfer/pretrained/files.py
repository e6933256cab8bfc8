"""Weight files: safetensors, PyTorch's formats and npz, read as arrays by name whatever library wrote them."""

import collections
import io
import os
import pickle
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

Arrays = dict[str, np.ndarray]

# torch/storage.py: the element types of PyTorch's typed storages.
_STORAGES: dict[str, Any] = {
    "FloatStorage": np.float32,
    "DoubleStorage": np.float64,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # torch/serialization.py, before the zip format of PyTorch 1.6


def read(path: str | os.PathLike[str]) -> Arrays:
    """Read the arrays of a `.safetensors`, `.npz` or PyTorch file (`.pt`, `.pth`, `.bin`), by name.

    PyTorch itself is not needed, and nothing in the file is executed. The names of nested dicts are joined with dots.

    Args:
        path: the file.

    Raises:
        FileNotFoundError: for a file that does not exist
        ValueError: for a damaged file, and for a pickle that asks for more than tensors and dicts of them
        ImportError: for a `.safetensors` file, if the package safetensors is not installed
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there are no weights at {path}; name a .safetensors, .npz, .pt, .pth or .bin file")
    safetensors = _safetensors() if path.suffix == ".safetensors" else None
    try:
        if safetensors:
            return safetensors.load_file(path)
        if path.suffix == ".npz":
            # Open the file here, because NumPy leaves a damaged archive open.
            with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                return dict(arrays)
        return _flat(_read_zip(path) if zipfile.is_zipfile(path) else _read_legacy(path))
    except Exception as error:  # each reader has its own errors, and a damaged file may raise any of them
        kind = "safetensors" if safetensors else "NumPy's" if path.suffix == ".npz" else "PyTorch's"
        raise ValueError(f"{path} cannot be read as a file of {kind}; is it whole? {error}") from error


def write(path: str | os.PathLike[str], arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays to a `.safetensors` file; a crash leaves the previous file as it was.

    Args:
        path: the file.
        arrays: arrays by name.

    Raises:
        ValueError: for a path with another suffix
        ImportError: if the package safetensors is not installed
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"weights are written as .safetensors, not to {path.name}")
    temporary = path.with_name(f"{path.name}.part")
    # Safetensors writes memory as it is, so a transposed view must be copied into C order first.
    _safetensors().save_file({name: np.asarray(array, order="C") for name, array in arrays.items()}, temporary)
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.replace(path)


def _safetensors() -> Any:
    try:
        import safetensors.numpy
    except ImportError as error:
        raise ImportError("safetensors files need the package safetensors: pip install 'jdl[weights]'") from error
    return safetensors.numpy


class _Storage:
    """Memory of a tensor, which may be filled later: the legacy format writes it after the tensors."""

    def __init__(self, dtype: Any, count: int) -> None:
        self.values = np.empty(count, dtype)


class _Unpickler(pickle.Unpickler):
    """Build dicts of arrays from PyTorch's pickles, and nothing else."""

    def __init__(self, file: Any, storage: Any) -> None:
        super().__init__(file)
        self._storage = storage

    def find_class(self, module: str, name: str) -> Any:
        """Resolve the few names that a file of tensors uses."""
        if module in ("torch", "torch.storage") and name in _STORAGES:
            return _STORAGES[name]
        known = {
            ("torch._utils", "_rebuild_tensor_v2"): _tensor,
            ("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
            ("collections", "OrderedDict"): collections.OrderedDict,
        }
        if (module, name) not in known:
            raise ValueError(
                f"the file asks for {module}.{name}, and only tensors and dicts are read; in PyTorch, save "
                "model.state_dict() alone"
            )
        return known[module, name]

    def persistent_load(self, pid: Any) -> Any:
        """Resolve a storage: ("storage", type, key, device, count, ...)."""
        kind, dtype, key, _, count, *_ = pid
        if kind != "storage" or dtype not in _STORAGES.values() or count < 0:
            raise ValueError(f"the file asks for {str(pid)[:80]}, which is no tensor's memory")
        return self._storage(dtype, key, count)


def _tensor(storage: _Storage, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> np.ndarray:
    itemsize = storage.values.itemsize
    last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
    # Negative values are refused too: they would read memory outside the storage.
    if min(offset, *size, *stride, 0) < 0 or (0 not in size and last >= len(storage.values)):
        raise ValueError(f"a tensor of shape {size} reaches beyond its memory of {len(storage.values)} numbers")
    strides = [step * itemsize for step in stride]
    return np.lib.stride_tricks.as_strided(storage.values[offset:], size, strides)


def _read_zip(path: Path) -> Any:
    with zipfile.ZipFile(path) as archive:
        name = next((name for name in archive.namelist() if name.endswith("/data.pkl")), None)
        if name is None:
            raise ValueError(f"it is a zip file without a data.pkl, of {', '.join(archive.namelist()[:5])}")
        folder = name.removesuffix("data.pkl")
        kept: dict[str, _Storage] = {}

        def storage(dtype: Any, key: str, count: int) -> _Storage:
            if key not in kept:
                kept[key] = _Storage(dtype, count)
                kept[key].values[:] = np.frombuffer(archive.read(f"{folder}data/{key}"), dtype, count)
            return kept[key]

        return _Unpickler(io.BytesIO(archive.read(name)), storage).load()


def _read_legacy(path: Path) -> Any:
    with path.open("rb") as file:
        magic = _Unpickler(file, None).load()
        if magic != _LEGACY_MAGIC:
            raise ValueError(f"it starts with {str(magic)[:40]!r}")
        for _ in range(2):  # the protocol, and facts about the machine that wrote the file
            _Unpickler(file, None).load()
        kept: dict[str, _Storage] = {}
        loaded = _Unpickler(file, lambda dtype, key, count: kept.setdefault(key, _Storage(dtype, count))).load()
        for key in _Unpickler(file, None).load():
            values = kept[key].values
            (count,) = struct.unpack("<q", file.read(8))
            values[:] = np.frombuffer(file.read(count * values.itemsize), values.dtype, count)
        return loaded


def _flat(loaded: Any, prefix: str = "") -> Arrays:
    if not isinstance(loaded, Mapping):
        raise ValueError(f"it holds a {type(loaded).__name__}, not a dict of tensors; save model.state_dict()")
    arrays: Arrays = {}
    for name, value in loaded.items():
        if isinstance(value, np.ndarray):
            arrays[f"{prefix}{name}"] = value
        elif isinstance(value, Mapping):
            arrays |= _flat(value, f"{prefix}{name}.")
    return arrays
