"use strict";
(() => {
  const every = (selector, inside = document) => [...inside.querySelectorAll(selector)];
  document.documentElement.classList.add("scripted");

  // checkboxes show and hide groups in figures that compare groups
  const draw = (key, wanted) => {
    for (const mark of every(`figure[data-comparing] [data-group="${key}"]`)) mark.toggleAttribute("hidden", !wanted);
  };
  const picks = every("input[data-pick]");
  for (const pick of picks) {
    draw(pick.dataset.pick, pick.checked);
    pick.addEventListener("change", () => draw(pick.dataset.pick, pick.checked));
  }
  for (const card of every("[data-student-group]")) {
    const rows = every("table.summary tbody tr", card);
    const status = card.querySelector("[role=status]");
    const pickAll = wanted => () => {
      for (const pick of every("input[data-pick]", card)) {
        if (pick.closest("tr").hidden) continue;
        pick.checked = wanted;
        draw(pick.dataset.pick, wanted);
      }
    };
    card.querySelector("[data-all]").addEventListener("click", pickAll(true));
    card.querySelector("[data-none]").addEventListener("click", pickAll(false));
    card.querySelector("[data-filter]").addEventListener("input", event => {
      const terms = event.target.value.toLowerCase().split(/\s+/).filter(Boolean);
      let count = 0;
      for (const row of rows) {
        row.hidden = !terms.every(term => row.textContent.toLowerCase().includes(term));
        count += row.hidden ? 0 : 1;
      }
      status.textContent = terms.length ? `${count} of ${rows.length} rows` : "";
    });
  }

  // a click on a heading sorts the rows; cells without a number are last
  const value = (row, column, kind) => {
    const cell = row.cells[column];
    if (kind === "text") return cell.textContent.trim().toLowerCase();
    return parseFloat(cell.dataset.value ?? cell.textContent);
  };
  for (const head of every("th[data-sort]")) {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const kind = head.dataset.sort, column = head.cellIndex;
      const down = head.getAttribute("aria-sort") === (kind === "text" ? "ascending" : null) ||
        head.getAttribute("aria-sort") === "ascending" || (kind === "number" && !head.hasAttribute("aria-sort"));
      for (const other of every("th[aria-sort]", head.closest("table"))) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const body = head.closest("table").tBodies[0];
      const sorted = [...body.rows].sort((a, b) => {
        const x = value(a, column, kind), y = value(b, column, kind);
        if (kind === "text") return down ? y.localeCompare(x) : x.localeCompare(y);
        if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y);
        return down ? y - x : x - y;
      });
      body.append(...sorted);
    });
  }

  // a slider selects the step of the training
  for (const slider of every("input[data-frames]")) {
    const figure = slider.closest("figure"), labels = slider.dataset.frames.split("|");
    const show = () => {
      for (const mark of every("g[data-frame]", figure)) mark.classList.toggle("now", mark.dataset.frame === slider.value);
      figure.querySelector("output").textContent = labels[slider.value];
      slider.setAttribute("aria-valuetext", labels[slider.value]);
    };
    slider.addEventListener("input", show);
    show();
  }

  // open everything for printing
  let closed = [];
  addEventListener("beforeprint", () => {
    closed = every("details:not([open])");
    for (const part of closed) part.open = true;
  });
  addEventListener("afterprint", () => {
    for (const part of closed) part.open = false;
  });
})();
