"""The check of a report's pages: what it needs no browser for."""

from __future__ import annotations

from pathlib import Path

import pytest

from msa_base.errors import UserError
from reports import page_check


def test_links_that_lead_nowhere_are_named(tmp_path: Path) -> None:
    (tmp_path / "there.csv").write_text("")
    page = tmp_path / "index.html"
    page.write_text('<h2 id="place"></h2>')
    links = ["there.csv", "gone.csv", "../run.json#says", "#place", "#nowhere", "https://arxiv.org/abs/1", "data:,"]
    found = list(page_check.dead(page, links))
    assert found == ["dead link: #nowhere", "dead link: ../run.json#says", "dead link: gone.csv"]


def test_without_a_browser_or_a_page_nothing_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="build the report first"):
        next(page_check.check(tmp_path))
    for name in page_check.PAGES:
        (tmp_path / name).write_text("")
    monkeypatch.setattr(page_check.shutil, "which", lambda name: None)
    with pytest.raises(UserError, match="not checked: no Chromium"):
        next(page_check.check(tmp_path))
    monkeypatch.setattr(page_check.shutil, "which", lambda name: name)
    monkeypatch.setattr(page_check, "import_module", lambda name: __import__("no_such_library"))
    with pytest.raises(UserError, match=r"not checked: .* is missing"):
        next(page_check.check(tmp_path))
