"""The page for its readers: links, tables, figures, tiles and predictions, without a browser."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from msa_base.records import Answer
from msa_base.stage_records import LatencyRecord, RunRecord
from msa_base.tables import write_predictions, write_table
from reports import predictions, sources
from reports.build import Report, answers
from reports.evidence import CellKey, SummaryRow
from reports.figures import cost, panel, pareto, quality
from reports.needle_depth import by_depth, depths
from reports.published.reference import read_reference
from reports.rivals import Contenders, in_order
from reports.tables import pdf
from reports.tables.leaderboard import leaderboard
from reports.tables.table import Table, figure, plain, shown
from reports.tiles import tiles

LIMIT = 5_000_000  # bytes of the page without predictions


class Outline(HTMLParser):
    """What a screen reader goes by."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.headings: list[int] = []
        self.tables = self.captions = self.unscoped = 0
        self.charts: list[str | None] = []
        self.ids: list[str] = []
        self.numbers: list[str | None] = []  # the link of each number in a table
        self.said: list[tuple[str, str, str]] = []  # whatever says a number: section, text, link
        self._in_number, self._section, self._link = False, "", ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list) -> None:
        given = dict(attrs)
        if "id" in given:
            self.ids.append(given["id"])
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))
        self.tables += tag == "table"
        self.captions += tag == "caption"
        self.unscoped += tag == "th" and "scope" not in given
        if tag == "svg" and "aria-hidden" not in given:
            self.charts.append(given.get("aria-label"))
        if tag == "td" and given.get("class") == "number":
            self._in_number = True
            self.numbers.append(None)
        if tag == "a":
            self._link = given["href"]
            if self._in_number:
                self.numbers[-1] = given["href"]
        if tag in ("section", "figure") or (tag == "h2" and "id" in given):
            self._section = given["id"] if "id" in given else given["class"]

    def handle_endtag(self, tag: str) -> None:
        if tag == "td":
            self._in_number = False
        if tag == "a":
            self._link = ""

    def handle_data(self, text: str) -> None:
        if re.search(r"\d", text):
            self.said.append((self._section, text.strip(), self._link))


@pytest.fixture(scope="module")
def outline(built) -> Outline:
    return Outline(built[1])


def test_fifty_numbers_at_random_lead_to_their_records(built, outline) -> None:
    _, _, folder = built
    links = [link for link in outline.numbers if link and link.startswith("../")]
    assert len(links) > 1000
    for link in random.Random(0).sample(links, 50):
        path = folder / link
        assert path.exists() and path.name in ("run.json", "latency.json"), link
        if path.name == "run.json":
            record = RunRecord.open(path)
            assert link == f"../{record.system}/{record.task}/{record.context}/seed{record.seed}/run.json"


def test_what_is_measured_in_words_leads_to_its_record_too(built, outline, evidence) -> None:
    """Tiles, sentences beside the claims, headline numbers: fifty at random are followed."""
    words = [(text, link) for section, text, link in outline.said if section in ("tiles", "claims")]
    unlinked = [text for text, link in words if not link and re.search(r"\d\.\d|n = \d", text)]
    assert [text for text in unlinked if not re.match("at (most|least) ", text)] == []  # bounds of claims
    links = [link for _, link in words if link.startswith("../")]
    assert len(links) > 80
    for link in random.Random(1).sample(links, 50):
        kind = LatencyRecord if link.endswith("/latency.json") else RunRecord
        assert kind.open(built[2] / link).system in evidence.systems
    for tile in tiles(evidence, read_reference(systems=evidence.systems)):
        for bar in (bar for bar in tile.bars if len(bar.links) == 1 and bar.row.metric == "accuracy"):
            scores = pd.read_parquet(built[2] / bar.links[0].replace("run.json", "scores.parquet"))
            mean = scores[scores.metric == "accuracy"].value.mean()
            assert (f"{mean:.3f}", bar.links[0]) in words


def test_every_link_of_the_page_exists(built, outline) -> None:
    _, page, folder = built
    links = {link.partition("#")[0] for link in re.findall(r'href="([^"]+)"', page)} - {""}
    own = {link for link in links if not link.startswith(("https:", "data:"))}
    assert len(own) > 300 and not [link for link in own if not (folder / link).exists()]
    places = set(re.findall(r'href="#([^"]+)"', page))
    assert places and places <= set(outline.ids)


def test_a_score_leads_to_the_run_of_its_own_cell(evidence) -> None:
    row = evidence.point(CellKey("rag_bm25", "two_hop", "64K"))
    assert sources.of(evidence, row) == ["../rag_bm25/two_hop/64K/seed0/run.json"]
    mean = evidence.point(CellKey("msa", "niah_prose_mean", "16K"))
    assert len(sources.of(evidence, mean)) == 8
    spent = evidence.point(CellKey("msa", "scaling_facts", "16K"), "latency/total_s/median")
    assert sources.of(evidence, spent) == ["../msa/latency.json"]


