// Whatever a model said goes in as text, never as HTML.
const form = document.querySelector("form"), rows = document.getElementById("rows"), says = document.getElementById("says");
const parts = ["system", "task", "context"];
const block = (...names) => JSON.parse(document.getElementById(names.join("/"))?.textContent ?? "null");
const field = (row, label, tag = "td") => {
  const cell = document.createElement(tag);
  if (tag === "th") cell.scope = "row"; else cell.dataset.label = label;
  row.append(cell);
  return cell;
};
const marked = (cell, tone, text) => {
  const span = document.createElement("span");
  span.className = tone;
  span.textContent = text;
  cell.append(span, " ");
};
const draw = () => {
  const [system, task, context] = parts.map((part) => form[part].value), show = form.show.value;
  const found = block(system, task, context), asked = block(task, context) ?? {};
  history.replaceState(null, "", `#${[system, task, context].join("/")}`);
  rows.replaceChildren();
  says.replaceChildren();
  if (!found) { says.textContent = "This cell has no scored answers."; return; }
  let count = 0;
  for (const [id, text, cited, score, status] of found.rows) {
    const right = score !== null && score >= 1;
    if ((show === "right" && !right) || (show === "wrong" && right)) continue;
    count += 1;
    const [question, gold, goldIds] = asked[id] ?? [id, [], []], row = rows.insertRow();
    field(row, "Question", "th").textContent = question;
    const verdict = score === null ? "not scored" : right ? "right" : score > 0 ? `in part: ${score}` : "wrong";
    marked(field(row, "Right?"), score === null ? "none" : right ? "good" : score > 0 ? "unsure" : "bad", verdict);
    const said = field(row, "Answer");
    said.textContent = text;
    if (status !== "ok") marked(said, "none", ` (${status.replaceAll("_", " ")})`);
    field(row, "Gold").textContent = gold.join(" | ");
    const documents = field(row, "Cited documents");
    for (const doc of cited) marked(documents, goldIds.includes(doc) ? "good" : "none", goldIds.includes(doc) ? `${doc} ✓` : doc);
    const missed = goldIds.filter((doc) => !cited.includes(doc));
    if (missed.length) marked(documents, "bad", `missed: ${missed.join(", ")}`);
  }
  const link = document.createElement("a");
  link.href = found.run;
  link.textContent = "run.json";
  says.append(`${count} of the first ${found.rows.length} answers, of ${found.all} in the cell: `, link);
};
if (form) {
  const chosen = decodeURIComponent(location.hash.slice(1)).split("/");
  parts.forEach((part, place) => {
    if ([...form[part].options].some((option) => option.value === chosen[place])) form[part].value = chosen[place];
  });
  form.onchange = draw;
  draw();
}
