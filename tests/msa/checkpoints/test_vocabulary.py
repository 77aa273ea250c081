"""Tokenizers inside GGUF files, held to byte-level BPE written out in plain Python."""

from __future__ import annotations

import unicodedata
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest
import regex
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from msa.checkpoints.vocabulary import CONTROL, NORMAL, PRE_TOKENIZERS, USER_DEFINED, read_tokenizer
from msa_base.errors import UserError

ROOT = Path(__file__).parents[3]
SPACE = r"\p{White_Space}"
GPT2 = rf"'s|'t|'re|'ve|'m|'ll|'d| ?\p{{L}}+| ?\p{{N}}+| ?[^{SPACE}\p{{L}}\p{{N}}]+|{SPACE}+(?![^{SPACE}])|{SPACE}+"
LINES = (
    r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}DIGITS"
    rf"| ?[^{SPACE}\p{{L}}\p{{N}}]+[\r\n]*|{SPACE}*[\r\n]+|{SPACE}+(?![^{SPACE}])|{SPACE}+"
)
# as llama.cpp has them (src/llama-vocab.cpp): each splits what the one before it left
PATTERNS = {
    "gpt-2": [GPT2],
    "smollm": [r"\p{N}", GPT2],
    "qwen2": [LINES.replace("DIGITS", "")],
    "llama-bpe": [LINES.replace("DIGITS", "{1,3}")],
}
ADDED = {"<|im_start|>": CONTROL, "<|im_end|>": CONTROL, "<tool>": USER_DEFINED}
ODD = [
    "", " ", "\n", "\r\n\r\n  x", "a  b   c\t\td ", "It's we'LL I'M 'tis don't", "2026, 3.14159 ½ Ⅻ ٣٤٥ 1000000",
    "x<|im_end|>y <tool> z<tool>", "naïve café e\u0301 A\u030a", "Ünïcödé 漢字かな 한국어 עברית العربية हिन्दी",
    "👩‍👩‍👧‍👦 👍🏽!!", "foo_bar(baz)[1]\n\n\n\treturn x;", "a\u00a0b\u2003c\u3000d", "\x00\x1f\x7f \ufeff",
    "……——»«", "'" * 5,
]  # fmt: skip


def alphabet() -> dict[int, str]:
    """GPT-2's characters for the 256 bytes."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = (byte for byte in range(256) if byte not in plain)
    return {byte: chr(byte) for byte in plain} | {byte: chr(256 + place) for place, byte in enumerate(others)}


BYTES = alphabet()


class Plain:
    """Byte-level BPE as its description reads: split, spell in bytes, merge the pair that was learned first."""

    def __init__(self, tokens: list[str], merges: list[str], pre: str):
        self.ids = {token: number for number, token in enumerate(tokens)}
        self.ranks = {tuple(merge.split(" ")): rank for rank, merge in enumerate(merges)}
        self.pre = pre
        self.word = cache(self._word)

    def encode(self, text: str) -> list[int]:
        if self.pre == "qwen2":
            text = unicodedata.normalize("NFC", text)
        pieces = [text]
        for pattern in PATTERNS[self.pre]:
            pieces = [part for piece in pieces for part in _split(pattern, piece)]
        return [index for piece in pieces for index in self.word(piece)]

    def _word(self, piece: str) -> list[int]:
        parts = [BYTES[byte] for byte in piece.encode()]
        if self.pre == "llama-bpe" and "".join(parts) in self.ids:
            return [self.ids["".join(parts)]]
        while pairs := [pair for pair in pairwise(parts) if pair in self.ranks]:
            best = min(pairs, key=self.ranks.__getitem__)
            place = next(n for n in range(len(parts)) if (parts[n], parts[n + 1]) == best)
            parts[place : place + 2] = ["".join(best)]
        return [self.ids[part] for part in parts]


def _split(pattern: str, text: str) -> list[str]:
    parts, end = [], 0
    for match in regex.finditer(pattern, text):
        parts += [text[end : match.start()], match[0]]
        end = match.end()
    return [part for part in [*parts, text[end:]] if part]


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """Paragraphs of this project's pages and lines of its code, and what is odd."""
    pages = [ROOT / "docs" / "ARCHITECTURE.md", ROOT / "CONTRIBUTING.md", ROOT / "README.md"]
    found = [part for page in pages for part in page.read_text().split("\n\n")]
    return [*found[:400], *Path(__file__).read_text().splitlines(keepends=True), *ODD]


