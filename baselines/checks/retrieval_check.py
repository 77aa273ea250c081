"""Retrieval against known-good tools on real passages: BM25 against bm25s, dense against plain exact search.

    python -m baselines.checks.retrieval_check --data DATA --embedder results/tiny/_models/embedder
    python -m baselines.checks.retrieval_check --data DATA --sets hotpotqa --embedder all-MiniLM-L6-v2

DATA holds msmarco/ (TREC DL 2019: the candidates of two rankers as one corpus, human relevance labels) and hotpotqa/
(each question's passages as one corpus, supporting facts). An embedder is a checkpoint of this project or a
sentence-transformers directory. Prints recall@k and nDCG@10 of both sides; exits with 1 where they differ by more than
half a point.
"""

from __future__ import annotations

import argparse
import json
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, get_args

import numpy as np

from baselines import bm25, dense
from baselines.base import Resources
from baselines.drivers.index import index_over
from baselines.parts.models import REFERENCE, open_embedder
from baselines.parts.retrieval import Retriever
from msa_base.errors import UserError, run_command
from msa_base.options import add_number, given_path
from msa_base.records import CorpusView, Document, Question
from msa_base.specs import IndexSpec
from msa_base.tables import read_json, write_json

TOLERANCE = 0.5  # points
DEPTH = 100
RELEVANT = 2  # TREC DL: grades from 2 on count as relevant for recall


@dataclass
class JudgedSet:
    """A corpus, its questions, and the grade of each judged document by question id."""

    documents: list[Document]
    questions: list[Question]
    grades: dict[str, dict[int, int]]
    relevant: int = 1  # the least grade that counts as relevant


def read_msmarco(data: Path, limit: int | None = None) -> JudgedSet:
    """TREC DL 2019 passages (Craswell et al. 2020): what BM25 and SPLADE proposed for the first ``limit`` queries."""
    texts: dict[int, str] = {}
    wanted: set[str] = set()
    for name in ("bm25", "splade"):
        for query in read_json(data / "msmarco" / f"{name}_candidates_dl19.json")[:limit]:
            texts.update({int(hit["docid"]): hit["content"] for hit in query["hits"]})
            wanted.add(query["query"])
    grades: dict[str, dict[int, int]] = {}
    for line in _lines(data / "msmarco" / "qrels.dl19-passage.txt"):
        query, _, doc_id, grade = line.split()
        grades.setdefault(query, {})[int(doc_id)] = int(grade)
    topics = dict(line.split("\t") for line in _lines(data / "msmarco" / "topics.dl19-passage.txt"))
    questions = [Question(query, topics[query].strip(), "", 1) for query in grades if topics[query].strip() in wanted]
    return JudgedSet([Document(*item, 0) for item in texts.items()], questions, grades, RELEVANT)


def read_hotpotqa(data: Path, limit: int | None = None) -> JudgedSet:
    """HotpotQA (Yang et al. 2018): passages by title, the supporting ones relevant."""
    places: dict[str, int] = {}
    documents, questions, grades = [], [], {}
    for line in _lines(data / "hotpotqa" / "amor_test_500.json")[:limit]:
        row = json.loads(line)
        for title, sentences in row["context"]:
            if title not in places:
                places[title] = len(places)
                documents.append(Document(places[title], f"{title}\n{''.join(sentences)}", 0))
        questions.append(Question(row["_id"], row["question"], "", 1))
        grades[row["_id"]] = {places[title]: 1 for title, _ in row["supporting_facts"] if title in places}
    return JudgedSet(documents, questions, grades)


SETS = {"msmarco": (read_msmarco, (10, 100)), "hotpotqa": (read_hotpotqa, (2, 5))}  # reader, and k of recall


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().removesuffix("\n").split("\n")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; name the data directory with --data") from None


def recall(ranked: Sequence[int], grades: dict[int, int], relevant: int, k: int) -> float | None:
    """Share of the relevant documents among the first k; None where none is relevant."""
    wanted = {doc_id for doc_id, grade in grades.items() if grade >= relevant}
    return len(wanted.intersection(ranked[:k])) / len(wanted) if wanted else None


def ndcg(ranked: Sequence[int], grades: dict[int, int], k: int = 10) -> float | None:
    """Normalised discounted cumulative gain as in trec_eval: the gain is the grade (Jarvelin and Kekalainen 2002)."""

    def gain(found: Sequence[int]) -> float:
        return sum(grade / math.log2(rank + 2) for rank, grade in enumerate(found[:k]))

    best = gain(sorted(grades.values(), reverse=True))
    return gain([grades.get(doc_id, 0) for doc_id in ranked[:k]]) / best if best else None


