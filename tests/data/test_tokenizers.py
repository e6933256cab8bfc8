"""Tokenizers against plain Python that does the same slowly, and what a user may give them that is wrong."""

import importlib.util
import itertools
import json
import os
import subprocess
import sys
from collections import Counter

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from jdl.data.tokenizers import bytes_tokenizer, characters, load, save, train_bpe, wordpiece

needs_library = pytest.mark.skipif(
    importlib.util.find_spec("tokenizers") is None, reason="the library tokenizers is absent: install jdl[text]"
)

properties = settings(deadline=None)
CORPUS = ["the cat sat on the mat", "the rat ate the cat's hat", "a fat cat that sat", "où est le chat ?"]
PIECES = ["cat", "sat", "on", "the", "un", "##happy", "##hap", "##py", "##s", "cafe", "!", ",", "a", "##t", "c", "##a"]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


@pytest.fixture(scope="module")
def vocab_file(tmp_path_factory):
    file = tmp_path_factory.mktemp("vocabulary") / "vocab.txt"
    file.write_text("\n".join([*SPECIAL, *PIECES]) + "\n", encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def bpe():
    return train_bpe(CORPUS, 300, ["<pad>", "<end>"])


def tokenizers_of_each_kind(vocab_file):
    marks = ["<pad>", "<begin>", "<end>"]
    return {
        "bytes": bytes_tokenizer(marks),
        "characters": characters("".join(CORPUS), marks),
        "bpe": train_bpe(CORPUS, 300, marks),
        "wordpiece": wordpiece(vocab_file),
    }


# --- bytes and characters


@properties
@given(st.text())
def test_bytes_are_utf8(text):
    tokenizer = bytes_tokenizer(["<end>"])
    ids = tokenizer.encode(text)
    assert ids.dtype == np.int32
    assert bytes(ids.tolist()) == text.encode("utf-8")
    assert tokenizer.decode(ids) == tokenizer.decode([*ids.tolist(), 256]) == text


def test_bytes_cut_inside_a_character():
    tokenizer = bytes_tokenizer()
    assert tokenizer.decode(tokenizer.encode("né")[:2]) == "n\ufffd"
    assert tokenizer.vocab_size == 256


@properties
@given(st.text(min_size=1), st.data())
def test_characters_are_numbered_in_order(text, data):
    tokenizer = characters(text, ["<pad>"])
    number = {character: n for n, character in enumerate(sorted(set(text)))}
    assert tokenizer.vocab_size == len(number) + 1
    assert tokenizer.special_ids == {"<pad>": len(number)}
    other = data.draw(st.text(alphabet=sorted(number)))
    assert tokenizer.encode(other).tolist() == [number[character] for character in other]
    assert tokenizer.decode(tokenizer.encode(other)) == other


@properties
@given(st.text(min_size=1), st.text(), st.characters(), st.text())
def test_characters_name_one_that_is_unknown(alphabet, before, unknown, after):
    assume(unknown not in alphabet + before)
    tokenizer = characters(alphabet + before)
    with pytest.raises(ValueError, match="is not in the alphabet") as caught:
        tokenizer.encode(before + unknown + after)
    assert f"character {unknown!r} at position {len(before)} " in str(caught.value)


def test_characters_refuse_no_alphabet():
    with pytest.raises(ValueError, match="alphabet is ''"):
        characters("")


# --- byte-pair encoding


def merges_by_hand(texts, count):
    """The first merges of words with their leading space: the most frequent pair, of equals that of lowest ids."""
    words = Counter()
    for text in texts:
        first, *others = text.split(" ")
        words.update([tuple(first), *(("Ġ", *other) for other in others)])
    # The alphabet is numbered in order; each merge gets the next number.
    ids = {symbol: ord(symbol) for word in words for symbol in word}
    merges = []
    for _ in range(count):
        pairs = Counter()
        for word, times in words.items():
            for pair in itertools.pairwise(word):
                pairs[pair] += times
        best = min(pairs, key=lambda pair: (-pairs[pair], ids[pair[0]], ids[pair[1]]))
        merges.append(list(best))
        ids["".join(best)] = 10000 + len(merges)
        words = Counter({tuple(merge(list(word), best)): times for word, times in words.items()})
    return merges


def merge(symbols, pair):
    place = 0
    while place < len(symbols) - 1:
        if (symbols[place], symbols[place + 1]) == pair:
            symbols[place : place + 2] = ["".join(pair)]
        place += 1
    return symbols


@needs_library
def test_bpe_learns_and_applies_the_merges_of_plain_python():
    texts = ["the cat sat on the mat", "the rat ate the other hat", "a fat cat that sat there", "no hat on that rat"]
    tokenizer = train_bpe(texts, 256 + 2 + 20, ["<pad>", "<end>"])
    model = json.loads(tokenizer.to_json())["model"]
    by_hand = merges_by_hand(texts, 20)
    assert model["merges"] == by_hand
    assert tokenizer.vocab_size == 278
    assert tokenizer.special_ids == {"<pad>": 0, "<end>": 1}
    for word in ("there", "that", "than", "hotter"):
        symbols = list(word)
        for pair in by_hand:
            symbols = merge(symbols, tuple(pair))
        assert tokenizer.encode(word).tolist() == [model["vocab"][symbol] for symbol in symbols]


@needs_library
@properties
@given(text=st.text())
def test_bpe_decodes_to_the_same_text(bpe, text):
    for written in (text, f"{text}<end>{text} <pad>"):
        ids = bpe.encode(written)
        assert not set(ids.tolist()) & {0, 1}  # a special token's name is text
        assert bpe.decode(ids) == written
        assert bpe.decode(np.append(ids, [0, 1])) == written


@needs_library
def test_bpe_is_the_same_in_another_process():
    program = f"from jdl.data.tokenizers import train_bpe; print(train_bpe({CORPUS!r}, 320).to_json(), end='')"
    environment = {**os.environ, "PYTHONHASHSEED": "1", "RAYON_NUM_THREADS": "1"}
    other = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, check=True)
    assert other.stdout.decode() == train_bpe(CORPUS, 320).to_json() == train_bpe(CORPUS[::-1], 320).to_json()


