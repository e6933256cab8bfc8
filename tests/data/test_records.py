"""Readers of files against the files' own makers: Pillow, plain slices of a list, a round trip."""

import pickle
import struct
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from jdl.data import records


def picture(height=8, width=8, channels=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)


def save(path, array, mode=None, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array)
    (image.convert(mode) if mode else image).save(path, **options)
    return path


# --- image folders


def test_an_image_folder_is_its_files_by_class_and_path(tmp_path):
    pictures = {"dog/b.png": 0, "dog/a.PNG": 1, "ant/deep/c.bmp": 2, "cat/d.png": 3, "cat/e.png": 4}
    for name, seed in pictures.items():
        save(tmp_path / name, picture(seed=seed))
    (tmp_path / "cat" / "notes.txt").write_text("no image")
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "readme.md").write_text("no class")
    data = records.image_folder(tmp_path, (8, 8))
    assert data.class_names == ("ant", "cat", "dog")
    assert [data.name(i) for i in range(len(data))] == [
        str(tmp_path / name) for name in ("ant/deep/c.bmp", "cat/d.png", "cat/e.png", "dog/a.PNG", "dog/b.png")
    ]
    assert [data[i]["target"] for i in range(5)] == [0, 1, 1, 2, 2]
    assert data[0]["target"].dtype == np.int32
    for i, seed in enumerate((2, 3, 4, 1, 0)):
        np.testing.assert_array_equal(data[i]["input"], picture(seed=seed))
        assert data[i]["input"].dtype == np.uint8
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(data))[3]["input"], data[3]["input"])
    with pytest.raises(IndexError, match="no example 5: the ImageFolder has 5"):
        data[5]


