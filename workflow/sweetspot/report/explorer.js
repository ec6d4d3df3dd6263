/* The controls of the explorer. Every number comes from `predict` above. */
document.addEventListener("DOMContentLoaded", () => {
  const DATA = JSON.parse(document.getElementById("explorer-data").textContent);
  const form = document.getElementById("ask");
  const get = (id) => document.getElementById(`ask-${id}`);
  if (!DATA.asked || !DATA.groups.length) {
    document.getElementById("explorer").hidden = true;
    return;
  }
  /* What predict may give: shown when it does. */
  const QUANTITIES = [
    ["energy_per_request", "j", "J per request"],
    ["energy_per_output_token", "j", "J per output token"],
    ["duration", "s", "s for the batch"],
    ["power", "w", "W"],
  ];
  const SVG = "http://www.w3.org/2000/svg";
  const ORDER = DATA.groups.map((_, index) => index);

  const number = (x) => x.toLocaleString("en", Math.abs(x) >= 100 ? { maximumFractionDigits: 0 }
    : { minimumSignificantDigits: 3, maximumSignificantDigits: 3 });
  const whole = (x) => x.toLocaleString("en");
  const make = (tag, text, attributes = {}) => {
    const element = document.createElement(tag);
    if (text !== undefined) element.textContent = text;
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    return element;
  };
  const draw = (parent, tag, attributes, text) => {
    const element = document.createElementNS(SVG, tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    if (text !== undefined) element.textContent = text;
    parent.append(element);
    return element;
  };
  const fill = (table, head, rows) => {
    const line = make("tr");
    for (const [text, kind] of head) line.append(make("th", text, { scope: "col", ...(kind && { class: kind }) }));
    table.tHead.replaceChildren(line);
    table.tBodies[0].replaceChildren(...rows);
  };

  /* --- what is asked ------------------------------------------------------------------------------------------- */
  const range = (name) => [
    Math.min(...DATA.groups.map((g) => g.measured_range[name][0])),
    Math.max(...DATA.groups.map((g) => g.measured_range[name][1])),
  ];
  const slides = { input: range("input_tokens"), output: range("output_tokens") };
  for (const ends of Object.values(slides)) ends[1] *= 4;
  const toSlide = (name, value) => 1000 * Math.log(value / slides[name][0]) / Math.log(slides[name][1] / slides[name][0]);
  const fromSlide = (name, value) => Math.round(slides[name][0] * (slides[name][1] / slides[name][0]) ** (value / 1000));

  const state = () => ({
    n: Number(get("input").value), m: Number(get("output").value), batch: Number(get("batch").value),
    law: get("law").value, shorter: Number(get("shorter").value), cap: Number(get("cap").value),
    other: Number(get("other").value), groups: ORDER.filter((i) => form.elements[`model-${i}`].checked),
  });
  const ask = (index, s, changes = {}) => {
    const q = { n: s.n, m: s.m, batch: s.batch, ...changes };
    return predict(DATA.groups[index], DATA.laws,
      { input_tokens: q.n, output_tokens: q.m, batch: q.batch, law: s.law || undefined });
  };
  const attempt = (action) => {
    try { return action(); } catch (error) { return { error: error.message }; }
  };

  /* The reply of least energy per output token inside the measured replies, and where it is within 1 % of that. */
  const spot = (index, s) => {
    const group = DATA.groups[index];
    if (!DATA.laws[s.law || group.law].can_have_sweet_spot) return "not identified: no term of this law grows with it";
    const known = group.sweet_spots.filter((one) => one.batch === s.batch);
    if (!s.law && known.length && known.every((one) => one.status === "not identified")) return "not identified by these cells";
    const said = (best, from, to) => `${whole(Math.round(best))} (within 1 %: ${whole(Math.round(from))} to ${whole(Math.round(to))})`;
    const fitted = known.find((one) => !s.law && one.input_tokens === s.n && one.status === "interior");
    if (fitted) return said(fitted.output_tokens, fitted.plateau_low, fitted.plateau_high);
    const [low, high] = group.measured_range.output_tokens;
    const span = `${whole(low)} to ${whole(high)}`;
    if (!(high > low)) return "one reply length measured";
    const at = (x) => low * (high / low) ** x;
    const energy = (x) => attempt(() => ask(index, s, { m: Math.round(at(x)) })).energy_per_output_token_j ?? Infinity;
    const steps = Array.from({ length: 481 }, (_, i) => i / 480);
    const values = steps.map(energy);
    const best = values.indexOf(Math.min(...values));
    if (values[best] === Infinity) return "–";
    if (best === 0 || best === 480) return `none inside ${span}`;
    const near = steps.filter((_, i) => values[i] <= 1.01 * values[best]).map((x) => Math.round(at(x)));
    return said(at(steps[best]), near[0], near.at(-1));
  };

  /* --- what is shown ------------------------------------------------------------------------------------------- */
  const interval = (p, key, unit) => (p[`${key}_low_${unit}`] ?? null) === null ? number(p[`${key}_${unit}`]) :
    `${number(p[`${key}_${unit}`])} [${number(p[`${key}_low_${unit}`])}, ${number(p[`${key}_high_${unit}`])}]`;
  const cell = (head, text) => make("td", text, { class: "number", "data-head": head });
  const swatch = (index) => {
    const head = make("th", undefined, { scope: "row" });
    head.append(make("span", "", { class: "swatch", style: `background:${DATA.looks[index].colour}` }), DATA.names[index]);
    return head;
  };

  const showCosts = (s, answers) => {
    const shown = QUANTITIES.filter(([key, unit]) => answers.some((p) => (p[`${key}_${unit}`] ?? null) !== null));
    const rows = s.groups.map((index, i) => {
      const row = make("tr"), p = answers[i];
      row.append(swatch(index));
      if (p.error) {
        row.append(make("td", p.error, { colspan: shown.length + 2 }));
        return row;
      }
      for (const [key, unit, words] of shown) row.append(cell(words, interval(p, key, unit)));
      row.append(cell("sweet spot, output tokens", spot(index, s)), cell("law", p.law));
      return row;
    });
    fill(get("costs"), [["model"], ...[...shown.map((one) => one[2]), "sweet spot, output tokens", "law"].map((t) => [t, "number"])], rows);
    const notes = new Map();
    s.groups.forEach((index, i) => {
      const said = answers[i].error ? [] : [...answers[i].extrapolates.map((t) => `extrapolates: ${t}`), ...answers[i].warnings];
      for (const text of said) notes.set(text, [...(notes.get(text) || []), DATA.names[index]]);
    });
    get("notes").replaceChildren(...[...notes].map(([text, names]) =>
      make("li", names.length === s.groups.length ? text : `${names.join(", ")}: ${text}`)));
  };

  /* A saving in percent of what is asked, with its interval: of two predictions taken as independent. */
  const saving = (now, then) => {
    const ratio = then[0] / now[0];
    const error = Math.hypot((now[2] - now[1]) / 2 / now[0], (then[2] - then[1]) / 2 / then[0]);
    return [1 - ratio, 1 - ratio * Math.exp(error), 1 - ratio * Math.exp(-error)].map((x) => 100 * x);
  };
  const triple = (p) => [p.energy_per_request_j, p.energy_per_request_low_j, p.energy_per_request_high_j];
  const changes = (index, s, now) => {
    const once = (words, change) => [words, () => [ask(index, s, change)]];
    const list = [];
    if (s.shorter < s.n) {
      list.push(once(`truncate the prompt to ${whole(s.shorter)}`, { n: s.shorter }));
      list.push([`sum the prompt up in ${whole(s.shorter)} first`,
        () => [ask(index, s, { m: s.shorter }), ask(index, s, { n: s.shorter })]]);
    }
    if (s.cap < s.m) list.push(once(`cap the reply at ${whole(s.cap)}`, { m: s.cap }));
    if (s.other !== s.batch) list.push(once(`batch ${whole(s.other)} instead of ${whole(s.batch)}`, { batch: s.other }));
    return list.map(([words, action]) => {
      const parts = attempt(action);
      if (parts.error) return { words, error: parts.error };
      const cost = parts.map(triple).reduce((sum, one) => sum.map((x, i) => x + one[i]));
      const outside = parts.some((p) => p.extrapolates.length);
      const gain = now[0] - parts.at(-1).energy_per_request_j;
      const reuse = parts.length > 1 && gain > 0 ? Math.floor(parts[0].energy_per_request_j / gain) + 1 : null;
      return { words, cost, saved: saving(now, cost), outside, reuse };
    });
  };

  const showInstead = (s, answers) => {
    const rows = [];
    let advice = "";
    s.groups.forEach((index, i) => {
      if (answers[i].error) return;
      const found = changes(index, s, triple(answers[i]));
      for (const one of found) {
        const row = make("tr");
        row.append(swatch(index), make("td", one.words));
        if (one.error) row.append(make("td", one.error, { colspan: 2 }));
        else {
          const signed = (x) => `${x < 0 ? "−" : ""}${number(Math.abs(x))}`;
          const [mid, low, high] = one.saved;
          const words = low > 0 ? `saves ${number(mid)} % [${number(low)}, ${number(high)}]`
            : high < 0 ? `costs ${number(-mid)} % more [${number(-high)}, ${number(-low)}]`
              : `no difference shown: saves ${signed(mid)} % [${signed(low)}, ${signed(high)}]`;
          row.append(cell("J per request", `${number(one.cost[0])} [${number(one.cost[1])}, ${number(one.cost[2])}]`));
          const said = `${words}${one.outside ? " (extrapolates)" : ""}` +
            (one.reuse ? `; pays from reply ${whole(one.reuse)} to the same prompt on` : "");
          row.append(make("td", said, { "data-head": "against now" }));
        }
        rows.push(row);
      }
      const good = found.filter((one) => !one.error && one.saved[1] > 0 && !one.outside);
      if (i === 0) {
        const best = good.sort((a, b) => b.saved[0] - a.saved[0])[0];
        advice = best ? ` Of the changes below it saves most to ${best.words}: ${number(best.saved[0])} % ` +
          `[${number(best.saved[1])}, ${number(best.saved[2])}].` : " None of the changes below is shown to save energy.";
      }
    });
    fill(get("instead"), [["model"], ["change"], ["J per request", "number"], ["against now"]], rows);
    return advice;
  };

  /* --- charts -------------------------------------------------------------------------------------------------- */
  const chart = (s, axis) => {
    const byReply = axis === "output_tokens";
    const [key, unit, words] = byReply ? QUANTITIES[1] : QUANTITIES[0];
    const here = byReply ? s.m : s.n;
    const [low, high] = range(axis);
    const from = Math.min(low / 1.5, here), to = Math.max(high * 1.5, here);
    const title = byReply ? `${words} after a prompt of ${whole(s.n)}` : `${words} with a reply of ${whole(s.m)}`;
    const figure = make("figure"), W = Math.max(get("charts").clientWidth > 760 ? get("charts").clientWidth / 2 - 12
      : get("charts").clientWidth, 280), H = 270, left = 52, right = 10, top = 8, bottom = 40;
    figure.append(make("figcaption", title));
    const svg = document.createElementNS(SVG, "svg");
    figure.append(svg);
    svg.setAttribute("viewBox", `0 0 ${W} ${H}`);
    svg.setAttribute("role", "img");

    const xs = Array.from({ length: 61 }, (_, i) => Math.max(1, Math.round(from * (to / from) ** (i / 60))));
    const lines = s.groups.map((index) => xs.map((x) => [x, attempt(() => ask(index, s, byReply ? { m: x } : { n: x }))])
      .filter((point) => !point[1].error).map(([x, p]) => [x, p[`${key}_${unit}`], p[`${key}_low_${unit}`], p[`${key}_high_${unit}`]]));
    const fixed = byReply ? s.n : s.m;
    const dots = s.groups.map((index) => DATA.cells[index]
      .filter(([batch, n, m]) => batch === s.batch && fixed === (byReply ? n : m))
      .map(([, n, m, energy]) => byReply ? [m, energy] : [n, energy * m]));
    const values = [...lines.flat().flatMap((p) => [p[1], p[2], p[3]]), ...dots.flat().map((p) => p[1])].filter((v) => v > 0);
    if (!values.length) return figure;
    const least = Math.min(...lines.flat().map((p) => p[1]), ...dots.flat().map((p) => p[1]));
    const floor = Math.max(Math.min(...values), least / 2) / 1.05, ceiling = Math.max(...values) * 1.05;
    const X = (x) => left + (W - left - right) * Math.log(x / from) / Math.log(to / from);
    const Y = (y) => top + (H - top - bottom) * (1 - Math.log(Math.max(y, floor) / floor) / Math.log(ceiling / floor));

    for (const [a, b] of [[from, low], [high, to]]) {
      if (b > a) draw(svg, "rect", { x: X(a), y: top, width: X(b) - X(a), height: H - top - bottom, class: "outside" });
    }
    let last = -100;
    for (let tick = 1; tick <= to; tick *= 2) {
      if (tick < from || X(tick) - last < 44) continue;
      last = X(tick);
      draw(svg, "line", { x1: last, x2: last, y1: top, y2: H - bottom, class: "grid" });
      draw(svg, "text", { x: last, y: H - bottom + 15, "text-anchor": "middle" }, tick);
    }
    last = H;
    for (let decade = Math.floor(Math.log10(floor)); decade <= Math.log10(ceiling); decade++) {
      for (const step of [1, 1.5, 2, 3, 4, 5, 6, 8]) {
        const tick = Number((step * 10 ** decade).toPrecision(2));
        if (tick < floor || tick > ceiling || last - Y(tick) < 24) continue;
        last = Y(tick);
        draw(svg, "line", { x1: left, x2: W - right, y1: last, y2: last, class: "grid" });
        draw(svg, "text", { x: left - 6, y: last + 4, "text-anchor": "end" }, tick.toLocaleString("en", { maximumSignificantDigits: 2 }));
      }
    }
    draw(svg, "text", { x: (left + W - right) / 2, y: H - 6, "text-anchor": "middle" }, axis.replace("_", " "));
    draw(svg, "line", { x1: X(here), x2: X(here), y1: top, y2: H - bottom, class: "here" });
    lines.forEach((line, i) => {
      if (!line.length) return;
      const look = DATA.looks[s.groups[i]], path = (points) => points.map(([x, y]) => `${X(x).toFixed(1)},${Y(y).toFixed(1)}`).join(" ");
      draw(svg, "polygon", { points: path([...line.map((p) => [p[0], p[3]]), ...line.map((p) => [p[0], p[2]]).reverse()]), fill: look.colour, opacity: 0.18 });
      draw(svg, "polyline", { points: path(line), fill: "none", stroke: look.colour, "stroke-width": 2, "stroke-dasharray": { "-": "none", "--": "7 4", ":": "2 4" }[look.line] });
      for (const [x, y] of dots[i]) draw(svg, "circle", { cx: X(x), cy: Y(y), r: 3.5, fill: look.colour, class: "cell" });
      const p = attempt(() => ask(s.groups[i], s));
      if (!p.error) draw(svg, "circle", { cx: X(here), cy: Y(p[`${key}_${unit}`]), r: 6, fill: "none", stroke: look.colour, "stroke-width": 2.5 });
    });
    svg.setAttribute("aria-label", `${title}, by ${axis.replace("_", " ")}, with 95 % intervals; shaded where nothing was measured`);
    const set = (event) => {
      const box = svg.getBoundingClientRect();
      const share = ((event.clientX - box.left) / box.width * W - left) / (W - left - right);
      get(byReply ? "output" : "input").value = Math.max(1, Math.round(from * (to / from) ** Math.min(Math.max(share, 0), 1)));
      update();
    };
    svg.addEventListener("click", set);
    return figure;
  };

  const update = () => {
    const s = state();
    for (const [name, value] of [["input", s.n], ["output", s.m]]) {
      const slide = get(`${name}-slide`);
      if (fromSlide(name, slide.value) !== value) slide.value = toSlide(name, Math.max(value, 1));
      slide.setAttribute("aria-valuetext", `${whole(value)} tokens`);
    }
    const answers = s.groups.map((index) => attempt(() => ask(index, s)));
    showCosts(s, answers);
    const advice = showInstead(s, answers);
    const first = answers[0];
    get("answer").textContent = !first ? "Choose a model." : first.error || `${DATA.names[s.groups[0]]}, batch ${whole(s.batch)}: ` +
      `a request of ${whole(s.n)} input and ${whole(s.m)} output tokens costs ${interval(first, "energy_per_request", "j")} J` +
      ` (${first.source}${first.extrapolates.length ? ", extrapolated" : ""}).${advice}`;
    const drawable = answers.some((p) => !p.error);
    get("charts").replaceChildren(...(drawable ? [chart(s, "output_tokens"), chart(s, "input_tokens")] : []));
  };

  /* --- wiring -------------------------------------------------------------------------------------------------- */
  DATA.names.forEach((name, index) => {
    const label = make("label"), box = make("input", undefined, { type: "checkbox", name: `model-${index}` });
    box.checked = index === DATA.asked.group;
    label.append(box, " ", name);
    get("models").append(label);
  });
  get("models").hidden = DATA.names.length < 2;
  for (const law of Object.keys(DATA.laws)) {
    if (DATA.groups.some((g) => (g.laws[law] || []).some((fit) => !("skipped" in fit)))) get("law").append(make("option", law, { value: law }));
  }
  const batches = [...new Set(DATA.groups.flatMap((g) => g.batches))].sort((a, b) => a - b);
  get("batches").textContent = `measured: ${batches.length > 8 ? `${batches[0]} to ${batches.at(-1)}` : batches.join(", ")}`;
  const { input_tokens, output_tokens, batch } = DATA.asked;
  const least = DATA.groups[DATA.asked.group].measured_range.output_tokens[0];
  Object.entries({
    input: input_tokens, output: output_tokens, batch, shorter: Math.max(1, Math.round(input_tokens / 4)),
    cap: Math.max(least, Math.round(output_tokens / 2)),
    other: batches[batches.indexOf(batch) + 1] ?? batches[batches.indexOf(batch) - 1] ?? batch,
  }).forEach(([name, value]) => { get(name).value = value; });
  for (const name of ["input", "output"]) {
    get(`${name}-slide`).addEventListener("input", (event) => {
      get(name).value = fromSlide(name, event.target.value);
      event.stopPropagation();
      update();
    });
  }
  form.addEventListener("input", update);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.hidden = false;
  update();
  let width = form.clientWidth;
  addEventListener("resize", () => {
    if (form.clientWidth !== width) { width = form.clientWidth; update(); }
  });
});
