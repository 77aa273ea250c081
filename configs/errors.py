"""Errors that a user can mend, and the one way a command reports them: a message and exit code 2."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable


class UserError(Exception):
    """Bad input. The message names the file, the key and the mend."""


def run_command(main: Callable[[], int | None]) -> None:
    """Run a command's ``main`` and leave the process with its exit code.

    A :class:`UserError` or a full disk becomes one line on stderr and exit code 2; anything else is a defect of the
    program and keeps its traceback.
    """
    try:
        code = main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        where = f" while writing {error.filename}" if error.filename else ""
        print(f"error: no space left on the disk{where}; free some and run the same command again", file=sys.stderr)
        sys.exit(2)
    sys.exit(code or 0)
