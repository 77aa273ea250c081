"""A server that speaks OpenAI's protocol: one request with its time limit and its retries, and what its errors mean."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Iterator
from contextlib import suppress
from time import perf_counter
from typing import Any

from msa_base import replies
from msa_base.errors import UserError, shown
from msa_base.json_lines import unique_keys
from msa_base.secrets import redacted
from msa_base.specs import EndpointSpec

RAW = {"X-Stainless-Raw-Response": "stream"}  # asks the client for the reply as it comes
LARGEST_BYTES = 2**28  # of a reply
AGAIN = (408, 409, 429)  # statuses, beside those of a broken server, that another try may mend
FIRST_PAUSE_S, LAST_PAUSE_S = 0.5, 8.0  # before another try, doubled each time
LONGEST_PAUSE_S = 120.0  # that a server may ask for
SEARCHED_LETTERS, MESSAGE_LETTERS = 10_000, 500  # of a server's error: that say what it means, and that are shown
DEAD = 8  # requests in a row without a reply, after which a server is asked no more


class ContextExceeded(Exception):
    """A prompt is longer than the server's model takes."""


class EndpointTimeout(Exception):
    """No reply within the time limit, however often it was asked for."""


class Filtered(Exception):
    """The server does not take what a prompt is about."""


class Server:
    """The server of an entry. ``where`` names it in messages; ``silent`` requests in a row had no reply."""

    def __init__(self, spec: EndpointSpec) -> None:
        from openai import AsyncOpenAI

        self.spec, self.where, self.silent = spec, f"{spec.base_url}: model {spec.model}", 0
        self._client = AsyncOpenAI(api_key=spec.api_key, base_url=spec.base_url, timeout=spec.timeout_s, max_retries=0)

    async def request(self, route: str, body: dict[str, Any]) -> tuple[dict[str, Any], int, float]:
        """The server's reply, a JSON object, how often it was asked again, and the seconds of the last time.

        Raises:
            ContextExceeded, Filtered, EndpointTimeout, UserError: in one message, without any secret.
        """
        if self.silent >= DEAD:
            raise EndpointTimeout(f"{self.where}: not asked, since {DEAD} requests in a row had no reply")
        self.silent += 1
        status, content, retries, total_s = await self._answered(route, body)
        if status < 500 and status != 429:
            self.silent = 0
        if status >= 400:
            raise self._refusal(status, content.decode(errors="replace"))
        try:
            text = redacted(content.decode(), self.spec.api_key_env)
            response = json.loads(text, object_pairs_hook=unique_keys)
        except (ValueError, RecursionError) as error:
            wrong = f"{self.where}: its reply is not JSON ({error})"
            raise UserError(f"{wrong}; name an OpenAI-compatible server") from None
        if not isinstance(response, dict):  # such as the list of TEI's own routes
            wrong = f"{self.where}: its reply to {route} is no JSON object but {shown(response)}"
            raise UserError(f"{wrong}; name a server, or its `base_url`, that speaks OpenAI's protocol")
        if response.get("error") and not any(response.get(key) for key in ("choices", "data", "results")):
            raise self._refusal(status, json.dumps(response))
        return response, retries, total_s

    async def _answered(self, route: str, body: dict[str, Any]) -> tuple[int, bytes, int, float]:
        """Status and content of the server's answer, how often it was asked again, and the seconds of the last time."""
        import openai

        pause_s = 0.0
        for retries in range(self.spec.retries + 1):
            await asyncio.sleep(pause_s)
            start_s = perf_counter()
            pause_s = min(FIRST_PAUSE_S * 2**retries, LAST_PAUSE_S) * random.uniform(0.75, 1)
            try:
                # each single read of the client is bounded too, but a byte now and then meets that for ever
                async with asyncio.timeout(self.spec.timeout_s):
                    return 200, await self._post(route, body), retries, perf_counter() - start_s
            except (TimeoutError, openai.APITimeoutError):
                failure: Exception = EndpointTimeout(f"{self.where}: no reply within {self.spec.timeout_s:g} s")
            except (openai.APIConnectionError, ConnectionError) as error:
                cause = error.__cause__ or error
                reason = redacted(str(cause) or type(cause).__name__, self.spec.api_key_env)
                failure = UserError(f"{self.where}: cannot be reached ({reason}); start the server")
            except openai.APIStatusError as error:
                status = error.status_code
                answered = status, error.response.content, retries, perf_counter() - start_s
                if status not in AGAIN and status < 500:
                    return answered
                failure = None
                with suppress(ValueError):  # a date, or no number at all
                    pause_s = max(pause_s, min(float(error.response.headers.get("retry-after", 0)), LONGEST_PAUSE_S))
        if failure is None:
            return answered
        raise failure

    async def _post(self, route: str, body: dict[str, Any]) -> bytes:
        """The content of one answer. Raises ConnectionError for what libraries below openai's raise by themselves."""
        import openai

        raw, content = None, bytearray()
        try:
            raw = await self._client.post(f"/{route}", body=body, cast_to=object, options={"headers": RAW})
            async for part in raw.iter_bytes():
                content += part
                if len(content) > LARGEST_BYTES:
                    raise UserError(f"{self.where}: its reply has more than {LARGEST_BYTES:,} bytes; mend the server")
        except (UserError, TimeoutError, openai.OpenAIError):
            raise
        except Exception as error:
            raise ConnectionError(f"{type(error).__name__}: {error}") from None
        finally:
            if raw is not None:
                await raw.close()
        return bytes(content)

    def _refusal(self, status: int, content: str) -> Exception:
        """What an error of the server means, in its own words."""
        said = redacted(_words(content), self.spec.api_key_env)[:SEARCHED_LETTERS]
        if replies.too_long(status, said):
            return ContextExceeded(said[:MESSAGE_LETTERS])
        if replies.filtered(status, said):
            return Filtered(said[:MESSAGE_LETTERS])
        said = said[:MESSAGE_LETTERS]
        if status in (401, 403):
            key = f"the key in {self.spec.api_key_env}" if self.spec.api_key_env else "a request without key"
            return UserError(f"{self.where}: the server refuses {key} ({said}); set `api_key_env` right")
        return UserError(
            f"{self.where}: the server answers {status} ({said}); mend the entry or the server and run the same"
            " command again: replies so far are kept"
        )


def _words(content: str) -> str:
    """All texts of an error's JSON, on one line, or the content as it is."""
    try:
        found = list(_texts(json.loads(content)))
    except (ValueError, RecursionError):
        found = [content]
    return " ".join(" ".join(found).split())


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _texts(item)
