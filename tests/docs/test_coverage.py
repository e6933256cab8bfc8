"""Every public name has a page in the documentation, and every page a place in its navigation."""

import inspect
import re
import tomllib
from pathlib import Path

import pytest

import jdl
import rl

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


def public():
    """Every public name, by the dotted name that a user writes."""
    modules = {"jdl": jdl, "jdl.nn": jdl.nn, "jdl.data": jdl.data, "rl": rl, "rl.envs": rl.envs, "rl.games": rl.games}
    modules["rl.offline"] = rl.offline
    modules |= {f"jdl.{name}": getattr(jdl, name) for name in ("transfer", "pretrained", "text", "generative")}
    names = set()
    for place, module in modules.items():
        names |= {f"{place}.{name}" for name in module.__all__ if f"{place}.{name}" not in modules}
    # Modules without an __all__ show what they define.
    for place in ("jdl.metrics", "jdl.losses", "jdl.optimizers", "jdl.statistics", "jdl.lora", "jdl.tune",
                  "jdl.data.augment", "jdl.data.mixing", "jdl.data.tokenizers", "rl.backtest", "rl.returns",
                  "rl.networks", "rl.normalize", "rl.distributions", "rl.search", "rl.sensors",
                  "rl.spaces"):  # fmt: skip
        names.discard(place)
        names.add(f"{place}.*")
    return names - {"jdl.checkpoint", "rl.algorithms"}


def documented():
    """What the pages' `::: name` blocks show, by the places where things are defined."""
    return set(re.findall(r"^::: ([\w.]+)", "\n".join(page.read_text() for page in DOCS.rglob("*.md")), re.MULTILINE))


def home(name):
    """Where a public name is defined."""
    place, _, last = name.rpartition(".")
    module = jdl if place.startswith("jdl") else rl
    for part in place.split(".")[1:]:
        module = getattr(module, part)
    if last == "*":
        return module.__name__
    thing = getattr(module, last)
    return f"{thing.__module__}.{last}" if hasattr(thing, "__module__") else name


def test_every_public_name_has_a_page():
    shown = documented()
    missing = [name for name in sorted(public()) if not {name, home(name), home(name).rpartition(".")[0]} & shown]
    assert not missing, f"no page shows {missing}: add `::: NAME` to a page in docs/api"


def functions():
    """Every public function, and every public method of a public class, with its name."""
    for name in sorted(public()):
        place, _, last = name.rpartition(".")
        module = jdl if place.startswith("jdl") else rl
        for part in place.split(".")[1:]:
            module = getattr(module, part)
        own = vars(module).items() if last == "*" else [(last, getattr(module, last))]
        for key, thing in own:
            home_of = str(getattr(thing, "__module__", ""))
            helper = last == "*" and not inspect.isclass(thing) and home_of != module.__name__
            if key.startswith("_") or helper or home_of.split(".")[0] not in ("jdl", "rl"):
                continue
            yield f"{place}.{key}", thing
            for method in vars(thing) if inspect.isclass(thing) else ():
                if not method.startswith("_"):
                    yield f"{place}.{key}.{method}", getattr(thing, method)


def test_every_public_function_has_a_docstring_that_explains_its_arguments():
    # Those of jax.lax's function; `merge` and `compute` of Metric; inputs as of the network; what Flax adds.
    as_elsewhere = ("conv_general_dilated", "merge", "compute", "check_inputs", "kernel_init", "replace")
    for name, thing in functions():
        if not inspect.isroutine(thing) or name.endswith(as_elsewhere):
            continue
        text = inspect.getdoc(thing) or ""  # a method may have that of its base class
        assert text, f"{name} has no docstring"
        arguments = [one for one in inspect.signature(thing).parameters if one not in ("self", "cls")]
        if arguments:
            assert "Args:" in text, f"the docstring of {name} does not explain {arguments}"


def test_every_page_has_a_place_in_the_navigation():
    def pages(nav):
        for entry in nav:
            for value in entry.values():
                yield from pages(value) if isinstance(value, list) else [value]

    listed = sorted(pages(tomllib.loads((ROOT / "zensical.toml").read_text())["project"]["nav"]))
    written = {*DOCS.rglob("*.md"), *(notebook.with_suffix(".md") for notebook in DOCS.rglob("*.ipynb"))}
    assert listed == sorted(page.relative_to(DOCS).as_posix() for page in written)


@pytest.mark.parametrize("page", sorted(DOCS.rglob("*.md")), ids=lambda page: page.relative_to(DOCS).as_posix())
def test_no_page_has_formulas_that_the_site_does_not_draw(page):
    """The site loads no renderer of LaTeX; equations are Unicode."""
    text = re.sub(r"^```.*?^```|`[^`]*`", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    assert not re.findall(r"\$[^$\n]+\$|\$\$|\\[([]|\\[a-z]{2,}", text)


def test_the_site_asks_no_other_host_for_fonts():
    assert tomllib.loads((ROOT / "zensical.toml").read_text())["project"]["theme"]["font"] is False
