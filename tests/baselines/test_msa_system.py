"""MSA through the door of every system: a bank with overlays routes over each question's own corpus."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from baselines import msa_system
from baselines.base import CellStatus, IndexResources, Resources
from baselines.checks.load import circle
from baselines.drivers.supervise import expected_failure
from msa_base.errors import UserError
from msa_base.records import Answer, CorpusView, Document, Question, without_costs
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


@pytest.fixture
def place(tmp_path: Path) -> tuple[Path, CorpusView, list[Question]]:
    """A checkpoint, and a view with questions over it."""
    rng = random.Random(1)
    return make_checkpoint(tmp_path / "model", routed_layers=(2, 3)), *make_view(rng, make_corpus(rng, 12))


def test_two_ranks_answer_as_one_and_a_lost_one_is_a_status_and_is_started_again(
    tmp_path: Path, place: tuple[Path, CorpusView, list[Question]], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, view, questions = place
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))  # the other rank imports this checkout
    alone = opened(model, list(view.base), tmp_path)
    expected = [plain(answer) for answer in alone.answer(questions, view)]
    shared = msa_system.make(
        SystemSpec("msa_system", "", params={"ranks": 2}), Resources(model, tmp_path / "bank", None, 2, 0)
    )
    assert [plain(answer) for answer in shared.answer(questions, view)] == expected
    (other,) = psutil.Process().children()
    other.kill()
    with pytest.raises(CellStatus, match=r"^interrupted: process 1 \(exit status -9\) of 2 ended") as lost:
        attempt(lambda: shared.answer(questions, view))
    assert lost.value.outcome["refused"]  # it is tried anew at the next run
    assert [plain(answer) for answer in shared.answer(questions, view)] == expected
    shared.close()
    assert not psutil.Process().children()


def attempt(work: Callable[[], Any]) -> Any:
    """What a driver makes of an error."""
    try:
        return work()
    except Exception as error:
        raise expected_failure(error) from None


def plain(answer: Answer) -> Answer:
    """An answer without its seconds."""
    return replace(answer, first_token_s=None, total_s=None, stage_s={})


def test_an_edited_memory_answers_as_a_rebuilt_one_and_the_old_one_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(msa_system, "MOST_EDITS", 3)  # so that segments are joined on the way
    rng, model = random.Random(0), make_checkpoint(tmp_path / "model", routed_layers=(2, 3))
    view, questions = make_view(rng, make_corpus(rng, 12))
    asked = [replace(question, overlay_id=None) for question in questions[:2]]
    states = [CorpusView(state, {}) for state in circle(view.base, [view.base[place].doc_id for place in (0, 5, 11)])]
    system = opened(model, list(view.base), tmp_path / "tail")
    system.ingest(states[0])
    systems = [system]
    for state in [*states[1:], states[0]]:
        systems.append(systems[-1].over(state))
    wanted = []
    for number, state in enumerate(states):
        (tmp_path / str(number)).mkdir()
        rebuilt = opened(model, list(state.base), tmp_path / str(number))
        wanted.append(without_costs(rebuilt.answer(asked, state)))
    assert len({str(said) for said in wanted}) > 3
    for found, state, said in zip(systems, [*states, states[0]], [*wanted, wanted[0]], strict=True):
        assert without_costs(found.answer(asked, state)) == said
    assert max(len(found._base.segments) for found in systems) <= 4
    system.params = replace(system.params, ranks=2)
    with pytest.raises(UserError, match="ranks: a sharded bank cannot be edited"):
        system.over(states[1])
