"""Small random models and word tokenizers for the tests of msa."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from msa.model.decoder import MSAModel
from msa.model.prompt import Prompter
from msa_base import prompts
from msa_base.paths import Paths
from msa_base.records import Document
from msa_base.tables import write_table
from tests.small_model import ROUTED, small_config

WORDS = ["alpha", "beta", "gamma", "delta", "answer", "from", "the", "documents", "above", "return", "all", "related"]
WORDS += ["what", "is", "number", "for", "user"]


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """Words, digits and punctuation, each a token."""
    tokens = [*prompts.SPECIAL_TOKENS, "[UNK]", *WORDS, *"0123456789[].,:'-", "assistant", "The", "question", "to", "s"]
    result = Tokenizer(models.WordLevel({token: number for number, token in enumerate(dict.fromkeys(tokens))}, "[UNK]"))
    result.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation("isolated"), pre_tokenizers.Digits(True)]
    )
    result.decoder = decoders.Fuse()
    result.add_special_tokens(list(prompts.SPECIAL_TOKENS))
    result.encode_special_tokens = True
    return result


@pytest.fixture(scope="session")
def prompter(tokenizer: Tokenizer) -> Prompter:
    """Row builder over the word tokenizer."""
    return Prompter(tokenizer)


@pytest.fixture(scope="session")
def model(tokenizer: Tokenizer) -> MSAModel:
    """A random MSA model with chunks of 4 tokens and 3 documents a layer."""
    torch.manual_seed(0)
    config = small_config(tokenizer.get_vocab_size(), routed_layers=(2, 3), **ROUTED)
    made = MSAModel(config)
    for parameter in made.parameters():
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=0.3)
    return made.eval().requires_grad_(False)


@pytest.fixture(scope="session")
def documents() -> list[Document]:
    """Documents of many lengths, most of them no multiple of the chunk length."""
    rng = torch.Generator().manual_seed(1)
    result = []
    for number in range(9):
        length = int(torch.randint(1, 14, (1,), generator=rng))
        words = [WORDS[int(torch.randint(len(WORDS), (1,), generator=rng))] for _ in range(length)]
        result.append(Document(100 + 7 * number, " ".join(words), length + 10))
    return result


@pytest.fixture
def paths(tmp_path: Path, tokenizer: Tokenizer) -> Paths:
    """A results tree with a tokenizer and one sample set of two banks."""
    result = Paths.of("mini", tmp_path)
    result.tokenizer.parent.mkdir(parents=True)
    tokenizer.save(str(result.tokenizer))
    banks, samples = [], []
    for bank in range(2):
        for number in range(5):
            banks.append(
                {
                    "bank_id": bank,
                    "doc_id": number,
                    "text": f"number for alpha is {bank}{number}{number}",
                    "num_tokens": 15,
                }
            )
            chain = [[number], [(number + 1) % 5]] if number % 2 else [[number]]
            samples.append({
                "sample_id": len(samples), "bank_id": bank, "task": "facts", "question": "what is the number for alpha",
                "answer_prefix": "The answer is", "answer": f"{bank}{number}{number}", "chain": chain,
                "notes": [{"key": "alpha", "value": f"{bank}{number}{number}", "doc_id": number}],
            })  # fmt: skip
    write_table("banks", banks, result.samples("short") / "banks.parquet")
    write_table("samples", samples, result.samples("short") / "samples.parquet")
    return result