@needs_library
def test_bpe_refuses():
    with pytest.raises(ValueError, match="vocab_size is 256: 256 bytes and 1 special"):
        train_bpe(CORPUS, 256, ["<pad>"])
    with pytest.raises(ValueError, match="texts is one string, 'abc': give a list"):
        train_bpe("abc", 300)
    with pytest.raises(ValueError, match=r"special_tokens is \['x', 'x'\]: give a list of names, each once"):
        train_bpe(CORPUS, 300, ["x", "x"])
    assert train_bpe(["ab"], 1000).vocab_size == 257  # one merge, and nothing is left


# --- WordPiece


def wordpiece_by_hand(word):
    """The longest piece that the rest of a word begins with, again and again; else unknown."""
    pieces, rest = [], word
    while rest:
        prefix = "##" if pieces else ""
        longest = next((n for n in range(len(rest), 0, -1) if prefix + rest[:n] in PIECES), None)
        if longest is None:
            return ["[UNK]"]
        pieces.append(prefix + rest[:longest])
        rest = rest[longest:]
    return pieces


@needs_library
@properties
@given(words=st.lists(st.sampled_from(["cat", "cats", "unhappy", "unhap", "unhat", "at", "cata", "dog", "!", "the"])))
def test_wordpiece_is_greedy(vocab_file, words):
    vocabulary = [*SPECIAL, *PIECES]
    expected = ["[CLS]", *(piece for word in words for piece in wordpiece_by_hand(word)), "[SEP]"]
    assert [vocabulary[n] for n in wordpiece(vocab_file).encode(" ".join(words))] == expected


@needs_library
def test_wordpiece_case_accents_and_decoding(vocab_file):
    uncased, cased = wordpiece(vocab_file), wordpiece(vocab_file, lowercase=False)
    np.testing.assert_array_equal(uncased.encode("The CAFÉ, cats!"), uncased.encode("the cafe , cats !"))
    assert cased.encode("The cat").tolist() == [2, 1, 5, 3]
    assert uncased.decode(uncased.encode("Unhappy cats")) == "unhappy cats"
    assert uncased.special_ids == {name: number for number, name in enumerate(SPECIAL)}
    assert uncased.vocab_size == len(SPECIAL) + len(PIECES)
    assert set(uncased.encode("[MASK] [SEP]")[1:-1].tolist()) == {1}  # brackets and words unknown here: text


