"""How deep in the memory a question's needle lies, and how well a system answers by depth."""

from __future__ import annotations

from collections import defaultdict
from itertools import product

import numpy as np

from msa_base.stage_records import ViewRecord
from msa_base.tables import read_arrow
from reports.evidence import CellKey, Evidence

BINS = tuple((low / 5, (low + 1) / 5) for low in range(5))


def depths(evidence: Evidence) -> dict[str, dict[str, float]]:
    """By context, where the gold document of each needle question begins, as a share of the memory's tokens.

    Only questions whose gold is one document of the tail; nothing where a task or its corpus is not prepared.
    """
    corpora: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    found: dict[str, dict[str, float]] = {context: {} for context in evidence.contexts}
    for task, context in product(evidence.tasks_of_role("needles"), evidence.contexts):
        record = evidence.paths.prepared(task, context) / "view.json"
        if not record.exists():
            continue
        view = ViewRecord.open(record)
        path = evidence.paths.corpus(view.corpus)
        if view.corpus not in corpora and path.exists():
            table = read_arrow("corpus", path, columns=["doc_id", "num_tokens"])
            corpora[view.corpus] = table["doc_id"].to_numpy(), table["num_tokens"].to_numpy()
        if view.corpus in corpora and view.base_documents:
            ids, tokens = (column[: view.base_documents] for column in corpora[view.corpus])
            starts = dict(zip(ids.tolist(), (np.cumsum(tokens) - tokens) / max(tokens.sum(), 1), strict=True))
            gold = {question: docs[0] for question, docs in evidence.gold(task, context).items() if len(docs) == 1}
            found[context] |= {question: starts[doc] for question, doc in gold.items() if doc in starts}
    return found


def by_depth(evidence: Evidence, system: str, context: str, places: dict[str, float]) -> dict[float, list[float]]:
    """The accuracy of each needle question, by the lower end of the bin of its place."""
    found: dict[float, list[float]] = defaultdict(list)
    for task in evidence.tasks_of_role("needles"):
        for question, value in evidence.values(CellKey(system, task, context)).dropna().items():
            if question in places:
                place = min(int(places[question] * len(BINS)), len(BINS) - 1)
                found[BINS[place][0]].append(float(value))
    return dict(found)
