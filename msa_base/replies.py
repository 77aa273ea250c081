"""What the reply of a served model means: shape, order, numbers, text and end, checked before anything is made of it.

A reply of another shape than its route has is a :class:`BadReply`. One of the right shape may still hold no answer, or
one that is not to be trusted. That is its ``status``, which its question then bears. What a model says to itself is
taken away here, whatever form it has.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from msa_base.blank import is_blank
from msa_base.errors import shown

OK = "ok"
UNFINISHED = "ended_in_reasoning"  # nothing was said behind the thinking
EMPTY = "empty_reply"
FILTERED = "filtered"  # by the server or by the model's refusal
STOPPED = "stopped_early"  # neither by itself nor by its budget
READ_LESS = "read_less"  # the server counted far fewer tokens than it was sent

THINKING, PARTS, SURROGATES = "thinking_removed", "parts_joined", "surrogates_replaced"  # what is repaired

_NAMES = r"think|thinking|thoughts?|reasoning|scratchpad|seed:think"
_OPENS = (
    rf"<(?:{_NAMES})(?:\s[^<>]*)?>|\[THINK\]|◁think▷|<\|begin_of_thought\|>|<\|START_THINKING\|>|<\|inner_prefix\|>"
    r"|<\|channel\|>analysis<\|message\|>"
)
_CLOSES = (
    rf"</(?:{_NAMES})\s*>|\[/THINK\]|◁/think▷|<\|end_of_thought\|>|<\|END_THINKING\|>"
    r"|<\|inner_suffix\|>|<\|channel\|>final<\|message\|>"
)
_TAG = re.compile(rf"(?P<void><(?:{_NAMES})\s*/>)|(?P<close>{_CLOSES})|{_OPENS}", re.IGNORECASE)
_BARE_CHANNELS = re.compile(r"\s*analysis.*assistantfinal", re.DOTALL)  # of a server that drops special tokens
_JSON = re.compile(r"\s*(?:```\w*\s*)?([{\[].*[}\]])\s*(?:```)?\s*", re.DOTALL)
_THOUGHT_FIELDS = ("reasoning_content", "reasoning", "thinking", "reasoning_details")  # of a message
_THOUGHT_PARTS = ("thinking", "reasoning", "thought", "redacted_thinking")  # types of a part of its content
_DONE = ("", "stop", "eos", "eos_token", "stop_sequence", "end_turn", "stop_str")
_CUT = ("length", "max_tokens", "model_length", "max_output_tokens")
_FILTERS = ("content_filter", "safety", "recitation", "blocklist", "prohibited_content", "spii", "refusal", "sensitive")

LEAST_TOKENS = 512  # a text that has fewer fits any window
READ_SHARE = 0.75  # of the least tokens that a text can have; a server that counts fewer has not read it all
_CJK = "\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff"  # scripts without spaces, and Hangul
_WORD = re.compile(rf"[{_CJK}]+|[^\W{_CJK}]+")
CJK_TOKENS = 0.4  # of one of their characters, at least
WORD_LETTERS = 12  # of a token at most


class BadReply(ValueError):
    """A reply that is not what its route should give."""


@dataclass(frozen=True)
class Reply:
    """A written reply; ``total_s`` is the time of the request that was really made."""

    text: str
    input_tokens: int
    output_tokens: int
    total_s: float
    truncated: bool
    status: str = OK
    repaired: tuple[str, ...] = ()
    whole: str | None = None  # with its thinking, where it had any


@dataclass(frozen=True)
class Said:
    """A text without its thinking; ``unfinished`` where that is all there is of it."""

    text: str
    thought: bool
    unfinished: bool


def said(text: str) -> Said:
    """What a model says to others: its text without what stands between, or before, thinking tags.

    A closing tag alone ends a thought that the prompt began. A thought without an end goes on to the end of the text.
    Tags within the texts of a reply that is JSON as a whole are what it speaks of.
    """
    kept: list[str] = []
    bare = _BARE_CHANNELS.match(text)
    text = text[bare.end() :] if bare else text
    start, inside, thought = 0, False, bool(bare)
    for found in _TAG.finditer(text):
        thought = True
        if found["void"]:
            kept += [] if inside else [text[start : found.start()]]
            start = found.end()
        elif found["close"]:
            if not inside:
                kept.clear()
            inside, start = False, found.end()
        elif not inside:
            kept.append(text[start : found.start()])
            inside = True
    if not thought or (not bare and _is_json(text)):
        return Said(text, False, False)
    rest = "".join([*kept, *([] if inside else [text[start:]])]).strip()
    return Said(rest, True, not rest)


def _is_json(text: str) -> bool:
    """Whether a text is one JSON object or list, in a code block or not."""
    found = _JSON.fullmatch(text)
    try:
        return bool(found) and json.loads(found[1]) is not None
    except (ValueError, RecursionError):
        return False


class Losses:
    """What was lost or repaired of replies, counted by kind."""

    def __init__(self) -> None:
        self.lost: Counter[str] = Counter()
        self.repaired: Counter[str] = Counter()

    def add(self, status: str, repaired: Sequence[str] = ()) -> None:
        """Count a reply's status, unless it is ok, and its repairs."""
        if status != OK:
            self.lost[status] += 1
        self.repaired.update(repaired)

    def pop_usage(self) -> dict[str, dict[str, int]]:
        """What was counted since this was last asked, as part of a record's ``usage``; empty where nothing was."""
        counted = {"lost": dict(self.lost), "repaired": dict(self.repaired)}
        self.lost.clear()
        self.repaired.clear()
        return counted if any(counted.values()) else {}


