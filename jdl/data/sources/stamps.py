"""Tux Paint's stamps: a few hundred cut-out photographs and drawings, sorted by what they show."""

import os
from pathlib import Path

import numpy as np
from jaxtyping import Int32, UInt8

DEBIAN_FOLDER = Path("/usr/share/tuxpaint/stamps")
ENVIRONMENT_VARIABLE = "JDL_STAMPS"
CLASSES = {
    "mammal": "animals/mammals",
    "bird": "animals/birds",
    "food": "food",
    "plant": "plants",
    "vehicle": "vehicles",
    "household": "household",
}


def stamps(
    folder: str | os.PathLike[str] | None = None, size: int = 128
) -> tuple[UInt8[np.ndarray, "images {size} {size} 3"], Int32[np.ndarray, " images"], tuple[str, ...]]:
    """Load about 280 pictures in six classes on a white background (Debian's tuxpaint-stamps-default).

    Each picture is scaled down to fit into a square, with its aspect ratio kept, and centered.

    Args:
        folder: where the stamps are; by default `$JDL_STAMPS`, else the folder of the Debian package.
        size: height and width of the images in pixels.

    Returns:
        The images, the labels and the class names.

    Raises:
        FileNotFoundError: if the stamps are not there; the message says what to do.
    """
    from PIL import Image

    home = Path(folder or os.environ.get(ENVIRONMENT_VARIABLE) or DEBIAN_FOLDER)
    if missing := [part for part in CLASSES.values() if not (home / part).is_dir()]:
        raise FileNotFoundError(
            f"Tux Paint's stamps are not in {home} (it has no {missing[0]}): install the Debian package "
            f"tuxpaint-stamps-default, or pass folder= (or set {ENVIRONMENT_VARIABLE}) to its folder stamps"
        )
    images, labels = [], []
    for label, part in enumerate(CLASSES.values()):
        for file in sorted((home / part).rglob("*.png")):
            if file.stem.endswith(("_mirror", "_flip")):  # a mirrored or flipped copy of another picture
                continue
            with Image.open(file) as opened:
                picture = opened.convert("RGBA")
            picture.thumbnail((size, size), Image.Resampling.LANCZOS)
            page = Image.new("RGBA", (size, size), "white")
            page.alpha_composite(picture, ((size - picture.width) // 2, (size - picture.height) // 2))
            images.append(np.asarray(page.convert("RGB")))
            labels.append(label)
    return np.stack(images), np.array(labels, np.int32), tuple(CLASSES)
