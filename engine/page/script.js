"use strict";
// Theme: the system's until one is chosen.
const root = document.documentElement;
const KEY = "manylabel-theme"; // a page of the same origin may have a theme of its own
const stored = () => { try { return localStorage.getItem(KEY); } catch { return null; } };
if (["light", "dark"].includes(stored())) root.dataset.theme = stored();
const dark = () => root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
const toggle = document.getElementById("theme");
const named = () => { toggle.textContent = dark() ? "Light" : "Dark"; };
toggle.addEventListener("click", () => {
  root.dataset.theme = dark() ? "light" : "dark";
  try { localStorage.setItem(KEY, root.dataset.theme); } catch { /* a page from a file may store nothing */ }
  named();
});
named();

// Tables: sorted by the column whose heading is pressed; what has no value stays at the end.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  table.querySelectorAll("th button").forEach((button) => button.addEventListener("click", () => {
    const head = button.parentElement, column = head.cellIndex, text = "text" in head.dataset;
    const before = head.getAttribute("aria-sort");
    const down = before ? before === "ascending" : !text;
    table.querySelectorAll("th").forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const value = (row) => row.cells[column].dataset.value;
    const order = (a, b) => text ? a.localeCompare(b, undefined, { numeric: true }) : a - b;
    [...body.rows].sort((a, b) => {
      const x = value(a), y = value(b);
      if (x === "" || y === "") return (x === "") - (y === "");
      return down ? order(y, x) : order(x, y);
    }).forEach((row) => body.append(row));
  }));
}
const filter = document.getElementById("filter");
if (filter) filter.addEventListener("input", () => {
  const wanted = filter.value.toLowerCase();
  for (const row of document.querySelectorAll("table.sortable tbody tr"))
    row.hidden = !row.cells[0].dataset.value.toLowerCase().includes(wanted);
});

// Tips: of what is pointed at or touched, and of the place on a line chart.
const tip = document.getElementById("tip");
const show = (text, x, y) => {
  tip.textContent = text;
  tip.hidden = false;
  const { width, height } = tip.getBoundingClientRect();
  tip.style.left = `${Math.max(4, Math.min(x + 12, innerWidth - width - 4))}px`;
  tip.style.top = `${y + 16 + height > innerHeight ? y - height - 10 : y + 16}px`;
};
const cursors = document.querySelectorAll(".cursor");
const point = (event) => {
  const target = event.target.closest?.("[data-tip], [data-readings]");
  cursors.forEach((cursor) => cursor.setAttribute("visibility", "hidden"));
  if (!target) { tip.hidden = true; return; }
  if (target.dataset.tip) { show(target.dataset.tip, event.clientX, event.clientY); return; }
  const box = target.getBoundingClientRect();
  const x = (event.clientX - box.left) / box.width * target.viewBox.baseVal.width;
  const nearest = JSON.parse(target.dataset.readings).reduce((a, b) => Math.abs(b[0] - x) < Math.abs(a[0] - x) ? b : a);
  const cursor = target.querySelector(".cursor");
  cursor.setAttribute("transform", `translate(${nearest[0]} 0)`);
  cursor.setAttribute("visibility", "visible");
  show(nearest[1], event.clientX, event.clientY);
};
document.addEventListener("pointermove", point);
document.addEventListener("pointerdown", point);
document.addEventListener("scroll", () => { tip.hidden = true; }, { passive: true });