@pytest.fixture(scope="module")
def trained(texts) -> tuple[list[str], list[str]]:
    """Tokens and merges that were learned from the texts, words with digits and line ends among them."""
    import json

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=1500, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    content = json.loads(tokenizer.to_str())["model"]
    tokens = sorted(content["vocab"], key=content["vocab"].__getitem__)
    # a word without the merges that would make it: Llama 3 takes it whole, the others spell it
    return [*ADDED, *tokens, "antidisestablishment"], [" ".join(merge) for merge in content["merges"]]


def values(tokens: list[str], merges: list[str], pre: str) -> dict:
    kinds = [ADDED.get(token, NORMAL) for token in tokens]
    return {"model": "gpt2", "pre": pre, "tokens": tokens, "token_type": kinds, "merges": merges}


@pytest.mark.parametrize("pre", PATTERNS)
def test_texts_are_split_and_merged_as_the_description_says(texts, trained, pre) -> None:
    tokens, merges = trained
    tokenizer, plain = read_tokenizer(values(tokens, merges, pre).get, Path("model.gguf")), Plain(tokens, merges, pre)
    asked = [text for text in [*texts, "antidisestablishment rules"] if "<tool>" not in text]
    found = [encoding.ids for encoding in tokenizer.encode_batch(asked)]
    assert [plain.encode(text) for text in asked] == found
    meant = [unicodedata.normalize("NFC", text) if pre == "qwen2" else text for text in asked]
    assert tokenizer.decode_batch(found) == meant


def test_digits_and_contractions_tell_the_patterns_apart(trained) -> None:
    tokens, merges = trained
    words = {}
    for pre in PATTERNS:
        tokenizer = read_tokenizer(values(tokens, merges, pre).get, Path("model.gguf"))
        words[pre] = [word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str("12345 I'M")]
    assert words == {
        "gpt-2": ["12345", "ĠI", "'", "M"],
        "smollm": ["1", "2", "3", "4", "5", "ĠI", "'", "M"],
        "qwen2": ["1", "2", "3", "4", "5", "ĠI", "'M"],
        "llama-bpe": ["123", "45", "ĠI", "'M"],
    }


def test_added_tokens_keep_their_ids_and_special_ones_never_stand_in_a_text(trained) -> None:
    tokenizer = read_tokenizer(values(*trained, "smollm").get, Path("model.gguf"))
    assert [tokenizer.token_to_id(token) for token in ADDED] == [0, 1, 2]
    ids = tokenizer.encode("<|im_end|> <tool>").ids
    assert 1 not in ids
    assert ids[-1] == 2
    assert tokenizer.decode([0, *ids]) == "<|im_end|> <tool>"  # what is special is left out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": None}, "holds no tokenizer"),
        ({"pre": "exotic"}, r"'exotic' cannot be converted; put the model's tokenizer.json beside it \(known: gpt-2,"),
        ({"tokens": ["a", "a"], "token_type": None}, "2 tokens, 1 of them different"),
        ({"token_type": [1]}, "cannot be converted"),
        ({"merges": ["ab"]}, "cannot be converted"),
        ({"merges": ["zz zz"]}, "cannot be converted"),
    ],
)
def test_a_tokenizer_that_is_none_is_refused_by_name(trained, changes, message) -> None:
    with pytest.raises(UserError, match=f"^model.gguf: .*{message}"):
        read_tokenizer({**values(*trained, "gpt-2"), **changes}.get, Path("model.gguf"))


def test_every_name_is_held_to_a_pattern() -> None:
    same = {"deepseek-r1-qwen": "qwen2", "llama3": "llama-bpe", "llama-v3": "llama-bpe"}
    assert PRE_TOKENIZERS.keys() == PATTERNS.keys() | same.keys()
    assert all(PRE_TOKENIZERS[name] is PRE_TOKENIZERS[like] for name, like in same.items())
