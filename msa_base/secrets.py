"""Secrets of the environment, taken out of every text that leaves the program."""

from __future__ import annotations

import functools
import json
import os
import re
import sys
import traceback
from collections.abc import Callable
from contextlib import ExitStack, redirect_stderr, redirect_stdout
from typing import Any, TextIO
from urllib.parse import quote

_NAMES = re.compile(r"(^|_)(KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?)$", re.IGNORECASE)
LEAST_LETTERS = 8  # of a value that is a secret by the name of its variable


def redacted(text: str, *names: str | None) -> str:
    """A text with the name of each secret in the place of its value: of the variables ``names``, and of all others
    whose name says that they hold one.
    """
    for name, value in os.environ.items():
        if name in names or (_NAMES.search(name) and len(value) >= LEAST_LETTERS):
            written = json.dumps(value)[1:-1]  # as JSON has it, with its slashes escaped or not
            for form in sorted({value, quote(value, safe=""), written, written.replace("/", "\\/")}, key=len)[::-1]:
                text = text.replace(form, f"${name}") if form else text
    return text


class RedactedStream:
    """A stream that writes :func:`redacted` texts."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(redacted(text))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def redacts_output(command: Callable[..., Any]) -> Callable[..., Any]:
    """Make a command's output, its errors and its traceback :func:`redacted`."""

    @functools.wraps(command)
    def run(*arguments: Any) -> Any:
        sys.excepthook = _say_redacted
        with ExitStack() as streams:
            streams.enter_context(redirect_stdout(RedactedStream(sys.stdout)))
            streams.enter_context(redirect_stderr(RedactedStream(sys.stderr)))
            return command(*arguments)

    return run


def _say_redacted(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    sys.stderr.write(redacted("".join(traceback.format_exception(kind, error, trace))))