@needs_library
def test_wordpiece_refuses(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file .*absent.txt"):
        wordpiece(tmp_path / "absent.txt")
    (tmp_path / "short.txt").write_text("[PAD]\n[UNK]\ncat\n")
    with pytest.raises(ValueError, match=r"short.txt has no \[CLS\], \[SEP\], \[MASK\] among its 3 tokens"):
        wordpiece(tmp_path / "short.txt")


# --- what all have in common


@needs_library
@pytest.mark.parametrize("length", [5, 7, 40])
@pytest.mark.parametrize("marks", [{}, {"begin": "<begin>", "end": "<end>", "padding": "<pad>"}])
def test_encode_batch_is_encode_cut_and_padded(vocab_file, length, marks):
    texts = ["the cat", "", "a", "the cat sat on the mat that the cat sat on"]
    for kind, tokenizer in tokenizers_of_each_kind(vocab_file).items():
        marks_here = {"begin": "[MASK]", "end": "[SEP]", "padding": "[UNK]"} if marks and kind == "wordpiece" else marks
        special = {use: tokenizer.special_ids[name] for use, name in marks_here.items()}
        around = [[special[use]] if use in special else [] for use in ("begin", "end")]
        batch = tokenizer.encode_batch(texts, length, **marks_here)
        assert batch["ids"].dtype == np.int32
        assert batch["mask"].dtype == bool
        for text, ids, mask in zip(texts, batch["ids"].tolist(), batch["mask"].tolist(), strict=True):
            inside = tokenizer.encode(text).tolist()
            if kind == "wordpiece":  # [CLS] and [SEP] are kept too
                before, text_ids, after = [*around[0], inside[0]], inside[1:-1], [inside[-1], *around[1]]
            else:
                before, text_ids, after = around[0], inside, around[1]
            expected = [*before, *text_ids[: length - len(before) - len(after)], *after]
            fill = length - len(expected)
            assert ids == expected + [special.get("padding", 0)] * fill, kind
            assert mask == [True] * len(expected) + [False] * fill, kind


@needs_library
def test_encode_batch_refuses(vocab_file):
    for kind, tokenizer in tokenizers_of_each_kind(vocab_file).items():
        with pytest.raises(ValueError, match="texts is one string, 'cat': give a list"):
            tokenizer.encode_batch("cat", 9)
        names = ", ".join(tokenizer.special_ids)
        with pytest.raises(ValueError, match=r"'<s>' is no special token of this tokenizer: it has ") as caught:
            tokenizer.encode_batch(["cat"], 9, begin="<s>")
        assert names in str(caught.value)
        name = "[SEP]" if kind == "wordpiece" else "<end>"
        with pytest.raises(ValueError, match="length is 1, with no room for text"):
            tokenizer.encode_batch(["cat"], 1, end=name)


@needs_library
def test_decode_refuses(vocab_file):
    for tokenizer in tokenizers_of_each_kind(vocab_file).values():
        size = tokenizer.vocab_size
        for wrong in (size, -1):
            with pytest.raises(ValueError, match=rf"ids\[2\] is {wrong}, outside this tokenizer's \[0, {size}\)"):
                tokenizer.decode([0, 1, wrong])
        with pytest.raises(ValueError, match=r"ids has shape \(1, 2\) and dtype int"):
            tokenizer.decode(np.array([[0, 1]]))
        with pytest.raises(ValueError, match=r"ids has shape \(2,\) and dtype float"):
            tokenizer.decode(np.array([0.0, 1.0]))
        assert tokenizer.decode([]) == ""
        assert tokenizer.decode(jnp.array(tokenizer.encode("cat"))) == "cat"


@needs_library
def test_save_and_load(vocab_file, tmp_path):
    text = "the cat sat on a hat"
    for kind, tokenizer in tokenizers_of_each_kind(vocab_file).items():
        save(tokenizer, tmp_path / "tokenizer.json")
        loaded = load(tmp_path / "tokenizer.json")
        assert type(loaded) is type(tokenizer), kind
        assert loaded.vocab_size == tokenizer.vocab_size
        assert loaded.special_ids == tokenizer.special_ids
        for written in (text, f"{text} cat"):
            np.testing.assert_array_equal(loaded.encode(written), tokenizer.encode(written))
    assert not list(tmp_path.glob("*.writing"))


@needs_library
def test_load_what_the_library_saved(tmp_path):
    import tokenizers

    library = tokenizers.ByteLevelBPETokenizer()
    library.train_from_iterator(CORPUS, vocab_size=300, special_tokens=["<s>", "<pad>"], show_progress=False)
    expected = library.encode("the cat sat").ids
    library.enable_truncation(2)
    library.enable_padding(length=50)
    library.save(str(tmp_path / "tokenizer.json"))
    tokenizer = load(tmp_path / "tokenizer.json")
    assert tokenizer.encode("the cat sat").tolist() == expected
    assert tokenizer.special_ids == {"<s>": 0, "<pad>": 1}
    assert tokenizer.encode("<pad>").tolist() != [1]


@needs_library
@pytest.mark.parametrize("content", ["", "[1]", "{}", '{"jdl": "bytes"}', '{"version": "1.0", "model": 3}'])
def test_load_refuses(tmp_path, content):
    file = tmp_path / "tokenizer.json"
    with pytest.raises(FileNotFoundError, match=r"no file .*tokenizer.json"):
        load(file)
    file.write_text(content)
    with pytest.raises(ValueError, match=r"tokenizer.json is no tokenizer"):
        load(file)


def test_an_interrupted_save_keeps_the_old_file(tmp_path, monkeypatch):
    file = tmp_path / "tokenizer.json"
    save(bytes_tokenizer(["<old>"]), file)

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"tokenizer.json could not be written \(No space left"):
        save(bytes_tokenizer(["<new>"]), file)
    assert load(file).special_ids == {"<old>": 256}


def test_without_the_library(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    (tmp_path / "tokenizer.json").write_text("{}")
    for call in (lambda: train_bpe(CORPUS, 300), lambda: wordpiece("v"), lambda: load(tmp_path / "tokenizer.json")):
        with pytest.raises(ImportError, match=r"pip install 'jdl\[text\]'"):
            call()
    save(characters("abc"), tmp_path / "tokenizer.json")
    assert load(tmp_path / "tokenizer.json").decode([2, 0]) == "ca"
