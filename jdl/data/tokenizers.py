"""Tokenizers from text to ids and back: bytes, characters, and the subword tokenizers of the library `tokenizers`."""

import abc
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Array, Bool, Int32

from jdl.data.lengths import pad


class Tokenizer(abc.ABC):
    """Converts text to token ids and back.

    The name of a special token is encoded as ordinary text where it appears in a text. Decoding leaves special tokens
    out.

    Attributes:
        vocab_size: ids are in `[0, vocab_size)`.
        special_ids: the ids of the tokens that stand for no text, by name.
    """

    vocab_size: int
    special_ids: dict[str, int]

    @abc.abstractmethod
    def encode(self, text: str) -> Int32[np.ndarray, "tokens"]:
        """Return the token ids of a text, including the special tokens that this tokenizer puts around it.

        Args:
            text: the text.
        """

    @abc.abstractmethod
    def to_json(self) -> str:
        """Return the JSON text from which `load` restores this tokenizer."""

    @abc.abstractmethod
    def _decode(self, ids: np.ndarray) -> str: ...

    def decode(self, ids: Sequence[int] | np.ndarray | Array) -> str:
        """Return the text of a sequence of token ids.

        Args:
            ids: integers, shape `[tokens]`.

        Raises:
            ValueError: for an id outside `[0, vocab_size)`, and for anything but one sequence of integers.
        """
        array = np.asarray(ids)
        if array.ndim != 1 or (len(array) and array.dtype.kind not in "iu"):
            raise ValueError(f"ids has shape {array.shape} and dtype {array.dtype}: give one sequence of integers.")
        if (wrong := (array < 0) | (array >= self.vocab_size)).any():
            first = int(np.argmax(wrong))
            raise ValueError(f"ids[{first}] is {array[first]}, outside this tokenizer's [0, {self.vocab_size}).")
        return self._decode(array[~np.isin(array, list(self.special_ids.values()))].astype(np.int32))

    def encode_batch(
        self,
        texts: Sequence[str],
        length: int,
        *,
        begin: str | None = None,
        end: str | None = None,
        padding: str | None = None,
    ) -> dict[str, Int32[np.ndarray, "texts length"] | Bool[np.ndarray, "texts length"]]:
        """Encode texts into rows of `length` tokens, cut off or padded.

        Args:
            texts: one text per row.
            length: tokens per row, special tokens included.
            begin: a special token to put before each text; it is kept when the text is cut off.
            end: a special token to put after each text; it is kept when the text is cut off.
            padding: the special token that fills the rest of a row; id 0 if None.

        Returns:
            A dict of `ids` and `mask`; the mask is True at tokens and False at padding.

        Raises:
            ValueError: for one string instead of several, for an unknown special token, and for a `length` that
                leaves no room for text.
        """
        if isinstance(texts, str):
            raise ValueError(f"texts is one string, {texts[:30]!r}: give a list of them.")
        before, after = ([] if token is None else [self._special_id(token)] for token in (begin, end))
        rows = self._encode_rows(texts, length - len(before) - len(after), length)
        padded = pad(
            [np.concatenate([before, row, after]).astype(np.int32) for row in rows],
            length,
            padding_id=0 if padding is None else self._special_id(padding),
        )
        return padded._asdict()

    def _encode_rows(self, texts: Sequence[str], room: int, length: int) -> list[np.ndarray]:
        """Return the ids of each text, cut off to `room` tokens."""
        _check_room(room, length)
        return [self.encode(text)[:room] for text in texts]

    def _special_id(self, token: str) -> int:
        if token not in self.special_ids:
            raise ValueError(
                f"{token!r} is no special token of this tokenizer: it has {', '.join(self.special_ids) or 'none'}."
            )
        return self.special_ids[token]


class Bytes(Tokenizer):
    """Tokenizes the UTF-8 bytes of a text: ids 0 to 255 are byte values, special tokens follow."""

    def __init__(self, special_tokens: Sequence[str] = ()) -> None:
        self.special_ids = _numbered(special_tokens, 256)
        self.vocab_size = 256 + len(special_tokens)

    def encode(self, text: str) -> Int32[np.ndarray, "tokens"]:
        return np.frombuffer(text.encode(), np.uint8).astype(np.int32)

    def _decode(self, ids: np.ndarray) -> str:
        # A model's samples, or a truncated text, may not be valid UTF-8.
        return ids.astype(np.uint8).tobytes().decode(errors="replace")

    def to_json(self) -> str:
        return json.dumps({"jdl": "bytes", "special_tokens": list(self.special_ids)})