def scores(rankings: list[list[int]], judged: JudgedSet, ks: Sequence[int]) -> dict[str, float]:
    """Means over questions, in points."""
    values: dict[str, list[float | None]] = defaultdict(list)
    for ranked, question in zip(rankings, judged.questions, strict=True):
        grades = judged.grades[question.question_id]
        for k in ks:
            values[f"recall@{k}"].append(recall(ranked, grades, judged.relevant, k))
        values["nDCG@10"].append(ndcg(ranked, grades))
    return {name: 100 * float(np.mean([x for x in each if x is not None])) for name, each in values.items()}


def own_ranking(retriever: Retriever, judged: JudgedSet) -> list[list[int]]:
    """What one of this project's retrievers ranks."""
    view = CorpusView(judged.documents, {})
    retriever.ingest(view)
    found = retriever.rank(judged.questions, view, DEPTH)
    return [[document.doc_id for document in documents] for documents in found.documents]


def bm25s_ranking(judged: JudgedSet, params: bm25.Okapi) -> list[list[int]]:
    """What bm25s ranks by itself, on the same words and constants."""
    import bm25s

    words = bm25.Words()
    texts = [words.ids_of(document.text) for document in judged.documents]
    index = bm25s.BM25(method="robertson", k1=params.k1, b=params.b)
    index.index((texts, dict(words.ids)), show_progress=False)
    rankings = []
    for question in judged.questions:
        order = np.argsort(-index.get_scores_from_ids(words.query(question.text)), kind="stable")
        rankings.append([judged.documents[row].doc_id for row in order[:DEPTH]])
    return rankings


def dense_rankings(judged: JudgedSet, model: Path, structure: str) -> tuple[list[list[int]], list[list[int]]]:
    """What dense retrieval ranks on an index that it built, and what sorting all products ranks."""
    with index_over(judged.documents, IndexSpec("dense", params={"structure": structure}), model, 1) as index:
        own = own_ranking(dense.DenseRetriever(dense.DenseSearch(), Resources(None, index, model, 1, 0)), judged)
    embedder = open_embedder(model, 1)
    queries = embedder.queries([question.text for question in judged.questions])
    products = queries @ embedder.documents(judged.documents).T
    order = np.argsort(-products, axis=1, kind="stable")[:, :DEPTH]
    return own, [[judged.documents[row].doc_id for row in rows] for rows in order]


def compare(name: str, judged: JudgedSet, embedder: Path | None, structure: str) -> list[dict[str, Any]]:
    """One row a retriever and metric: its score, the tool's, and whether they agree."""
    rankings, views = {}, {"BM25": bm25.Okapi(), "BM25 of large views": bm25.Okapi(large_documents=1)}
    for name_of, params in views.items():
        own = own_ranking(bm25.BM25Retriever(params), judged)
        rankings[f"{name_of}, bm25s"] = own, bm25s_ranking(judged, params)
    if embedder is not None:
        rankings[f"dense ({structure}), exact search"] = dense_rankings(judged, embedder, structure)
    rows = []
    for pair, (own, reference) in rankings.items():
        ours, theirs = (scores(ranking, judged, SETS[name][1]) for ranking in (own, reference))
        rows += [
            {"set": name, "pair": pair, "metric": metric, "own": ours[metric], "reference": theirs[metric]}
            | {"agrees": abs(ours[metric] - theirs[metric]) <= TOLERANCE}
            for metric in ours
        ]
    return rows


def model_directory(path: Path, folder: Path) -> Path:
    """A checkpoint of this project as it stands, or a reference to a sentence-transformers directory."""
    if not path.is_dir():
        raise UserError(f"--embedder {path}: no such directory")
    if not (path / "modules.json").exists():
        return path
    write_json({"kind": "sentence_encoder", "params": {"name": str(path.absolute())}}, folder / path.name / REFERENCE)
    return folder / path.name


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=given_path, required=True, help="directory with msmarco/ and hotpotqa/")
    parser.add_argument("--embedder", type=given_path, help="a checkpoint, or a sentence-transformers directory")
    structures = get_args(dense.Structure)
    parser.add_argument("--structure", choices=structures, default="flat", help="of the dense index (default: flat)")
    parser.add_argument("--sets", nargs="+", choices=list(SETS), default=list(SETS), help="default: all")
    add_number(parser, "--questions", None, "only the first questions and their passages (default: all)")
    parser.add_argument("--output", type=given_path, help="write the rows to this JSON file too")
    chosen = parser.parse_args()
    rows = []
    with TemporaryDirectory() as folder:
        embedder = model_directory(chosen.embedder, Path(folder)) if chosen.embedder else None
        for name in chosen.sets:
            rows += compare(name, SETS[name][0](chosen.data, chosen.questions), embedder, chosen.structure)
    for row in rows:
        verdict = "agrees" if row["agrees"] else "DIFFERS"
        print(f"{row['set']:9} {row['pair']:28} {row['metric']:10} {row['own']:6.2f} {row['reference']:6.2f} {verdict}")
    if chosen.output:
        write_json(rows, chosen.output)
    return 0 if all(row["agrees"] for row in rows) else 1


if __name__ == "__main__":
    run_command(main)
