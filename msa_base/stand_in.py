"""A server on loopback that stands in for served models and judges: OpenAI's protocol, answers by rule, no weights.

    python -m msa_base.stand_in --port 8391 --false-pass 0.25 --false-fail 0.1

A rehearsal starts it by itself (``serve`` of an endpoint's entry). As a judge it compares the answer with the reference
and errs at the rates that it is given, the same way for the same request. As a reader it copies from the documents, and
where JSON is asked for it lists names. What it says means nothing; that it is asked, and how, is what counts.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from typing import Any

Reply = tuple[int, Any]  # status and content; a callable content gets the handler and writes by itself
PASSED, FAILED = "5", "0"
COPIED_WORDS, NAMES = 8, 6  # of an answer, and of a list
_MARKED = re.compile(r"<(reference|answer)>\n(.*?)\n</\1>", re.DOTALL)
_NAME = re.compile(r"[A-Z][\w'-]+(?: [A-Z][\w'-]+)*|\d[\d.,]*\d")


@dataclass
class Canned:
    """What was asked, as (route, body, headers), and where."""

    url: str = ""
    asked: list[tuple[str, dict[str, Any], dict[str, str]]] = field(default_factory=list)

    @property
    def prompts(self) -> list[str]:
        return [body["messages"][0]["content"] for _, body, _ in self.asked]


def listener(
    reply: Callable[[dict[str, Any]], Reply], port: int = 0, seen: Canned | None = None
) -> ThreadingHTTPServer:
    """A server on loopback that answers ``reply(body)`` whatever the route; port 0 takes a free one."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if seen:
                seen.asked.append((self.path, body, {name.lower(): value for name, value in self.headers.items()}))
            status, content = reply(body)
            if callable(content):
                content(self)
                self.close_connection = True
                return
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    server.daemon_threads = True
    server.handle_error = lambda *_: None  # a client that went away
    return server


@contextmanager
def canned(reply: Callable[[dict[str, Any]], Reply]) -> Iterator[Canned]:
    """Serve ``reply(body)`` on a free port for the time of the block."""
    seen = Canned()
    server = listener(reply, seen=seen)
    seen.url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        server.shutdown()
        server.server_close()


def chat(content: Any, finish: Any = "stop", read: int = 5, **message: Any) -> dict[str, Any]:
    """The reply of a chat."""
    choice = {"index": 0, "message": {"role": "assistant", "content": content, **message}, "finish_reason": finish}
    return {"choices": [choice], "usage": {"prompt_tokens": read, "completion_tokens": 3}}


@dataclass(frozen=True)
class StandIn:
    """What stands in for a model: ``false_pass`` and ``false_fail`` are the shares of wrong and empty answers that it
    passes as a judge, and of right ones that it fails.
    """

    false_pass: float = 0.0
    false_fail: float = 0.0

    def reply(self, body: dict[str, Any]) -> Reply:
        """The reply to a chat; any other request is refused."""
        if "messages" not in body:
            return 404, {"error": {"message": "chats alone are answered here", "type": "stand_in"}}
        prompt = body["messages"][-1]["content"]
        marked = dict(_MARKED.findall(prompt))
        text = self.judged(prompt, **marked) if marked.keys() == {"reference", "answer"} else written(prompt)
        return 200, chat(text, read=len(prompt.split()))

    def judged(self, prompt: str, reference: str, answer: str) -> str:
        """Points for an answer: right is one that holds a reference; a draw from the prompt decides whether to err."""
        stated, every = reference.split("\nWrong: ")[0], reference.startswith("All of: ")
        wanted = re.sub(r"^(All of|Any one of): ", "", stated).lower().split("; ")
        found = [one in answer.lower() for one in wanted]
        is_right = all(found) if every else any(found)
        draw = int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:4], "big") / 2**32
        errs = draw < (self.false_fail if is_right else self.false_pass)
        passed = is_right != errs
        if "yes or no" in prompt:
            return "yes" if passed else "no"
        return PASSED if passed else FAILED


def written(prompt: str) -> str:
    """A reader's reply: JSON where the prompt ends by asking for it, else the first words of a document."""
    asked = prompt.rstrip().rpartition("\nPassage: ")[2] if "\nPassage: " in prompt else ""
    names = list(dict.fromkeys(_NAME.findall(asked.split("\nEntities: ")[0])))[:NAMES]
    if facts := re.findall(r"^Facts: (.*)$", prompt, re.MULTILINE):
        return f'{{"facts": {facts[-1]}}}'
    if "\nEntities: " in asked:
        return json.dumps({"triples": [[a, "is beside", b] for a, b in pairwise(names)]})
    if asked:
        return json.dumps({"entities": names})
    _, mark, documents = prompt.partition("]. ")
    return " ".join((documents if mark else prompt).split()[:COPIED_WORDS])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--port", type=int, required=True, help="of loopback")
    parser.add_argument("--false-pass", type=float, default=0.0, help="share of wrong answers that it passes")
    parser.add_argument("--false-fail", type=float, default=0.0, help="share of right answers that it fails")
    chosen = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    server = listener(StandIn(chosen.false_pass, chosen.false_fail).reply, chosen.port)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        server.server_close()


if __name__ == "__main__":
    main()
