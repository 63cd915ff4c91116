// Comfort for the report. Without it everything is there, in blocks to open.
"use strict";
(() => {
  const all = (what, within = document) => [...within.querySelectorAll(what)];

  // Switches: one metric and one method at a time, or all methods side by side.
  const bar = document.querySelector(".switch");
  if (bar) {
    const [metric, method] = all("select", bar);
    const show = () => {
      for (const block of all(".metric")) {
        const chosen = block.dataset.metric === metric.value;
        block.hidden = !chosen;
        if (block.tagName === "DETAILS") block.open = chosen;
      }
      for (const card of all(".metric .card")) {
        card.hidden = method.value !== "" && card.dataset.method !== method.value;
      }
    };
    metric.addEventListener("change", show);
    method.addEventListener("change", show);
    document.documentElement.classList.add("scripted");
    bar.hidden = false;
    show();
  }

  // What stands in the title of a cell, for the keyboard and for fingers too.
  const line = document.querySelector(".readout");
  const read = (event) => {
    const cell = event.target.closest && event.target.closest("table.heat td[title]");
    line.textContent = cell ? cell.title : "";
    line.hidden = !cell;
  };
  if (line) for (const kind of ["mouseover", "focusin", "click"]) document.addEventListener(kind, read);

  // Arrow keys walk through a matrix.
  const steps = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
  document.addEventListener("keydown", (event) => {
    const step = steps[event.key];
    const cell = event.target.closest && event.target.closest("table.heat td");
    if (!step || !cell) return;
    const row = cell.parentElement;
    const next = row.parentElement.rows[row.sectionRowIndex + step[0]];
    const goal = next && next.cells[cell.cellIndex + step[1]];
    const link = goal && (goal.querySelector("a") || goal);
    if (link && link.tabIndex >= 0) {
      link.focus();
      event.preventDefault();
    }
  });

  // A link to a closed block opens it.
  const open = () => {
    const goal = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    for (let block = goal; block; block = block.parentElement) {
      if (block.tagName === "DETAILS") block.open = true;
    }
    if (goal) goal.scrollIntoView();
  };
  addEventListener("hashchange", open);
  if (location.hash) open();
})();
