"""A client of any OpenAI-compatible server: retries, time limits, replies kept on disk, tokens and cost counted.

A reply is kept under the hash of all that it depends on: server, model and its declared revision, everything that was
sent, and the replicate where the model samples. So the same request is never paid for twice, also not where it is made
twice at once, and a run that was stopped goes on. A kept reply that is not as it was written is asked for again. What
replies mean is checked in msa_base.replies. Secrets come from the environment alone and go nowhere but to the server.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from msa_base import replies
from msa_base.errors import UserError
from msa_base.replies import BadReply, Losses, Reply
from msa_base.seal import value_digest
from msa_base.secrets import redacted
from msa_base.server import ContextExceeded, EndpointTimeout, Filtered, Server
from msa_base.specs import EndpointSpec
from msa_base.tables import write_json
from msa_base.turns import event_loop, turn

Read = Callable[[Mapping[str, Any], Any, float], Any]


@dataclass
class Usage:
    """What requests have cost. ``kept`` were answered from disk and are in no other figure."""

    requests: int = 0
    kept: int = 0
    retries: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost_usd: float | None = 0.0  # None where the entry names no price


class Endpoint:
    """A served model and the directory where its replies are kept.

    ``replicate`` tells draws of a sampling model apart; it is sent as the seed of each request, unless the entry's
    ``body`` has one.
    """

    def __init__(self, spec: EndpointSpec, kept: Path, replicate: int | None = None) -> None:
        self.spec, self.kept, self.replicate = spec, kept, replicate
        self.server = Server(spec)
        self._slots = asyncio.Semaphore(spec.parallel)
        self._usage, self._losses = self._nothing(), Losses()

    @property
    def identity(self) -> dict[str, Any]:
        """All that a reply depends on beside what is asked."""
        spec = self.spec
        model = {"base_url": spec.base_url, "model": spec.model, "revision": spec.revision, "replicate": self._draw}
        return model | {"temperature": spec.temperature, "top_p": spec.top_p, "body": spec.body}

    @property
    def _draw(self) -> int | None:
        """The replicate, where the model samples."""
        return self.replicate if self.spec.body.get("temperature", self.spec.temperature) != 0 else None

    def chat(self, prompts: list[str], max_new_tokens: int, each: bool = False) -> list[Any]:
        """The :class:`Reply` to each prompt, each the only message of its conversation, in order.

        With ``each``, what is raised for one prompt stands in the place of its reply.

        Raises:
            ContextExceeded, EndpointTimeout: a prompt that cannot be answered.
            UserError: the server cannot be reached, refuses, or speaks another protocol.
        """
        return self._ask("chat/completions", self._messages(prompts, max_new_tokens), replies.written, each)

    def embed(self, texts: list[str], batch: int = 32) -> np.ndarray:
        """Vectors [N, E] float32 of texts, as the server gives them.

        Raises:
            As :meth:`chat`.
        """
        parts = [texts[start : start + batch] for start in range(0, len(texts), batch)]
        bodies = [{"input": part, "encoding_format": "float"} for part in parts]
        if not texts:
            return np.zeros((0, 0), np.float32)
        found = self._ask("embeddings", bodies, replies.vectors)
        if len(widths := {vectors.shape[1] for vectors in found}) > 1:
            raise UserError(f"{self.server.where}: gives embeddings of {sorted(widths)} numbers; serve one model")
        return np.concatenate(found)

    def rerank(self, queries: dict[str, list[str]]) -> dict[str, list[float]]:
        """Scores of each query's texts, by the ``/rerank`` route that vLLM and others serve beside OpenAI's.

        Raises:
            As :meth:`chat`.
        """
        bodies = [{"query": query, "documents": texts, "top_n": len(texts)} for query, texts in queries.items()]
        return dict(zip(queries, self._ask("rerank", bodies, replies.scores), strict=True))

    def request_digest(self, prompt: str, max_new_tokens: int) -> str:
        """What a prompt's reply is kept under."""
        (body,) = self._messages([prompt], max_new_tokens)
        return self._digest("chat/completions", self._sent(body))

    def pop_usage(self) -> dict[str, Any]:
        """:class:`Usage` since it was last taken, and what was ``lost`` and ``repaired`` of the replies."""
        taken, self._usage = self._usage, self._nothing()
        return asdict(taken) | self._losses.pop_usage()

    def _nothing(self) -> Usage:
        return Usage(cost_usd=None if self.spec.input_usd is None else 0.0)

    def _messages(self, prompts: list[str], max_new_tokens: int) -> list[dict[str, Any]]:
        sampling = {"temperature": self.spec.temperature, "top_p": self.spec.top_p, "max_tokens": max_new_tokens}
        return [{"messages": [{"role": "user", "content": prompt}], **sampling} for prompt in prompts]

    def _sent(self, body: dict[str, Any]) -> dict[str, Any]:
        """A body as it is sent, the entry's own keys over it."""
        seed = {} if self._draw is None or "messages" not in body else {"seed": self._draw}
        return {"model": self.spec.model, **body, **seed, **self.spec.body}

    def _digest(self, route: str, sent: dict[str, Any]) -> str:
        return value_digest([self.spec.base_url, self.spec.revision, self._draw, route, sent])

    def _ask(self, route: str, bodies: list[dict[str, Any]], read: Read, each: bool = False) -> list[Any]:
        waiting = asyncio.run_coroutine_threadsafe(self._gather(route, bodies, read, each), event_loop())
        try:
            return waiting.result()
        except BaseException:
            waiting.cancel()
            raise

    async def _gather(self, route: str, bodies: list[dict[str, Any]], read: Read, each: bool) -> list[Any]:
        self.server.silent = 0
        sent = [self._sent(body) for body in bodies]
        digests = [self._digest(route, body) for body in sent]
        tasks = {
            digest: asyncio.create_task(self._answer(route, digest, body, read))
            for digest, body in dict(zip(digests, sent, strict=True)).items()
        }
        try:
            found = dict(zip(tasks, await asyncio.gather(*tasks.values(), return_exceptions=each), strict=True))
        finally:
            for task in tasks.values():
                task.cancel()
        for one in found.values():
            if isinstance(one, BaseException) and not isinstance(one, ContextExceeded | EndpointTimeout | UserError):
                raise one
        return [found[digest] for digest in digests]

    async def _answer(self, route: str, digest: str, body: dict[str, Any], read: Read) -> Any:
        """What a reply means: of the kept one, or of one that is asked for now, by one asker at a time."""
        path = self.kept / digest[:2] / f"{digest}.json"
        found = self._kept(path, body, read)
        if found is None:
            async with turn(self.kept, digest):
                found = self._kept(path, body, read, says_why=True)
                if found is None:
                    found = await self._made(route, path, body, read)
        meaning, response = found
        if isinstance(meaning, Reply):
            self._losses.add(meaning.status, meaning.repaired)
        elif replies.cut_short(body, response):
            self._losses.add(replies.READ_LESS)
        return meaning

    def _kept(self, path: Path, body: dict[str, Any], read: Read, says_why: bool = False) -> tuple[Any, Any] | None:
        """What the kept reply means, and itself; None where there is none, or one that is not as it was written."""
        try:
            answer = json.loads(path.read_bytes())
            if answer.pop("digest") != value_digest(answer):
                raise ValueError("changed after it was written")
            found = read(body, answer["response"], answer["total_s"]), answer["response"]
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            if says_why:
                reason = f"{type(error).__name__}: {error}"
                print(f"{path}: not a reply as it was kept ({reason}); asked for again", flush=True)
            return None
        self._usage.kept += 1
        return found

    async def _made(self, route: str, path: Path, body: dict[str, Any], read: Read) -> tuple[Any, Any]:
        """Ask for a reply, and keep it once it means something."""
        async with self._slots:
            try:
                response, retries, total_s = await self.server.request(route, body)
            except Filtered:
                return Reply("", 0, 0, 0.0, False, replies.FILTERED), None
        self._count(response, retries)
        try:
            found = read(body, response, total_s)
        except BadReply as error:
            wrong = f"{self.server.where}: its reply is not what {route} should give ({redacted(str(error))})"
            raise UserError(f"{wrong}; name a server that speaks OpenAI's protocol and reports usage") from None
        if not (isinstance(found, Reply) and found.status == replies.STOPPED):
            answer = {"request": body, "response": response, "total_s": total_s}
            write_json({**answer, "digest": value_digest(answer)}, path)
        return found, response

    def _count(self, response: dict[str, Any], retries: int) -> None:
        spent = response.get("usage")
        spent = spent if isinstance(spent, dict) else {}
        read, written = (_whole(spent.get(key)) for key in ("prompt_tokens", "completion_tokens"))
        usage = self._usage
        usage.requests += 1
        usage.retries += retries
        usage.input_tokens += read
        usage.output_tokens += written
        if usage.cost_usd is not None:
            usage.cost_usd += (read * self.spec.input_usd + written * (self.spec.output_usd or 0.0)) / 1e6


def _whole(value: Any) -> int:
    """A count of a reply that is not checked yet; 0 where it is none."""
    return int(value) if isinstance(value, int | float) and 0 <= value < 2**53 else 0
