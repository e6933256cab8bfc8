"""Data on disk, read one example at a time: image folders, token files and ArrayRecord files.

Each reader has a length, returns example i as a dict of NumPy arrays at `reader[i]`, and its name for error messages
at `reader.name(i)`. `jdl.pipeline` makes batches from readers; Grain calls them random-access data sources. They keep
only the places of the examples in memory, so they can be sent to worker processes.
"""

import contextlib
import operator
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

import jax
import numpy as np
from jaxtyping import Int, Shaped

type Example = dict[str, Any]

IMAGE_SUFFIXES = frozenset((".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"))
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}


def image_folder(
    path: str | os.PathLike[str], size: tuple[int, int] | None, channels: int = 3, *, scale: float | None = None
) -> "ImageFolder":
    """Open a folder that has one folder of images per class. Images are decoded when they are read.

    An example is `{"input": [height, width, channels], "target": int32 []}`. Targets number the sorted names of the
    class folders. Within a class, images are sorted by path and include those in subfolders. Images are uint8, or the
    type of the files: uint16 for 16-bit gray (microscopes, radiographs), float32 for float TIFF. Photographs are turned
    upright as their EXIF data says.

    Args:
        path: the folder, with images at `path/CLASS/IMAGE.jpg`.
        size: height and width. An image is scaled bilinearly until it covers them, and its center is cut out. None
            keeps the sizes of the images, for a `map` of your own.
        channels: 1 (gray), 3 (RGB) or 4 (RGBA). With 1 and 3, transparency is dropped. Images of more than 8 bits are
            gray, and 3 repeats their channel.
        scale: a factor for the values, which makes them float32: `scale=1 / 65535` for 16 bits.

    Raises:
        FileNotFoundError: for a folder that does not exist.
        ValueError: for a folder without class folders, a class without images, and wrong `size` or `channels`. Reading
            raises it for an image that cannot be decoded and, without `scale`, for one whose type differs from the
            first; the message names the file.
    """
    return ImageFolder(Path(path), size, channels, scale)


class ImageFolder:
    """The reader that `image_folder` returns.

    Attributes:
        path: the folder.
        size: height and width of the examples, or None.
        channels: channels of the examples.
        scale: the factor of their values, or None.
        class_names: the names of the class folders, sorted.
        files: the file of each example.
        targets: int32 `[examples]`; the class of each example.
    """

    def __init__(self, path: Path, size: tuple[int, int] | None, channels: int, scale: float | None = None) -> None:
        if channels not in _MODES:
            raise ValueError(f"image_folder(channels={channels}): use 1 (gray), 3 (RGB) or 4 (RGBA)")
        if size is not None and (len(size) != 2 or min(size) < 1):
            raise ValueError(f"image_folder(size={size}): give (height, width), each at least 1, or None")
        if not path.is_dir():
            raise FileNotFoundError(
                f"image_folder: {path} is no folder; give one with a folder of images for each class"
            )
        self.path, self.size, self.channels, self.scale = path, size, channels, scale
        self.class_names = tuple(sorted(entry.name for entry in path.iterdir() if _is_class(entry)))
        if not self.class_names:
            raise ValueError(f"image_folder: {path} has no class folders; put images at {path}/CLASS/IMAGE.jpg")
        files = [_images(path / class_name) for class_name in self.class_names]
        for class_name, found in zip(self.class_names, files, strict=True):
            if not found:
                raise ValueError(
                    f"image_folder: {path / class_name} has no images ({', '.join(sorted(IMAGE_SUFFIXES))}); "
                    "add some or remove the folder"
                )
        self.files = [file for found in files for file in found]
        self.targets = np.repeat(np.arange(len(files), dtype=np.int32), [len(found) for found in files])

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Example:
        index = _checked_index(self, index)
        image = self._decoded(self.files[index])
        if self.scale is not None:
            image = image.astype(np.float32) * np.float32(self.scale)
        elif image.dtype != self._dtype:
            raise ValueError(
                f"{self.files[index]} has {image.dtype} pixels and {self.files[0]} {self._dtype}; convert one of them, "
                "or give image_folder(scale=...), which makes all of them float32"
            )
        return {"input": image, "target": self.targets[index]}

    def name(self, index: int) -> str:
        """Return the file of an example."""
        return self.files[index]

    @cached_property
    def _dtype(self) -> np.dtype:
        """The type of the first image's values, which all images must have."""
        return self._decoded(self.files[0]).dtype

    def _decoded(self, file: str) -> Shaped[np.ndarray, "height width channels"]:
        from PIL import Image, ImageOps

        try:
            with Image.open(file) as opened:
                deep = opened.mode.startswith(("I", "F"))  # converting would clip it to 255
                if not deep and any("16" in str(tile) for tile in getattr(opened, "tile", [])):
                    raise ValueError("it has 16 bits in each of several channels, of which Pillow keeps 8")
                image = ImageOps.exif_transpose(opened)
                if opened.mode == "P" and "transparency" in opened.info and self.channels == 4:
                    image = image.convert("RGBA")
                image = image if deep else image.convert(_MODES[self.channels])
        except Exception as error:  # each format has a decoder with its own kinds of errors
            raise ValueError(
                f"{file} is no image that can be read ({error}); repair it, convert it or remove it"
            ) from error
        if self.size is not None:
            height, width = self.size
            image = ImageOps.fit(image, (width, height), Image.Resampling.BILINEAR)
        array = np.array(image).reshape(image.height, image.width, -1)
        if array.shape[-1] != self.channels:
            if self.channels == 4:
                raise ValueError(f"{file} is gray with {array.dtype} pixels, which has no RGBA; give channels=1 or 3")
            array = np.repeat(array, self.channels, -1)
        return array.astype(array.dtype.newbyteorder("="))


