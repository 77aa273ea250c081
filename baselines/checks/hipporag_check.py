"""HippoRAG 2 against dense retrieval on real passages: recall@k of every question under both, over the same index.

    python -m baselines.checks.hipporag_check --data DATA --embedder all-MiniLM-L6-v2 --output recalls.json

DATA holds musique/ (the 100 questions with their own corpus) and hotpotqa/ (each question's passages as one corpus); an
embedder is a checkpoint of this project or a sentence-transformers directory. Triples and the fact filter are the
rules', unless ``--reader`` names a model directory that extracts and filters. The output is one row a question;
``python -m reports.recall recalls.json`` adds intervals and a verdict.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from baselines import dense, hipporag
from baselines.base import Resources
from baselines.checks.retrieval_check import JudgedSet, model_directory, own_ranking, read_hotpotqa, recall
from baselines.drivers.index import index_over
from baselines.parts.models import open_reader
from baselines.parts.retrieval import Retriever
from msa_base.errors import UserError, run_command
from msa_base.options import add_number, add_threads, given_path
from msa_base.records import Document, Question
from msa_base.specs import IndexSpec
from msa_base.tables import read_json, write_json

K = 5


def read_musique(data: Path) -> JudgedSet:
    """MuSiQue (Trivedi et al. 2022): HippoRAG's 100 training questions, supporting paragraphs relevant."""
    path = data / "musique" / "train_100.json"
    corpus = [(row["title"], row["text"]) for row in read_json(data / "musique" / "train_100_corpus.json")]
    places = {passage: place for place, passage in enumerate(dict.fromkeys(corpus))}
    documents = [Document(place, f"{title}\n{text}", 0) for (title, text), place in places.items()]
    questions, grades = [], {}
    for row in read_json(path):
        gold = [(part["title"], part["paragraph_text"]) for part in row["paragraphs"] if part["is_supporting"]]
        lost = [title for title, text in gold if (title, text) not in places]
        if lost:
            raise UserError(f"{path}: paragraph '{lost[0]}' of question {row['id']} is not in train_100_corpus.json")
        questions.append(Question(row["id"], row["question"], "", 1))
        grades[row["id"]] = {places[passage]: 1 for passage in gold}
    return JudgedSet(documents, questions, grades)


READERS = {"musique": read_musique, "hotpotqa": read_hotpotqa}


def rankings(
    judged: JudgedSet, embedder: Path, reader: Path | None, search: hipporag.GraphSearch, threads: int
) -> dict[str, list[list[int]]]:
    """What dense retrieval and HippoRAG 2 rank, over one dense index."""
    with index_over(judged.documents, IndexSpec("dense"), embedder, threads) as index:
        resources = Resources(reader, index, embedder, threads, 0)
        model = open_reader(reader, threads) if reader else None
        retrievers: dict[str, Retriever] = {
            "dense": dense.DenseRetriever(dense.DenseSearch(), resources),
            "hipporag": hipporag.HippoRAG(search, resources, model),
        }
        return {name: own_ranking(retriever, judged) for name, retriever in retrievers.items()}


def recalls(name: str, judged: JudgedSet, ranked: dict[str, list[list[int]]]) -> list[dict[str, Any]]:
    """One row a question that has relevant documents: its recall@K under each retriever."""
    rows = []
    for place, question in enumerate(judged.questions):
        grades = judged.grades[question.question_id]
        values = {retriever: recall(found[place], grades, judged.relevant, K) for retriever, found in ranked.items()}
        if None not in values.values():
            rows.append({"set": name, "question_id": question.question_id, "metric": f"recall@{K}", **values})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=given_path, required=True, help="directory with musique/ and hotpotqa/")
    parser.add_argument(
        "--embedder", type=given_path, required=True, help="a checkpoint or sentence-transformers directory"
    )
    parser.add_argument(
        "--reader", type=given_path, help="a model that extracts triples and filters facts (default: rules)"
    )
    parser.add_argument("--phrases", default="model", help="what compares facts: model, words or both (default: model)")
    parser.add_argument("--sets", nargs="+", choices=list(READERS), default=list(READERS), help="default: all")
    add_number(parser, "--questions", None, "a set's first questions, over its whole corpus (default: all)")
    add_threads(parser, 1, "CPU threads (default: 1)")
    parser.add_argument("--output", type=given_path, required=True, help="JSON file for the rows")
    chosen = parser.parse_args()
    extractor, fact_filter = ("model", "model") if chosen.reader else ("rules", "names")
    search, rows = hipporag.GraphSearch(extractor, fact_filter, chosen.phrases), []
    with TemporaryDirectory() as folder:
        embedder = model_directory(chosen.embedder, Path(folder))
        for name in chosen.sets:
            judged = READERS[name](chosen.data)
            judged.questions = judged.questions[: chosen.questions]
            rows += recalls(name, judged, rankings(judged, embedder, chosen.reader, search, chosen.threads))
    write_json(rows, chosen.output)
    print(f"{chosen.output}: {len(rows):,} questions")


if __name__ == "__main__":
    run_command(main)
