"""Small random models and word tokenizers for the tests of msa."""

from __future__ import annotations

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from configs import prompts
from configs.records import Document
from msa.config import ModelConfig
from msa.model import MSAModel
from msa.prompt import Prompter

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
    config = ModelConfig(
        vocab_size=tokenizer.get_vocab_size(), hidden_size=32, intermediate_size=48, layers=4, query_heads=4, kv_heads=2,
        head_dim=8, routed_layers=(2, 3), pool_tokens=4, top_k_documents=3,
    )
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