def _is_class(entry: Path) -> bool:
    return entry.is_dir() and not entry.name.startswith(".")


def _images(folder: Path) -> list[str]:
    found = []
    for parent, _, names in os.walk(folder, followlinks=True):
        found += [os.path.join(parent, name) for name in names if not name.startswith(".")]
    return sorted(file for file in found if os.path.splitext(file)[1].lower() in IMAGE_SUFFIXES)


def token_file(path: str | os.PathLike[str], dtype: Any, context: int, stride: int | None = None) -> "TokenFile":
    """Open a file of token ids, as `write_tokens` writes it, as windows for language models.

    Example i is `{"input": int32 [context], "target": int32 [context]}` from the `context + 1` tokens that begin at
    `i * stride`; the target is the input shifted by one token. Tokens at the end that do not fill a window are not
    read.

    Args:
        path: the file: little-endian integers without a header.
        dtype: the type of the integers, such as `np.uint16`.
        context: tokens of an input.
        stride: tokens between the starts of windows; by default `context`, so that inputs do not overlap and every
            token except the first is a target once.

    Raises:
        FileNotFoundError: for a file that does not exist.
        ValueError: for a file whose size is no multiple of the integers' or that is shorter than a window, for a dtype
            that is not an integer type, and for a context or stride below 1.
    """
    return TokenFile(Path(path), np.dtype(dtype), context, context if stride is None else stride)