class Characters(Tokenizer):
    """Tokenizes the characters of a text: ids follow the order of the alphabet, special tokens follow."""

    def __init__(self, alphabet: str, special_tokens: Sequence[str] = ()) -> None:
        if not alphabet or len(set(alphabet)) < len(alphabet):
            raise ValueError(f"alphabet is {alphabet[:50]!r}: give one character or more, each once.")
        self.alphabet = alphabet
        self.special_ids = _numbered(special_tokens, len(alphabet))
        self.vocab_size = len(alphabet) + len(special_tokens)
        self._codes = _code_points(alphabet)
        self._order = np.argsort(self._codes)

    def encode(self, text: str) -> Int32[np.ndarray, "tokens"]:
        """Return the token ids of a text.

        Args:
            text: the text.

        Raises:
            ValueError: for a character that is not in the alphabet.
        """
        codes = _code_points(text)
        places = np.searchsorted(self._codes[self._order], codes).clip(max=len(self.alphabet) - 1)
        ids = self._order[places]
        if (unknown := self._codes[ids] != codes).any():
            first = int(np.argmax(unknown))
            raise ValueError(
                f"character {text[first]!r} at position {first} is not in the alphabet of {len(self.alphabet)}: "
                f"build it from all texts, or remove the {np.count_nonzero(unknown)} such character(s)."
            )
        return ids.astype(np.int32)

    def _decode(self, ids: np.ndarray) -> str:
        return self._codes[ids].tobytes().decode("utf-32-le", "surrogatepass")

    def to_json(self) -> str:
        description = {"jdl": "characters", "alphabet": self.alphabet, "special_tokens": list(self.special_ids)}
        return json.dumps(description)


class Subwords(Tokenizer):
    """Wraps a tokenizer of the library `tokenizers`, which stays available as `library`."""

    def __init__(self, library: Any) -> None:
        library.no_padding()
        library.no_truncation()
        library.encode_special_tokens = True  # a special token's name in a text is ordinary text
        added = library.get_added_tokens_decoder()
        self.library = library
        self.special_ids = {token.content: number for number, token in sorted(added.items()) if token.special}
        self.vocab_size = max(library.get_vocab().values()) + 1

    def encode(self, text: str) -> Int32[np.ndarray, "tokens"]:
        # The "fast" variant skips each token's position in the text; on a long text it takes a quarter of the time.
        return np.array(self.library.encode_batch_fast([text])[0].ids, np.int32)

    def _decode(self, ids: np.ndarray) -> str:
        return self.library.decode(ids.tolist())

    def _encode_rows(self, texts: Sequence[str], room: int, length: int) -> list[np.ndarray]:
        room -= self.library.num_special_tokens_to_add(False)
        _check_room(room, length)
        encodings = self.library.encode_batch_fast(list(texts), add_special_tokens=False)
        for encoding in encodings:
            encoding.truncate(room)
        # Add the special tokens after truncation, so that none is cut off.
        return [np.array(self.library.post_process(encoding).ids, np.int32) for encoding in encodings]

    def to_json(self) -> str:
        return self.library.to_str()


def bytes_tokenizer(special_tokens: Sequence[str] = ()) -> Tokenizer:
    """Make a tokenizer of UTF-8 bytes: 256 byte values, then the special tokens. It encodes any text.

    Args:
        special_tokens: tokens such as "<end>", which get the ids from 256 up.

    Examples:
        >>> bytes_tokenizer(["<end>"]).encode_batch(["é!", "x"], 4, end="<end>")["ids"]
        array([[195, 169,  33, 256],
               [120, 256,   0,   0]], dtype=int32)
    """
    return Bytes(special_tokens)


def characters(text: str, special_tokens: Sequence[str] = ()) -> Tokenizer:
    """Make a tokenizer of the characters of `text`, sorted, followed by the special tokens.

    Encoding any other character raises ValueError.

    Args:
        text: a text that has all characters.
        special_tokens: tokens such as "<end>", which get the last ids.

    Examples:
        >>> tokenizer = characters("hello")
        >>> tokenizer.vocab_size, tokenizer.encode("hole")
        (4, array([1, 3, 2, 0], dtype=int32))
    """
    return Characters("".join(sorted(set(text))), special_tokens)


