"""A server on loopback that answers with what a function of each request gives, and replies spoilt by chance."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from hypothesis import strategies as st

Reply = tuple[int, Any]  # status and content; a callable content gets the handler and writes by itself


class Canned:
    """What was asked, as (route, body, headers), and where."""

    def __init__(self) -> None:
        self.url, self.asked = "", []

    @property
    def prompts(self) -> list[str]:
        return [body["messages"][0]["content"] for _, body, _ in self.asked]


@contextmanager
def canned(reply: Callable[[dict[str, Any]], Reply]) -> Iterator[Canned]:
    """Serve ``reply(body)``, whatever the route, for the time of the block."""
    served = Canned()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            served.asked.append((self.path, body, {name.lower(): value for name, value in self.headers.items()}))
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

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.handle_error = lambda *_: None  # a client that went away
    served.url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()


def chat(content: Any, finish: Any = "stop", read: int = 5, **message: Any) -> dict[str, Any]:
    """The reply of a chat."""
    choice = {"index": 0, "message": {"role": "assistant", "content": content, **message}, "finish_reason": finish}
    return {"choices": [choice], "usage": {"prompt_tokens": read, "completion_tokens": 3}}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@st.composite
def spoilt(draw: st.DrawFn, good: Any) -> Any:
    """A good reply with one value, wherever it stands, changed into any other."""
    good = json.loads(json.dumps(good))
    place, at = good, None
    while isinstance(place, dict | list) and place:
        at = place, draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
        place = at[0][at[1]]
        if draw(st.booleans()):
            break
    at[0][at[1]] = draw(JSON)
    return good
