"""Answers from elsewhere are scored as those of the system that made them; what is wrong with a file is one line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from baselines.base import CellStatus, Resources
from baselines.external import External, Params, make, read_answers
from msa_base.errors import UserError
from msa_base.records import CorpusView, Document, Overlay, Question
from msa_base.specs import SystemSpec
from msa_base.stage_records import RunRecord, ViewRecord
from msa_base.stages import Stages
from msa_base.tables import read_predictions, read_table, write_table
from tasks.stages.export import export
from tasks.stages.score import score_cell
from tests.baselines.conftest import CONTEXTS, Workplace

VIEW = CorpusView([Document(7, "seven", 3), Document(8, "eight", 3)], {"head": Overlay("head", (Document(9, "n", 1),))})
QUESTIONS = [Question("q0", "?", "", 4), Question("q1", "?", "", 4, "head"), Question("q2", "?", "", 4)]


@pytest.fixture
def elsewhere(workplace: Workplace, tmp_path: Path) -> Path:
    """Where the entry `external` of the workplace looks for answers."""
    place = str(tmp_path / "answers" / "{task}" / "{context}" / "seed{seed}.jsonl")
    workplace.systems["systems"]["external"] = {"kind": "external", "title": "E", "params": {"predictions": place}}
    workplace.write_configs()
    return tmp_path / "answers" / "needles"


def copied(workplace: Workplace, elsewhere: Path, context: str) -> Path:
    """What rag_bm25 answered, where the external system looks."""
    path = elsewhere / context / "seed0.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(workplace.paths.cell("rag_bm25", "needles", context, 0) / "predictions.jsonl", path)
    return path


def grade(workplace: Workplace, context: str) -> None:
    """Gold of which bm25 answers every second question, and finds every third."""
    prepared = workplace.paths.prepared("needles", context)
    rows = read_table("gold", prepared / "gold.parquet")
    answers = read_predictions(workplace.paths.cell("rag_bm25", "needles", context, 0) / "predictions.jsonl")
    for place, (row, answer) in enumerate(zip(rows, answers, strict=True)):
        row["answers"] = [answer.text if place % 2 else "never said"]
        row["gold_doc_ids"] = [answer.routed_doc_ids["bm25"][place % 3], *row["gold_doc_ids"]]
    write_table("gold", rows, prepared / "gold.parquet")
    workplace.write_view(context, CONTEXTS[context] // 40)


def scores(workplace: Workplace, system: str, context: str) -> dict[tuple[str, str], float]:
    """Every score of a cell by question and metric."""
    cell = workplace.paths.cell(system, "needles", context, 0)
    identity = {"system": system, "task": "needles", "context": context, "seed": 0}
    score_cell(cell, workplace.paths.prepared("needles", context), "contains", identity, ["f1", "ndcg@10"])
    return {(row["question_id"], row["metric"]): row["value"] for row in read_table("scores", cell / "scores.parquet")}


def test_answers_from_elsewhere_score_as_those_of_the_system_that_made_them(
    workplace: Workplace, elsewhere: Path
) -> None:
    assert workplace.run("rag_bm25") == 0
    for context in CONTEXTS:
        copied(workplace, elsewhere, context)
        grade(workplace, context)
    assert workplace.run("external") == 0
    for context in CONTEXTS:
        first, second = (scores(workplace, system, context) for system in ("rag_bm25", "external"))
        assert first == second
        assert {0.0, 1.0} <= {value for (_, metric), value in first.items() if metric == "accuracy"}
        assert len({metric for _, metric in first}) > 5


def test_a_question_without_an_answer_fails_and_an_edited_file_runs_again(
    workplace: Workplace, elsewhere: Path
) -> None:
    assert workplace.run("rag_bm25") == 0
    path = copied(workplace, elsewhere, "2K")
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[:6]))
    assert workplace.run("external") == 0
    records = [RunRecord.open(workplace.paths.cell("external", "needles", name, 0) / "run.json") for name in CONTEXTS]
    assert [record.status for record in records] == ["unavailable_data", "ok", "unavailable_data"]
    assert (records[1].n, records[1].failures) == (9, 3)
    assert "nobody has answered this cell" in records[0].reason
    found = scores(workplace, "external", "2K")
    lost = [json.loads(line)["question_id"] for line in lines[6:]]
    assert [found[name, metric] for name in lost for metric in ("accuracy", "recall@16/bm25")] == [0.0] * 6

    path.write_text("\n".join(lines))
    assert workplace.run("external") == 0
    again = [RunRecord.open(workplace.paths.cell("external", "needles", name, 0) / "run.json") for name in CONTEXTS]
    assert [record.failures for record in again] == [None, 0, None]
    assert again[0] == records[0]  # the cells whose file is the same are left alone


def test_the_workflow_sees_an_edited_file(workplace: Workplace, elsewhere: Path) -> None:
    from msa_base.load import load

    stages = Stages(load("test", workplace.configs))
    before = stages.elsewhere("external", "needles")
    assert list(before.values()) == [None] * 3 and stages.elsewhere("rag_bm25", "needles") == {}
    path = elsewhere / "2K" / "seed0.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text("{}\n")
    assert [value is None for value in stages.elsewhere("external", "needles").values()] == [True, False, True]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ('{"question_id": "q3", "text": ""}', "line 1: question 'q3' is not asked in this cell; leave the line out"),
        ('{"question_id": "q0", "text": ""}\n\n' * 2, "line 3: question 'q0' is answered in line 1 already; keep one"),
        ('{"question_id": "q0", "txt": "a"}', "line 1: unknown key 'txt'; did you mean 'text'?"),
        ('{"question_id": "q0"}', "line 1: key 'text' is missing; add it"),
        ('{"question_id": "q0", "text": 5}', "line 1: key 'text'"),
        ('{"question_id": "q0", "text": "", "total_s": -1}', "line 1: key 'total_s'"),
        ('{"question_id": "q0", "text": "", "total_s": NaN}', "line 1: NaN is no number"),
        ('{"question_id": "q0", "text": "", "routed_doc_ids": {"a": [7, 7]}}', "line 1: routed_doc_ids: key 'a'"),
        ('{"question_id": "q0", "text": "", "cited_doc_ids": [9]}', "the memory of question 'q0' has no document 9"),
        ('{"question_id": "q0", "text": "", "cited_doc_ids": [true]}', "line 1: key 'cited_doc_ids[0]'"),
        ('{"question_id": "q0", "text": "", "prompt": "x"}', "line 1: key 'prompt'"),
        ('["q0", "a"]', "line 1: expected a mapping, found list"),
        ('{"question_id": "q0", "text": ""}\n{"quest', "line 2: Unterminated string"),
        ('{"question_id": "q0", "text": "\\ud800"}', "line 1: "),
        ("[" * 100_000, "line 1: nested too deep"),
    ],
)
def test_what_is_wrong_with_a_file_is_one_line(tmp_path: Path, lines: str, message: str) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_text(lines)
    with pytest.raises(UserError) as raised:
        read_answers(path, QUESTIONS, VIEW)
    assert str(raised.value).startswith(f"{path}, line ") and message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_lines_may_come_in_any_order_and_name_what_their_overlay_adds(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_text(
        '{"question_id": "q1", "text": "a", "cited_doc_ids": [9], "routed_doc_ids": {"x": [9, 7], "y": []}}\r\n'
        '\ufeff{"question_id": "q0", "text": "", "routed_doc_ids": {"x": [8]}}\r\n'.replace("\ufeff", "")
    )
    found = read_answers(path, QUESTIONS, VIEW)
    assert found["q1"].cited_doc_ids == [9] and found["q0"].status == "ok"
    assert (found["q2"].status, found["q2"].text, found["q2"].routed_doc_ids) == ("unanswered", "", {"x": []})


@pytest.mark.parametrize(
    "place", ["a.jsonl", "{task}.jsonl", "{context}", "{task}/{context}/{system}", "{task}{context}}"]
)
def test_a_place_tells_cells_apart(place: str) -> None:
    with pytest.raises(UserError, match=r"^systems\.yaml: params of kind 'external': key 'predictions'"):
        make(SystemSpec("external", "E", params={"predictions": place}), Resources(None, None, None, 1, 0))


def test_nothing_is_timed() -> None:
    spec = SystemSpec("external", "E", params=vars(Params("{task}/{context}")))
    with pytest.raises(CellStatus, match="unavailable_data: answered elsewhere"):
        External(spec, 0).answer(QUESTIONS, VIEW)


def test_an_export_holds_the_whole_memory_and_no_gold(workplace: Workplace, tmp_path: Path) -> None:
    folder = tmp_path / "exported" / "1K"
    assert export(workplace.paths, "prose", "needles", "1K", folder) == 9
    read = {path.name: path.read_text().splitlines() for path in folder.glob("*.jsonl")}
    documents, overlays = ([json.loads(line) for line in read[f"{name}.jsonl"]] for name in ("documents", "overlays"))
    view = ViewRecord.open(workplace.paths.prepared("needles", "1K") / "view.json")
    corpus = read_table("corpus", workplace.paths.corpus("prose"))
    assert documents == corpus[: view.base_documents] and len(documents) < len(corpus)
    assert overlays == read_table("overlays", workplace.paths.prepared("needles", "1K") / "overlays.parquet")
    assert set(json.loads(read["questions.jsonl"][0])) == {
        "question_id", "text", "answer_prefix", "max_new_tokens", "overlay_id",
    }  # fmt: skip
    assert "gold" not in " ".join(path.read_text() for path in folder.iterdir()).replace("without gold", "")
    with pytest.raises(UserError, match="exists already"):
        export(workplace.paths, "prose", "needles", "1K", folder)
