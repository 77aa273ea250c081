"""Query likelihood: the score is the mean log-probability of the question's tokens, whatever stands beside it
in a batch.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from msa.generation.likelihood import QueryLikelihood
from msa.training.samples import Phase, TrainingSet


@pytest.fixture
def scorer(model, prompter, monkeypatch):
    monkeypatch.setattr("msa.checkpoints.read.open_model", lambda directory, threads: (model, prompter))
    monkeypatch.setattr("msa.ops.precision.fast_bfloat16", lambda device: False)
    return QueryLikelihood("unused")


def test_a_score_is_the_mean_log_probability_of_the_question(scorer, model, prompter, documents):
    pairs = [(text, document) for document in documents for text in ("what is alpha", "number")]
    found = scorer.scores(pairs)
    for (text, document), score in zip(pairs, found, strict=True):
        opening, question = prompter.asking(document).ids, prompter.text(text)
        with torch.no_grad():
            hidden, _ = model(torch.tensor([opening + question]), torch.arange(len(opening) + len(question)))
            logs = model.logits(hidden)[0].log_softmax(-1)
        each = [logs[len(opening) + place - 1, token].item() for place, token in enumerate(question)]
        assert score == pytest.approx(np.mean(each), abs=1e-5)
    assert len(set(np.round(found, 4))) > 2


def test_asking_learns_the_question_from_the_first_document_of_its_chain(prompter, documents):
    data = object.__new__(TrainingSet)
    data.prompter, data.top_k, data.order = prompter, 0, [0]
    data.banks = {0: documents}
    chain = [[documents[1].doc_id], [documents[2].doc_id]]
    data.samples = {0: [{"question": "what is alpha", "chain": chain, "answer": "1", "answer_prefix": ""}]}
    (group,) = data.asking_batch(0, 0, Phase("asking", "ask", "short", 1, 4), 1000).groups
    (targets,) = group.targets
    assert targets[targets >= 0].tolist() == prompter.text("what is alpha")
    assert set(prompter.text(documents[1].text)) <= set(group.ids[0].tolist())
