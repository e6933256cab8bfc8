"""The report: self-contained, complete, and drawn by a browser as it is meant."""

import base64
import html.parser
import re
import shutil
import subprocess

import matplotlib.image
import numpy as np
import pytest
from matplotlib.figure import Figure

from jdl.report import run as report
from jdl.training import runs

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture
def run(tmp_path):
    """A finished run of three seeds on ten classes, one of which ended early."""
    random = np.random.default_rng(0)
    run = runs.create(tmp_path / "run", {"rate": 0.1, "name": "<b>&"}, experiment="example", seeds=(0, 1, 2))
    for step in range(10, 210, 10):
        losses = (2 * np.exp(-step / 60) + 0.05 * random.random(3)).tolist()
        run.log({"step": step, "seconds": step / 10, "train/loss": losses})
        accuracy = [0.9 - loss / 4 for loss in losses[:2]] + [None if step > 100 else 0.8]
        run.log({"step": step, "seconds": step / 10, "validation/accuracy": accuracy})
    target = random.integers(0, 10, 200)
    logits = random.normal(size=(3, 200, 10)) + 4 * np.eye(10)[target]
    run.save_arrays("predictions", logits=logits, target=target, input=random.random((200, 8, 8, 1)))
    run.finish({"accuracy": [0.95, 0.97, 0.96], "loss": [0.2, 0.1, 0.15]}, 12.3)
    return run


class Page(html.parser.HTMLParser):
    """The sources and links of a page, and its text."""

    def __init__(self):
        super().__init__()
        self.sources, self.text = [], []

    def handle_starttag(self, tag, attrs):
        self.sources += [value for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data):
        self.text.append(data)


def page(path):
    parsed = Page()
    parsed.feed(path.read_text())
    return parsed


def test_the_report_is_one_file_with_everything_in_it(run):
    found = page(report.write_report(run))
    assert len(found.sources) == 4
    for source in found.sources:
        assert source.startswith("data:image/png;base64,")
    text = " ".join(found.text)
    for words in ("example", "3 seeds", "12.3 s", "0.96", "Learning curves", "Confusion matrix", "confidently wrong",
                  "rate", "0.1", "<b>&", "packages.jax", "seed 2"):  # fmt: skip
        assert words in text


def test_its_figures_are_files_too(run):
    found = page(report.write_report(run))
    embedded = {base64.b64decode(source.split(",")[1]) for source in found.sources}
    assert {file.read_bytes() for file in (run.path / "figures").glob("*.png")} == embedded


def test_a_run_under_way_has_a_report(tmp_path):
    run = runs.create(tmp_path / "run", experiment="example")
    assert "not finished" in report.write_report(run).read_text()
    run.log({"step": 1, "train/loss": 1.0})
    assert "not finished" in report.write_report(run).read_text()


def test_what_the_experiment_saved_is_shown(tmp_path):
    run = runs.create(tmp_path / "run", experiment="example", seeds=(3, 4))
    run.save_figure("Own <figure>", Figure(), "its & note")
    for name in ("left", "right"):
        part = runs.create(run.path / name, experiment="example", seeds=(3, 4))
        part.log({"step": 1, "train/loss": [1.0, 2.0]})
        part.save_arrays("scores", returns=np.array([[10.0, 20.0]]) if name == "left" else np.array([[30.0, 40.0]]))
    (run.path / "right" / "video.gif").write_bytes(b"GIF89a")
    found = page(report.write_report(run))
    assert sorted(source.split(";")[0] for source in found.sources) == ["data:image/gif", *["data:image/png"] * 3]
    assert "data:image/gif;base64," + base64.b64encode(b"GIF89a").decode() in found.sources
    text = " ".join(found.text)
    for words in ("Own <figure>", "its & note", "Interquartile mean over seeds 25 [", "Seed 3, greedy actions"):
        assert words in text


@pytest.mark.browser
def test_a_browser_draws_it(run, tmp_path):
    if BROWSER is None:
        pytest.skip("no Chromium on PATH: apt-get install chromium")
    path = report.write_report(run)
    options = [
        "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
        f"--user-data-dir={tmp_path / 'profile'}",
    ]  # fmt: skip
    picture = tmp_path / "page.png"
    subprocess.run(
        [BROWSER, *options, "--window-size=1100,2400", f"--screenshot={picture}", path.as_uri()],
        check=True, capture_output=True, timeout=120,
    )  # fmt: skip
    pixels = matplotlib.image.imread(picture)[..., :3]
    assert pixels.shape[:2] == (2400, 1100)
    rows = pixels.reshape(len(pixels), -1).std(1)
    assert (rows > 0.02).mean() > 0.5, "the page is drawn over most of its length"
    document = subprocess.run(
        [BROWSER, *options, "--dump-dom", path.as_uri()], check=True, capture_output=True, text=True, timeout=120
    ).stdout
    assert len(re.findall(r"<img ", document)) == 4
    colors = {tuple(np.round(c * 255).astype(int)) for c in pixels[::3, ::3].reshape(-1, 3)}
    assert (0x3B, 0x6F, 0xB6) in colors, "the training curve"
