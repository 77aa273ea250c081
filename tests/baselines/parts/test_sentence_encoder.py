"""sentence-transformers models, made here and loaded from disk: vectors and scores are the library's own."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors

import baselines.parts.models
from baselines.parts.models import ModelReference
from baselines.parts.sentence_encoder import ModelParams, SentenceEmbedder, SentenceReranker
from msa_base.errors import UserError
from msa_base.records import Document
from msa_base.tables import write_json
from msa_base.validate import build
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


def reference(bert: Path, **params: object) -> ModelReference:
    """What an opener gets."""
    return ModelReference(ModelParams(str(bert), **params), bert, 1)


def test_special_tokens_within_a_text_are_text(bert: Path) -> None:
    embedder, reranker = SentenceEmbedder(reference(bert)), SentenceReranker(reference(bert))
    # "[", "SEP" and "]" are unknown words
    found = embedder.queries(["bada [SEP] kolo", "bada x y z kolo", "bada kolo"])
    np.testing.assert_allclose(found[0], found[1], atol=1e-6)
    assert not np.allclose(found[0], found[2], atol=1e-3)
    texts = [Document(number, text, 3) for number, text in enumerate(["bada [CLS] kolo", "bada x y z kolo"])]
    first, second = reranker.scores([("bada", document) for document in texts])
    assert first == pytest.approx(second, abs=1e-6)


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


def labelled(bert: Path, directory: Path, *names: str) -> Path:
    """The model with as many labels as names."""
    from transformers import AutoTokenizer, BertForSequenceClassification

    torch.manual_seed(1)
    labels = {"id2label": dict(enumerate(names))} if names[0] else {}
    options = {"num_labels": len(names), "ignore_mismatched_sizes": True, **labels}
    BertForSequenceClassification.from_pretrained(bert, **options).save_pretrained(directory)
    AutoTokenizer.from_pretrained(bert).save_pretrained(directory)
    return directory


PAIRS = [("bada", document) for document in make_corpus(random.Random(1), 5)]


@pytest.mark.parametrize(
    ("names", "label", "relevant"),
    [(("", ""), None, 1), (("", ""), 0, 0), (("yes", "no"), 0, 0), (("bad", "fair", "good"), 2, 2)],
)
def test_a_cross_encoder_of_several_labels_scores_by_the_log_odds_of_one(
    bert: Path, tmp_path: Path, names: tuple, label: int | None, relevant: int
) -> None:
    from sentence_transformers import CrossEncoder

    directory = labelled(bert, tmp_path, *names)
    found = SentenceReranker(reference(directory, label=label)).scores(PAIRS)
    texts = [(question, document.text) for question, document in PAIRS]
    share = torch.as_tensor(CrossEncoder(str(directory)).predict(texts, activation_fn=torch.nn.Identity())).softmax(1)
    expected = torch.log(share[:, relevant] / (1 - share[:, relevant]))
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert found.shape == (5,)


@pytest.mark.parametrize(("names", "label"), [(("yes", "no"), None), (("a", "b", "c"), None), (("", ""), 2)])
def test_which_label_means_relevant_is_never_guessed(bert: Path, tmp_path: Path, names: tuple, label: Any) -> None:
    with pytest.raises(UserError, match="`label` must say which label means relevant"):
        SentenceReranker(reference(labelled(bert, tmp_path, *names), label=label)).scores(PAIRS)


def test_scores_that_are_not_finite_are_refused(bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reranker = SentenceReranker(reference(bert))
    monkeypatch.setattr(reranker._model, "predict", lambda texts, **_: np.full(len(texts), np.nan))
    with pytest.raises(UserError, match="not finite"):
        reranker.scores(PAIRS)


def test_a_model_directory_that_refers_to_one_opens_it(bert: Path, tmp_path: Path) -> None:
    write_json({"kind": "sentence_encoder", "params": {"name": str(bert)}}, tmp_path / "minilm" / "reference.json")
    assert baselines.parts.models.open_embedder(tmp_path / "minilm", 1).queries(["bada"]).shape == (1, 16)
    with pytest.raises(UserError, match=r"models\.yaml: minilm: .*open_reader"):
        baselines.parts.models.open_reader(tmp_path / "minilm", 1)


@pytest.mark.parametrize("revision", [None, "main", "abc"])
def test_a_model_of_the_hub_needs_a_commit(revision: str | None) -> None:
    with pytest.raises(UserError, match=r"40 digits of a commit|key 'revision' must match pattern"):
        build(
            ModelParams, {"name": "sentence-transformers/all-MiniLM-L6-v2", "revision": revision}, "here"
        ).check_here()