def train_bpe(texts: Iterable[str], vocab_size: int, special_tokens: Sequence[str] = ()) -> Tokenizer:
    """Learn a byte-pair encoding over bytes from `texts`. It encodes any text and decodes to the same text.

    The special tokens come first, then the 256 bytes, then merges until there are `vocab_size` tokens or no two
    neighbors in the texts are left to merge. The same texts give the same tokenizer.

    Args:
        texts: the texts to learn from.
        vocab_size: the number of tokens, at least 256 plus the number of special tokens.
        special_tokens: their names, each once.

    Raises:
        ValueError: for one string instead of several texts, a `vocab_size` that is too small, or repeated special
            tokens.
        ImportError: if the library `tokenizers` is not installed.

    Source: Sennrich, Haddow and Birch 2016, arXiv 1508.07909; over bytes, Radford et al. 2019 (GPT-2), section 2.2.
    """
    library = _library()
    if isinstance(texts, str):
        raise ValueError(f"texts is one string, {texts[:30]!r}: give a list of them.")
    _numbered(special_tokens, 0)
    if vocab_size < 256 + len(special_tokens):
        raise ValueError(
            f"vocab_size is {vocab_size}: 256 bytes and {len(special_tokens)} special token(s) need "
            f"{256 + len(special_tokens)}."
        )
    tokenizer = library.Tokenizer(library.models.BPE())
    tokenizer.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = library.decoders.ByteLevel()
    trainer = library.trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(special_tokens),
        initial_alphabet=sorted(library.pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return Subwords(tokenizer)


def wordpiece(vocab_file: str | os.PathLike[str], lowercase: bool = True) -> Tokenizer:
    """Load BERT's tokenizer from its vocab.txt, which has one token per line.

    A text is encoded as [CLS], the longest pieces of each word, [SEP].

    Args:
        vocab_file: the path of vocab.txt.
        lowercase: whether to convert to lower case and remove accents, as the "uncased" models expect.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file lacks a special token.
        ImportError: if the library `tokenizers` is not installed.

    Source: Devlin et al. 2019, arXiv 1810.04805.
    """
    library = _library()
    _check_file(vocab_file)
    vocabulary = library.models.WordPiece.read_file(str(vocab_file))
    special_tokens = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    if missing := [token for token in special_tokens if token not in vocabulary]:
        raise ValueError(
            f"{vocab_file} has no {', '.join(missing)} among its {len(vocabulary)} tokens: is it a BERT's?"
        )
    tokenizer = library.Tokenizer(library.models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = library.normalizers.BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = library.pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = library.decoders.WordPiece()
    tokenizer.post_processor = library.processors.BertProcessing(
        ("[SEP]", vocabulary["[SEP]"]), ("[CLS]", vocabulary["[CLS]"])
    )
    tokenizer.add_special_tokens(list(special_tokens))
    return Subwords(tokenizer)


def save(tokenizer: Tokenizer, path: str | os.PathLike[str]) -> None:
    """Write a tokenizer to a file for `load`.

    For a subword tokenizer the file is the `tokenizer.json` that other libraries read.

    Args:
        tokenizer: the tokenizer.
        path: the file, which is written whole or not at all.

    Raises:
        OSError: if the file cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(path.name + ".writing")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(tokenizer.to_json())
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise OSError(f"{path} could not be written ({error.strerror}): choose another folder.") from error


def load(path: str | os.PathLike[str]) -> Tokenizer:
    """Read a tokenizer that `save` wrote, or any `tokenizer.json` of the library `tokenizers`.

    Padding and truncation settings in such a file are ignored: `encode_batch` does both.

    Args:
        path: the file.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is not a tokenizer.
        ImportError: for a subword tokenizer, if the library `tokenizers` is not installed.
    """
    _check_file(path)
    content = Path(path).read_text(encoding="utf-8")
    try:
        description = json.loads(content)
        kind = description.get("jdl")
        if kind == "bytes":
            return Bytes(description["special_tokens"])
        if kind == "characters":
            return Characters(description["alphabet"], description["special_tokens"])
    except (ValueError, AttributeError, KeyError) as error:
        raise ValueError(f"{path} is no tokenizer ({type(error).__name__}: {error}).") from error
    library = _library()
    try:
        return Subwords(library.Tokenizer.from_str(content))
    except Exception as error:  # the library raises no narrower type
        raise ValueError(f"{path} is no tokenizer of the library tokenizers ({error}).") from error


def _check_file(path: str | os.PathLike[str]) -> None:
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no file {path}: give the path of a vocabulary or tokenizer.")


def _library() -> Any:
    try:
        import tokenizers
        import tokenizers.models  # its sibling modules come with it
    except ImportError as error:
        raise ImportError("subword tokenizers need the library tokenizers: pip install 'jdl[text]'") from error
    return tokenizers


def _numbered(special_tokens: Sequence[str], first: int) -> dict[str, int]:
    if isinstance(special_tokens, str) or len(set(special_tokens)) < len(special_tokens):
        raise ValueError(f"special_tokens is {special_tokens!r}: give a list of names, each once.")
    return {token: first + number for number, token in enumerate(special_tokens)}


def _check_room(room: int, length: int) -> None:
    if room < 1:
        raise ValueError(f"length is {length}, with no room for text between the special tokens: raise it.")


def _code_points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")
