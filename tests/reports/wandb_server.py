"""A server on loopback that speaks as much of Weights & Biases' protocol as receives runs, or hangs."""

from __future__ import annotations

import gzip
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Server(ThreadingHTTPServer):
    """Keeps the history of each run. ``way``: "receives" or "hangs"."""

    daemon_threads = True

    def __init__(self, way: str) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.way, self.asked, self.ended = way, threading.Event(), threading.Event()
        self.history: dict[str, list[dict[str, Any]]] = {}
        self.configs: dict[str, dict[str, Any]] = {}
        self.files: set[str] = set()
        self.requests = 0

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, *_: Any) -> None:
        """A client that was ended says nothing here."""


class Handler(BaseHTTPRequestHandler):
    """Answers one client."""

    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, *_: Any) -> None:
        """Nothing."""

    def take(self) -> Any:
        """The body as JSON, or None where the server hangs until it ends."""
        self.server.requests += 1
        self.server.asked.set()
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        if self.server.way == "hangs":
            self.server.ended.wait()
        if self.server.way != "receives":
            self.close_connection = True
            return None
        try:
            return json.loads(body or b"{}")
        except ValueError:
            return {}

    def give(self, value: Any) -> None:
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        if self.take() is not None:
            self.give({})

    def do_PUT(self) -> None:
        if self.take() is not None:
            self.server.files.add(self.path)
            self.give({})

    def do_POST(self) -> None:
        if (asked := self.take()) is None:
            return
        if self.path.endswith("file_stream"):
            files = asked.get("files") or {}
            if lines := files.get("wandb-history.jsonl"):
                kept = self.server.history.setdefault(self.path.split("/")[-2], [])
                kept[lines["offset"] :] = [json.loads(line) for line in lines["content"]]
            self.give({})
        else:
            self.give({"data": self.data(asked)})

    def data(self, asked: dict[str, Any]) -> dict[str, Any]:
        """What a GraphQL request gets."""
        name, values = re.findall(r"(?:query|mutation)\s+(\w+)", asked["query"])[0], asked.get("variables") or {}
        answers: dict[str, Callable[[], dict[str, Any]]] = {
            "Viewer": lambda: {"viewer": {"id": "u", "entity": "team", "username": "me", "flags": "{}"}},
            "RunResumeStatus": lambda: {"model": self.project(values, self.known(values["name"]))},
            "UpsertBucket": lambda: self.upsert(values),
            "CreateRunFiles": lambda: {
                "createRunFiles": {
                    "runID": values["run"],
                    "uploadHeaders": [],
                    "files": [
                        {"name": file, "uploadUrl": f"{self.server.address}/put/{values['run']}/{file}"}
                        for file in values["files"]
                    ],
                }
            },
        }
        return answers.get(name, dict)()

    def project(self, values: dict[str, Any], run: dict[str, Any] | None) -> dict[str, Any]:
        found = {"id": "p", "name": values["project"], "entity": {"id": "e", "name": "team"}}
        return {**found, "bucket": run}

    def known(self, name: str) -> dict[str, Any] | None:
        """A run as the server knows it; None of a new one."""
        if name not in self.server.configs:
            return None
        rows = self.server.history.get(name, [])
        tail = json.dumps([json.dumps(row) for row in rows[-1:]])
        counts = {"historyLineCount": len(rows), "logLineCount": 0, "eventsLineCount": 0}
        texts = {
            "historyTail": tail,
            "eventsTail": "[]",
            "config": "{}",
            "summaryMetrics": "{}",
            "wandbConfig": '{"t":{}}',
        }
        return {"id": name, "name": name, "displayName": name, "tags": [], **counts, **texts}

    def upsert(self, values: dict[str, Any]) -> dict[str, Any]:
        name = values["name"]
        is_new = name not in self.server.configs
        config = json.loads(values.get("config") or "{}")
        self.server.configs.setdefault(name, {}).update({key: entry["value"] for key, entry in config.items()})
        bucket = {"id": name, "name": name, "displayName": values.get("displayName"), "config": "{}", "sweepName": None}
        bucket["project"] = self.project(values, None)
        bucket["historyLineCount"] = len(self.server.history.get(name, []))
        return {"upsertBucket": {"bucket": bucket, "inserted": is_new}}


@contextmanager
def serving(way: str) -> Iterator[Server]:
    """A server at work in a thread."""
    server = Server(way)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.ended.set()
        server.shutdown()
        server.server_close()
