"""Whose turn it is: the loop in which requests wait, and the locks by which an equal one is made once."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import cache
from pathlib import Path
from weakref import WeakValueDictionary

from msa_base.errors import UserError

LOCK = ".lock"  # of a directory of replies: one byte for each request
POLL_S = 0.05  # how often another process's request is looked at

_STARTING = threading.Lock()
_TURNS: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()  # of requests that are made in this process


def event_loop() -> asyncio.AbstractEventLoop:
    """The loop in which all endpoints of this process wait; a thread of its own runs it."""
    with _STARTING:
        return _running_loop()


@cache
def _running_loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="endpoints", daemon=True).start()
    return loop


def _forget() -> None:
    """A forked process has no thread of its parent's."""
    global _STARTING
    _STARTING = threading.Lock()
    _running_loop.cache_clear()
    _TURNS.clear()


os.register_at_fork(after_in_child=_forget)


@asynccontextmanager
async def turn(directory: Path, digest: str) -> AsyncIterator[None]:
    """Let one asker at a time make the request of a digest: in this process, and among processes that keep replies in
    the same directory.
    """
    own = _TURNS.setdefault(f"{directory.absolute()}/{digest}", asyncio.Lock())
    async with own:
        file, byte = _lock_file(directory.absolute()), int(digest[:14], 16)
        while not _locked(file, byte):
            await asyncio.sleep(POLL_S)
        try:
            yield
        finally:
            with suppress(OSError):
                fcntl.lockf(file, fcntl.LOCK_UN, 1, byte)


def _locked(file: int, byte: int) -> bool:
    """Take a byte of a file, unless another process has it; where files cannot be locked nobody waits."""
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, byte)
    except OSError as error:
        return error.errno not in (errno.EAGAIN, errno.EACCES)
    return True


@cache
def _lock_file(directory: Path) -> int:
    """The open lock of a directory of replies; it stays open, since closing it would free all bytes of this process."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        return os.open(directory / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(f"{directory}: replies cannot be kept there ({error.strerror}); make it writable") from None
