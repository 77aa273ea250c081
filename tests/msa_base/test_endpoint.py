"""The endpoint: keys of kept replies, one request once, damage, time limits, and secrets that stay where they are."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from msa_base.endpoint import Endpoint
from msa_base.errors import UserError, run_command
from msa_base.secrets import redacted
from msa_base.server import ContextExceeded, EndpointTimeout
from msa_base.specs import EndpointSpec
from tests.canned import Canned, canned, chat, spoilt


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """No pause before another try."""
    monkeypatch.setattr("msa_base.server.FIRST_PAUSE_S", 0.01)


def opened(server: Canned, kept: Path, replicate: int | None = None, **params: Any) -> Endpoint:
    spec = EndpointSpec(server.url, **{"model": "m", "retries": 0, "timeout_s": 5.0, **params})
    return Endpoint(spec, kept, replicate)


def files(directory: Path) -> list[Path]:
    return sorted(directory.rglob("*.json"))


# --- keys


@pytest.mark.parametrize(
    "change",
    [
        {"model": "n"}, {"revision": "b"}, {"temperature": 0.5}, {"top_p": 0.5}, {"body": {"stop": "x"}},
        {"body": {"seed": 1}}, {"replicate": 1},
    ],
)  # fmt: skip
def test_a_reply_answers_for_all_that_made_it(tmp_path: Path, change: dict[str, Any]) -> None:
    own = {"temperature": 1.0, "revision": "a", "replicate": 0} if "temperature" not in change else {"replicate": 0}
    with canned(lambda body: (200, chat(f"reply {len(server.asked)}"))) as server:
        for params in (own, {**own, **change}, own):
            opened(server, tmp_path, **params).chat(["Who?"], 8)
        opened(server, tmp_path, **own).chat(["Who?"], 9)
        assert len(server.asked) == 3 == len(files(tmp_path))


def test_replicates_of_a_sampling_model_are_drawn_apart_and_of_a_greedy_one_are_the_same(tmp_path: Path) -> None:
    with canned(lambda body: (200, chat("a"))) as server:
        for seed in (0, 1, 2):
            opened(server, tmp_path, seed, temperature=0.7).chat(["Who?"], 8)
            opened(server, tmp_path, seed, temperature=0.7, body={"temperature": 0}).chat(["Who?"], 8)
            opened(server, tmp_path, seed).chat(["What?"], 8)
        seeds = [(body["temperature"], body.get("seed")) for _, body, _ in server.asked]
        assert seeds == [(0.7, 0), (0, None), (0.0, None), (0.7, 1), (0.7, 2)]


def test_another_server_is_another_model(tmp_path: Path) -> None:
    with canned(lambda body: (200, chat("a"))) as one, canned(lambda body: (200, chat("b"))) as other:
        texts = [opened(server, tmp_path).chat(["Who?"], 8)[0].text for server in (one, other, one)]
    assert texts == ["a", "b", "a"] and len(one.asked) == len(other.asked) == 1


# --- one request once


def test_one_prompt_twice_at_once_is_paid_once(tmp_path: Path) -> None:
    def slow(body: dict) -> tuple[int, Any]:
        time.sleep(0.2)
        return 200, chat("5")

    with canned(slow) as server:
        endpoints = [opened(server, tmp_path / "kept") for _ in range(3)]
        with ThreadPoolExecutor(6) as pool:
            found = list(pool.map(lambda n: endpoints[n % 3].chat(["same text"] * 2, 8), range(6)))
        assert [reply.text for replies in found for reply in replies] == ["5"] * 12
        assert len(server.asked) == 1 == len(files(tmp_path))


def _chat_elsewhere(url: str, kept: Path) -> None:
    served = Canned()
    served.url = url
    assert opened(served, kept).chat(["same text"], 8)[0].text == "5"


def test_two_processes_pay_for_one_prompt_once(tmp_path: Path) -> None:
    gate = threading.Event()

    def held(body: dict) -> tuple[int, Any]:
        gate.wait(5)
        return 200, chat("5")

    with canned(held) as server:
        context = multiprocessing.get_context("fork")
        children = [context.Process(target=_chat_elsewhere, args=(server.url, tmp_path)) for _ in range(2)]
        for child in children:
            child.start()
        while not server.asked:
            time.sleep(0.01)
        time.sleep(0.2)
        gate.set()
        for child in children:
            child.join(10)
        assert [child.exitcode for child in children] == [0, 0] and len(server.asked) == 1


# --- damage


@pytest.mark.parametrize("damage", ["cut", "emptied", "flipped", "changed", "foreign", "binary", "older"])
def test_a_damaged_reply_is_asked_for_again_with_a_word(tmp_path: Path, damage: str, capsys: Any) -> None:
    with canned(lambda body: (200, chat(f"Paris {len(server.asked)}"))) as server:
        assert opened(server, tmp_path).chat(["Who?"], 8)[0].text == "Paris 1"
        (path,) = files(tmp_path)
        whole = path.read_text()
        without = {key: value for key, value in json.loads(whole).items() if key != "digest"}
        contents = {
            "cut": whole[: len(whole) // 2], "emptied": "", "flipped": whole.replace("Paris", "Pbris"),
            "changed": whole.replace('"prompt_tokens": 5', '"prompt_tokens": 6'), "foreign": "[1]",
            "binary": "\x00\udcff", "older": json.dumps(without),
        }  # fmt: skip
        path.write_bytes(contents[damage].encode("utf-8", "surrogateescape"))
        assert [opened(server, tmp_path).chat(["Who?"], 8)[0].text for _ in range(2)] == ["Paris 2"] * 2
    assert capsys.readouterr().out.count("not a reply as it was kept") == 1


# --- servers that hang, drop, are slow, or talk nonsense


def drop(handler: Any) -> None:
    handler.connection.shutdown(socket.SHUT_RDWR)


def half(handler: Any) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{")
    handler.wfile.flush()


def broken_error(handler: Any) -> None:
    handler.wfile.write(b"HTTP/1.1 500 Oops\r\nContent-Length: 1000\r\n\r\n{")


def wrong_coding(handler: Any) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 4\r\n\r\nrest")


def dribble(start: bytes) -> Any:
    """A byte now and then, for ever."""

    def write(handler: Any) -> None:
        handler.wfile.write(start)
        for _ in range(100):
            handler.wfile.write(b" ")
            handler.wfile.flush()
            time.sleep(0.05)

    return write


SLOW_HEAD, SLOW_BODY = b"HTTP/1.1 200 OK\r\nX-Slow:", b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"


@pytest.mark.parametrize("trouble", [dribble(SLOW_HEAD), dribble(SLOW_BODY), lambda handler: time.sleep(2)])
def test_a_slow_server_ends_at_its_time_limit_however_it_is_slow(tmp_path: Path, trouble: Any) -> None:
    with canned(lambda body: (200, trouble)) as server:
        started = time.perf_counter()
        with pytest.raises(EndpointTimeout, match=r"no reply within 0\.3 s"):
            opened(server, tmp_path, timeout_s=0.3).chat(["Who?"], 8)
        assert time.perf_counter() - started < 1.9 and not files(tmp_path)


@pytest.mark.parametrize("trouble", [drop, half, broken_error, wrong_coding])
def test_a_dropped_connection_is_tried_again_as_often_as_set(tmp_path: Path, trouble: Any) -> None:
    with canned(lambda body: (200, trouble) if len(server.asked) < 2 else (200, chat("Paris"))) as server:
        endpoint = opened(server, tmp_path, retries=1)
        assert endpoint.chat(["Who?"], 8)[0].text == "Paris"
        assert endpoint.pop_usage()["retries"] == 1
        assert endpoint.chat(["Who?"], 8)[0].total_s < 0.3  # neither the lost try nor the pause behind it
    with canned(lambda body: (200, trouble)) as server:
        with pytest.raises(UserError, match=r"cannot be reached \(.+\)"):
            opened(server, tmp_path, retries=1).chat(["Who?"], 8)
        assert len(server.asked) == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not JSON"), (b"[]", r"its reply to chat/completions is no JSON object but \[\]"),
        (b'[{"index": 0, "score": 0.5}]', "is no JSON object but"), (b'"text"', "is no JSON object but 'text'"),
        (b'{"choices": [], "choices": []}', "key 'choices' stands there twice"),
        (b"\xff\xfe", "not JSON"), (b"<html>", "not JSON"),
        (b"[" * 100_000, "not JSON"), (b'{"a":' * 100_000, "not JSON"), (b"1" * 5000, "not JSON"),
        ({"choices": []}, "not what chat/completions should give"),
        ({"error": {"message": "worker died"}}, r"answers 200 \(worker died\)"),
        ({"error": {"message": "prompt is too long: 9 tokens > 8 maximum"}}, "too long"),
    ],
)  # fmt: skip
def test_rubbish_is_one_message_and_is_not_kept(tmp_path: Path, content: Any, message: str) -> None:
    with canned(lambda body: (200, content)) as server:
        with pytest.raises((UserError, ContextExceeded), match=message):
            opened(server, tmp_path).chat(["Who?"], 8)
        assert len(server.asked) == 1 and not files(tmp_path)


def test_a_reply_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("msa_base.server.LARGEST_BYTES", 1000)
    with (
        canned(lambda body: (200, chat("a" * 2000))) as server,
        pytest.raises(UserError, match="more than 1,000 bytes"),
    ):
        opened(server, tmp_path).chat(["Who?"], 8)


def test_a_dead_server_is_not_asked_for_ever(tmp_path: Path) -> None:
    with canned(lambda body: (503, {"error": {"message": "down"}})) as server:
        found = opened(server, tmp_path, parallel=1).chat([f"Who is {n}?" for n in range(30)], 8, each=True)
        assert len(server.asked) == 8 and len(found) == 30
    assert all(isinstance(one, UserError | EndpointTimeout) for one in found)


def test_each_prompt_has_its_own_end(tmp_path: Path) -> None:
    answers = {
        "long": (400, {"error": {"message": "prompt is too long: 9 tokens > 8 maximum"}}),
        "bad": (400, {"error": {"message": "no", "code": "content_filter"}}),
        "good": (200, chat("Paris")),
        "down": (500, {"error": {"message": "broken"}}),
    }
    with canned(lambda body: answers[body["messages"][0]["content"]]) as server:
        endpoint = opened(server, tmp_path)
        long, bad, good, down, again = endpoint.chat(["long", "bad", "good", "down", "good"], 8, each=True)
        assert isinstance(long, ContextExceeded) and isinstance(down, UserError) and good == again
        assert (bad.text, bad.status) == ("", "filtered") and good.text == "Paris"
        assert endpoint.pop_usage()["lost"] == {"filtered": 1}


def test_kept_replies_are_read_where_nothing_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with canned(lambda body: (200, chat("Paris"))) as server:
        opened(server, tmp_path).chat(["Who?"], 8)
        blocked = tmp_path / "file" / "replies"
        (tmp_path / "file").write_text("")
        assert opened(server, tmp_path).chat(["Who?"], 8)[0].text == "Paris"
        with pytest.raises(UserError, match="replies cannot be kept there"):
            opened(server, blocked).chat(["Who?"], 8)


def test_a_reply_that_a_server_stopped_is_not_kept(tmp_path: Path) -> None:
    with canned(lambda body: (200, chat("Par", "abort") if len(server.asked) < 2 else chat("Paris"))) as server:
        found = [opened(server, tmp_path).chat(["Who?"], 8)[0] for _ in range(3)]
    assert [(reply.text, reply.status) for reply in found] == [
        ("Par", "stopped_early"),
        ("Paris", "ok"),
        ("Paris", "ok"),
    ]
    assert len(server.asked) == 2 and len(files(tmp_path)) == 1


def test_embeddings_of_several_batches_are_in_order_and_of_one_width(tmp_path: Path) -> None:
    def embedded(body: dict) -> tuple[int, Any]:
        rows = [[float(text)] * (2 if text == "9" else 1) for text in body["input"]]
        return 200, {"data": [{"index": place, "embedding": row} for place, row in enumerate(rows)]}

    with canned(embedded) as server:
        endpoint = opened(server, tmp_path)
        assert endpoint.embed(["3", "1", "2"], batch=2).tolist() == [[3.0], [1.0], [2.0]]
        with pytest.raises(UserError, match=r"gives embeddings of \[1, 2\] numbers; serve one model"):
            endpoint.embed(["3", "9"], batch=1)


ROUTES = {
    "chat": (chat("Paris"), lambda endpoint, text: endpoint.chat([text], 8)),
    "embed": ({"data": [{"index": 0, "embedding": [1.0, 2.0]}]}, lambda it, text: it.embed([text]).tolist()),
    "rerank": ({"results": [{"index": 0, "relevance_score": 1}]}, lambda it, text: it.rerank({text: ["x"]})),
}


@pytest.mark.parametrize("route", ROUTES)
def test_any_answer_of_a_server_is_a_reply_that_stays_or_one_message(tmp_path: Path, route: str) -> None:
    good, ask = ROUTES[route]
    endpoint = Endpoint(EndpointSpec("http://127.0.0.1:9/v1", "m", retries=0), tmp_path)
    answers: list[bytes] = []

    async def post(*_: Any) -> bytes:
        return answers.pop()

    @given(st.binary(max_size=20) | spoilt(good).map(lambda value: json.dumps(value).encode()))
    def answered(content: bytes) -> None:
        answers[:] = [b"the server is gone", content]
        text = f"Who is {next(numbers)}?"
        try:
            found = ask(endpoint, text)
        except UserError as error:
            assert "127.0.0.1" in str(error)
        except ContextExceeded:
            assert b"error" in content
        else:
            status = found[0].status if route == "chat" else "ok"
            assert status in ("stopped_early", "filtered") or ask(endpoint, text) == found

    numbers = itertools.count()
    with mock.patch.object(endpoint.server, "_post", post):
        answered()


# --- secrets

SECRET = "sk-planted/+0123456789abcdef"


def echo(body: dict, key: str) -> tuple[int, Any]:
    """What servers do with a key: in an error, in a reply, in a header's place."""
    word = body["messages"][0]["content"]
    if word == "reply":
        return 200, {**chat(f"Your key is {key}", reasoning_content=key), "headers": {"authorization": f"Bearer {key}"}}
    status = {"refused": 401, "wrong": 400, "broken": 500}[word]
    return status, {"error": {"message": f"Incorrect API key provided: {key}", "escaped": key.replace("/", "\\/")}}


