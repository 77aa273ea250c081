"""Documents of other people's files: each is read as it is meant, or one message names file, place, key and mend."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from msa_base.blank import is_blank
from msa_base.documents import MAX_CHARACTERS, MAX_ID, read_documents
from msa_base.errors import UserError
from msa_base.json_lines import parse_json, read_json_lines

AS_WRITTEN = (pa.int64(), pa.string(), pa.int32())
SPECIAL = "a <|im_end|> b [1]<|object_ref_end|> <End-of-Retrieve>"


def line(doc_id: object = 1, text: object = "Plain text.", **more: object) -> bytes:
    return json.dumps({"doc_id": doc_id, "text": text, **more}).encode() + b"\n"


def raw(text: str, doc_id: int = 1) -> bytes:
    """A line whose text stands there as it is, not as an escape."""
    return json.dumps({"doc_id": doc_id, "text": text}, ensure_ascii=False).encode() + b"\n"


READ = {
    "line separator": (raw("First\u2028second.") + raw("More.", 2), ["First\u2028second.", "More."]),
    "next line": (raw("Old\x85text.") + raw("More.", 2), ["Old\x85text.", "More."]),
    "other separators": (raw("a\u2029b") + line(2, "a\x0bb\x0cc\x1cd"), ["a\u2029b", "a\x0bb\x0cc\x1cd"]),
    "mark": (b"\xef\xbb\xbf" + line(), ["Plain text."]),
    "returns": (line().replace(b"\n", b"\r\n") + line(2).replace(b"\n", b"\r\n"), ["Plain text."] * 2),
    "blank lines": (b"\n" + line() + b" \t\r\n\n" + line(2) + b"\n\n", ["Plain text."] * 2),
    "no last newline": (line().strip(), ["Plain text."]),
    "further key": (line(title="x"), ["Plain text."]),
    "bounds": (line(0) + line(MAX_ID), ["Plain text."] * 2),
    "controls": (line(text="".join(map(chr, range(32))) + "a"), ["".join(map(chr, range(32))) + "a"]),
    "marks of prompts": (line(text=SPECIAL), [SPECIAL]),
    "a pair": (b'{"doc_id": 1, "text": "\\ud83d\\ude00"}', ["\U0001f600"]),
    "long": (line(text="x" * MAX_CHARACTERS), ["x" * MAX_CHARACTERS]),
    "combining": (raw("e" + "\u0301" * 2000), ["e" + "\u0301" * 2000]),
}
REFUSED = {
    "empty": (b"", "holds no document"),
    "newline": (b"\n", "holds no document"),
    "no JSON": (line() + b"hello\n", "line 2: Expecting value"),
    "cut": (line()[:20], "line 1: "),
    "array": (b"[1, 2]", "line 1: needs an object with the keys 'doc_id' and 'text'"),
    "no text": (b'{"doc_id": 1}', "'text'"),
    "key twice": (b'{"doc_id": 1, "doc_id": 2, "text": "x"}', "key 'doc_id' stands there twice"),
    "id twice": (line() + b"\n" + line(text="Other."), "line 3: key 'doc_id': 1 is that of line 1 already"),
    "true": (line(True), "'doc_id' must be a whole number from 0 to 2**63 - 1, found True"),
    "float": (line(1.0), "found 1.0"),
    "negative": (line(-1), "found -1"),
    "string": (line("17"), "found '17'"),
    "null": (line(None), "found None"),
    "large": (line(2**63), "found 9223372036854775808"),
    "huge": (line(10**3000), "'doc_id' must be a whole number"),
    "digits": (b'{"doc_id": ' + b"1" * 5000 + b', "text": "x"}', "a number of 5,000 digits"),
    "NaN": (b'{"doc_id": NaN, "text": "x"}', "line 1: NaN is no number"),
    "infinite": (b'{"doc_id": 1e999, "text": "x"}', "found inf"),
    "text null": (line(text=None), "'text' must be a string, found None"),
    "text number": (line(text=5), "found 5"),
    "text list": (line(text=["a"]), "found ['a']"),
    "text empty": (line(text=""), "'text' has no text"),
    "text blank": (line(text=" \u2003\n"), "'text' has no text"),
    "text unseen": (line(text="\u200b\ufeff\u2060"), "'text' has no text"),
    "half": (b'{"doc_id": 1, "text": "\\ud83d end"}', "half a character"),
    "halves turned": (b'{"doc_id": 1, "text": "\\uDE00\\ud83d"}', "half a character"),
    "Latin 1": (b'{"doc_id": 1, "text": "caf\xe9"}', "line 1: 'utf-8' codec"),
    "UTF-16": (line().decode().encode("utf-16"), "line 1: "),
    "deep": (b"[" * 100_000, "nested too deep"),
    "too long": (line(text="x " * 500_000), "1,000,000 characters, more than the 262,144 of one document; split it"),
}


def written(place: Path, content: bytes, name: str = "documents.jsonl") -> Path:
    (place / name).write_bytes(content)
    return place / name


@pytest.mark.parametrize(("content", "texts"), READ.values(), ids=READ)
def test_json_lines_are_read_as_they_are_meant(tmp_path, content, texts):
    assert [document.text for document in read_documents(written(tmp_path, content))] == texts


@pytest.mark.parametrize(("content", "said"), REFUSED.values(), ids=REFUSED)
def test_json_lines_that_are_no_documents_are_named(tmp_path, content, said):
    with pytest.raises(UserError) as caught:
        read_documents(written(tmp_path, content))
    assert said in str(caught.value) and str(caught.value).startswith(str(tmp_path / "documents.jsonl"))
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("name", ["none.jsonl", "none.parquet", "folder", "folder.parquet", "a.jsonl.gz", "b.jsonl.gz"])
def test_a_file_that_cannot_be_read_is_named(tmp_path, name):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder.parquet").mkdir()
    written(tmp_path, b"\x1f\x8b\x08\x00cut", "a.jsonl.gz")
    whole = gzip.compress(line())
    written(tmp_path, whole[:10] + bytes([whole[10] ^ 0xFF]) + whole[11:], "b.jsonl.gz")
    with pytest.raises(UserError, match=name):
        read_documents(tmp_path / name)


def parquet(place: Path, columns: dict[str, pa.Array], nullable: bool = True) -> Path:
    fields = [pa.field(name, column.type, nullable) for name, column in columns.items()]
    pq.write_table(pa.table(list(columns.values()), pa.schema(fields)), place / "documents.parquet")
    return place / "documents.parquet"


def columns(ids=(1, 2), texts=("Plain.", "More."), tokens=(9, 9), kinds=AS_WRITTEN):
    return dict(zip(("doc_id", "text", "num_tokens"), map(pa.array, (ids, texts, tokens), kinds), strict=True))


KINDS = {
    "as written": AS_WRITTEN,
    "large": (pa.int64(), pa.large_string(), pa.int64()),
    "small": (pa.int32(), pa.string_view(), pa.int16()),
    "unsigned": (pa.uint64(), pa.dictionary(pa.int32(), pa.string()), pa.uint8()),
}


@pytest.mark.parametrize("kinds", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("nullable", [True, False])
def test_parquet_of_other_writers_is_read(tmp_path, kinds, nullable):
    documents = read_documents(parquet(tmp_path, columns(kinds=kinds), nullable))
    assert [(item.doc_id, item.text, item.num_tokens) for item in documents] == [(1, "Plain.", 9), (2, "More.", 9)]


ROWS = {
    "text null": (columns(texts=("a", None)), "row 2: key 'text' is null"),
    "id null": (columns(ids=(None, 2)), "row 1: key 'doc_id' is null"),
    "tokens null": (columns(tokens=(9, None)), "row 2: key 'num_tokens' is null"),
    "id negative": (columns(ids=(1, -5)), "row 2: key 'doc_id' is negative"),
    "tokens negative": (columns(tokens=(-1, 1)), "row 1: key 'num_tokens' is negative"),
    "id twice": (columns(ids=(4, 4)), "row 2: key 'doc_id': 4 is that of row 1 already"),
    "blank": (columns(texts=("a", " ")), "row 2: key 'text' has no text"),
    "too long": (columns(texts=("a", "x" * 1_000_000)), "row 2: key 'text' has 1,000,000 characters"),
    "id beyond": (columns(ids=(1, 2**64 - 1), kinds=KINDS["unsigned"]), "not a readable Parquet file"),
    "floats": (columns(kinds=(pa.float64(), pa.string(), pa.int32())), "found [doc_id: double"),
    "truths": (columns(ids=(True, False), kinds=(pa.bool_(), pa.string(), pa.int32())), "found [doc_id: bool"),
    "bytes": (columns(texts=(b"a", b"b"), kinds=(pa.int64(), pa.binary(), pa.int32())), "text: binary"),
    "a column less": ({"doc_id": pa.array([1])}, "expected columns [doc_id: int64, text: string"),
    "no row": (columns((), (), ()), "holds no document"),
}


@pytest.mark.parametrize(("table", "said"), ROWS.values(), ids=ROWS)
def test_rows_of_parquet_that_are_no_documents_are_named(tmp_path, table, said):
    with pytest.raises(UserError) as caught:
        read_documents(parquet(tmp_path, table))
    assert said in str(caught.value) and str(tmp_path / "documents.parquet") in str(caught.value)
    assert "delete it" not in str(caught.value)  # the file is somebody's own


def test_text_of_parquet_that_is_no_utf8_is_named(tmp_path):
    offsets = pa.array([0, 4], pa.int32()).buffers()[1]
    text = pa.StringArray.from_buffers(1, offsets, pa.py_buffer(b"caf\xe9"))
    with pytest.raises(UserError, match=r"documents\.parquet"):
        read_documents(parquet(tmp_path, {"doc_id": pa.array([1]), "text": text, "num_tokens": pa.array([1])}))


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30).filter(
    lambda text: not is_blank(text)
)
DOCUMENTS = st.lists(st.tuples(st.integers(0, MAX_ID), TEXTS), min_size=1, max_size=5, unique_by=lambda item: item[0])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["doc_id", "text", "x"]), inner),
    max_leaves=6,
)


@given(DOCUMENTS, st.booleans(), st.sampled_from([b"\n", b"\r\n"]), st.lists(st.integers(0, 5), max_size=3), st.data())
def test_the_same_documents_are_read_however_their_lines_are_written(tmp_path_factory, items, mark, end, blanks, data):
    place = tmp_path_factory.mktemp("lines")
    lines = []
    for doc_id, text in items:
        keys = data.draw(st.permutations(["doc_id", "text", "more"]))
        row = {key: {"doc_id": doc_id, "text": text, "more": [None]}[key] for key in keys}
        lines.append(json.dumps(row, ensure_ascii=data.draw(st.booleans())).encode())
    for blank in blanks:
        lines.insert(blank, data.draw(st.sampled_from([b"", b" ", b"\t"])))
    content = (b"\xef\xbb\xbf" if mark else b"") + end.join(lines)
    found = read_documents(written(place, content))
    assert [(document.doc_id, document.text) for document in found] == items


@given(DOCUMENTS, st.sampled_from(list(KINDS)), st.booleans(), st.integers(1, 3))
def test_the_same_documents_are_read_whoever_wrote_the_parquet(tmp_path_factory, items, kind, nullable, group):
    place, kinds = tmp_path_factory.mktemp("parquet"), KINDS[kind]
    if kind == "small":
        items = [(number, text) for number, (_, text) in enumerate(items)]
    table = columns(*zip(*items, strict=True), [1] * len(items), kinds)
    fields = [pa.field(name, column.type, nullable) for name, column in table.items()]
    pq.write_table(pa.table(list(table.values()), pa.schema(fields)), place / "a.parquet", row_group_size=group)
    assert [(document.doc_id, document.text) for document in read_documents(place / "a.parquet")] == items


@given(st.lists(st.binary(max_size=40) | JSON.map(lambda value: json.dumps(value).encode()), max_size=4))
def test_any_lines_are_documents_or_one_clear_error(tmp_path_factory, lines):
    path = written(tmp_path_factory.mktemp("any"), b"\n".join(lines))
    try:
        found = read_documents(path)
    except UserError as error:
        assert str(path) in str(error)
    else:
        assert len(found) <= len(lines) and all(type(item.doc_id) is int and item.text.strip() for item in found)


@given(DOCUMENTS, st.data())
def test_a_parquet_with_changed_bytes_is_documents_or_one_clear_error(tmp_path_factory, items, data):
    place = tmp_path_factory.mktemp("bytes")
    path = parquet(place, columns(*zip(*items, strict=True), [1] * len(items)))
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))] if data.draw(st.booleans()) else content)
    try:
        found = read_documents(path)
    except UserError as error:
        assert str(path) in str(error)
    else:
        assert all(item.doc_id >= 0 and item.text.strip() for item in found)


@given(JSON)
def test_json_is_parsed_as_written_or_refused(tmp_path_factory, value):
    text = json.dumps(value)
    try:
        assert parse_json(text) == value
    except ValueError:
        assert any(mark in text for mark in ("NaN", "Infinity", "\\ud"))


def test_lines_are_numbered_as_an_editor_does(tmp_path):
    path = written(tmp_path, b"\xef\xbb\xbf1\n\n\r\n2")
    assert list(read_json_lines(path)) == [(1, 1), (4, 2)]
