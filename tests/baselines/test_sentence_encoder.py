"""sentence-transformers models, made here and loaded from disk: vectors and scores are the library's own."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors

import baselines.models
from baselines.models import Reference
from baselines.sentence_encoder import ModelParams, SentenceEmbedder, SentenceReranker
from configs.errors import UserError
from configs.tables import write_json
from tests.baselines.conftest import WORDS, make_corpus


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random BERT with one label and a word tokenizer."""
    from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "ask", *WORDS]
    words = Tokenizer(models.WordLevel({token: place for place, token in enumerate(tokens)}, "[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    torch.manual_seed(0)
    directory = tmp_path_factory.mktemp("bert")
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    BertForSequenceClassification(
        BertConfig(vocab_size=len(tokens), num_labels=1, initializer_range=0.5, **shape)
    ).save_pretrained(directory)
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=words, model_max_length=64, **special).save_pretrained(directory)
    return directory


def reference(bert: Path, **params: object) -> Reference:
    """What an opener gets."""
    return Reference(ModelParams(str(bert), **params), bert, 1)


def test_vectors_are_the_librarys_of_unit_length_and_prefixed(bert: Path) -> None:
    from sentence_transformers import SentenceTransformer

    documents = make_corpus(random.Random(0), 9)
    embedder = SentenceEmbedder(reference(bert, query_prefix="ask ", batch=4))
    plain = SentenceTransformer(str(bert))
    found = embedder.documents(documents)
    expected = plain.encode([document.text for document in documents], normalize_embeddings=True)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    query = plain.encode(["ask bada kolo"], normalize_embeddings=True)
    np.testing.assert_allclose(embedder.queries(["bada kolo"]), query, atol=1e-5)
    assert not np.allclose(query, plain.encode(["bada kolo"], normalize_embeddings=True), atol=1e-3)


def test_a_cross_encoder_scores_pairs_in_order(bert: Path) -> None:
    from sentence_transformers import CrossEncoder

    documents = make_corpus(random.Random(1), 7)
    pairs = [(question, document) for document in documents for question in ("bada", "kolo mine")]
    found = SentenceReranker(reference(bert, batch=3)).scores(pairs)
    expected = CrossEncoder(str(bert)).predict([(question, document.text) for question, document in pairs])
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert found.dtype == np.float32 and len(set(found.tolist())) == len(pairs)


def test_a_model_directory_that_refers_to_one_opens_it(bert: Path, tmp_path: Path) -> None:
    write_json({"kind": "sentence_encoder", "params": {"name": str(bert)}}, tmp_path / "minilm" / "reference.json")
    assert baselines.models.open_embedder(tmp_path / "minilm", 1).queries(["bada"]).shape == (1, 16)
    with pytest.raises(UserError, match=r"models\.yaml: minilm: .*open_reader"):
        baselines.models.open_reader(tmp_path / "minilm", 1)


@pytest.mark.parametrize("revision", [None, "main", "abc"])
def test_a_model_of_the_hub_needs_a_commit(revision: str | None) -> None:
    with pytest.raises(UserError, match="40 digits of a commit"):
        ModelParams("sentence-transformers/all-MiniLM-L6-v2", revision)
