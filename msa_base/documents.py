"""Documents in files of other people, a corpus.parquet or JSON lines of ``doc_id`` and ``text``: one set of checks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from msa_base.blank import is_blank
from msa_base.errors import UserError, shown
from msa_base.json_lines import read_json_lines
from msa_base.records import Document
from msa_base.tables import read_corpus

MAX_ID = 2**63 - 1
MAX_CHARACTERS = 1 << 18  # of a document, which is read as one: more would be tokenised for minutes, then refused


def read_documents(path: Path | str) -> Sequence[Document]:
    """All documents of a file in its order; those of JSON lines have ``num_tokens`` 0. Further keys are not read.

    Raises:
        UserError: no such file, or a row without a whole number from 0 or without a text, with one that is too long,
            or with an id that an earlier row has. The message names the file, the line or row, the key and the mend.
    """
    path, places = Path(path), {}
    if path.suffix == ".parquet":
        found = read_corpus(path, mend="give a corpus.parquet, or JSON lines in a file of another name")
        unit, rows = "row", enumerate(map(vars, found), start=1)
    else:
        found, unit, rows = [], "line", read_json_lines(path)
    for number, row in rows:
        fault = _fault(row)
        if fault is None and (before := places.setdefault(row["doc_id"], number)) != number:
            fault = f"key 'doc_id': {row['doc_id']} is that of {unit} {before} already; give each document its own"
        if fault is not None:
            raise UserError(f"{path}, {unit} {number}: {fault}")
        if unit == "line":
            found.append(Document(row["doc_id"], row["text"], 0))
    if not len(found):
        raise UserError(f"{path}: holds no document; write one JSON object a line, or a row a document")
    return found


def _fault(row: Any) -> str | None:
    """What is wrong with a row as a document, and its mend; None where nothing is."""
    if not isinstance(row, dict) or not {"doc_id", "text"} <= row.keys():
        return "needs an object with the keys 'doc_id' and 'text'"
    doc_id, text = row["doc_id"], row["text"]
    if type(doc_id) is not int or not 0 <= doc_id <= MAX_ID:  # True is an int of Python's too
        return f"key 'doc_id' must be a whole number from 0 to 2**63 - 1, found {shown(doc_id)}"
    if not isinstance(text, str):
        return f"key 'text' must be a string, found {shown(text)}"
    if is_blank(text):
        return "key 'text' has no text; give it some or leave the document out"
    if len(text) > MAX_CHARACTERS:
        return f"key 'text' has {len(text):,} characters, more than the {MAX_CHARACTERS:,} of one document; split it"
    return None
