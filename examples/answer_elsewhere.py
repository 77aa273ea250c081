"""Answers an exported task by shared words, with nothing of this project: what somebody elsewhere would write.

python examples/answer_elsewhere.py exported/scaling_facts/16K answers/scaling_facts/16K.jsonl
"""

import json
import sys
from pathlib import Path


def read(path):
    """The rows of a file of JSON lines."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def main(folder, output):
    """Write a line a question."""
    documents = {row["doc_id"]: row["text"] for row in read(folder / "documents.jsonl")}
    overlays = {}
    for row in read(folder / "overlays.jsonl"):
        overlays.setdefault(row["overlay_id"], {})[row["doc_id"]] = row["text"]
    lines = []
    for question in read(folder / "questions.jsonl"):
        memory = documents | overlays.get(question["overlay_id"], {})
        words = set(question["text"].lower().split())
        best = max(memory, key=lambda doc_id: (len(words & set(memory[doc_id].lower().split())), doc_id))
        lines.append({"question_id": question["question_id"], "text": memory[best], "cited_doc_ids": [best]})
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text("".join(json.dumps(line) + "\n" for line in lines))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