def test_numbers_without_a_link_are_published_or_of_no_run(built) -> None:
    """Measured tables have a link at every number."""
    _, page, _ = built
    for title in (
        "Published claims",
        "Accuracy, all cells",
        "Cost of an answer",
        "Memory Interleave on two-hop questions",
    ):
        body = re.search(rf"<caption>{title}[^<]*</caption>(.*?)</table>", page, flags=re.DOTALL)[1]
        numbers = re.findall(r'<td class="number"[^>]*>(.*?)</td>', body, flags=re.DOTALL)
        assert numbers and all("<a href=" in number or number.strip() == "0" for number in numbers), title


def test_the_page_is_small_and_in_order_for_a_screen_reader(built, outline) -> None:
    _, page, _ = built
    assert len(page.encode()) < LIMIT
    assert outline.headings[0] == 1 and outline.headings.count(1) == 1
    assert all(after - before <= 1 for before, after in zip(outline.headings, outline.headings[1:], strict=False))
    assert outline.tables == outline.captions > 10 and not outline.unscoped
    assert all(outline.charts) and len(outline.charts) > 10
    assert len(set(outline.ids)) == len(outline.ids)


def test_the_verdict_stands_beside_its_claim_and_one_number_in_a_cell(built) -> None:
    _, page, _ = built
    head = re.search(r"<caption>Published claims</caption>\s*<thead>(.*?)</thead>", page, flags=re.DOTALL)[1]
    titles = re.findall(r"<th[^>]*>(.*?)</th>", head)
    assert titles[:6] == ["Claim", "Verdict", "Published", "Measured", "low", "high"]


def test_what_is_no_number_is_said_in_words() -> None:
    assert figure(float("nan")) == "none" and figure(-float("inf")) == "no bound" == figure(float("inf"))
    assert shown(float("nan"), ".3f").text == "none" and "both sides are 0" in shown(float("nan"), ".3f").tip


def test_the_best_rival_is_the_best_of_those_that_are_none_of_ours(evidence) -> None:
    field = Contenders.of(evidence, "msa", "scaling_facts")
    assert (field.context, field.ceiling, field.floor) == ("1M", "oracle", "closed_book")
    scores = {name: evidence.point(CellKey(name, "scaling_facts", "1M")).value for name in ("rag_bm25", "rag_dense")}
    assert field.rival == max(scores, key=scores.__getitem__)
    assert in_order(evidence, "msa")[:3] == ["msa", "msa_no_interleave", "msa_free_ids"]
    assert in_order(evidence, "msa")[-2:] == ["closed_book", "oracle"]


def test_tiles_show_msa_with_ceiling_rival_and_intervals(evidence) -> None:
    found = {tile.title: tile for tile in tiles(evidence, read_reference(systems=evidence.systems))}
    tile = found["Two-hop chains, 1M"]
    assert [bar.part for bar in tile.bars] == ["MSA", "best rival", "ceiling", "floor", "no interleave"]
    assert all(bar.row.low <= bar.row.value <= bar.row.high and bar.links for bar in tile.bars)


def test_a_leaderboard_ranks_rivals_and_says_why_others_have_no_place(evidence) -> None:
    rows = {row[3]: row for row in leaderboard(evidence, "two_hop", "1M").rows}
    assert rows["oracle"][2] == "ceiling" and rows["closed_book"][2] == "floor" and rows["msa"][2] == 1
    assert rows["rag_bm25"][2] is None and rows["rag_bm25"][-1] == "not measured"
    assert rows["full_attention"][-1] == "unsupported_context"
    values = [row[4].value for row in rows.values() if row[4]]
    assert values == sorted(values, reverse=True)


def row(value: float) -> SummaryRow:
    return SummaryRow("a", "t", "16K", 16384, "accuracy", "share", 9, 0, value, value, value, "ok")


def test_the_frontier_is_what_no_other_beats() -> None:
    found = [("slow", 3.0, row(0.9)), ("quick", 1.0, row(0.5)), ("beaten", 2.0, row(0.4)), ("same", 1.0, row(0.3))]
    assert [name for name, *_ in pareto.frontier(found)] == ["quick", "slow"]


def test_stages_are_of_one_step_each() -> None:
    found = cost.by_step({"decode": 2.0, "bm25": 1.0, "rerank": 0.5, "read": 3.0, "fetch": 0.0})
    assert found == {"route": 1.5, "prefill": 3.0, "decode": 2.0} and list(found) == ["route", "prefill", "decode"]


def test_needles_by_depth(evidence) -> None:
    places = depths(evidence)["16K"]
    assert places["niah_prose_s1-0000"] == 0.0 and places["niah_prose_s1-0012"] == 0.5
    found = by_depth(evidence, "msa", "16K", places)
    assert sorted(found) == [0.0, 0.2, 0.4, 0.6, 0.8] and sum(map(len, found.values())) == 8 * 24
    everything = [value for values in found.values() for value in values]
    assert np.mean(everything) == pytest.approx(evidence.point(CellKey("msa", "niah_prose_mean", "16K")).value)
    assert not any(depths(replace(evidence, paths=evidence.paths.of("none"))).values())


