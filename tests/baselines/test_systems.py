"""Systems that read: what they are given, what they refuse, what they cost."""

from __future__ import annotations

import math
import random
import re
from dataclasses import replace
from pathlib import Path

import pytest

import baselines.base
from baselines import bm25
from baselines.base import NOT_ESTIMATED, CellStatus, Resources, load_plugin
from baselines.bm25 import Params
from baselines.closed_book import ClosedBook
from baselines.drivers.questions import spread
from baselines.long_context import LongContext
from baselines.long_context import Params as LongParams
from baselines.oracle import Oracle
from msa_base.errors import UserError
from msa_base.kinds import import_kind
from msa_base.records import Question
from msa_base.specs import SystemSpec
from msa_base.validate import build
from tests.baselines.conftest import FakeReader, make_corpus, make_view

RESOURCES = Resources(None, None, None, threads=1, seed=0)


def test_closed_book_reads_nothing() -> None:
    view, questions = make_view(random.Random(0), make_corpus(random.Random(0), 10))
    answers = ClosedBook(RESOURCES).answer(questions, view)
    assert [answer.cited_doc_ids for answer in answers] == [[]] * len(questions)


def test_oracle_reads_gold_as_the_overlay_has_it() -> None:
    view, questions = make_view(random.Random(0), make_corpus(random.Random(0), 10))
    replaced = view.overlays["replacing"].added[0]
    affected = [question for question in questions if question.overlay_id in (None, "replacing")]
    oracle = Oracle(RESOURCES, {question.question_id: [replaced.doc_id] for question in affected})
    for question, found in zip(affected, oracle.select(affected, view), strict=True):
        (document,) = found.documents
        assert (document.text == replaced.text) == (question.overlay_id == "replacing")


def test_oracle_stops_at_gold_that_the_corpus_lacks() -> None:
    view, questions = make_view(random.Random(0), make_corpus(random.Random(0), 10))
    with pytest.raises(UserError, match="document 77, which its corpus lacks"):
        Oracle(RESOURCES, {question.question_id: [77] for question in questions}).answer(questions, view)


def test_full_attention_reads_everything_or_says_that_it_cannot() -> None:
    view, questions = make_view(random.Random(0), make_corpus(random.Random(0), 10))
    answers = LongContext(LongParams(window_tokens=1000), RESOURCES).answer(questions, view)
    expected = [
        FakeReader(None, 1).answer([(list(view.documents(question)), question)])[0].text for question in questions
    ]
    assert [answer.text for answer in answers] == expected
    with pytest.raises(CellStatus) as raised:
        LongContext(LongParams(window_tokens=420), RESOURCES).answer(questions, view)
    assert raised.value.status == "unsupported_context"
    assert "the window has 420" in raised.value.reason


def test_an_equal_prompt_is_read_once() -> None:
    rng = random.Random(0)
    view, questions = make_view(rng, make_corpus(rng, 30))
    system = bm25.make(SystemSpec("bm25", ""), RESOURCES)
    first = system.answer(questions, view)
    calls = FakeReader.calls
    assert system.answer(questions, view) != []
    assert FakeReader.calls == calls == len({(*answer.cited_doc_ids, answer.text) for answer in first})


@pytest.mark.parametrize(("per_overlay", "count"), [(1, 16), (8, 16), (64, 16), (8, 3), (3, 23), (8, 96), (8, 1)])
def test_capped_questions_are_spread_over_overlays(per_overlay: int, count: int) -> None:
    questions = [Question(f"q{i}", "", "", 1, f"o{i // per_overlay}") for i in range(96)]
    chosen = spread(questions, count)
    assert len(chosen) == count
    assert chosen == sorted(chosen, key=lambda question: int(question.question_id[1:]))
    shares = [sum(item.overlay_id == name for item in chosen) for name in {item.overlay_id for item in chosen}]
    assert max(shares) - min(shares) <= 1
    assert len(shares) == min(count, math.ceil(96 / per_overlay))


def test_a_plugin_is_named_by_its_dotted_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mypackage").mkdir()
    (tmp_path / "mypackage" / "mysystem.py").write_text("def make(spec, resources):\n    return None\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert import_kind("mypackage.mysystem", "baselines", "x").make(None, None) is None
    with pytest.raises(UserError, match=r"systems\.yaml: systems: a: kind 'bm26': there is no module baselines\.bm26"):
        import_kind("bm26", "baselines", "systems.yaml: systems: a")


def test_a_module_of_one_hook_has_the_declared_defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "hooks").mkdir()
    (tmp_path / "hooks" / "one.py").write_text(
        "def make(spec, resources, gold=None):\n    return spec.kind, gold\n\n\nREADS_ALL = True\n"
    )
    (tmp_path / "hooks" / "none.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    plugin = load_plugin("hooks.one", "here")
    assert (plugin.READS_ALL, plugin.PLANS_TIME, plugin.Params, plugin.IndexParams) == (True, False, None, None)
    assert plugin.estimate_cell(None) is plugin.estimate_index(None, None, None, "float32") is NOT_ESTIMATED
    assert plugin.index_parts(tmp_path) == {}
    spec = SystemSpec("hooks.one", "One hook")
    assert plugin.open(spec, None, {"q": [1]}) == ("hooks.one", None)
    assert plugin.open(replace(spec, reads_gold=True), None, {"q": [1]}) == ("hooks.one", {"q": [1]})
    with pytest.raises(UserError, match=r"^here: kind 'hooks.one' builds no index; name a module with build_index$"):
        plugin.need("build_index", "here")
    with pytest.raises(UserError, match=r"kind 'hooks\.none' opens no system; name a module with make"):
        load_plugin("hooks.none", "here").open(spec, None, {})


def test_hooks_are_asked_for_where_they_are_declared() -> None:
    root = Path(baselines.base.__file__).parent
    rooms = [path for room in ("drivers", "checks", "planning") for path in (root / room).glob("*.py")]
    assert rooms and not [path for path in rooms if re.search(r'import_kind\([^)]*"baselines"', path.read_text())]


@pytest.mark.parametrize("params", [{"read_k": 0}, {"order": "worst_first"}, {"k1": -1}, {"reed_k": 5}, {"b": "high"}])
def test_bad_parameters_name_their_place(params: dict) -> None:
    with pytest.raises(UserError, match=r"^systems\.yaml: here"):
        build(Params, params, "systems.yaml: here")
