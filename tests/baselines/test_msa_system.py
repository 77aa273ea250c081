"""MSA through the door of every system: a bank with overlays routes over each question's own corpus."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

from baselines import msa_system
from baselines.base import IndexResources, Resources
from msa_base.records import CorpusView, Document, Question
from msa_base.specs import IndexSpec, SystemSpec
from msa_base.tables import write_table
from tests.baselines.conftest import make_corpus, make_view
from tests.baselines.serving import make_checkpoint


def opened(model: Path, documents: list[Document], directory: Path) -> msa_system.MSASystem:
    """The system over a bank of some documents."""
    corpus = directory / "corpus.parquet"
    write_table("corpus", [vars(document) for document in documents], corpus)
    (directory / "bank").mkdir()
    msa_system.build_index(
        IndexSpec("msa_system", params={"precision": "float32"}), IndexResources(model, corpus, 1), directory / "bank"
    )
    return msa_system.make(SystemSpec("msa_system", ""), Resources(model, directory / "bank", None, 1, 0))


def test_overlays_route_over_what_the_rebuilt_corpus_holds(tmp_path: Path) -> None:
    rng, model = random.Random(0), make_checkpoint(tmp_path / "model", routed_layers=(2, 3))
    view, questions = make_view(rng, make_corpus(rng, 12))
    answers = opened(model, list(view.base), tmp_path / "tail").answer(questions[:4], view)
    for question, answer in zip(questions, answers, strict=False):
        documents = list(view.documents(question))
        system = opened(model, documents, tmp_path / question.question_id)
        plain: Question = replace(question, overlay_id=None)
        (expected,) = system.answer([plain], CorpusView(documents, {}))
        assert answer.routed_doc_ids and answer.routed_doc_ids.keys() == expected.routed_doc_ids.keys()
        first = next(iter(expected.routed_doc_ids))
        assert answer.routed_doc_ids[first] == expected.routed_doc_ids[first]
