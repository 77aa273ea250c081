"""Fetching over a small server that speaks the hub's and GitHub's language: what is not as pinned leaves
nothing behind.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml

from msa_base.errors import UserError
from tasks.parts.tail import UnavailableData
from tasks.qa import data as data_module
from tasks.qa import fetch, table

COMMIT, OTHER = "a" * 40, "b" * 40
QUESTIONS = json.dumps(
    [
        {
            "id": "q1",
            "question": "Who?",
            "answer": "Ann",
            "paragraphs": [{"title": "T", "text": "Ann did.", "is_supporting": True}],
        }
    ]
).encode()
PICKLED = {
    "m/q.pkl": pickle.dumps([{"query": "Who?", "reference_list": ["Ann did it."], "answer": "Ann"}]),
    "m/m.pkl": pickle.dumps(["Ann did it.", "Bob did not."]),
}


class Server(ThreadingHTTPServer):
    """Serves ``files`` (repository, commit, path -> bytes); ``cut`` names a path whose body ends early."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[tuple[str, str, str], bytes] = {}
        self.cut = ""

    @property
    def address(self) -> str:
        """Its URL."""
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    """Answers as raw.githubusercontent.com (/owner/name/commit/path) and as the hub (/api/datasets,
    /datasets/.../resolve).
    """

    def log_message(self, *_) -> None:
        pass

    def respond(self, code: int, body: bytes, headers: dict[str, str], send: bool) -> None:
        self.send_response(code)
        for key, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        if send:
            self.wfile.write(
                body[: len(body) // 2] if self.server.cut and self.path.endswith(self.server.cut) else body
            )

    def answer(self, send: bool) -> None:
        path = self.path.partition("?")[0]
        known = {(repository, commit) for repository, commit, _ in self.server.files}
        if path.startswith("/api/datasets/"):
            owner, name, *rest = path.removeprefix("/api/datasets/").split("/")
            commit = rest[1] if len(rest) > 1 else COMMIT
            if (f"{owner}/{name}", commit) not in known:
                code = "RevisionNotFound" if any(f"{owner}/{name}" == item[0] for item in known) else "RepoNotFound"
                return self.respond(404, b"{}", {"X-Error-Code": code}, send)
            names = [
                path for repository, at, path in self.server.files if (repository, at) == (f"{owner}/{name}", commit)
            ]
            found = {"id": f"{owner}/{name}", "sha": commit, "siblings": [{"rfilename": name} for name in names]}
            return self.respond(200, json.dumps(found).encode(), {"Content-Type": "application/json"}, send)
        owner, name, *rest = path.removeprefix("/datasets").strip("/").split("/")
        commit, file = (rest[1], "/".join(rest[2:])) if rest[0] == "resolve" else (rest[0], "/".join(rest[1:]))
        body = self.server.files.get((f"{owner}/{name}", commit, file))
        if body is None:
            code = "EntryNotFound" if (f"{owner}/{name}", commit) in known else "RevisionNotFound"
            return self.respond(404, b"", {"X-Error-Code": code}, send)
        etag = hashlib.sha256(body).hexdigest()
        return self.respond(200, body, {"ETag": f'"{etag}"', "X-Repo-Commit": commit}, send)

    def do_GET(self) -> None:
        self.answer(send=True)

    def do_HEAD(self) -> None:
        self.answer(send=False)


@pytest.fixture
def server():
    """A running server."""
    made = Server()
    threading.Thread(target=made.serve_forever, daemon=True).start()
    yield made
    made.shutdown()
    made.server_close()


@pytest.fixture
def sets(tmp_path, monkeypatch):
    """A writer of the table of sets."""

    def write(**forms: dict) -> None:
        base = {"split": "dev", "licence": "MIT"}
        entry = {"title": "S", "language": "en", "documents": "d", "answers": "a", "gold": "g"}
        entry["forms"] = [{"name": name, **base, **form} for name, form in forms.items()]
        path = tmp_path / "sets.yaml"
        path.write_text(yaml.safe_dump({"small": entry}, sort_keys=False))
        monkeypatch.setattr(table.read_table, "__defaults__", (path,))

    return write


def digest(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def github(sha256: str | None = None, revision: str = COMMIT) -> dict:
    file = {"at": "small/q.json", "path": "data/q.json", "sha256": sha256}
    return {
        "reader": "hipporag",
        "host": "github",
        "repository": "some/repo",
        "revision": revision,
        "files": {"questions": file},
    }


def hub(revision: str | None = None, sha256: str | None = None) -> dict:
    files = {
        "questions": {"at": "small/q.pkl", "path": "m/q.pkl", "sha256": sha256},
        "memory": {"at": "small/m.pkl", "path": "m/m.pkl", "sha256": None},
    }
    return {"reader": "released", "host": "hub", "repository": "some/set", "revision": revision, "files": files}


def kept(place: Path) -> list[str]:
    return sorted(path.relative_to(place).as_posix() for path in place.rglob("*") if path.is_file())


def test_a_pinned_file_is_fetched_once(server, sets, tmp_path) -> None:
    sets(gold=github(digest(QUESTIONS)))
    server.files["some/repo", COMMIT, "data/q.json"] = QUESTIONS
    place, hosts = tmp_path / "data", fetch.Hosts(server.address, server.address)
    assert "small/q.json; 1 files as they should be" in fetch.fetch(place, "small", None, hosts)
    assert kept(place) == ["MANIFEST.tsv", "small/q.json"]
    row = data_module.read_manifest(place)["small/q.json"]
    assert (row["sha256"], row["commit"], row["bytes"]) == (digest(QUESTIONS), COMMIT, str(len(QUESTIONS)))
    server.files.clear()
    assert "all there" in fetch.fetch(place, "small", None, hosts)
    assert list(fetch.verify_all(place)) == ["small, form gold: 1 files as they should be"]


def test_an_unknown_pin_is_recorded_and_then_held(server, sets, tmp_path) -> None:
    sets(authors=hub())
    server.files.update({("some/set", COMMIT, path): body for path, body in PICKLED.items()})
    place = tmp_path / "data"
    fetch.fetch(place, "small", None, fetch.Hosts(server.address, server.address))
    assert kept(place) == ["MANIFEST.tsv", "small/m.pkl", "small/q.pkl"]
    assert data_module.read_manifest(place)["small/q.pkl"]["commit"] == COMMIT
    lines = list(fetch.verify_all(place))
    pin = f"path: m/q.pkl, sha256: {digest(PICKLED['m/q.pkl'])}}} at revision {COMMIT}"
    assert len(lines) == 3 and any(line.endswith(pin) for line in lines)
    sets(authors=hub(revision=OTHER))
    with pytest.raises(UserError, match=f"small/q.pkl: of revision {COMMIT}, expected {OTHER}"):
        data_module.find_set(place, "small", "here")
    sets(authors=hub())
    (place / "small" / "q.pkl").write_bytes(PICKLED["m/m.pkl"])
    with pytest.raises(UserError, match=r"q\.pkl: wrong checksum: sha256"):
        data_module.find_set(place, "small", "here")


class Hostile:
    """Writes a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return Path.write_text, (self.target, "ran")


@pytest.mark.parametrize(
    "what", ["checksum", "revision", "dataset", "gone", "cut", "hostile", "broken", "empty answer", "twice"]
)
def test_what_is_wrong_leaves_nothing(what, server, sets, tmp_path) -> None:
    row = {"query": "Who?", "reference_list": ["Ann did it."], "answer": "Ann"}
    bodies = dict(PICKLED)
    form = hub(revision=COMMIT)
    if what == "checksum":
        form, message = hub(COMMIT, digest(b"another")), "wrong checksum: sha256 [0-9a-f]{64}, expected"
    elif what == "revision":
        form, message = hub(OTHER), "the hub has no such revision"
    elif what == "dataset":
        form["repository"], message = "some/other", "the hub has no such (dataset|revision)|cannot be had from the hub"
    elif what == "gone":
        bodies.pop("m/m.pkl")
        message = "cannot be had from the hub"
    elif what == "cut":
        form, message = github(digest(QUESTIONS)), "cannot be had|bytes came"
        server.cut = "data/q.json"
    elif what == "hostile":
        bodies["m/q.pkl"], message = pickle.dumps([{**row, "answer": Hostile(tmp_path / "ran")}]), "refused: it holds"
    elif what == "broken":
        bodies["m/q.pkl"], message = bodies["m/q.pkl"][:-20], "not a whole pickle"
    elif what == "empty answer":
        bodies["m/q.pkl"], message = pickle.dumps([{**row, "answer": " "}]), "question 0 has an empty answer"
    else:
        form, message = github(), "question id 'q1' stands there twice"
    server.files.update({("some/set", COMMIT, path): body for path, body in bodies.items()})
    twice = json.dumps(json.loads(QUESTIONS) * 2).encode()
    server.files["some/repo", COMMIT, "data/q.json"] = twice if what == "twice" else QUESTIONS
    sets(only=form)
    place = tmp_path / "data"
    with pytest.raises(UserError, match=message):
        fetch.fetch(place, "small", None, fetch.Hosts(server.address, server.address))
    assert kept(place) == [] if place.exists() else True
    assert not (tmp_path / "ran").exists()


def test_the_next_form_is_tried(server, sets, tmp_path) -> None:
    sets(authors=hub(), gold=github(digest(QUESTIONS)))
    server.files["some/repo", COMMIT, "data/q.json"] = QUESTIONS
    hosts = fetch.Hosts(server.address, server.address)
    assert "form gold" in fetch.fetch(tmp_path / "data", "small", None, hosts)
    with pytest.raises(UserError, match="authors: some/set: the hub has no such dataset"):
        fetch.fetch(tmp_path / "other", "small", "authors", hosts)


@pytest.mark.parametrize("form", [hub(), hub(COMMIT), github(digest(QUESTIONS))])
def test_no_network_is_one_clear_line(form, sets, tmp_path) -> None:
    sets(only=form)
    nowhere = "http://127.0.0.1:9"
    with pytest.raises(UserError, match=r"cannot be had.*look for the network, or for another form") as caught:
        fetch.fetch(tmp_path / "data", "small", None, fetch.Hosts(nowhere, nowhere))
    assert "\n" not in str(caught.value) and not (tmp_path / "data" / "small").exists()


def test_shards_of_a_pattern(server, sets, tmp_path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    passages = {"passage_text": ["Ann did it.", "Bob slept."], "is_selected": [1, 0]}
    shown = pa.struct([("passage_text", pa.list_(pa.string())), ("is_selected", pa.list_(pa.int32()))])
    columns = [
        ("query_id", pa.int32()),
        ("query", pa.string()),
        ("answers", pa.list_(pa.string())),
        ("passages", shown),
    ]
    schema = pa.schema(columns)
    for shard in (0, 1):
        rows = [{"query_id": shard, "query": "Who?", "answers": ["Ann"] if shard else [], "passages": passages}]
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), tmp_path / f"{shard}.parquet")
        server.files["some/set", COMMIT, f"v/val-0000{shard}-of-00002.parquet"] = (
            tmp_path / f"{shard}.parquet"
        ).read_bytes()
    form = {
        **hub(COMMIT),
        "reader": "ms_marco",
        "files": {"rows": {"at": "small/val-*.parquet", "path": "v/val-*.parquet"}},
    }
    sets(hub=form)
    place = tmp_path / "data"
    fetch.fetch(place, "small", None, fetch.Hosts(server.address, server.address))
    edition = data_module.find_set(place, "small", "here")
    found = fetch.read_set("ms_marco", edition.files, "here")
    assert list(found.questions) == ["1"] and found.left_out == {"no answer": 1} and len(found.passages) == 2
    (place / "small" / "val-00001-of-00002.parquet").unlink()
    with pytest.raises(UserError, match="1 shards of 2 are there"):
        data_module.find_set(place, "small", "here")


def test_what_is_absent_names_path_and_command(sets, tmp_path) -> None:
    sets(authors=hub())
    with pytest.raises(
        UnavailableData, match=r"small/q\.pkl.*: not there; fetch it: python -m tasks\.qa\.fetch --data .* --set small"
    ):
        data_module.find_set(tmp_path, "small", "here")
    with pytest.raises(UnavailableData, match="no data directory is named"):
        data_module.find_set(None, "small", "here")
    for name in ("q.pkl", "m.pkl"):
        (tmp_path / "small").mkdir(exist_ok=True)
        (tmp_path / "small" / name).write_bytes(PICKLED[f"m/{name}"])
    with pytest.raises(UserError, match="no checksum of it is recorded"):
        data_module.find_set(tmp_path, "small", "here")


def test_the_table_itself() -> None:
    sets = table.read_table()
    nine = [name for name, spec in sets.items() if spec.tokens]
    assert len(nine) == 9 and {"msmarco_v1", "dureader", "triviaqa_10m"} <= set(nine)
    assert all(form.reader in fetch.read_set.__globals__["READERS"] for spec in sets.values() for form in spec.forms)
    assert all(spec.forms[0].repository == "EverMind-AI/MSA-RAG-BENCHMARKS" for spec in sets.values() if spec.tokens)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"host": "ftp"}, "key 'host' must be 'hub' or 'github'"),
        ({"revision": "main"}, "key 'revision' must match pattern .*40.*, found 'main'"),
        ({"files": {"questions": {"at": "../x", "path": "x"}}}, "key 'at' must stay inside the data directory"),
        (
            {"files": {"questions": {"at": "x", "path": "x", "sha256": "12"}}},
            "key 'sha256' must match pattern",
        ),
        ({"files": {"questions": {"at": "x", "paht": "x"}}}, "unknown key 'paht'; did you mean 'path'"),
    ],
)
def test_a_bad_entry_is_named(change, message, sets) -> None:
    sets(only={**hub(), **change})
    with pytest.raises(UserError, match=f"small: forms.*{message}"):
        table.read_table()