def test_a_key_that_a_server_echoes_is_in_no_message_and_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    monkeypatch.setenv("MY_SERVER", SECRET)
    said = []
    with canned(lambda body: echo(body, SECRET)) as server:
        endpoint = opened(server, tmp_path, api_key_env="MY_SERVER")
        for word in ("refused", "wrong", "broken", "reply"):
            (found,) = endpoint.chat([word], 8, each=True)
            said.append(str(found))
        assert server.asked[0][2]["authorization"] == f"Bearer {SECRET}"
    assert "$MY_SERVER" in said[0] and said[3].count("$MY_SERVER") == 1
    written = "".join(path.read_text() for path in tmp_path.rglob("*") if path.is_file())
    everything = "".join([*said, written, *capfd.readouterr()])
    assert SECRET not in everything and "0123456789abcdef" not in everything


@pytest.mark.parametrize("key", ["two words", "new\nline", "käse-123456"])
def test_a_key_that_no_header_takes_is_named_and_not_shown(monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.setenv("MY_SERVER", key)
    with pytest.raises(UserError, match="MY_SERVER holds a space or a letter") as raised:
        _ = EndpointSpec("http://localhost/v1", "m", api_key_env="MY_SERVER").api_key
    assert key not in str(raised.value)


def test_an_address_holds_no_password() -> None:
    with pytest.raises(UserError, match="api_key_env"):
        EndpointSpec("http://me:password@localhost/v1", "m")


def test_secrets_are_those_whose_names_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"WANDB_API_KEY": "w" * 40, "HF_TOKEN": "hf_" + "x" * 20, "TOKENIZERS_PARALLELISM": "falsehoods",
                        "SHORT_KEY": "a"}.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    text = f"{'w' * 40} and hf_{'x' * 20}, no falsehoods"
    assert redacted(text) == "$WANDB_API_KEY and $HF_TOKEN, no falsehoods"


def test_a_command_says_no_secret_not_even_in_a_traceback(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setenv("HF_TOKEN", SECRET)

    def fails() -> None:
        print(f"sending {SECRET}")
        raise UserError(f"the hub refuses {SECRET}")

    with pytest.raises(SystemExit):
        run_command(fails)
    assert capsys.readouterr() == ("sending $HF_TOKEN\n", "error: the hub refuses $HF_TOKEN\n")
    program = f"from msa_base.errors import run_command\ndef f(): raise KeyError({SECRET!r})\nrun_command(f)"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert ended.returncode == 1 and "KeyError: '$HF_TOKEN'" in ended.stderr and SECRET[:12] not in ended.stderr
