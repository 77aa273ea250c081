"""Check a report's pages in headless Chromium: at two widths, light and dark, folded and unfolded, and as printed.

    make report-check PROFILE=tiny
    python -m reports.page_check --profile tiny --screenshots DIR

Looks for errors of the console, dead links, blank or clipped figures, labels that overlap, a page wider than the
screen, a first figure later than 2 s, and what axe finds (WCAG 2.2 A and AA, best practice). It takes a few minutes.
Exit 0: nothing found; 1: something; 2: not checked.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from importlib import import_module
from itertools import product
from pathlib import Path
from typing import Any

from msa_base.command import experiment_parser
from msa_base.errors import UserError, run_command
from msa_base.options import given_path
from msa_base.paths import Paths

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
PAGES = ("index.html", "predictions.html")
# width of the window, its colours, whether it is for paper
WINDOWS = (
    (1280, "light", False),
    (1280, "dark", False),
    (390, "light", False),
    (390, "dark", False),
    (720, "dark", True),
)
FIRST_FIGURE_S = 2.0
LIMIT_BYTES = 5_000_000  # of a page without predictions
PATIENCE_MS = 300_000  # a busy machine takes its time over a picture of a long page
# What a page shows of its figures: those without a mark, labels that leave theirs, pairs of labels that overlap.
FIGURES = """() => {
  const found = [], slack = 1.5;
  for (const svg of document.querySelectorAll('.panel > svg')) {
    const name = svg.getAttribute('aria-label'), frame = svg.getBoundingClientRect();
    if (!svg.querySelector('path, use') || frame.width < 100 || frame.height < 60) found.push(`blank figure: ${name}`);
    const texts = [...svg.querySelectorAll('text')].filter((text) => text.textContent.trim());
    const boxes = texts.map((text) => [text.textContent.trim(), text.getBoundingClientRect()]);
    const turned = (text) => /rotate\\(-?90/.test(text.getAttribute('transform') ?? '');
    boxes.forEach(([said, box], place) => {
      const out = box.left < frame.left - slack || box.right > frame.right + slack
        || box.top < frame.top - slack || box.bottom > frame.bottom + slack;
      if (out) found.push(`clipped label: ${name}: ${said}`);
      for (const [other, beside] of boxes.slice(place + 1)) {
        const wide = Math.min(box.right, beside.right) - Math.max(box.left, beside.left);
        const tall = Math.min(box.bottom, beside.bottom) - Math.max(box.top, beside.top);
        if (wide > 2 && tall > 0.35 * Math.min(box.height, beside.height) && !turned(texts[place]))
          found.push(`overlapping labels: ${name}: ${said} and ${other}`);
      }
    });
  }
  return found;
}"""
# When the first figure was painted, in ms since the page was asked for; where a page has none, when it was drawn.
WATCH = """
  new MutationObserver((_, it) => {
    if (!document.querySelector('.panel > svg')) return;
    it.disconnect();
    requestAnimationFrame(() => setTimeout(() => { window.firstFigureMs = performance.now(); }));
  }).observe(document, { childList: true, subtree: true });
"""
PAINTED = "() => window.firstFigureMs ?? performance.getEntriesByName('first-contentful-paint')[0]?.startTime ?? 0"
WIDER = "() => document.documentElement.scrollWidth - document.documentElement.clientWidth"
UNFOLD = "() => document.querySelectorAll('details').forEach((it) => { it.open = true; })"
LINKS = "() => [...document.querySelectorAll('a[href]')].map((it) => it.getAttribute('href'))"


def browser() -> str:
    """The Chromium of this machine; a UserError where there is none."""
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if found is None:
        raise UserError("not checked: no Chromium on this machine; install Debian's package chromium")
    return found


def _library(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError:
        raise UserError(f"not checked: the Python package of {name} is missing; run: pip install '.[dev]'") from None


def dead(page: Path, links: list[str]) -> Iterator[str]:
    """Links of a page to files, or to places in it, that are not there; those of the web are not followed."""
    text = page.read_text()
    for link in sorted(set(links)):
        path, _, place = link.partition("#")
        if path.startswith(("https:", "data:")):
            continue
        if path and not (page.parent / path).exists():
            yield f"dead link: {link}"
        if not path and place and f'id="{place}"' not in text:
            yield f"dead link: #{place}"


def check(folder: Path, screenshots: Path | None = None) -> Iterator[tuple[str, list[str]]]:
    """Each window that a report's pages were looked at in, and what is wrong there.

    Raises:
        UserError: no page, browser or library.
    """
    pages = [folder / name for name in PAGES]
    if missing := [page for page in pages if not page.exists()]:
        raise UserError(f"{missing[0]}: no such file; build the report first: python -m reports.build")
    path = browser()
    api, axe = _library("playwright.sync_api"), _library("axe_playwright_python.sync_playwright").Axe()
    with api.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        chromium.new_page().goto("about:blank")  # the browser's own start is no page's
        for page, (width, scheme, paper) in product(pages, WINDOWS):
            window = chromium.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
            window.emulate_media(media="print" if paper else "screen")
            window.set_default_timeout(PATIENCE_MS)
            name = f"{page.stem}-{width}-{'print' if paper else scheme}"
            yield name, list(_look(window, page, axe, screenshots and screenshots / f"{name}.png"))
            window.close()
        chromium.close()


def _look(window: Any, page: Path, axe: Any, shot: Path | None) -> Iterator[str]:
    """What is wrong with a page in one window."""
    said: list[str] = []
    window.on("console", lambda message: said.append(message.text) if message.type in ("error", "warning") else None)
    window.on("pageerror", lambda error: said.append(str(error)))
    window.add_init_script(WATCH)
    window.goto(page.resolve().as_uri(), wait_until="load")
    if shot:
        shot.parent.mkdir(parents=True, exist_ok=True)
        window.screenshot(path=str(shot), full_page=True)
    if (painted := window.evaluate(PAINTED) / 1000) > FIRST_FIGURE_S:
        yield f"first figure after {painted:.1f} s, {FIRST_FIGURE_S:g} s at most"
    if page.name == PAGES[0] and (size := page.stat().st_size) > LIMIT_BYTES:
        yield f"{size:,} bytes, {LIMIT_BYTES:,} at most"
    yield from dead(page, window.evaluate(LINKS))
    for state in ("", ", all unfolded"):
        if state:
            window.evaluate(UNFOLD)
        if (wider := window.evaluate(WIDER)) > 0:
            yield f"{wider} px wider than the screen{state}"
        yield from _violations(axe, window, state)
    yield from window.evaluate(FIGURES)
    yield from (f"console: {text}" for text in said)


def _violations(axe: Any, window: Any, state: str) -> Iterator[str]:
    for violation in axe.run(window).response["violations"]:
        nodes = "; ".join(" ".join(map(str, node["target"])) for node in violation["nodes"][:3])
        yield f"axe{state}: {violation['id']} ({len(violation['nodes'])}): {violation['help']}: {nodes}"


def main() -> None:
    """Check one profile's report."""
    parser = experiment_parser(__doc__)
    parser.add_argument("--screenshots", type=given_path, help="keep a picture of every window in this directory")
    arguments = parser.parse_args()
    folder = Paths.of(arguments.profile, arguments.results).report
    count = 0
    for window, problems in check(folder, arguments.screenshots):
        print(f"{window}: {f'{len(problems)} problems' if problems else 'nothing found'}")
        print("".join(f"  {problem}\n" for problem in problems), end="", flush=True)
        count += len(problems)
    sys.exit(1 if count else 0)


if __name__ == "__main__":
    run_command(main)
