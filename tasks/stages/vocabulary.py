"""The profile's tokenizer: word pieces of training prose, byte pairs of real text, or a pretrained model's own file.

Numbers and UUIDs split into pairs of hexadecimal characters, so that two tokens never hide a digit::

    python -m tasks.stages.vocabulary --profile tiny
"""

from __future__ import annotations

import itertools
import re
import string
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from msa_base import prompts
from msa_base.command import experiment_parser, open_experiment
from msa_base.errors import UserError, run_command
from msa_base.paths import SEAL
from msa_base.seal import Seal, write_seal
from msa_base.stages import Stages, state
from msa_base.tables import whole_file
from msa_base.validate import MANY, Count, Names, Text, Tokens, build, check_known
from tasks.parts import wording
from tasks.parts.prose import read_sentences
from tasks.parts.tail import UnavailableData
from tasks.qa.data import find_set

UNKNOWN = "[UNK]"
CONTINUATION = "##"
HEX = set("0123456789abcdef")
SPECIAL = [AddedToken(token, special=True, normalized=False) for token in prompts.SPECIAL_TOKENS]
_LETTERS = re.compile(r"[A-Za-z]+")


@dataclass(frozen=True)
class WordsSpec:
    """Parameters of ``kind: words``: the most frequent words of training prose, and pieces of the others."""

    kind: Literal["words"]
    words: Count = 4000  # most frequent words of the training prose
    pieces: Count = 600  # continuation pieces for the words outside the vocabulary


@dataclass(frozen=True)
class BytesSpec:
    """Parameters of ``kind: bytes``: byte pairs over training prose and the passages, not the questions, of sets."""

    kind: Literal["bytes"]
    vocabulary: Annotated[int, Field(ge=512, le=MANY)] = 8192
    sets: Names = field(default_factory=list)  # of tasks/qa/sets.yaml; those that the machine lacks are left out
    max_characters: Tokens = 12_000_000  # of each source


@dataclass(frozen=True)
class HubSpec:
    """Parameters of ``kind: hub``: ``path`` is a Hugging Face model directory that holds tokenizer.json."""

    kind: Literal["hub"]
    path: Text


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
    words = {word for word in fixed if not HEX.issuperset(word)}
    words.update(_frequent(Counter({word: n for word, n in counts.items() if not HEX.issuperset(word)}), spec.words))
    pieces: Counter[str] = Counter()
    for word, number in counts.items():
        if word not in words and 3 <= len(word) <= 24:
            for start, length in itertools.product(range(1, len(word)), (2, 3, 4)):
                piece = word[start : start + length]
                if len(piece) == length and not HEX.issuperset(piece):
                    pieces[piece] += number * (length - 1)
    pairs = ["".join(pair) for pair in itertools.product(sorted(HEX), repeat=2)]
    base = [*string.printable.strip(), *pairs]
    tokens = [*prompts.SPECIAL_TOKENS, UNKNOWN, *base, *(CONTINUATION + item for item in base)]
    tokens += [CONTINUATION + piece for piece in _frequent(pieces, spec.pieces)]
    return list(dict.fromkeys([*tokens, *sorted(words)]))


def word_tokenizer(tokens: list[str]) -> Tokenizer:
    """A word-piece tokenizer over ``tokens``; decoding rejoins keys, UUIDs, bracketed ids and punctuation."""
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
    tokenizer.add_special_tokens(SPECIAL)
    return tokenizer


def byte_tokenizer(texts: Iterable[str], vocabulary: int) -> Tokenizer:
    """A byte-level byte-pair tokenizer, which spells any text, with digits one by one."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def real_texts(spec: BytesSpec, where: str, prose: Path, data: Path | None) -> Iterator[str]:
    """The training prose, then the passages of each set that is there, so much of each as the spec says."""

    def limited(texts: Iterable[str]) -> Iterator[str]:
        left = spec.max_characters
        for text in texts:
            if left <= 0:
                return
            left -= len(text)
            yield text

    yield from limited(read_sentences(prose, "train"))
    for name in spec.sets:
        with suppress(UnavailableData):
            yield from limited(find_set(data, name, where).read(where).passages.values())


def tokenizer_spec(parameters: dict[str, Any], where: str) -> WordsSpec | BytesSpec | HubSpec:
    """The checked ``tokenizer`` entry of a profile. Raises UserError for an unknown kind or parameter."""
    kinds = {"words": WordsSpec, "bytes": BytesSpec, "hub": HubSpec}
    check_known([parameters.get("kind")], kinds, f"{where}: kind", "tasks/stages/vocabulary.py")
    return build(kinds[parameters["kind"]], parameters, where)


def make_tokenizer(parameters: dict[str, Any], where: str, prose: Path, data: Path | None = None) -> Tokenizer:
    """The tokenizer of a profile's ``tokenizer`` entry. Raises UserError: a bad entry, or no tokenizer.json."""
    spec = tokenizer_spec(parameters, where)
    if isinstance(spec, WordsSpec):
        return word_tokenizer(vocabulary(read_sentences(prose, "train"), spec))
    if isinstance(spec, BytesSpec):
        return byte_tokenizer(real_texts(spec, where, prose, data), spec.vocabulary)
    path = Path(spec.path) / "tokenizer.json"
    if not path.is_file():
        raise UserError(f"{where}: key 'path': {path} does not exist; download the model there first")
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.add_special_tokens(SPECIAL)
    return tokenizer


def read_tokenizer(path: Path | str) -> Tokenizer:
    """Load a tokenizer file. Raises UserError: the file is missing or broken."""
    if not Path(path).is_file():
        raise UserError(f"{path}: no such file; run python -m tasks.stages.vocabulary first")
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the Rust reader raises bare Exception
        raise UserError(f"{path}: not a tokenizer file ({error}); delete it and run the same command again") from None


def main() -> None:
    arguments = experiment_parser(__doc__).parse_args()
    experiment, paths = open_experiment(arguments)
    where, stages, entry = experiment.file, Stages(experiment), experiment.profile.tokenizer
    made_from = stages.tokenizer().of(paths.root, paths.prose / "train.parquet", data=state(stages.data(entry)))
    seal = paths.tokenizer.with_name(SEAL)
    if Seal.current(seal, made_from):
        return
    data = Path(experiment.profile.data) if experiment.profile.data else None
    tokenizer = make_tokenizer(entry, f"{where}: tokenizer", paths.prose, data)
    with whole_file(paths.tokenizer) as temporary:
        tokenizer.save(str(temporary))
    write_seal(seal, made_from, [paths.tokenizer.name])
    print(f"{paths.tokenizer}: {tokenizer.get_vocab_size():,} tokens")


if __name__ == "__main__":
    run_command(main)
