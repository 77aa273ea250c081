"""What replies mean: thinking in every shape, ends, counts, order, numbers, and windows in many words."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from msa_base import replies
from msa_base.replies import BadReply, Losses, said, scores, too_long, vectors, written
from tests.canned import JSON, chat, spoilt


def read(response: Any, prompt: str = "Who?") -> replies.Reply:
    return written({"messages": [{"role": "user", "content": prompt}]}, response, 0.5)


@pytest.mark.parametrize(
    ("text", "rest"),
    [
        ("<think>It could be Rome. No.</think>\n\nParis", "Paris"),
        ("It could be Rome. No.</think>\n\nParis", "Paris"),  # the prompt began the thought
        ("<think>a <think> b</think> c</think> Paris", "Paris"),
        ("Paris <think>or Rome", "Paris"),
        ("<THINKING>Rome?</Thinking>Paris", "Paris"),
        ("<think>a</think>Par<think>b</think>is", "Paris"),
        ("[THINK]Rome[/THINK]Paris", "Paris"),
        ("◁think▷Rome◁/think▷Paris", "Paris"),
        ("<seed:think>Rome</seed:think>Paris", "Paris"),
        ('<think time="3">Rome</think >Paris', "Paris"),
        ("<think/>Paris<Thoughts />", "Paris"),
        ("<scratchpad>Rome</scratchpad>Paris", "Paris"),
        ("<|START_THINKING|>Rome<|END_THINKING|>Paris", "Paris"),
        ("analysisRome? No.assistantfinalParis", "Paris"),  # a server that drops special tokens
        ("<|channel|>analysis<|message|>Rome?<|end|><|start|>assistant<|channel|>final<|message|>Paris", "Paris"),
    ],
)
def test_what_a_model_thinks_is_no_part_of_what_it_says(text: str, rest: str) -> None:
    assert (said(text).text, said(text).unfinished) == (rest, False)
    found = read(chat(text))
    assert (found.text, found.status, found.repaired, found.whole) == (rest, "ok", ("thinking_removed",), text)


@pytest.mark.parametrize("text", ["<think>It could be Rome. Or", "<think></think>", "Rome</think> \n", "<think>"])
def test_a_reply_that_ends_in_its_thinking_says_nothing(text: str) -> None:
    assert said(text).unfinished
    assert (read(chat(text)).text, read(chat(text)).status) == ("", "ended_in_reasoning")


def test_a_text_without_thinking_stays_to_the_letter() -> None:
    assert said(" a < b, think>\n").text == " a < b, think>\n"
    assert not said("").unfinished
    for text in ('{"facts": ["R1 writes <think> first, then </think>."]}', '```json\n["a </think> b"]\n```'):
        assert said(text) == replies.Said(text, False, False)  # what it speaks of
    assert said('{"facts": ["draft"]}</think>["a"]').text == '["a"]'
    assert said('[THINK]{"facts": ["draft"]}').unfinished


@given(st.lists(st.sampled_from(["<think>", "</think>", "[THINK]", "Rome ", "{}", "<", "\n"]), max_size=12))
def test_no_tag_is_left_and_nothing_changes_twice(parts: list[str]) -> None:
    once = said("".join(parts))
    assert "think>" not in once.text and "[THINK]" not in once.text
    assert said(once.text).text == once.text


THOUGHT = {"type": "thinking", "thinking": [{"type": "text", "text": "Rome? No."}]}


@pytest.mark.parametrize(
    ("response", "text", "status"),
    [
        (chat("Paris", reasoning_content="Rome? No."), "Paris", "ok"),
        (chat([THOUGHT, {"type": "text", "text": "Paris"}]), "Paris", "ok"),
        (chat(["Par", {"text": "is"}, {"type": "output_text", "text": {"value": "!"}}]), "Paris!", "ok"),
        (chat([THOUGHT]), "", "ended_in_reasoning"),
        (chat(None, "length", reasoning_content="It could be Rome. Or"), "", "ended_in_reasoning"),
        (chat(None, "stop", reasoning="Rome"), "", "ended_in_reasoning"),
        (chat("", "stop", reasoning_details=[{"text": "Rome"}]), "", "ended_in_reasoning"),
        (chat("", "length"), "", "ended_in_reasoning"),  # thinking that is not shown
        (chat(""), "", "empty_reply"),
        (chat(" \n"), " \n", "empty_reply"),
        (chat("\u200b\ufeff \u2060"), "\u200b\ufeff \u2060", "empty_reply"),  # nothing that can be seen
        (chat(None), "", "empty_reply"),
        (chat([]), "", "empty_reply"),
        (chat("Par", "length"), "Par", "ok"),
        (chat("Par", "MAX_TOKENS"), "Par", "ok"),
        (chat("Paris", "eos_token"), "Paris", "ok"),
        (chat("Paris", None), "Paris", "ok"),
        (chat("Par", "content_filter"), "Par", "filtered"),
        (chat(None, "SAFETY"), "", "filtered"),
        (chat(None, "stop", refusal="I cannot."), "", "filtered"),
        (chat("Par", "tool_calls"), "Par", "stopped_early"),
        (chat("Par", "abort"), "Par", "stopped_early"),
    ],
)
def test_the_status_of_a_reply(response: Any, text: str, status: str) -> None:
    found = read(response)
    assert (found.text, found.status, found.input_tokens, found.output_tokens) == (text, status, 5, 3)
    assert found.truncated == (response["choices"][0]["finish_reason"] in ("length", "MAX_TOKENS"))


def test_the_choice_of_index_0_is_the_reply_wherever_it_stands() -> None:
    first, second = chat("first")["choices"][0], {**chat("second")["choices"][0], "index": 1}
    assert read(chat("") | {"choices": [second, first]}).text == "first"
    for choices in ([first, first], [second, second], [second, None]):
        with pytest.raises(BadReply, match="index 0"):
            read(chat("") | {"choices": choices})


def test_letters_that_no_file_takes_are_replaced_and_counted() -> None:
    found = read(chat("a\ud800b"))
    assert (found.text, found.repaired) == ("a\ufffdb", ("surrogates_replaced",))


def usage(**values: Any) -> dict[str, Any]:
    return chat("Paris") | {"usage": values}


@pytest.mark.parametrize(
    "response",
    [
        None, [], {}, {"choices": []}, {"choices": None}, {"choices": [None]}, {"choices": [{"text": "Paris"}]},
        chat(7), chat(True), chat({"text": "a"}), chat([7]), chat([{"type": "image_url"}]), chat([{"type": "text"}]),
        chat("a", 7), chat("a") | {"usage": None}, usage(completion_tokens=3), usage(prompt_tokens=5),
        usage(prompt_tokens="5", completion_tokens=3), usage(prompt_tokens=-1, completion_tokens=3),
        usage(prompt_tokens=5, completion_tokens=True), usage(prompt_tokens=1.5, completion_tokens=3),
        usage(prompt_tokens=float("nan"), completion_tokens=3),
    ],
)  # fmt: skip
def test_what_is_no_chat_is_a_bad_reply(response: Any) -> None:
    with pytest.raises(BadReply):
        read(response)


def test_tokens_that_were_written_follow_from_the_total_where_they_are_left_out() -> None:
    assert read(usage(prompt_tokens=5, total_tokens=12)).output_tokens == 7
    assert read(usage(prompt_tokens=5.0, completion_tokens=2.0)).input_tokens == 5


@pytest.mark.parametrize("prompt", ["several plain words here. " * 1000, "记忆稀疏注意力机制" * 1000])
def test_a_server_that_read_less_than_was_sent_is_told_apart(prompt: str) -> None:
    assert read(chat("Paris", read=len(prompt) // 2), prompt).status == "ok"
    assert read(chat("Paris", read=1024), prompt).status == "read_less"
    assert read(chat("Paris", read=1024), prompt[:1000]).status == "ok"
    assert read(chat("Paris", read=0), prompt).status == "ok"  # it does not say what it read
    sent = {"input": [prompt] * 2}
    assert replies.cut_short(sent, {"usage": {"prompt_tokens": 1024}})
    assert not replies.cut_short(sent, {"usage": {"prompt_tokens": len(prompt)}})
    assert not replies.cut_short(sent, {}) and not replies.cut_short({"query": ""}, {"usage": {"prompt_tokens": 1}})


@pytest.mark.parametrize(("text", "least"), [
    ("", 0.0), ("word " * 511, 0.0), ("word " * 512, 384.0), ("thirteen-and" + "thirteenwords " * 255, 0.0),
    ("thirteenwords " * 256, 384.0), ("字" * 1279, 0.0), ("字" * 1280, 384.0), ("word字字字字字" * 171, 384.75),
])  # fmt: skip
def test_the_least_that_a_text_can_take_is_counted_by_word_and_by_character(text: str, least: float) -> None:
    assert replies.least_read(text) == pytest.approx(least)


def embedded(*rows: Any) -> dict[str, Any]:
    return {"data": [{"index": place, "embedding": row} for place, row in enumerate(rows)]}


def test_embeddings_come_in_the_order_of_the_texts() -> None:
    response = {"data": [{"index": 1, "embedding": [3, 4]}, {"index": 0, "embedding": [1, 2.5]}]}
    np.testing.assert_array_equal(vectors({"input": ["a", "b"]}, response, 0.0), [[1, 2.5], [3, 4]])


@pytest.mark.parametrize("kind", ["<f4", "<f8", "<f2", "i1"])
def test_an_embedding_whose_numbers_could_have_any_width_is_a_bad_reply(kind: str) -> None:
    coded = base64.b64encode(np.asarray([3, 4, 5, 6], kind).tobytes()).decode()
    with pytest.raises(BadReply, match="a list of numbers was asked for"):
        vectors({"input": ["a"]}, embedded(coded), 0.0)


@pytest.mark.parametrize(
    "response",
    [
        embedded([None, None]), embedded([float("nan")]), embedded([1e39]), embedded([float("inf")]), embedded([]),
        embedded([0, 0]), embedded(["1"]), embedded([True]), embedded(None), embedded("?"), embedded("QQ=="),
        embedded([1], [1]), embedded([10**400]), {"data": []}, {"data": None}, {}, [], {"data": [{"embedding": [1]}]},
        {"data": [{"index": 1, "embedding": [1]}]}, {"data": [{"index": True, "embedding": [1]}]},
    ],
)  # fmt: skip
def test_what_is_no_embedding_of_one_text_is_a_bad_reply(response: Any) -> None:
    with pytest.raises(BadReply):
        vectors({"input": ["a"]}, response, 0.0)


def test_embeddings_of_two_lengths_are_a_bad_reply() -> None:
    with pytest.raises(BadReply, match="differ in length"):
        vectors({"input": ["a", "b"]}, embedded([1], [1, 2]), 0.0)


def ranked(*rows: tuple[Any, Any]) -> dict[str, Any]:
    return {"results": [{"index": place, "relevance_score": score} for place, score in rows]}


def test_scores_come_in_the_order_of_the_documents() -> None:
    assert scores({"documents": ["a", "b", "c"]}, ranked((2, 0.9), (0, 0.5), (1, -3)), 0.0) == [0.5, -3, 0.9]


@pytest.mark.parametrize(
    "response",
    [
        ranked((2, 0.9), (0, 0.5)), ranked((2, 0.9), (0, 0.5), (0, 0.4)), ranked((0, 1), (1, 1), (3, 1)),
        ranked((0, 1), (1, None), (2, 1)), ranked((0, 1), (1, "0.5"), (2, 1)),
        ranked((0, 1), (1, float("nan")), (2, 1)),
        ranked(("0", 1), (1, 1), (2, 1)), ranked((0, 1), (1, 1), (2, 1), (3, 1)), {"results": "x"}, {}, None,
    ],
)  # fmt: skip
def test_what_is_no_score_of_each_document_is_a_bad_reply(response: Any) -> None:
    with pytest.raises(BadReply):
        scores({"documents": ["a", "b", "c"]}, response, 0.0)


GOOD = {
    written: ({"messages": [{"content": "Who?"}]}, chat("Paris")),
    vectors: ({"input": ["a", "b"]}, embedded([1.0, 2.0], [3.0, 4.0])),
    scores: ({"documents": ["a", "b"]}, ranked((1, 0.5), (0, 0.25))),
}


@pytest.mark.parametrize("reader", GOOD)
@given(data=st.data())
def test_any_reply_is_a_bad_one_or_means_what_it_says(reader: Any, data: st.DataObject) -> None:
    request, good = GOOD[reader]
    response = data.draw(JSON | spoilt(good))
    try:
        found = reader(request, response, 0.0)
    except BadReply as error:
        assert len(str(error)) < 300
        return
    if reader is written:
        message = response["choices"][0]["message"]
        assert found.status != "ok" or found.text.strip()
        if isinstance(content := message.get("content"), str) and found.status == "ok" and not found.repaired:
            assert found.text == content
    elif reader is vectors:
        assert found.shape[0] == 2 and np.isfinite(found).all()
        if response == good:
            np.testing.assert_array_equal(found, [[1, 2], [3, 4]])
    else:
        assert sorted(found) == sorted(float(row["relevance_score"]) for row in response["results"])


TOO_LONG = [
    (400, "The decoder prompt (length 10127) is longer than the maximum model length of 8192."),
    (400, "This model's maximum context length is 8192 tokens. However, you requested 9000 tokens (1000 in the"
          " messages, 8000 in the completion). Please reduce the length of the messages or completion."),
    (400, "'max_tokens' or 'max_completion_tokens' is too large: 100000. This model's maximum context length is 32768"
          " tokens and your request has 28 input tokens"),
    (400, "You passed 8001 input tokens and requested 192 output tokens. However, the model's context length is only"
          " 8192 tokens"),
    (422, "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 4096. Given: 5000 `inputs` tokens and"
          " 64 `max_new_tokens`"),
    (413, "`inputs` must have less than 512 tokens. Given: 700"),
    (400, "The input token count (1200000) exceeds the maximum number of tokens allowed (1048576)."),
    (400, "Input tokens exceed the configured limit of 272000 tokens. Your messages resulted in 300000 tokens."),
    (400, "the request exceeds the available context size, try increasing it"),
    (500, "input is too large to process. increase the physical batch size"),
    (400, "exceed_context_size_error"),
    (400, "prompt too long; exceeded max context length by 120 tokens"),
    (500, "the input length exceeds the context length"),
    (400, "The input (7000 tokens) is longer than the model's context length (4096 tokens)."),
    (400, "Requested token count exceeds the model's maximum context length of 4096 tokens."),
    (400, "prompt is too long: 200251 tokens > 200000 maximum"),
    (400, "input length and `max_tokens` exceed context limit: 188240 + 21333 > 200000"),
    (400, "Prompt contains 40000 tokens and 0 draft tokens, too large for model with 32768 maximum context length"),
    (400, "too many tokens: total number of tokens in the prompt cannot exceed 4081"),
    (400, "This model's maximum prompt length is 131072 but the request contains 537812 tokens."),
    (400, "Input is too long for requested model."),
    (400, "Trying to keep the first 8000 tokens when context the overflows. However, the model is loaded with context"
          " length of only 4096 tokens"),
    (400, "context_length_exceeded"),
    (413, "Request Entity Too Large"),
]  # fmt: skip
OTHER = [
    (400, "max_tokens is too large: 100000. This model supports at most 16384 completion tokens, whereas you provided"
          " 100000."),
    (400, "temperature must be at most 2"),
    (400, "model 'small' does not exist"),
    (400, "messages: at least one message is required"),
    (401, "Incorrect API key provided. context length"),
    (404, "no such route; see the maximum context length"),
    (429, "Request too large for model in organization on tokens per min (TPM): Limit 30000, Requested 40000."),
    (500, "CUDA error: an illegal memory access was encountered"),
    (503, "Rate limit reached: too many tokens per minute"),
]  # fmt: skip


@pytest.mark.parametrize(("status", "message"), TOO_LONG)
def test_a_prompt_beyond_the_window_is_known_in_the_words_of_any_server(status: int, message: str) -> None:
    assert too_long(status, message)


@pytest.mark.parametrize(("status", "message"), OTHER)
def test_another_error_is_not_taken_for_a_window(status: int, message: str) -> None:
    assert not too_long(status, message)


def test_losses_are_counted_by_kind_and_once() -> None:
    losses = Losses()
    assert losses.pop_usage() == {}
    losses.add("ok", ["thinking_removed"])
    losses.add("empty_reply")
    losses.add("empty_reply", ["thinking_removed"])
    assert losses.pop_usage() == {"lost": {"empty_reply": 2}, "repaired": {"thinking_removed": 2}}
    assert losses.pop_usage() == {}