def written(request: Mapping[str, Any], response: Any, total_s: float) -> Reply:
    """A chat's reply. Raises BadReply."""
    choice = _first_choice(response)
    message = choice.get("message")
    if not isinstance(message, dict):
        raise BadReply(f"its message is {shown(message)}")
    text, thoughts, refused, repaired = _content(message)
    found = said(text)
    if found.thought:
        repaired.append(THINKING)
    ended = choice.get("finish_reason") or ""
    if not isinstance(ended, str):
        raise BadReply(f"finish_reason is {shown(ended)}")
    ended, usage = ended.lower(), response.get("usage")
    if not isinstance(usage, dict):
        raise BadReply("it reports no usage")
    read = _tokens(usage, "prompt_tokens")
    if usage.get("completion_tokens") is None:  # some leave it out where all was thinking
        wrote = _tokens(usage, "total_tokens") - read
    else:
        wrote = _tokens(usage, "completion_tokens")
    status = OK
    if refused or ended in _FILTERS:
        status = FILTERED
    elif is_blank(found.text):
        status = UNFINISHED if thoughts or found.unfinished or ended in _CUT else EMPTY
    elif ended not in (*_DONE, *_CUT):
        status = STOPPED
    elif 0 < read < least_read(request["messages"][0]["content"]):
        status = READ_LESS
    whole = text if found.thought else None
    return Reply(found.text, read, max(wrote, 0), total_s, ended in _CUT, status, tuple(repaired), whole)


def _first_choice(response: Any) -> dict[str, Any]:
    """The choice of index 0, or the only one."""
    rows = response.get("choices") if isinstance(response, dict) else None
    if not isinstance(rows, list) or not rows or not isinstance(rows[0], dict):
        raise BadReply(f"choices is {shown(rows)}")
    if len(rows) > 1:
        rows = [row for row in rows if isinstance(row, dict) and type(row.get("index")) is int and row["index"] == 0]
        if len(rows) != 1:
            raise BadReply(f"{len(rows)} of its choices have the index 0")
    return rows[0]


def _content(message: dict[str, Any]) -> tuple[str, bool, bool, list[str]]:
    """Text of a message, whether there is thinking beside it, whether it refuses, and what was repaired."""
    content, texts, repaired = message.get("content"), [], []
    thoughts = any(bool(message.get(field)) for field in _THOUGHT_FIELDS)
    refused = bool(message.get("refusal"))
    if isinstance(content, list):
        repaired.append(PARTS)
        for part in content:
            part = part if isinstance(part, dict) else {"text": part}
            kind = part.get("type", "text")
            if kind in _THOUGHT_PARTS or part.get("thought") is True:
                thoughts = True
            elif kind == "refusal":
                refused = True
            elif kind in ("text", "output_text"):
                text = part.get("text")
                texts.append(text.get("value") if isinstance(text, dict) else text)
            else:
                raise BadReply(f"a part of its content is {shown(part)}")
    elif content is not None:
        texts.append(content)
    if wrong := [text for text in texts if not isinstance(text, str)]:
        raise BadReply(f"its content holds {shown(wrong[0])}")
    text = "".join(texts)
    if re.search("[\ud800-\udfff]", text):
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        repaired.append(SURROGATES)
    return text, thoughts, refused, repaired


def _tokens(usage: dict[str, Any], key: str) -> int:
    value = usage.get(key)
    if not _is_number(value) or value < 0 or value != int(value):
        raise BadReply(f"its usage says {key}: {shown(value)}")
    return int(value)


def least_read(text: str) -> float:
    """The least tokens that a server which read the whole text can count, with room; 0 where the text is short."""
    least = 0.0
    for word in _WORD.findall(text):
        least += len(word) * CJK_TOKENS if re.match(f"[{_CJK}]", word) else math.ceil(len(word) / WORD_LETTERS)
    return least * READ_SHARE if least >= LEAST_TOKENS else 0.0


