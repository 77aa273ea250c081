"""Servers that a run starts: begun where nothing listens, ended with the run, and their failures said."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from msa_base.endpoint import Endpoint
from msa_base.errors import UserError
from msa_base.load import load
from msa_base.paths import DIRECTORY
from msa_base.serving import commands, listens, serving
from msa_base.specs import EndpointSpec
from msa_base.stand_in import StandIn, canned, written


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def experiment(place: Path, command: str, url: str) -> Any:
    """A profile whose one judge is served by a command."""
    shutil.copytree(DIRECTORY, place)
    (place / "judges.yaml").write_text(json.dumps({"mine": {"base_url": url, "model": "m", "serve": command}}))
    profile = {"extends": "smoke", "title": "judged", "judges": ["mine"]}
    (place / "profiles" / "judged.yaml").write_text(json.dumps(profile))
    for path in place.glob("profiles/*.yaml"):
        if path.stem not in ("judged", "smoke"):
            path.unlink()
    return load("judged", place)


def test_a_server_is_started_for_the_run_and_ended_with_it(tmp_path: Path) -> None:
    port = free_port()
    url, command = f"http://127.0.0.1:{port}/v1", f"python -m msa_base.stand_in --port {port}"
    found = experiment(tmp_path / "configs", command, url)
    assert commands(found) == {url: command} and not listens(url)
    with serving(found, tmp_path):
        (reply,) = Endpoint(EndpointSpec(url, "m"), tmp_path / "kept").chat(["[7]. One two three[7]"], 8)
        assert reply.text == "One two three[7]"
    assert not listens(url)


def test_what_listens_already_is_left_alone(tmp_path: Path) -> None:
    with canned(StandIn().reply) as there:
        with serving(experiment(tmp_path / "configs", "no-such-program", there.url), tmp_path):
            pass
        assert listens(there.url)


@pytest.mark.parametrize(
    ("command", "said"),
    [("no-such-program --port 1", "cannot be started"), ("python -c 'print(17)'", "ended before it answered")],
)
def test_a_command_that_serves_nothing_is_named(tmp_path: Path, command: str, said: str) -> None:
    found = experiment(tmp_path / "configs", command, f"http://127.0.0.1:{free_port()}/v1")
    with pytest.raises(UserError, match=said), serving(found, tmp_path):
        pass


@pytest.mark.skipif(sys.platform != "linux", reason="asks the kernel of Linux")
def test_a_run_that_is_killed_takes_its_server_along(tmp_path: Path) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}/v1"
    experiment(tmp_path / "configs", f"python -m msa_base.stand_in --port {port}", url)
    script = f"""
import sys, pathlib
from msa_base.load import load
from msa_base.serving import serving
with serving(load("judged", {str(tmp_path / "configs")!r}), pathlib.Path({str(tmp_path)!r})):
    print("ready", flush=True)
    sys.stdin.read()
"""
    run = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert run.stdout.readline() == "ready\n" and listens(url)
    run.kill()
    run.wait()
    for _ in range(200):
        if not listens(url):
            break
    else:
        pytest.fail("the server outlived its run")


def test_a_stand_in_answers_what_readers_ask_for() -> None:
    passage = "List entities.\nPassage: an example\nReply: {}\nPassage: Radio City\nIt began in New Delhi in 2001.\n"
    assert json.loads(written(passage)) == {"entities": ["Radio City", "It", "New Delhi", "2001"]}
    triples = json.loads(written(f'{passage}Entities: ["Radio City"]\nReply: '))["triples"]
    assert ["It", "is beside", "New Delhi"] in triples
    facts = 'Question: q\nFacts: [["a", "b", "c"]]\nReply: {}\nQuestion: r\nFacts: [["d", "e", "f"]]\nReply: '
    assert json.loads(written(facts)) == {"facts": [["d", "e", "f"]]}
    assert StandIn().reply({"input": ["an embedding"]})[0] == 404
