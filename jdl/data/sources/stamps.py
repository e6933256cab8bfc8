"""Tux Paint's stamps: a few hundred photographs and drawings, cut out, sorted by what they show."""

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
    """About 280 pictures in six classes on white: images, labels, class names (Debian's tuxpaint-stamps-default).

    They are read from `folder`, else from `$JDL_STAMPS`, else from where the Debian package puts them;
    FileNotFoundError says so where they are nowhere. Each picture fills a square as far as its shape allows.
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
            if file.stem.endswith(("_mirror", "_flip")):  # the same picture, turned
                continue
            with Image.open(file) as opened:
                picture = opened.convert("RGBA")
            picture.thumbnail((size, size), Image.Resampling.LANCZOS)
            page = Image.new("RGBA", (size, size), "white")
            page.alpha_composite(picture, ((size - picture.width) // 2, (size - picture.height) // 2))
            images.append(np.asarray(page.convert("RGB")))
            labels.append(label)
    return np.stack(images), np.array(labels, np.int32), tuple(CLASSES)
