"""A client of any OpenAI-compatible server: retries, time limits, replies kept on disk, tokens and cost counted.

A reply is kept under the hash of its request (server, model and everything that was sent), so the same request is never paid
for twice, and a run that was stopped goes on. Secrets come from the environment alone.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from threading import Lock
from time import perf_counter
from typing import Any

import numpy as np

from configs.errors import UserError
from configs.tables import read_json, write_json

RAW = {"X-Stainless-Raw-Response": "true"}  # asks the client for the reply as it came, with the retries that it took
_TOO_LONG = re.compile(r"context[ _](length|size|window)|too long|too many tokens", re.IGNORECASE)


class ContextExceeded(Exception):
    """A prompt is longer than the server's model takes."""


class EndpointTimeout(Exception):
    """No reply within the time limit, however often it was asked for."""


@dataclass(frozen=True)
class EndpointSpec:
    """A served model. ``body`` is sent with every request as it stands (seed, stop, thinking switched off ...).

    ``api_key_env`` names the environment variable that holds the key; prices are dollars per million tokens.
    """

    base_url: str
    model: str
    api_key_env: str | None = None
    timeout_s: float = 300.0
    retries: int = 5
    parallel: int = 8  # requests under way at a time
    temperature: float = 0.0
    top_p: float = 1.0
    input_usd: float | None = None
    output_usd: float | None = None
    body: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not re.match(r"https?://", self.base_url):
            raise UserError(f"base_url '{self.base_url}': name a server, such as http://localhost:8000/v1")
        if self.timeout_s <= 0 or self.retries < 0 or self.parallel < 1:
            raise UserError(
                f"timeout_s {self.timeout_s}, retries {self.retries}, parallel {self.parallel}:"
                " set timeout_s > 0, retries >= 0 and parallel >= 1"
            )

    @property
    def api_key(self) -> str:
        """The key. Raises UserError where its environment variable is not set."""
        if self.api_key_env is None:
            return "none"  # servers of one's own ask for none, the client insists on one
        if not os.environ.get(self.api_key_env):
            raise UserError(
                f"model {self.model}: the environment variable {self.api_key_env} is not set; export the key in it"
            )
        return os.environ[self.api_key_env]


@dataclass
class Usage:
    """What requests have cost. ``kept`` were answered from disk and are in no other figure."""

    requests: int = 0
    kept: int = 0
    retries: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost_usd: float | None = 0.0  # None where the entry names no price


@dataclass(frozen=True)
class Reply:
    """A written reply; ``total_s`` is the time of the request that was really made."""

    text: str
    input_tokens: int
    output_tokens: int
    total_s: float
    truncated: bool


