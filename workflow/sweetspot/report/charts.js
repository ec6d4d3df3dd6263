/* The charts of the page: Vega-Lite specifications, drawn when they come into view, with a reading under pointer and
   arrow keys. Every chart is a <figure id="chart-..."> with a .plot inside; page.js says what to draw. */
const INK = "var(--ink)", MUTED = "var(--muted)", GRID = "var(--grid)", ALARM = "var(--alarm)";
const CONFIG = {
  background: null, font: "system-ui, sans-serif", padding: 4,
  view: { stroke: null },
  axis: { labelColor: INK, titleColor: INK, gridColor: GRID, domainColor: MUTED, tickColor: MUTED, labelFontSize: 12,
    titleFontSize: 12, titleFontWeight: "normal", labelOverlap: "greedy", labelFlush: false, grid: true },
  legend: { labelColor: INK, titleColor: INK, labelFontSize: 12, titleFontSize: 12, titleFontWeight: "normal",
    orient: "bottom", labelLimit: 220, symbolStrokeWidth: 2 },
  text: { color: INK, fontSize: 12 }, rule: { color: INK },
};
const NEAR = 40; // pixels between the pointer and the point that it reads

/* A logarithmic axis of lengths or batches, with ticks at powers of two. */
const lengths = (field, title, values) => {
  const [low, high] = [Math.min(...values), Math.max(...values)], ticks = [];
  for (let tick = 1; tick <= high; tick *= 2) if (tick >= low) ticks.push(tick);
  return { field, type: "quantitative", title, scale: { type: "log", base: 2, nice: false },
    axis: { values: ticks, format: "~d" } };
};
const amounts = (field, title, more = {}) => ({ field, type: "quantitative", title,
  scale: { type: "log", nice: false, ...more.scale }, axis: { format: "~g", tickCount: 6, ...more.axis } });

class Chart {
  /* `make` returns {layer, points, x, y, label} or {empty: words}: the layers of the specification, the data that can be
     read one by one (each with `words`), the fields that place them, and what the chart shows in a sentence. */
  constructor(id, make, choose) {
    this.figure = document.getElementById(`chart-${id}`);
    this.make = make;
    this.choose = choose;
    this.plot = this.figure.querySelector(".plot");
    this.reading = this.figure.querySelector(".reading");
    this.fresh = false;
    this.seen = false;
    this.at = -1;
    this.plot.addEventListener("pointermove", (event) => this.point(event));
    this.plot.addEventListener("pointerleave", () => this.read(-1));
    this.plot.addEventListener("blur", () => this.read(-1));
    this.plot.addEventListener("keydown", (event) => this.key(event));
    this.plot.addEventListener("click", () => this.chosen());
    const link = this.figure.querySelector("a[download]");
    if (link) link.addEventListener("click", () => { link.href = this.csv(); });
  }

  /* Draws now if the figure is in view (or `always`), else as soon as it is. */
  update(always = false) {
    this.fresh = false;
    if (this.seen || always) this.draw();
  }

  async draw() {
    if (this.fresh || !this.plot.clientWidth) return;
    this.fresh = true;
    this.at = -1;
    const made = this.made = this.make();
    this.reading.textContent = "";
    this.view = null;
    this.figure.classList.toggle("empty", Boolean(made.empty));
    if (made.empty) {
      this.plot.replaceChildren(Object.assign(document.createElement("p"), { textContent: made.empty }));
      return;
    }
    const width = this.plot.clientWidth - 12;
    const columns = Math.max(1, Math.floor(width / (made.wide ?? 140)));
    const config = { ...CONFIG, legend: { ...CONFIG.legend, columns } };
    const legend = made.entries > 1 ? 17 * Math.ceil(made.entries / columns) : 0; // pixels below the plot
    const spec = { $schema: "https://vega.github.io/schema/vega-lite/v6.json", config, width, height: (made.height ?? 230) + legend,
      autosize: { type: "fit", contains: "padding" }, layer: made.layer.filter((one) => one.data.values.length) };
    const before = this.drawn;
    const drawn = this.drawn = await vegaEmbed(this.plot, spec, { renderer: "svg", actions: false, tooltip: false, defaultStyle: false });
    before?.finalize();
    if (made !== this.made) return; // a later drawing overtook this one
    this.view = drawn.view;
    const svg = this.plot.querySelector("svg");
    svg.setAttribute("role", "img");
    svg.setAttribute("aria-label", made.label);
    for (const part of svg.querySelectorAll("[role]")) if (part !== svg) part.removeAttribute("role");
    for (const part of svg.querySelectorAll("[aria-label], [aria-roledescription]")) {
      if (part !== svg) { part.removeAttribute("aria-label"); part.removeAttribute("aria-roledescription"); }
    }
    this.ring = this.plot.appendChild(Object.assign(document.createElement("span"), { className: "ring", hidden: true }));
    this.plot.setAttribute("aria-label", `${made.label}. Arrow keys read its ${made.points.length} values.`);
    const scaled = (axis, value) => {
      const scale = this.view.scale(axis);
      return scale(value) + (scale.bandwidth ? scale.bandwidth() / 2 : 0) + this.view.origin()[axis === "x" ? 0 : 1];
    };
    this.pixels = made.points.map((p) => [scaled("x", p[made.x]), scaled("y", p[made.y])]);
  }

