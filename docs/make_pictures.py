"""The pictures of the documentation, from small runs; `make docs` calls it. With --readme, that of the README as well.

    python docs/make_pictures.py [--readme]

The README's picture is a screenshot of a report by headless Chromium; it is committed, the others are not.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

PICTURES = Path(__file__).parent / "pictures"
RUNS = {
    "digits": ["digits", "--seeds", "3", "--epochs", "10"],
    "ppo": ["ppo", "--env", "CartPole-v1", "--seeds", "3", "--total-steps", "100000", "--num-episodes", "20"],
}
# By the file's name here: a run and a file of its directory.
WANTED = {
    "digits_learning_curves.png": ("digits", "figures/learning_curves.png"),
    "digits_confusion.png": ("digits", "figures/confusion_matrix.png"),
    "ppo_learning_curves.png": ("ppo", "figures/learning_curves.png"),
    "ppo_episode.gif": ("ppo", "video.gif"),
}


def main() -> None:
    """Run, and copy what is wanted; what is there already stays."""
    PICTURES.mkdir(exist_ok=True)
    readme = "--readme" in sys.argv
    if not readme and all((PICTURES / name).is_file() for name in WANTED):
        return
    with tempfile.TemporaryDirectory() as folder:
        for name, words in RUNS.items():
            command = [sys.executable, "-m", "jdl", "run", *words, "--run-dir", f"{folder}/{name}"]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        for name, (run, file) in WANTED.items():
            source = Path(folder) / run / file
            if not source.is_file():
                there = sorted(str(one.relative_to(source.parents[1])) for one in (source.parents[1]).rglob("*.png"))
                raise FileNotFoundError(f"the run {run} has no {file}; it has {', '.join(there)}")
            shutil.copyfile(source, PICTURES / name)
        if readme:
            _screenshot(Path(folder) / "ppo" / "report.html", Path(__file__).parent / "report.png")


def _screenshot(page: Path, picture: Path) -> None:
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
    options = ["--headless", "--no-sandbox", "--hide-scrollbars", "--window-size=1100,900", f"--screenshot={picture}"]
    subprocess.run([browser, *options, page.as_uri()], check=True, capture_output=True)
    from PIL import Image

    Image.open(picture).convert("P", palette=Image.Palette.ADAPTIVE, colors=64).save(picture, optimize=True)


if __name__ == "__main__":
    main()