class TokenFile:
    """The reader that `token_file` returns.

    Attributes:
        path: the file.
        dtype: the type of its integers.
        context: tokens of an input.
        stride: tokens between the starts of windows.
        num_tokens: tokens in the file.
    """

    def __init__(self, path: Path, dtype: np.dtype, context: int, stride: int) -> None:
        for name, value in (("context", context), ("stride", stride)):
            if value < 1:
                raise ValueError(f"token_file({name}={value}): it is at least 1 token")
        _check_token_dtype("token_file", dtype)
        if not path.is_file():
            raise FileNotFoundError(f"token_file: there is no file {path}; write_tokens makes one")
        size = path.stat().st_size
        if size % dtype.itemsize:
            raise ValueError(
                f"token_file: {path} has {size} bytes, no whole number of {dtype} ({dtype.itemsize} bytes each); "
                "give the dtype it was written with"
            )
        self.path, self.dtype, self.context, self.stride = path, dtype.newbyteorder("<"), context, stride
        self.num_tokens = size // dtype.itemsize
        if self.num_tokens <= context:
            raise ValueError(
                f"token_file(context={context}): {path} has {self.num_tokens} tokens of {dtype}, and a window takes "
                f"{context + 1}; shorten the context"
            )

    def __len__(self) -> int:
        return (self.num_tokens - self.context - 1) // self.stride + 1

    def __getitem__(self, index: int) -> dict[str, Int[np.ndarray, " context"]]:
        start = _checked_index(self, index) * self.stride
        window = self._tokens[start : start + self.context + 1]
        return {"input": window[:-1].astype(np.int32), "target": window[1:].astype(np.int32)}

    def name(self, index: int) -> str:
        """Return the file of an example and the numbers of its first and last token."""
        start = index * self.stride
        return f"{self.path}, tokens {start} to {start + self.context}"

    @cached_property
    def _tokens(self) -> np.memmap:
        return np.memmap(self.path, self.dtype, "r")

    def __getstate__(self) -> dict[str, Any]:
        # Leave out the memory map, which would be sent to a worker process as an array of the whole file.
        return {name: value for name, value in vars(self).items() if name != "_tokens"}


def write_tokens(path: str | os.PathLike[str], chunks: Iterable[Any], dtype: Any = np.uint16) -> int:
    """Write token ids as the file that `token_file` reads. Only one chunk at a time is in memory.

    The file gets its name once it is complete.

    Args:
        path: the file to write.
        chunks: arrays or lists of integers `[tokens]` of any lengths, such as one per document.
        dtype: the type to store; uint16 holds ids up to 65535.

    Returns:
        The number of tokens.

    Raises:
        ValueError: for ids that `dtype` cannot hold, and for chunks that are not integers along one axis.
        OSError: if the file cannot be written; the message names the remedy.
    """
    dtype = np.dtype(dtype)
    _check_token_dtype("write_tokens", dtype)
    limits = np.iinfo(dtype)
    written = 0
    with _appearing(Path(path)) as temporary, temporary.open("wb") as file:
        for number, chunk in enumerate(chunks):
            ids = np.asarray(chunk)
            if ids.ndim != 1 or (ids.size and not np.issubdtype(ids.dtype, np.integer)):
                raise ValueError(
                    f"write_tokens: chunk {number} is {ids.dtype} of shape {ids.shape}; give integers along one axis"
                )
            outside = (ids < limits.min) | (ids > limits.max)
            if outside.any():
                place = int(outside.argmax())
                raise ValueError(
                    f"write_tokens: token {written + place} (chunk {number}, place {place}) is {ids[place]}, and "
                    f"{dtype} holds {limits.min} to {limits.max}; give a wider dtype"
                )
            file.write(ids.astype(dtype.newbyteorder("<")).tobytes())
            written += ids.size
    return written


def _check_token_dtype(function: str, dtype: np.dtype) -> None:
    if not np.issubdtype(dtype, np.integer):
        raise ValueError(f"{function}(dtype={dtype}): token ids are integers; use uint16, or uint32 from 65536 ids up")