@pytest.mark.parametrize(("height", "width"), [(20, 64), (64, 20)])
def test_the_shorter_side_is_scaled_and_the_center_cut_out(tmp_path, height, width):
    array = picture(height, width)
    save(tmp_path / "a" / "a.png", array)
    cut = records.image_folder(tmp_path, (10, 10))[0]["input"]
    scaled = Image.fromarray(array).resize((width // 2, height // 2), Image.Resampling.BILINEAR)
    offset = (max(height, width) // 2 - 10) // 2
    box = (offset, 0, offset + 10, 10) if width > height else (0, offset, 10, offset + 10)
    expected = np.asarray(scaled.crop(box))
    # At the cut itself the resizing filter sees, or does not see, what is cut off.
    np.testing.assert_array_equal(cut[1:-1, 1:-1], expected[1:-1, 1:-1])
    assert records.image_folder(tmp_path, (4, 6))[0]["input"].shape == (4, 6, 3)
    np.testing.assert_array_equal(records.image_folder(tmp_path, None)[0]["input"], array)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_images_of_any_mode_have_the_channels_asked_for(tmp_path, channels):
    made = {"L": picture(channels=1), "RGB": picture(), "RGBA": picture(channels=4), "P": picture()}
    for mode, array in made.items():
        save(tmp_path / "a" / f"{mode}.png", array, mode)
    data = records.image_folder(tmp_path, (8, 8), channels)
    read = {mode: data[i]["input"] for i, mode in enumerate(sorted(made))}
    assert {image.shape for image in read.values()} == {(8, 8, channels)}
    if channels == 1:
        red, green, blue = np.moveaxis(made["RGB"].astype(float), -1, 0)
        luma = 0.299 * red + 0.587 * green + 0.114 * blue  # ITU-R 601
        np.testing.assert_allclose(read["RGB"][..., 0], luma, atol=1)
        np.testing.assert_array_equal(read["L"], made["L"])
    else:
        np.testing.assert_array_equal(read["L"][..., :3], np.repeat(made["L"], 3, -1))
        np.testing.assert_array_equal(read["RGBA"], made["RGBA"][..., :channels])
        np.testing.assert_array_equal(read["RGB"][..., 3:], 255)


def test_a_photograph_is_turned_upright(tmp_path):
    array = picture(4, 6)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to see it
    save(tmp_path / "a" / "a.png", array, exif=exif)
    np.testing.assert_array_equal(records.image_folder(tmp_path, None)[0]["input"], np.rot90(array, -1))


@pytest.mark.parametrize(("suffix", "dtype"), [("png", np.uint16), ("tif", np.uint16), ("tif", np.float32)])
def test_deep_images_are_read_as_they_are(tmp_path, suffix, dtype):
    array = (np.random.default_rng(0).random((6, 8)) * 60_000).astype(dtype)
    (tmp_path / "a").mkdir()
    Image.fromarray(array).save(tmp_path / "a" / f"0.{suffix}")
    found = records.image_folder(tmp_path, None, 1)[0]["input"]
    assert found.dtype == dtype
    np.testing.assert_array_equal(found[..., 0], array)
    thrice = records.image_folder(tmp_path, (6, 8), 3)[0]["input"]
    np.testing.assert_array_equal(thrice, np.repeat(array[..., None], 3, -1))
    scaled = records.image_folder(tmp_path, (3, 4), 1, scale=1 / 65535)[0]["input"]
    assert scaled.dtype == np.float32
    assert scaled.shape == (3, 4, 1)
    np.testing.assert_allclose(scaled.mean() * 65535, array.astype(float).mean(), rtol=0.05)
    with pytest.raises(ValueError, match="which has no RGBA; give channels=1 or 3"):
        records.image_folder(tmp_path, None, 4)[0]


def test_numbers_of_two_kinds_are_told_and_made_one_by_scale(tmp_path):
    save(tmp_path / "a" / "0.png", picture(channels=1))
    Image.fromarray(np.full((8, 8), 40000, np.uint16)).save(tmp_path / "a" / "1.png")
    data = records.image_folder(tmp_path, None, 1)
    assert data[0]["input"].dtype == np.uint8
    with pytest.raises(ValueError, match=r"1.png has uint16 pixels and .*0.png uint8; convert one .*scale="):
        data[1]
    data = records.image_folder(tmp_path, None, 1, scale=0.5)
    assert {data[i]["input"].dtype for i in (0, 1)} == {np.dtype(np.float32)}
    assert (data[1]["input"] == 20000).all()


def test_palettes_with_transparency_and_cmyk(tmp_path):
    (tmp_path / "a").mkdir()
    palette = Image.fromarray(np.array([[0, 1], [1, 0]], np.uint8), "P")
    palette.putpalette([255, 0, 0, 0, 0, 255])
    palette.save(tmp_path / "a" / "0.png", transparency=1)
    Image.new("CMYK", (2, 2), (0, 255, 255, 0)).save(tmp_path / "a" / "1.jpg", quality=100)
    clear = records.image_folder(tmp_path, None, 4)[0]["input"]
    np.testing.assert_array_equal(clear[0], [[255, 0, 0, 255], [0, 0, 255, 0]])
    np.testing.assert_array_equal(records.image_folder(tmp_path, None)[0]["input"][0], [[255, 0, 0], [0, 0, 255]])
    np.testing.assert_allclose(records.image_folder(tmp_path, None)[1]["input"], [[[255, 0, 0]] * 2] * 2, atol=3)


def deep_color():
    """A PNG of 16 bits in each of three channels, which Pillow does not write."""
    rows = b"".join(b"\0" + struct.pack(">24H", *range(24)) for _ in range(8))

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", 8, 8, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_a_file_that_is_no_image_is_named(tmp_path):
    whole = save(tmp_path / "a" / "0.jpg", picture(64, 64)).read_bytes()
    (tmp_path / "a" / "1.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "a" / "2.png").write_bytes(b"nothing of the kind")
    (tmp_path / "a" / "3.png").write_bytes(deep_color())
    data = records.image_folder(tmp_path, (8, 8))
    assert data[0]["input"].shape == (8, 8, 3)
    for index, reason in ((1, "truncated"), (2, "cannot identify"), (3, "16 bits in each of several channels")):
        with pytest.raises(ValueError, match=rf"{data.name(index)} is no image .*{reason}.*remove it"):
            data[index]


def test_folders_and_arguments_that_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere is no folder"):
        records.image_folder(tmp_path / "nowhere", (8, 8))
    with pytest.raises(ValueError, match=r"has no class folders; put images at .*CLASS/IMAGE.jpg"):
        records.image_folder(tmp_path, (8, 8))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty has no images \(.bmp, .*add some or remove"):
        records.image_folder(tmp_path, (8, 8))
    with pytest.raises(ValueError, match=r"channels=2\): use 1 \(gray\)"):
        records.image_folder(tmp_path, (8, 8), channels=2)
    with pytest.raises(ValueError, match=r"size=\(0, 8\)"):
        records.image_folder(tmp_path, (0, 8))


# --- tokens


@given(
    chunks=st.lists(st.lists(st.integers(0, 255), max_size=9), max_size=6),
    dtype=st.sampled_from(["uint8", "uint16", "int32"]),
    context=st.integers(1, 5),
    stride=st.none() | st.integers(1, 7),
)
def test_windows_are_slices_of_the_tokens(tmp_path_factory, chunks, dtype, context, stride):
    path = tmp_path_factory.mktemp("tokens") / "tokens.bin"
    tokens = [token for chunk in chunks for token in chunk]
    assert records.write_tokens(path, iter(chunks), dtype) == len(tokens)
    starts = range(0, len(tokens) - context, stride or context)
    if not starts:
        with pytest.raises(ValueError, match=rf"has {len(tokens)} tokens .*takes {context + 1}; shorten the context"):
            records.token_file(path, dtype, context, stride)
        return
    data = records.token_file(path, dtype, context, stride)
    assert data.num_tokens == len(tokens)
    assert len(data) == len(starts)
    for i, start in enumerate(starts):
        window = data[i]
        assert window["input"].tolist() == tokens[start : start + context]
        assert window["target"].tolist() == tokens[start + 1 : start + context + 1]
        assert window["input"].dtype == window["target"].dtype == np.int32
        assert data.name(i) == f"{path}, tokens {start} to {start + context}"
    if stride is None:  # every token but the first is a target once, but for what is left over
        targets = [token for i in range(len(data)) for token in data[i]["target"].tolist()]
        assert targets == tokens[1 : 1 + len(targets)]
        assert len(tokens) - 1 - len(targets) < context


def test_a_token_file_is_sent_without_its_tokens(tmp_path):
    records.write_tokens(tmp_path / "tokens", [np.arange(50_000)])
    data = records.token_file(tmp_path / "tokens", "uint16", 10)
    data[0]
    sent = pickle.dumps(data)
    assert len(sent) < 1000
    np.testing.assert_array_equal(pickle.loads(sent)[7]["input"], np.arange(70, 80))
    data[0]["input"][:] = 0  # of its own: neither the file nor the target changes
    np.testing.assert_array_equal(data[0]["target"], np.arange(1, 11))


def test_tokens_that_are_refused_leave_the_old_file_alone(tmp_path):
    path = tmp_path / "tokens"
    records.write_tokens(path, [[1, 2, 3]])
    with pytest.raises(
        ValueError, match=r"token 4 \(chunk 1, place 2\) is 65536, and uint16 holds 0 to 65535; .*wider"
    ):
        records.write_tokens(path, [[1, 2], [3, 4, 65536, 70000]])
    with pytest.raises(ValueError, match=r"token 0 .*is -1, and uint8 holds 0 to 255"):
        records.write_tokens(path, [[-1]], "uint8")
    with pytest.raises(ValueError, match=r"chunk 1 is float64 of shape \(1,\); give integers"):
        records.write_tokens(path, [[1], [0.5]])
    with pytest.raises(ValueError, match=r"dtype=float32\): token ids are integers"):
        records.write_tokens(path, [[1]], np.float32)

    def interrupted():
        yield [7] * 100
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        records.write_tokens(path, interrupted())
    assert [file.name for file in tmp_path.iterdir()] == ["tokens"]
    assert np.fromfile(path, "<u2").tolist() == [1, 2, 3]


def test_token_files_that_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no file .*nowhere; write_tokens makes one"):
        records.token_file(tmp_path / "nowhere", "uint16", 4)
    (tmp_path / "odd").write_bytes(bytes(7))
    with pytest.raises(ValueError, match="odd has 7 bytes, no whole number of uint16"):
        records.token_file(tmp_path / "odd", "uint16", 1)
    with pytest.raises(ValueError, match="context=0"):
        records.token_file(tmp_path / "odd", "uint8", 0)
    with pytest.raises(ValueError, match="stride=0"):
        records.token_file(tmp_path / "odd", "uint8", 2, 0)


# --- ArrayRecord


def example(i):
    return {
        "input": {"image": picture(seed=i), "scale": np.asarray(jnp.full(3, i / 2, jnp.bfloat16))},
        "target": np.int32(i),
        "mask": np.arange(i + 1) > 0,  # of unequal lengths
    }


def test_array_records_are_what_was_written(tmp_path):
    pytest.importorskip("array_record")
    paths = [tmp_path / "a.array_record", tmp_path / "b.array_record"]
    assert records.write_array_records(paths[0], (example(i) for i in range(5))) == 5
    records.write_array_records(paths[1], [example(5), example(6)])
    data = records.array_records(paths)
    assert len(data) == 7
    for i in (6, 0, 4, 5):
        read = data[i]
        assert jax.tree.structure(read) == jax.tree.structure(example(i))
        for a, b in zip(jax.tree.leaves(read), jax.tree.leaves(example(i)), strict=True):
            np.testing.assert_array_equal(a, b)
            assert a.dtype == b.dtype
            assert a.flags.writeable
    assert len(records.array_records(str(paths[0]))) == 5
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(data))[3]["target"], 3)
    assert data.name(6) == f"record 6 of {paths[0]}, {paths[1]}"


def test_array_records_that_are_refused(tmp_path):
    pytest.importorskip("array_record")
    from array_record.python.array_record_module import ArrayRecordWriter

    path = tmp_path / "records"
    records.write_array_records(path, [example(0)])
    for examples, message in (
        ([], "there are no examples"),
        ([example(0), {"input": np.zeros(3)}], r"example 1 is .*give all the same keys"),
        ([{"input": np.zeros(3), "text": "words"}], r"example 0\['text'\] is <U5, no number; encode"),
    ):
        with pytest.raises(ValueError, match=message):
            records.write_array_records(path, examples)
    assert [file.name for file in tmp_path.iterdir()] == ["records"]
    assert len(records.array_records(path)) == 1

    with pytest.raises(FileNotFoundError, match=r"no file .*nowhere; write_array_records"):
        records.array_records([path, tmp_path / "nowhere"])
    with pytest.raises(ValueError, match="no paths"):
        records.array_records([])
    (tmp_path / "text").write_text("no record\n" * 100)
    with pytest.raises(ValueError, match=r"not every file is an ArrayRecord file \(.*text\)"):
        records.array_records(tmp_path / "text")
    writer = ArrayRecordWriter(str(tmp_path / "other"), "group_size:1")
    writer.write(b"no MessagePack")
    writer.close()
    with pytest.raises(ValueError, match=r"record 0 of .*other is no example of write_array_records"):
        records.array_records(tmp_path / "other")[0]
