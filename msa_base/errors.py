"""Errors that a user can mend, and the one way a command reports them: a message and exit code 2."""

from __future__ import annotations

import errno
import re
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from msa_base.secrets import redacts_output

AGAIN = "run the same command again, it goes on there"
NO_SPACE = "no space left on the disk"
# What a machine may refuse any program, and the mend. Other errors of the system are defects of this one.
REFUSALS = {
    errno.ENOSPC: (NO_SPACE, f"free some, then {AGAIN}"),
    errno.EDQUOT: (NO_SPACE, f"free some of the quota, then {AGAIN}"),
    errno.EFBIG: ("the file may not grow so large", f"raise the limit (ulimit -f) or the file system's, then {AGAIN}"),
    errno.EACCES: ("this user has no permission", "change the owner or the mode, or name another directory"),
    errno.EPERM: ("this user has no permission", "change the owner or the mode, or name another directory"),
    errno.EROFS: ("the disk is read-only", "mount it for writing, or name another directory"),
    errno.ENOTDIR: ("a part of the path is a file", "name another path"),
    errno.EEXIST: ("something else stands there", "move it away, or name another path"),
    errno.EISDIR: ("a directory stands in a file's place", "move it away, or name another path"),
    errno.ENAMETOOLONG: ("the path is too long", "name a shorter one"),
    errno.ELOOP: ("the path is a loop of links", "mend the links"),
    errno.EMFILE: ("too many files are open", f"raise the limit (ulimit -n), then {AGAIN}"),
    errno.EIO: ("the disk did not answer (input/output error)", f"check it, then {AGAIN}"),
}
KERNELS = ("/proc/", "/sys/")  # file systems that hold what the kernel says, and take no file
# libraries that are not Python's give the number, or the words, in their message alone
_NUMBER = re.compile(r"os error (\d+)|\[?[Ee]rrno:? (\d+)")
_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_WORDS = {"No space left on device": errno.ENOSPC, "File too large": errno.EFBIG}
_NO_MEMORY = re.compile(
    r"(can't|[Cc]annot) allocate memory|out of memory|not enough memory|bad_alloc|failed to map segment"
    r"|Failed to launch worker thread|can't start new thread"  # the stack of a thread is memory
)


class UserError(Exception):
    """Bad input. The message names the file, the key and the mend, on one line whatever they are called."""

    def __str__(self) -> str:
        return one_line(super().__str__())


def one_line(text: str) -> str:
    """A text with its control characters and line ends as they are written in Python."""
    return _CONTROLS.sub(lambda found: ascii(found[0])[1:-1], text)


def shown(value: Any) -> str:
    """A value of somebody else's in a message, cut where it is long."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


@redacts_output
def run_command(main: Callable[[], int | None]) -> None:
    """Run a command's ``main`` and leave the process with its exit code.

    A :class:`UserError`, and what the machine refuses (space, permission, memory), becomes one line on stderr and exit
    code 2, an interrupt exit code 130; anything else is a defect of the program and keeps its traceback.
    """
    try:
        sys.exit(main() or 0)
    except UserError as error:
        message = str(error)
    except KeyboardInterrupt:
        message = f"interrupted; {AGAIN}"
        _say(message)
        sys.exit(128 + signal.SIGINT)
    except Exception as error:
        message = refusal(error)
        if message is None:
            raise
    _say(message)
    sys.exit(2)


def _say(message: str) -> None:
    with suppress(OSError):  # where the log itself has no room
        print(f"error: {one_line(message)}", file=sys.stderr, flush=True)


def refusal(error: BaseException) -> str | None:
    """What the machine refused, where and the mend; None where an error is of another kind."""
    if is_out_of_memory(error):
        return f"the machine has no memory left for it; free some, or lower what is asked of it, then {AGAIN}"
    number = getattr(error, "errno", None)
    if number is None and (found := _NUMBER.search(str(error))):
        number = int(found[1] or found[2])
    if number is None:
        number = next((code for words, code in _WORDS.items() if words in str(error)), None)
    where = getattr(error, "filename", None)
    if number == errno.ENOENT and str(where).startswith(KERNELS):
        number = errno.EROFS  # which is what these say of a new file
    if number not in REFUSALS:
        return None
    what, mend = REFUSALS[number]
    return f"{f'{where}: ' if where else ''}{what}; {mend}"


class ProcessLost(UserError):
    """One of several processes that work as one ended before the others had done their work."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, of the host or of a device."""
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return True
    of_machine = isinstance(error, RuntimeError | OSError | ImportError) or type(error).__module__ == "pyarrow.lib"
    return isinstance(error, MemoryError) or (of_machine and _NO_MEMORY.search(str(error)) is not None)