def array_records(paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> "ArrayRecords":
    """Open ArrayRecord files that `write_array_records` wrote.

    Args:
        paths: one file, or several whose examples follow each other.

    Raises:
        FileNotFoundError: for a file that does not exist.
        ImportError: if the package array_record is not installed (`pip install 'jdl[grain]'`).
        ValueError: for a file that is not an ArrayRecord file, and for no files. Reading raises it for a record that is
            not an example.
    """
    return ArrayRecords([Path(paths)] if isinstance(paths, str | os.PathLike) else [Path(path) for path in paths])


class ArrayRecords:
    """The reader that `array_records` returns.

    Attributes:
        paths: the files.
    """

    def __init__(self, paths: list[Path]) -> None:
        try:
            from array_record.python.array_record_data_source import ArrayRecordDataSource
        except ImportError as error:
            _lacks_array_record(error)
        if not paths:
            raise ValueError("array_records: there are no paths; give at least one file")
        for path in paths:
            if not path.is_file():
                raise FileNotFoundError(f"array_records: there is no file {path}; write_array_records makes one")
        self.paths = paths
        try:
            self._records = ArrayRecordDataSource([str(path) for path in paths])
        except Exception as error:
            listed = ", ".join(map(str, paths))
            raise ValueError(f"array_records: not every file is an ArrayRecord file ({listed}): {error}") from error

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Example:
        from flax.serialization import msgpack_restore

        index = _checked_index(self, index)
        record = self._records[index]
        try:
            example = msgpack_restore(record)
        except Exception as error:
            raise ValueError(f"{self.name(index)} is no example of write_array_records ({error})") from error
        return jax.tree.map(np.array, example)  # copied: views of the record's bytes are read-only

    def name(self, index: int) -> str:
        """Return the number of the record and the files."""
        return f"record {index} of {', '.join(map(str, self.paths))}"


def write_array_records(path: str | os.PathLike[str], examples: Iterable[Mapping[str, Any]]) -> int:
    """Write examples as the ArrayRecord file that `array_records` reads. Only one example at a time is in memory.

    The file gets its name once it is complete. Each example is a record in MessagePack, as Flax writes it.

    Args:
        path: the file to write.
        examples: dicts, or dicts of dicts, of numeric or boolean arrays. All have the same keys; shapes may differ.

    Returns:
        The number of examples.

    Raises:
        ImportError: if the package array_record is not installed (`pip install 'jdl[grain]'`).
        ValueError: for no examples, different keys, and values that are not numeric or boolean.
        OSError: if the file cannot be written; the message names the remedy.
    """
    try:
        from array_record.python.array_record_module import ArrayRecordWriter
    except ImportError as error:
        _lacks_array_record(error)
    from flax.serialization import msgpack_serialize

    written, first = 0, None
    with _appearing(Path(path)) as temporary:
        writer = ArrayRecordWriter(str(temporary), "group_size:1")  # larger groups only help reading in order
        try:
            for example in examples:
                arrays = jax.tree.map(np.asarray, dict(example))
                leaves, structure = jax.tree_util.tree_flatten_with_path(arrays)
                first = first or structure
                if structure != first:
                    raise ValueError(
                        f"write_array_records: example {written} is {structure}, and example 0 is {first}; "
                        "give all the same keys"
                    )
                for key, leaf in leaves:
                    if not (jax.numpy.issubdtype(leaf.dtype, np.number) or leaf.dtype == np.bool_):
                        raise ValueError(
                            f"write_array_records: example {written}{jax.tree_util.keystr(key)} is {leaf.dtype}, no "
                            "number; encode text as integers (np.frombuffer(text.encode(), np.uint8))"
                        )
                writer.write(msgpack_serialize(arrays))
                written += 1
        finally:
            writer.close()
        if not written:
            raise ValueError(f"write_array_records: there are no examples to write to {path}")
    return written


def _lacks_array_record(error: ImportError) -> NoReturn:
    raise ImportError("ArrayRecord files need their package: pip install 'jdl[grain]'") from error


def _checked_index(reader: ImageFolder | TokenFile | ArrayRecords, index: int) -> int:
    index = operator.index(index)
    if not 0 <= index < len(reader):
        raise IndexError(f"there is no example {index}: the {type(reader).__name__} has {len(reader)}, from 0 up")
    return index


@contextlib.contextmanager
def _appearing(path: Path) -> Iterator[Path]:
    """Yield a temporary name to write under. Finally sync and rename the file, or delete it after an error."""
    temporary = path.with_name(path.name + ".writing")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        for place in (temporary, path.parent):
            descriptor = os.open(place, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            if place == temporary:
                temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno is not None:
            message = f"{path} could not be written ({error.strerror}); free space there or choose another folder"
            raise OSError(message) from error
        raise
