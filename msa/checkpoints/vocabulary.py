"""The tokenizer inside a GGUF file: byte-level BPE built from its tokens and merges.

GGUF names how text is split before merging (``tokenizer.ggml.pre``) and stores neither pattern nor normaliser. Both are
here as the models' own tokenizer.json have them; a name that is not here would be split wrongly, and is refused. Kinds
of tokens: ``gguf.TokenType`` (docs/gguf.md of the ggml repository, ``tokenizer.ggml.token_type``).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from msa.model.prompt import guarded
from msa_base.errors import UserError

NORMAL, CONTROL = 1, 3  # plain tokens; special tokens
USER_DEFINED = 4  # tokens that text is searched for before it is split
# contractions in any case, words with one sign before them, digits by {digits}, signs with line ends, line ends, spaces
_LINES = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{digits}"
    r"| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _by_pattern(digits: str) -> pre_tokenizers.PreTokenizer:
    split = pre_tokenizers.Split(Regex(_LINES.format(digits=digits)), "isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def _gpt2() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.ByteLevel(add_prefix_space=False)


def _smollm() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _gpt2()])


def _qwen2() -> pre_tokenizers.PreTokenizer:
    return _by_pattern("")


def _llama3() -> pre_tokenizers.PreTokenizer:
    return _by_pattern("{1,3}")


PRE_TOKENIZERS: dict[str, Callable[[], pre_tokenizers.PreTokenizer]] = {
    "gpt-2": _gpt2,
    "smollm": _smollm,
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen"), _qwen2),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3"), _llama3),
}
MEND = "put the model's tokenizer.json beside it"


def read_tokenizer(value: Callable[[str], Any], path: Path) -> Tokenizer:
    """The tokenizer of a file, guarded.

    Args:
        value: of a metadata key behind ``tokenizer.ggml.``, None where the file has none.
        path: the file.

    Raises:
        UserError: no tokenizer, one that is not known here, or lists that do not fit each other.
    """
    model = value("model")
    if model is None:
        raise UserError(f"{path}: holds no tokenizer; {MEND}")
    if model == "gpt2" and value("pre") not in PRE_TOKENIZERS:
        known = ", ".join(PRE_TOKENIZERS)
        raise UserError(f"{path}: tokenizer.ggml.pre {value('pre')!r} cannot be converted; {MEND} (known: {known})")
    try:
        return guarded(_byte_level(value) if model == "gpt2" else _by_transformers(path))
    except Exception as error:  # what lists of a foreign file make a library raise
        raise UserError(f"{path}: its tokenizer cannot be converted ({error}); {MEND}") from None


def _byte_level(value: Callable[[str], Any]) -> Tokenizer:
    tokens, split = value("tokens") or [], PRE_TOKENIZERS[value("pre")]
    kinds = value("token_type") or [NORMAL] * len(tokens)
    vocabulary = {token: index for index, token in enumerate(tokens)}
    if len(vocabulary) != len(tokens):
        raise ValueError(f"{len(tokens)} tokens, {len(vocabulary)} of them different")
    merges = [tuple(merge.split(" ")) for merge in value("merges") or ()]
    # Llama 3 takes a word that is a token as it is, before it merges
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=split is _llama3))
    if split is _qwen2:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer, tokenizer.decoder = split(), decoders.ByteLevel()
    added = [(token, kind) for token, kind in zip(tokens, kinds, strict=True) if kind in (CONTROL, USER_DEFINED)]
    tokenizer.add_tokens([AddedToken(token, special=kind == CONTROL, normalized=False) for token, kind in added])
    return tokenizer


def _by_transformers(path: Path) -> Tokenizer:
    """SentencePiece and others."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name).backend_tokenizer
