// Sorting by a column: numbers by value, then text, then what is missing; a second press turns the order.
const worth = (row, place) => {
  const cell = row.cells[place], text = cell.textContent.trim();
  const number = Number(cell.dataset.v ?? text);
  return text === "" || text === "–" ? [2, 0] : Number.isNaN(number) ? [1, text] : [0, number];
};
for (const head of document.querySelectorAll("table.sortable thead th:not(.plain)")) {
  const button = document.createElement("button");
  button.type = "button";
  button.append(...head.childNodes);
  head.append(button);
  button.onclick = () => {
    const table = head.closest("table"), body = table.tBodies[0], up = head.ariaSort !== "ascending";
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const rows = [...body.rows].map((row) => [worth(row, head.cellIndex), row]);
    rows.sort(([[a, x]], [[b, y]]) => a - b || (a === 2 ? 0 : (x < y ? -1 : x > y ? 1 : 0) * (up ? 1 : -1)));
    body.append(...rows.map(([, row]) => row));
  };
}
// A name of a legend under the pointer brings its lines forward.
for (const item of document.querySelectorAll(".legend li[data-s]")) {
  const figure = item.closest(".figure"), name = item.dataset.s;
  const mark = (on) => {
    figure.classList.toggle("picked", on);
    for (const it of figure.querySelectorAll("[data-s]")) it.classList.toggle("pick", on && it.dataset.s === name);
  };
  item.onmouseenter = () => mark(true);
  item.onmouseleave = () => mark(false);
}
// A link to a place inside something folded unfolds it.
const unfold = () => document.getElementById(location.hash.slice(1))?.closest("details")?.setAttribute("open", "");
addEventListener("hashchange", unfold);
unfold();
