"""What the runner says of a job that failed."""

from __future__ import annotations

from pathlib import Path

import pytest

from msa_base.progress import Progress
from msa_base.workflow import report_failure


@pytest.mark.parametrize(("status", "named"), [(130, "SIGINT"), (143, "SIGTERM")])
def test_a_job_that_was_asked_to_end_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture, status: int, named: str
) -> None:
    """Where it stood (in its imports, say) is in its log alone."""
    log = tmp_path / "train.log"
    log.write_text("Traceback (most recent call last):\n  import torch\n\nKeyboardInterrupt\n")
    seen = Progress()
    seen.failed_logs.append(log)
    seen.errors.append(f"returned non-zero exit status {status}")
    assert report_failure(seen, log, 1) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and named in said and str(log) in said and "again" in said
