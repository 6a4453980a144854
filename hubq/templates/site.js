"use strict";
// Sorting and filtering of the table of files. Without it the page shows all of them, in the order of their models.
const table = document.getElementById("files"), form = document.forms[0], count = document.getElementById("count");
const rows = [...table.tBodies[0].rows], heads = [...table.tHead.rows[0].cells];
const names = new Intl.Collator("en", { numeric: true });

// Losses of different measures do not compare: each has a group, and the groups keep their order whichever way is up.
function compare(one, other, way) {
  const a = one.dataset, b = other.dataset;
  if (a.group !== b.group) return a.group - b.group;
  return way * (a.value ? a.value - b.value : names.compare(one.textContent, other.textContent));
}

function sort(head) {
  const place = heads.indexOf(head), up = head.getAttribute("aria-sort") !== "ascending";
  for (const other of heads) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", up ? "ascending" : "descending");
  rows.sort((one, other) => compare(one.cells[place], other.cells[place], up ? 1 : -1));
  table.tBodies[0].append(...rows);
}

function shown(row, wanted) {
  const own = row.dataset, bound = form.measure?.selectedOptions[0].dataset;
  return row.textContent.toLowerCase().includes(wanted.text.trim().toLowerCase())
    && (!wanted.family || own.family === wanted.family)
    && (!wanted.level || own.level === wanted.level)
    && (!wanted.size || own.size <= wanted.size * 1e9)
    && (!wanted.measure || form.measure.length === 1 || own.measure === wanted.measure)
    && (!wanted.loss || own.measure === wanted.measure && own.loss !== ""
      && own.loss <= wanted.loss * (bound.better === "higher" ? -1 : 1));
}

function filter() {
  if (form.measure) {
    const better = form.measure.selectedOptions[0].dataset.better;
    form.loss.disabled = !better;
    form.loss.labels[0].textContent = better === "higher" ? "Loss: at least" : "Loss: at most";
  }
  const wanted = Object.fromEntries(new FormData(form));
  for (const row of rows) row.hidden = !shown(row, wanted);
  const left = rows.filter((row) => !row.hidden).length;
  const all = `${rows.length} ${rows.length === 1 ? "file" : "files"}`;
  count.textContent = left === rows.length ? all : `${left} of ${all}`;
}

for (const head of heads) {
  const button = document.createElement("button");
  button.type = "button";
  button.append(...head.childNodes);
  button.addEventListener("click", () => sort(head));
  head.append(button);
}
form.addEventListener("input", filter);
form.addEventListener("reset", () => setTimeout(filter));
form.hidden = false;
filter();
