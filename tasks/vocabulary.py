"""The profile's tokenizer: word pieces of the training prose, byte pairs of real text, or a pretrained model's own file.

Numbers and UUIDs split into pairs of hexadecimal characters, so that two tokens never hide a digit::

    python -m tasks.vocabulary --profile tiny
"""

from __future__ import annotations

import itertools
import re
import string
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from configs import prompts
from configs.errors import UserError, run_command
from configs.load import build
from configs.tables import whole_file
from tasks import wording
from tasks.base import UnavailableData
from tasks.command import opened, parser
from tasks.sources import read_sentences

UNKNOWN = "[UNK]"
CONTINUATION = "##"
HEX = set("0123456789abcdef")
_LETTERS = re.compile(r"[A-Za-z]+")


@dataclass(frozen=True)
class WordsSpec:
    """Parameters of ``kind: words``."""

    kind: str
    words: int = 4000  # most frequent words of the training prose
    pieces: int = 600  # continuation pieces for the words outside the vocabulary


@dataclass(frozen=True)
class BytesSpec:
    """Parameters of ``kind: bytes``: byte pairs over training prose and the passages, never the questions, of ``sets``."""

    kind: str
    vocabulary: int = 8192
    sets: list[str] = field(default_factory=list)  # of tasks/qa/sets.yaml; those that the machine lacks are left out
    max_characters: int = 12_000_000  # of each source


@dataclass(frozen=True)
class HubSpec:
    """Parameters of ``kind: hub``: ``path`` is a Hugging Face model directory that holds tokenizer.json."""

    kind: str
    path: str


def _is_hex(text: str) -> bool:
    return set(text) <= HEX


def _frequent(counts: Counter[str], number: int) -> list[str]:
    return [item for item, _ in sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))[:number]]


def vocabulary(sentences: Iterable[str], spec: WordsSpec) -> list[str]:
    """The tokens in id order; the special tokens come first, END_OF_TEXT with id 0."""
    counts = Counter(word for sentence in sentences for word in _LETTERS.findall(sentence))
    adjectives, nouns = wording.ruler_words()
    names = [word.capitalize() for part in wording.plain_words() for word in part]
    ours = [prompts.question(""), prompts.REPEAT_QUESTION, prompts.GIVE_ANSWER, "user assistant"]
    fixed = _LETTERS.findall(" ".join([*adjectives, *nouns, *names, *wording.template_words(), *ours]))
    # a longer word of hexadecimal letters ("face") would break the pairs of a UUID; it is spelled in pairs instead
    words = {word for word in fixed if not _is_hex(word)}
    common = _frequent(Counter({word: n for word, n in counts.items() if not _is_hex(word)}), spec.words)
    words.update(common)
    pieces: Counter[str] = Counter()
    for word, number in counts.items():
        if word not in words and 3 <= len(word) <= 24:
            for start, length in itertools.product(range(1, len(word)), (2, 3, 4)):
                piece = word[start : start + length]
                if len(piece) == length and not _is_hex(piece):
                    pieces[piece] += number * (length - 1)
    pairs = ["".join(pair) for pair in itertools.product("0123456789abcdef", repeat=2)]
    base = [*string.printable.strip(), *pairs]
    tokens = [*prompts.SPECIAL_TOKENS, UNKNOWN, *base, *(CONTINUATION + item for item in base)]
    tokens += [CONTINUATION + piece for piece in _frequent(pieces, spec.pieces)]
    return list(dict.fromkeys([*tokens, *sorted(words)]))


def word_tokenizer(tokens: list[str]) -> Tokenizer:
    """A word-piece tokenizer over ``tokens``; decoding rejoins hyphenated keys, UUIDs, bracketed ids and punctuation."""
    ids = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(
        models.WordPiece(ids, unk_token=UNKNOWN, continuing_subword_prefix=CONTINUATION, max_input_chars_per_word=1000)
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKD(), normalizers.StripAccents()])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation("isolated")]
    )
    joins = [(" - ", "-"), ("[ ", "["), (" ]", "]"), ("] [", "]["), ("( ", "("), (" )", ")"), (" :", ":"), (" ;", ";")]
    tokenizer.decoder = decoders.Sequence(
        [decoders.WordPiece(CONTINUATION, cleanup=True), decoders.Fuse(), *(decoders.Replace(a, b) for a, b in joins)]
    )
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in prompts.SPECIAL_TOKENS]
    )
    return tokenizer


def byte_tokenizer(texts: Iterable[str], vocabulary: int) -> Tokenizer:
    """A byte-level byte-pair tokenizer, which spells any text, with digits one by one."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = [AddedToken(token, special=True, normalized=False) for token in prompts.SPECIAL_TOKENS]
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def real_texts(spec: BytesSpec, where: str, prose: Path, data: Path | None) -> Iterator[str]:
    """The training prose, then the passages of each set that is there, so much of each as the spec says."""
    from tasks.qa.data import open_set
    from tasks.qa.readers import read_set

    def limited(texts: Iterable[str]) -> Iterator[str]:
        left = spec.max_characters
        for text in texts:
            if left <= 0:
                return
            left -= len(text)
            yield text

    yield from limited(read_sentences(prose, "train"))
    for name in spec.sets:
        try:
            opened = open_set(data, name, where)
        except UnavailableData:
            continue
        yield from limited(read_set(opened.form.reader, opened.files, where).passages.values())


def make_tokenizer(parameters: dict[str, Any], where: str, prose: Path, data: Path | None = None) -> Tokenizer:
    """The tokenizer that a profile's ``tokenizer`` entry describes.

    Raises:
        UserError: an unknown kind or parameter, or a model directory without tokenizer.json.
    """
    kind = parameters.get("kind")
    if kind == "words":
        return word_tokenizer(vocabulary(read_sentences(prose, "train"), build(WordsSpec, parameters, where)))
    if kind == "bytes":
        spec: BytesSpec = build(BytesSpec, parameters, where)
        if spec.vocabulary < 512:
            raise UserError(f"{where}: key 'vocabulary' must be 512 or more: 256 bytes come first")
        return byte_tokenizer(real_texts(spec, where, prose, data), spec.vocabulary)
    if kind != "hub":
        raise UserError(f"{where}: key 'kind' must be words, bytes or hub, found {kind!r}")
    path = Path(build(HubSpec, parameters, where).path) / "tokenizer.json"
    if not path.is_file():
        raise UserError(f"{where}: key 'path': {path} does not exist; download the model there first")
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in prompts.SPECIAL_TOKENS]
    )
    return tokenizer


def read_tokenizer(path: Path | str) -> Tokenizer:
    """Load a tokenizer file.

    Raises:
        UserError: the file is missing or broken.
    """
    if not Path(path).is_file():
        raise UserError(f"{path}: no such file; run python -m tasks.vocabulary first")
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the Rust reader raises bare Exception
        raise UserError(f"{path}: not a tokenizer file ({error}); delete it and run the same command again") from None


def main() -> None:
    """Write the tokenizer file of a profile."""
    arguments = parser(__doc__).parse_args()
    experiment, paths, where = opened(arguments)
    data = Path(experiment.profile.data) if experiment.profile.data else None
    tokenizer = make_tokenizer(experiment.profile.tokenizer, f"{where}: tokenizer", paths.prose, data)
    with whole_file(paths.tokenizer) as temporary:
        tokenizer.save(str(temporary))
    print(f"{paths.tokenizer}: {tokenizer.get_vocab_size():,} tokens")


if __name__ == "__main__":
    run_command(main)
