"use strict";

// Tables: a click on a heading sorts by it; numbers by value ("812 ± 14", "+0.03 [..]", "120k (9/10)"), else by text.
const number = (text) => {
  const found = text.trim().match(/^([+-]?\d+(?:\.\d+)?(?:e[+-]?\d+)?)([kM])?(?=$|[\s(])/);
  return found ? parseFloat(found[1]) * ({ k: 1e3, M: 1e6 }[found[2]] || 1) : NaN;
};
for (const table of document.querySelectorAll("table.sortable")) {
  [...table.tHead.rows[0].cells].forEach((heading, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = heading.textContent;
    heading.replaceChildren(button);
    button.addEventListener("click", () => {
      const down = heading.getAttribute("aria-sort") === "ascending";
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      heading.setAttribute("aria-sort", down ? "descending" : "ascending");
      const body = table.tBodies[0];
      const rows = [...body.rows].map((row) => {
        const text = row.cells[column].textContent;
        return { row, text, value: number(text) };
      });
      rows.sort((a, b) => {
        if (Number.isNaN(a.value) !== Number.isNaN(b.value)) return Number.isNaN(a.value) ? 1 : -1;
        const order = Number.isNaN(a.value) ? a.text.localeCompare(b.text) : a.value - b.value;
        return down ? -order : order;
      });
      body.append(...rows.map((item) => item.row));
    });
  });
}

// Curves: the values of all series at the recorded step that is nearest to the pointer.
const values = document.createElement("div");
values.id = "values";
values.hidden = true;
document.body.append(values);

const steps = (x) => (x >= 1e6 ? +(x / 1e6).toPrecision(4) + "M" : x >= 1e3 ? +(x / 1e3).toPrecision(4) + "k" : +x.toPrecision(3) + "");
const short = (y) => (y === null ? "–" : +y.toPrecision(4) + "");

function nearest(xs, x) {
  let best = 0;
  xs.forEach((candidate, i) => { if (Math.abs(candidate - x) < Math.abs(xs[best] - x)) best = i; });
  return best;
}

function show(panel, x, event) {
  const lines = panel.series.map((series) => {
    const i = nearest(series.x, x);
    const range = series.low[i] === null ? "" : ` [${short(series.low[i])}, ${short(series.high[i])}]`;
    return { series, at: series.x[i], text: `${series.label} at ${steps(series.x[i])}: ${short(series.y[i])}${range}` };
  });
  values.replaceChildren();
  if (panel.title) values.append(Object.assign(document.createElement("b"), { textContent: panel.title }));
  for (const { series, text } of lines) {
    const line = document.createElement("div");
    const swatch = document.createElement("i");
    swatch.style.background = series.colour;
    line.append(swatch, text);
    values.append(line);
  }
  values.hidden = false;
  const box = values.getBoundingClientRect();
  const left = Math.min(event.clientX + 14, window.innerWidth - box.width - 6);
  const above = event.clientY - box.height - 14;
  values.style.left = Math.max(6, left) + "px";
  values.style.top = (above > 6 ? above : event.clientY + 18) + "px";
}

for (const plot of document.querySelectorAll(".plot")) {
  const data = plot.querySelector('script[type="application/json"]');
  const svg = plot.querySelector("svg");
  if (!data || !svg) continue;
  const panels = JSON.parse(data.textContent);
  svg.addEventListener("pointermove", (event) => {
    const point = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
    const panel = panels.find(({ box: [x, y, w, h] }) => point.x >= x && point.x <= x + w && point.y >= y && point.y <= y + h);
    if (!panel) { values.hidden = true; return; }
    const share = (point.x - panel.box[0]) / panel.box[2];
    show(panel, panel.xlim[0] + share * (panel.xlim[1] - panel.xlim[0]), event);
  });
  svg.addEventListener("pointerleave", () => { values.hidden = true; });
}

// Where a figure or a table is wider than the page, say that it scrolls.
for (const wide of document.querySelectorAll(".plot, .scroll")) {
  const hint = Object.assign(document.createElement("p"), { className: "hint sideways", textContent: "Scrolls sideways \u2192" });
  const update = () => { hint.hidden = wide.scrollWidth <= wide.clientWidth + 1; };
  wide.before(hint);
  update();
  new ResizeObserver(update).observe(wide);
}

// Served by `python -m analysis watch`: how far the sweeps are, and the page again when there is a new report.
if (location.protocol === "http:") {
  const bars = document.getElementById("progress");
  let seen = null;
  setInterval(async () => {
    let state;
    try { state = await (await fetch("state")).json(); } catch { return; }
    if (seen !== null && state.reports !== seen) location.reload();
    seen = state.reports ?? seen;
    bars.replaceChildren(...(state.progress ?? []).map(({ name, done, runs, share }) => {
      const line = document.createElement("p");
      const bar = Object.assign(document.createElement("progress"), { max: 1, value: share });
      line.append(bar, ` ${name}: ${done} of ${runs} runs done, ${Math.round(100 * share)}% of the env steps`);
      return line;
    }));
  }, 2000);
}
