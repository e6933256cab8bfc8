"""Parts of a page: what they are given is text, not HTML."""

import html.parser

import pytest
from matplotlib.figure import Figure

from jdl.report import html as page

TEXT = "<b>&'\""


class Parsed(html.parser.HTMLParser):
    """The text of a page, and the attributes of its images."""

    def __init__(self, text):
        super().__init__()
        self.text, self.tags, self.images = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag == "img":
            self.images.append(dict(attrs))

    def handle_data(self, data):
        self.text.append(data)


@pytest.mark.parametrize(
    "part",
    [
        page.document(TEXT, [], []),
        page.document("", [TEXT], []),
        page.section(TEXT, ""),
        page.image("", "data:", TEXT),
        page.note(TEXT),
        page.note(TEXT, warn=True),
        page.code(TEXT),
        page.tiles([(TEXT, "", "")]),
        page.tiles([("", TEXT, "")]),
        page.tiles([("", "", TEXT)]),
        page.table([TEXT], []),
        page.table(["x"], [[TEXT]]),
        page.facts({TEXT: 1}),
        page.facts({"x": TEXT}),
    ],
)
def test_signs_of_html_are_shown_as_they_are(part):
    assert TEXT in Parsed(part).text


def test_a_column_in_bold():
    found = Parsed(page.table(["name", "mean"], [["a", "1"], ["b", "2"]], bold=1))
    assert found.tags == ["table", "tr", "th", "th", *["tr", "td", "td", "b"] * 2]
    assert found.text == ["name", "mean", "a", "1", "b", "2"]


def test_an_image_has_its_title_in_words():
    (found,) = Parsed(page.image(TEXT, "data:image/png;base64,AAAA", "note")).images
    assert found == {"src": "data:image/png;base64,AAAA", "alt": TEXT}


def test_nested_values_are_named_by_dots():
    values = {"a": 1, "b": {"c": "x", "d": {"e": None}}, "empty": {}}
    assert page.flat(values) == {"a": 1, "b.c": "x", "b.d.e": None}
    assert Parsed(page.facts(values)).text == ["a", "1", "b.c", "x", "b.d.e", "null"]
    assert "Nothing set." in page.facts({})


def test_a_saved_figure_is_the_file_and_its_text(tmp_path):
    source = page.save(Figure(), tmp_path / "figures" / "empty.png")
    assert source.startswith("data:image/png;base64,")
    assert source == page.read(tmp_path / "figures" / "empty.png")