def test_panels_are_whole_and_stand_on_a_light_and_a_dark_page(evidence) -> None:
    reference = read_reference(systems=evidence.systems)
    drawn = quality.scaling(evidence, reference)
    left, right = panel.panels(drawn, "scaling", "Scaling <&>")
    assert "The paper's Figure 1" in right.svg and "The paper's Figure 1" not in left.svg.partition(">")[2]
    assert 'aria-label="Scaling &lt;&amp;&gt;: Measured here"' in left.svg
    assert left.legend[0].name == "MSA" and len(left.legend) == len(evidence.systems)
    assert len({(swatch.colour, swatch.marker) for swatch in left.legend}) == len(left.legend)
    assert 'href="../msa/scaling_facts/16K/seed0/run.json"' in left.svg and "<title>MSA, 16K: " in left.svg
    assert not re.search(r"#(?:0072b2|1f2933)", left.svg)  # colours are the page's, light or dark


def test_predictions_are_there_and_are_text(new_tree: Callable) -> None:
    tree = new_tree(
        tasks={"two_hop": 24},
        contexts=["16K"],
        systems=["msa", "rag_bm25"],
        latency={"task": "two_hop", "questions": 2},
    )
    tree.grow()
    hostile = "</script><img src=x onerror=alert(1)>&"
    folder = tree.paths.cell("msa", "two_hop", "16K", 0)
    said = [Answer(f"two_hop-{index:04d}", hostile * 40, [index]) for index in range(24)]
    write_predictions(said, folder / "predictions.jsonl")
    tree.run("msa", "two_hop", "16K", "ok", n=24, failures=0, wall_s=1.0, ingest_s=0.1)
    tree.seal_scores("msa", "two_hop")
    gold = {"answers": [hostile], "rejected": [], "group": None}
    rows = [gold | {"question_id": answer.question_id, "gold_doc_ids": [7]} for answer in said]
    write_table("gold", rows, tree.paths.prepared("two_hop", "16K") / "gold.parquet")
    evidence = tree.evidence()
    page = answers(evidence)
    assert hostile not in page and "<img" not in page
    blocks = dict(re.findall(r'<script type="application/json" id="([^"]+)">(.*?)</script>', page, flags=re.DOTALL))
    assert list(blocks) == ["two_hop/16K", "msa/two_hop/16K", "rag_bm25/two_hop/16K"]
    cell = json.loads(blocks["msa/two_hop/16K"])
    assert cell["all"] == 24 and len(cell["rows"]) == predictions.MOST
    assert cell["run"] == "../msa/two_hop/16K/seed0/run.json"
    name, text, cited, score, status = cell["rows"][3]
    assert name == "two_hop-0003" and text.startswith(hostile) and "more characters" in text and cited == [3]
    assert score == evidence.values(CellKey("msa", "two_hop", "16K"))[name] and status == "ok"
    assert json.loads(blocks["two_hop/16K"])[name][1:] == [[hostile], [7]]


def test_the_page_of_predictions_of_an_empty_tree_says_so(new_tree: Callable) -> None:
    assert "No cell has been scored yet" in answers(new_tree().evidence())


def test_tables_that_the_page_has_no_place_for_come_after_the_scores(evidence) -> None:
    report = Report(evidence)
    report.tables["news"] = replace(report.tables["time"], name="news", title="A table of tomorrow")
    assert "A table of tomorrow" in report.page()


def test_files_of_a_report_are_sealed(built) -> None:
    folder: Path = built[2]
    sealed = json.loads((folder / "seal.json").read_text())["files"]
    assert {"index.html", "predictions.html", "summary.txt", "tables.pdf", "leaderboard_two_hop.csv"} <= set(sealed)


def test_every_row_is_on_a_page_of_the_pdf_below_its_header_and_inside_the_margins(tmp_path: Path) -> None:
    long = Table("long", "A long table", plain(a="Name", b="Number"), [(f"row {index}", index) for index in range(130)])
    wide = Table("wide", "A wide one", plain(a="Name", b="Words"), [("x", "w" * 300), ("y", "$_{")])
    pages = list(pdf.pages([long, wide]))
    lines = [line for page in pages for line in page]
    assert [line.text.split()[1] for line in lines if line.text.startswith("row ")] == [str(i) for i in range(130)]
    assert len(pages) == 4 and all([line.kind for line in page[:3]] == ["title", "header", "row"] for page in pages)
    assert pages[1][0].text == "A long table (continued)"
    for line in lines:
        assert pdf.MARGIN <= line.top < line.top + line.size <= pdf.HEIGHT - pdf.MARGIN
        assert line.kind == "title" or len(line.text) * line.size * pdf.ADVANCE <= pdf.WIDTH - 2 * pdf.MARGIN + 1
    for name in ("first.pdf", "second.pdf"):
        pdf.write(tmp_path / name, [long, wide], "MSA")
    assert (tmp_path / "first.pdf").read_bytes() == (tmp_path / "second.pdf").read_bytes()