  point(event) {
    if (!this.view) return;
    const box = this.plot.querySelector("svg").getBoundingClientRect();
    const [x, y] = [event.clientX - box.left, event.clientY - box.top];
    let best = -1, least = NEAR ** 2;
    const across = this.made.rows ? 0.02 : 1; // rows are read anywhere along them
    this.pixels.forEach(([px, py], i) => {
      const distance = across * (px - x) ** 2 + (py - y) ** 2;
      if (distance < least) [best, least] = [i, distance];
    });
    this.read(best);
  }

  key(event) {
    if (!this.view) return;
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key], count = this.made.points.length;
    if (step) this.read((this.at + step + count + (this.at < 0 && step < 0 ? 1 : 0)) % count);
    else if (event.key === "Home") this.read(0);
    else if (event.key === "End") this.read(count - 1);
    else if (event.key === "Enter") this.chosen();
    else if (event.key === "Escape") this.read(-1);
    else return;
    event.preventDefault();
  }

  read(index) {
    if (!this.view || index === this.at) return;
    this.at = index;
    const point = this.made.points[index];
    this.ring.hidden = !point;
    if (point) [this.ring.style.left, this.ring.style.top] = this.pixels[index].map((pixels) => `${pixels}px`);
    this.reading.textContent = point ? point.words : "";
  }

  chosen() {
    const point = this.made?.points?.[this.at];
    if (point && this.choose) this.choose(point);
  }

  csv() {
    if (!this.made) this.draw();
    const points = this.made?.points ?? [], names = [...new Set(points.flatMap((p) => Object.keys(p)))];
    // A text that a spreadsheet could take for a formula gets an apostrophe.
    const cell = (value) => typeof value === "number" ? value
      : `"${String(value ?? "").replace(/^(?=[=+\-@\t\r])/, "'").replaceAll('"', '""')}"`;
    const lines = [names.map(cell), ...points.map((p) => names.map((name) => cell(p[name])))];
    return `data:text/csv;charset=utf-8,${encodeURIComponent(lines.map((line) => line.join(",")).join("\n"))}`;
  }
}

/* Draws charts as they come into view, again when the width changes, and all of them before printing. */
function watch(charts) {
  const observer = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      const chart = charts.find((one) => one.figure === entry.target);
      chart.seen = entry.isIntersecting;
      if (chart.seen) chart.draw();
    }
  }, { rootMargin: "200px" });
  for (const chart of charts) observer.observe(chart.figure);
  let width = innerWidth;
  const redraw = () => {
    if (innerWidth === width) return;
    width = innerWidth;
    for (const chart of charts) chart.update();
  };
  addEventListener("resize", redraw);
  const all = () => { for (const chart of charts) chart.draw(); };
  addEventListener("beforeprint", all);
  document.addEventListener("toggle", () => { for (const chart of charts) if (chart.seen) chart.draw(); }, true);
}

/* White or near black, whichever has more contrast on a colour; and a colour between light and dark for 0 to 1. */
const STOPS = [[253, 240, 225], [246, 190, 150], [228, 120, 92], [176, 47, 91], [96, 26, 84], [38, 17, 52]];
function heat(share) {
  const place = Math.min(Math.max(share, 0), 1) * (STOPS.length - 1), low = Math.min(Math.floor(place), STOPS.length - 2);
  return STOPS[low].map((from, i) => Math.round(from + (STOPS[low + 1][i] - from) * (place - low)));
}
function readableOn(colour) {
  const linear = colour.map((part) => part / 255).map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
  return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] < 0.195 ? "#ffffff" : "#161616";
}