class Endpoint:
    """A served model and the directory where its replies are kept."""

    def __init__(self, spec: EndpointSpec, kept: Path) -> None:
        from openai import OpenAI

        self.spec, self.kept = spec, kept
        self._client = OpenAI(
            api_key=spec.api_key, base_url=spec.base_url, timeout=spec.timeout_s, max_retries=spec.retries
        )
        self._usage = Usage(cost_usd=None if spec.input_usd is None else 0.0)
        self._lock = Lock()

    def chat(self, prompts: list[str], max_new_tokens: int) -> list[Reply]:
        """The reply to each prompt, each the only message of its conversation, in order.

        Raises:
            ContextExceeded, EndpointTimeout: a prompt that cannot be answered.
            UserError: the server cannot be reached, refuses, or speaks another protocol.
        """
        sampling = {"temperature": self.spec.temperature, "top_p": self.spec.top_p, "max_tokens": max_new_tokens}
        bodies = [
            {"model": self.spec.model, "messages": [{"role": "user", "content": prompt}], **sampling, **self.spec.body}
            for prompt in prompts
        ]
        return self._ask("chat/completions", bodies, _reply)

    def embed(self, texts: list[str], batch: int = 32) -> np.ndarray:
        """Vectors [N, E] float32 of texts, as the server gives them.

        Raises:
            As :meth:`chat`.
        """
        bodies = [
            {"model": self.spec.model, "input": texts[start : start + batch], **self.spec.body}
            for start in range(0, len(texts), batch)
        ]
        return np.concatenate(self._ask("embeddings", bodies, _vectors))

    def rerank(self, queries: dict[str, list[str]]) -> dict[str, list[float]]:
        """Scores of each query's texts, by the ``/rerank`` route that vLLM and others serve beside OpenAI's.

        Raises:
            As :meth:`chat`.
        """
        bodies = [
            {"model": self.spec.model, "query": query, "documents": texts, **self.spec.body}
            for query, texts in queries.items()
        ]
        return dict(zip(queries, self._ask("rerank", bodies, _scores), strict=True))

    def take_usage(self) -> dict[str, Any]:
        """:class:`Usage` since it was last taken."""
        with self._lock:
            taken, self._usage = self._usage, Usage(cost_usd=None if self.spec.input_usd is None else 0.0)
        return asdict(taken)

    def _ask(self, route: str, bodies: list[dict[str, Any]], read: Callable[[dict, float], Any]) -> list[Any]:
        keys = [json.dumps([self.spec.base_url, route, body], sort_keys=True) for body in bodies]
        distinct = dict(zip(keys, bodies, strict=True))
        with ThreadPoolExecutor(self.spec.parallel) as pool:
            waiting = {key: pool.submit(self._answer, route, key, body, read) for key, body in distinct.items()}
            try:
                found = {key: future.result() for key, future in waiting.items()}
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        return [found[key] for key in keys]

    def _answer(self, route: str, key: str, body: dict[str, Any], read: Callable[[dict, float], Any]) -> Any:
        digest = hashlib.sha256(key.encode()).hexdigest()
        path = self.kept / digest[:2] / f"{digest}.json"
        if path.exists():
            with self._lock:
                self._usage.kept += 1
            answer = read_json(path)
            return self._read(route, read, answer["response"], answer["total_s"])
        start_s = perf_counter()
        response, retries = self._request(route, body)
        total_s = perf_counter() - start_s
        self._count(response, retries)
        found = self._read(route, read, response, total_s)
        write_json({"request": body, "response": response, "total_s": total_s}, path)
        return found

    def _read(self, route: str, read: Callable[[dict, float], Any], response: dict[str, Any], total_s: float) -> Any:
        try:
            return read(response, total_s)
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            raise UserError(
                f"{self.spec.base_url}: model {self.spec.model}: its reply is not what {route} should give"
                f" ({type(error).__name__}: {error}); name a server that speaks OpenAI's protocol and reports usage"
            ) from None

    def _count(self, response: dict[str, Any], retries: int) -> None:
        spent = response.get("usage") or {}
        read, written = spent.get("prompt_tokens") or 0, spent.get("completion_tokens") or 0
        with self._lock:
            usage = self._usage
            usage.requests, usage.retries = usage.requests + 1, usage.retries + retries
            usage.input_tokens, usage.output_tokens = usage.input_tokens + read, usage.output_tokens + written
            if usage.cost_usd is not None:
                usage.cost_usd += (read * self.spec.input_usd + written * (self.spec.output_usd or 0.0)) / 1e6

    def _request(self, route: str, body: dict[str, Any]) -> tuple[dict[str, Any], int]:
        import openai

        where = f"{self.spec.base_url}: model {self.spec.model}"
        try:
            raw = self._client.post(f"/{route}", body=body, cast_to=object, options={"headers": RAW})
            response = json.loads(raw.content)
            if not isinstance(response, dict):
                raise ValueError("not a JSON object")
            return response, raw.retries_taken
        except openai.APITimeoutError:
            raise EndpointTimeout(f"{where}: no reply within {self.spec.timeout_s:g} s") from None
        except openai.APIConnectionError as error:
            raise UserError(f"{where}: cannot be reached ({error.__cause__ or error}); start the server") from None
        except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
            key = f"the key in {self.spec.api_key_env}" if self.spec.api_key_env else "a request without key"
            raise UserError(f"{where}: the server refuses {key} ({error.message}); set `api_key_env` right") from None
        except openai.APIStatusError as error:
            if error.status_code in (400, 413, 422) and _TOO_LONG.search(str(error.message)):
                raise ContextExceeded(str(error.message)) from None
            raise UserError(
                f"{where}: the server answers {error.status_code} ({error.message}); mend the entry or the server and run"
                " the same command again: replies so far are kept"
            ) from None
        except ValueError as error:
            raise UserError(f"{where}: its reply is not JSON ({error}); name an OpenAI-compatible server") from None


def _reply(response: dict[str, Any], total_s: float) -> Reply:
    choice, usage = response["choices"][0], response["usage"]
    return Reply(
        text=choice["message"]["content"] or "",
        input_tokens=int(usage["prompt_tokens"]),
        output_tokens=int(usage["completion_tokens"]),
        total_s=total_s,
        truncated=choice.get("finish_reason") == "length",
    )


def _vectors(response: dict[str, Any], total_s: float) -> np.ndarray:
    rows = sorted(response["data"], key=lambda row: row["index"])
    return np.stack([_vector(row["embedding"]) for row in rows])


def _vector(embedding: str | list[float]) -> np.ndarray:
    if isinstance(embedding, str):
        return np.frombuffer(base64.b64decode(embedding), np.float32)
    return np.asarray(embedding, np.float32)


def _scores(response: dict[str, Any], total_s: float) -> list[float]:
    rows = sorted(response["results"], key=lambda row: row["index"])
    return [float(row["relevance_score"]) for row in rows]
