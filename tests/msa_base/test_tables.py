"""Tables are read where memory is short, or the refusal is told as one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from msa_base.tables import write_table
from tasks.parts.tail import Tail

DOCUMENTS = [{"doc_id": number, "text": f"text {number}", "num_tokens": 1} for number in range(1, 40)]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits the address space")
@pytest.mark.parametrize("spare_mib", [1, 4, 7])
def test_where_no_thread_can_be_started(tmp_path: Path, spare_mib: int) -> None:
    """A thread's stack needs 8 MiB; Arrow's scanner would wait for its threads for ever."""
    path = tmp_path / "corpus.parquet"
    write_table("corpus", DOCUMENTS, path)
    script = f"""
import psutil, resource
from msa_base.errors import run_command
from msa_base.tables import read_arrow
size = psutil.Process().memory_info().vms + {spare_mib} * 2**20
resource.setrlimit(resource.RLIMIT_AS, (size, size))
run_command(lambda: print(read_arrow("corpus", {str(path)!r}).num_rows))
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert (ended.returncode, ended.stdout) in ((0, "39\n"), (2, "")), ended.stderr
    assert ended.returncode == 0 or "error: the machine has no memory left" in ended.stderr


def test_documents_of_a_tail_by_index(tmp_path: Path) -> None:
    """Those asked for and no others, with their texts."""
    write_table("corpus", DOCUMENTS, tmp_path / "corpus.parquet")
    found = Tail(tmp_path / "corpus.parquet").take({38, 0, 7})
    assert {index: (one.doc_id, one.text) for index, one in found.items()} == {
        0: (1, "text 1"),
        7: (8, "text 8"),
        38: (39, "text 39"),
    }
