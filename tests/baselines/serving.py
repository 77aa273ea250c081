"""A server on loopback that speaks OpenAI's protocol and serves a small model of this project, and can be made
to misbehave.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from msa.checkpoints import write
from msa.generation.embed import Embedder
from msa.generation.reader import Reader
from msa.model.decoder import MSAModel
from msa_base import prompts
from msa_base.records import Document
from tests.baselines.conftest import WORDS
from tests.small_model import ROUTED, small_config


def make_checkpoint(directory: Path, routed_layers: tuple[int, ...] = ()) -> Path:
    """A random decoder of 4 layers with a word tokenizer, as a checkpoint directory; with routed layers it is MSA."""
    ours = re.findall(r"\w+", prompts.reading_message([], "", "") + " user assistant below documents")
    tokens = [*prompts.SPECIAL_TOKENS, "[UNK]", *dict.fromkeys(ours), *WORDS, *"0123456789[].,:'-"]
    tokenizer = Tokenizer(models.WordLevel({token: place for place, token in enumerate(tokens)}, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation("isolated"), pre_tokenizers.Digits(True)]
    )
    tokenizer.decoder = decoders.WordPiece("##")
    tokenizer.add_special_tokens(list(prompts.SPECIAL_TOKENS))
    torch.manual_seed(0)
    config = small_config(tokenizer.get_vocab_size(), routed_layers=routed_layers, **ROUTED)
    model = MSAModel(config)
    for parameter in model.parameters():
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=0.3)
    write.save(model, directory)
    tokenizer.save(str(directory / "tokenizer.json"))
    return directory


@dataclass
class Server:
    """Serves ``directory``; ``trouble`` is taken from its front, one a request: a status, "slow", "garbage" or
    "bare".
    """

    directory: Path
    key: str | None = None
    window_tokens: int = 4096
    trouble: list[Any] = field(default_factory=list)
    requests: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    url: str = ""

    def __post_init__(self) -> None:
        self.reader, self.embedder = Reader(self.directory, 1), Embedder(self.directory, 1)
        self._lock = threading.Lock()

    def reply(self, route: str, body: dict[str, Any]) -> tuple[int, Any]:
        """Status and content of the reply to a request."""
        with self._lock:
            self.requests.append((route, body))
            trouble = self.trouble.pop(0) if self.trouble else None
            if isinstance(trouble, int):
                return trouble, {"error": {"message": f"status {trouble}", "type": "test"}}
            if trouble == "slow":
                time.sleep(1.0)
            if trouble == "garbage":
                return 200, "<html>not json</html>"
            status, content = {"chat/completions": self._chat, "embeddings": self._embed, "rerank": self._rerank}[
                route
            ](body)
            if trouble == "bare":
                content.pop("usage")
            return status, content

    def _chat(self, body: dict[str, Any]) -> tuple[int, Any]:
        (message,) = body["messages"]
        length = len(self.reader.prompter.message(message["content"]).ids)
        if length + body["max_tokens"] > self.window_tokens:
            text = f"This model's maximum context length is {self.window_tokens} tokens"
            return 400, {"error": {"message": text, "type": "BadRequestError"}}
        (found,) = self.reader.generate([message["content"]], body["max_tokens"])
        choice = {"index": 0, "message": {"role": "assistant", "content": found.text}}
        choice["finish_reason"] = "length" if found.truncated else "stop"
        usage = {"prompt_tokens": found.input_tokens, "completion_tokens": found.output_tokens}
        return 200, {
            "id": "1",
            "object": "chat.completion",
            "model": body["model"],
            "choices": [choice],
            "usage": usage,
        }

    def _vectors(self, texts: list[str]) -> np.ndarray:
        return 3 * self.embedder.documents([Document(0, text, 0) for text in texts])  # not of unit length

    def _embed(self, body: dict[str, Any]) -> tuple[int, Any]:
        rows = [
            {"object": "embedding", "index": place, "embedding": vector.tolist()}
            for place, vector in enumerate(self._vectors(body["input"]))
        ]
        usage = {"prompt_tokens": sum(len(text.split()) for text in body["input"]), "total_tokens": 0}
        return 200, {"object": "list", "data": rows[::-1], "model": body["model"], "usage": usage}

    def _rerank(self, body: dict[str, Any]) -> tuple[int, Any]:
        query, *texts = self._vectors([body["query"], *body["documents"]])
        scores = [float(query @ text) for text in texts]
        order = sorted(range(len(scores)), key=lambda place: -scores[place])
        return 200, {"results": [{"index": place, "relevance_score": scores[place]} for place in order]}


@contextmanager
def serving(server: Server) -> Iterator[Server]:
    """Serve on a free port until the block ends."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if server.key is not None and self.headers.get("Authorization") != f"Bearer {server.key}":
                status, content = 401, {"error": {"message": "wrong key", "type": "auth"}}
            else:
                status, content = server.reply(self.path.removeprefix("/v1/"), body)
            data = (content if isinstance(content, str) else json.dumps(content)).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            pass

    listener = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=listener.serve_forever, daemon=True)
    thread.start()
    server.url = f"http://127.0.0.1:{listener.server_port}/v1"
    try:
        yield server
    finally:
        listener.shutdown()
        thread.join()
        listener.server_close()
