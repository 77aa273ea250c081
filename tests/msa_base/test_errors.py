"""What a machine refuses is one line with the mend and exit code 2; a defect keeps its traceback."""

from __future__ import annotations

import errno
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.numpy import save_file

from msa_base.errors import REFUSALS, UserError, is_out_of_memory, refusal, run_command
from msa_base.tables import write_json, write_table


def ended(main: Callable[[], Any], capfd: pytest.CaptureFixture) -> tuple[int, str]:
    """Exit code and stderr of a command."""
    with pytest.raises(SystemExit) as raised:
        run_command(main)
    return raised.value.code, capfd.readouterr().err


def failing(error: BaseException) -> Callable[[], None]:
    """A command that fails."""

    def main() -> None:
        raise error

    return main


@pytest.mark.parametrize("number", sorted(REFUSALS))
def test_what_the_system_refuses_names_the_file_and_the_mend(number: int, capfd: pytest.CaptureFixture) -> None:
    code, said = ended(failing(OSError(number, "said by the system", "/results/a b.json")), capfd)
    assert code == 2 and said == f"error: /results/a b.json: {'; '.join(REFUSALS[number])}\n"


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        pa.ArrowMemoryError("malloc of size 64 failed"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried"),
        RuntimeError("std::bad_alloc"),
        ImportError("libtorch_cpu.so: failed to map segment from shared object: Cannot allocate memory"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_memory_that_ran_out_is_said(error: Exception, capfd: pytest.CaptureFixture) -> None:
    assert is_out_of_memory(error)
    code, said = ended(failing(error), capfd)
    assert code == 2 and said.startswith("error: the machine has no memory left") and said.count("\n") == 1


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="no /proc here")
def test_an_output_among_the_kernels_own_files_is_refused(capfd: pytest.CaptureFixture) -> None:
    code, said = ended(lambda: write_json({}, "/proc/results/summary.json"), capfd)
    assert code == 2 and said.startswith("error: /proc/results: the disk is read-only; mount it for writing, or name")


@pytest.mark.parametrize("error", [KeyError("a"), RuntimeError("shape mismatch"), FileNotFoundError(2, "No", "a")])
def test_a_defect_keeps_its_traceback(error: Exception) -> None:
    assert refusal(error) is None
    with pytest.raises(type(error)):
        run_command(failing(error))


def test_bad_input_and_an_interrupt_have_their_codes(capfd: pytest.CaptureFixture) -> None:
    assert ended(failing(UserError("a.yaml: key k: mend it")), capfd) == (2, "error: a.yaml: key k: mend it\n")
    code, said = ended(failing(KeyboardInterrupt()), capfd)
    assert code == 130 and said == "error: interrupted; run the same command again, it goes on there\n"


@pytest.mark.parametrize("odd", ["a\nb", "a\r\nb", "a\x1b[2Jb", "a\u2028b", "a\x85b"])
def test_a_name_with_a_line_end_or_a_control_character_leaves_a_message_on_one_line(
    odd: str, capfd: pytest.CaptureFixture
) -> None:
    expected = f"x.yaml: unknown key '{odd.encode('unicode_escape').decode()}'"
    assert str(UserError(f"x.yaml: unknown key '{odd}'")) == expected
    assert ended(failing(UserError(f"x.yaml: unknown key '{odd}'")), capfd) == (2, f"error: {expected}\n")
    code, said = ended(failing(PermissionError(errno.EACCES, "no", f"/{odd}")), capfd)
    assert code == 2 and len(said.splitlines()) == 1


@contextmanager
def small_files() -> Iterator[None]:
    """No file may grow beyond a few bytes, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


WRITERS: dict[str, Callable[[Path], Any]] = {
    "JSON": lambda path: write_json(["x" * 999], path),
    "Parquet": lambda path: write_table("banks", [{"bank_id": n, "text": str(n) * 99} for n in range(99)], path),
    "safetensors": lambda path: save_file({"a": np.zeros(999)}, path.with_suffix(".safetensors")),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_a_write_without_room_is_one_line_and_leaves_nothing_half_written(
    kind: str, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    def main() -> None:
        with small_files():  # the log is not among them
            WRITERS[kind](tmp_path / "file")

    code, said = ended(main, capfd)
    assert code == 2 and "the file may not grow so large; raise the limit" in said and said.count("\n") == 1
    assert not (tmp_path / "file").exists()
