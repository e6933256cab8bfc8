"""Tables in a terminal of 80 columns and in a pipe."""

import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from jdl.cli import console as shown

INTERVAL = "0.9876 [0.9865, 0.9886]"
PATH = "params/blocks/layer_0/feed_forward_normalization/attention/query/kernel"


def printed(columns, rows, fold=(), width=80, terminal=True):
    """The lines of a table, as a terminal of a width or a pipe gets them."""
    with pytest.MonkeyPatch.context() as patch:
        file = io.StringIO()
        patch.setattr(shown, "console", Console(file=file, width=width, force_terminal=terminal, no_color=True))
        shown.show_table(columns, rows, fold)
    return [line for line in file.getvalue().replace("\x1b[1m", "").replace("\x1b[0m", "").splitlines() if line]


words = st.text(st.sampled_from("abc/_- é"), min_size=0, max_size=60)
numbers = st.floats(-1e6, 1e6).map(lambda x: f"{x:.4g} [{x - 1:.4g}, {x + 1:.4g}]")


@settings(max_examples=25, deadline=None)
@given(rows=st.lists(st.tuples(words, numbers, words), min_size=1, max_size=3), width=st.integers(80, 120))
def test_a_narrow_terminal_shows_every_number_whole_and_every_letter(rows, width):
    lines = printed(("array", "mean", "shape"), rows, fold=("array", "shape"), width=width)
    assert lines[0].startswith("┏")
    assert max(map(len, lines)) <= width
    inside = [line.split("│")[1:-1] for line in lines if line.startswith("│")]
    for place, column in enumerate(zip(*rows, strict=True)):
        assert "".join(line[place] for line in inside).replace(" ", "") == "".join(column).replace(" ", "")
    assert [line[1].strip() for line in inside if line[1].strip()] == [row[1] for row in rows]


def test_names_break_where_their_parts_meet():
    lines = printed(
        ("array", "shape", "bytes", "per device"), [(PATH, "128, 512/data", "262,144", "32,768")], ("array",)
    )
    assert max(map(len, lines)) <= 80
    cells = [line.split("│")[1].strip() for line in lines if line.startswith("│")]
    assert "".join(cells) == PATH
    assert all(cell.endswith(("/", "_", "kernel")) for cell in cells)


def test_a_table_that_cannot_be_narrow_enough_becomes_lists():
    columns = ("run", "metric", "difference", "IQM", "IQM of a")
    lines = printed(
        columns, [("b", "loss", INTERVAL, INTERVAL, INTERVAL), ("c", "loss", "1", "", "3")], ("run", "metric")
    )
    assert lines[0] == "run b"
    assert lines[1].split(maxsplit=1) == ["metric", "loss"]
    assert lines[2].split(maxsplit=1) == ["difference", INTERVAL]
    assert [line.split()[0] for line in lines[5:]] == ["run", "metric", "difference", "IQM"]


def test_a_pipe_gets_a_line_for_each_row():
    metrics = f"accuracy {INTERVAL}\nloss {INTERVAL}"
    lines = printed(("run", "metrics", "array"), [("a", metrics, PATH * 3)] * 2, ("run", "array"), terminal=False)
    rows = [line for line in lines if line.startswith("│")]
    assert len(rows) == 2
    for row in rows:
        cells = [cell.strip() for cell in row.split("│")[1:-1]]
        assert cells == ["a", metrics.replace("\n", "  "), PATH * 3]


def test_brackets_are_text():
    assert "[red]x[/red]" in "".join(printed(("kind",), [("[red]x[/red]",)]))


def test_no_rows_is_a_heading():
    assert len(printed(("run", "state"), [])) == 4


@pytest.mark.parametrize(
    ("interval", "sign", "text"),
    [((0.93, 0.92, 0.94), False, "0.93 [0.92, 0.94]"), ((0.5, None, None), True, "+0.5"), ((None,) * 3, False, "nan")],
)
def test_intervals(interval, sign, text):
    assert shown.show_interval(interval, sign) == text