def vectors(request: Mapping[str, Any], response: Any, total_s: float) -> np.ndarray:
    """Embeddings [N, E] float32 in the order of what was sent, finite and of some length. Raises BadReply."""
    rows = _ordered(response, "data", len(request["input"]))
    found = [_vector(row.get("embedding")) for row in rows]
    if len({len(vector) for vector in found}) > 1:
        raise BadReply("its embeddings differ in length")
    return np.stack(found)


def cut_short(request: Mapping[str, Any], response: Any) -> bool:
    """Whether a server that embeds says that it read far less than it was sent; one that says nothing is believed."""
    usage = response.get("usage")
    read = usage.get("prompt_tokens") if isinstance(usage, dict) else None
    return _is_number(read) and 0 < read < sum(map(least_read, request.get("input", ())))


def _vector(embedding: Any) -> np.ndarray:
    if isinstance(embedding, str):  # base64 does not say how wide its numbers are
        raise BadReply(f"an embedding is the text {shown(embedding)}, a list of numbers was asked for")
    if not isinstance(embedding, list) or not all(map(_is_number, embedding)):
        raise BadReply(f"an embedding is {shown(embedding)}")
    with np.errstate(over="ignore"):
        vector = np.asarray(embedding, np.float64).astype(np.float32)
    if not len(vector) or not np.isfinite(vector).all() or not vector.any():
        raise BadReply("an embedding is empty, zero or not finite")
    return vector


def scores(request: Mapping[str, Any], response: Any, total_s: float) -> list[float]:
    """A reranker's scores in the order of the documents that were sent. Raises BadReply."""
    found = [row.get("relevance_score") for row in _ordered(response, "results", len(request["documents"]))]
    if wrong := [score for score in found if not _is_number(score)]:
        raise BadReply(f"a relevance_score is {shown(wrong[0])}")
    return [float(score) for score in found]


def _ordered(response: Any, key: str, count: int) -> list[dict[str, Any]]:
    """The rows of a reply by their ``index``, of which each from 0 must be there once."""
    rows = response.get(key) if isinstance(response, dict) else None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise BadReply(f"{key} is {shown(rows)}")
    places = [row.get("index") for row in rows]
    if not all(type(place) is int for place in places) or sorted(places) != list(range(count)):
        raise BadReply(f"{key} has the indices {shown(places)}, {count} were asked for, from 0, each once")
    return sorted(rows, key=lambda row: row["index"])


def _is_number(value: Any) -> bool:
    """Whether a JSON value is a finite number that fits a float."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) < 1e300 if isinstance(value, int) else math.isfinite(value)


# How servers say that a prompt is beyond their window: OpenAI, vLLM, SGLang, TGI, TEI, llama.cpp, Ollama, LM Studio,
# TensorRT-LLM, Gemini, Anthropic, Mistral, Cohere, DeepSeek, xAI, Bedrock.
_TOO_LONG = re.compile(
    r"context[ _-]?(length|size|window|limit)|exceed_context"
    r"|max(imum)?[ _](model|prompt|input|seq|sequence)[ _](length|len|tokens)"
    r"|\b(prompt|inputs?|messages|request|conversation|query|text)\b`?[^.]{0,80}?"
    r"\b(too long|too large|longer than|exceeds?|less than \d+ tokens)\b"
    r"|`?inputs`? tokens? \+ `?max_new_tokens`? must be"
    r"|tokens? (count|allowed|exceeds?)\b|too many (input |prompt )?tokens|maximum number of tokens"
    r"|reduce the length|too long|too large for model",
    re.IGNORECASE,
)
_OTHER_LIMIT = re.compile(  # of a server on requests in a time, or of a model on what it writes
    r"per[ _-]?(minute|day|second|hour)|rate[ _-]?limit|quota|\b[TR]P[MD]\b|at most [\d,]+ (completion|output) tokens",
    re.IGNORECASE,
)
_FILTER = re.compile(
    r"content_filter|content management policy|content[ _]policy|data_inspection_failed", re.IGNORECASE
)


def too_long(status: int, message: str) -> bool:
    """Whether an error of a server says that the prompt is beyond its window, or too large to be taken at all."""
    if status in (401, 403, 404, 429):
        return False
    return status == 413 or bool(_TOO_LONG.search(message) and not _OTHER_LIMIT.search(message))


def filtered(status: int, message: str) -> bool:
    """Whether an error of a server says that it does not take what the prompt is about."""
    return status == 400 and bool(_FILTER.search(message))
