/* The explorer's controls. Every number comes from `predict` above. */
document.addEventListener("DOMContentLoaded", () => {
  const DATA = JSON.parse(document.getElementById("explorer-data").textContent);
  const form = document.getElementById("ask");
  const get = (id) => document.getElementById(`ask-${id}`);
  if (!DATA.asked || !DATA.groups.length) {
    document.getElementById("explorer").hidden = true;
    return;
  }
  /* Quantities that predict may return; shown if it does. */
  const QUANTITIES = [
    ["energy_per_request", "j", "J per request"],
    ["energy_per_output_token", "j", "J per output token"],
    ["duration", "s", "s for the batch"],
    ["power", "w", "W"],
  ];
  /* Latencies in latency_s of a prediction: name, factor and words. */
  const LATENCIES = [
    ["ttft_p95_s", 1, "first token, s (p95)"],
    ["tpot_p95_s", 1000, "further tokens, ms each (p95)"],
  ];
  const SVG = "http://www.w3.org/2000/svg";
  const ACROSS = "across-models";
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

  /* --- the question -------------------------------------------------------------------------------------------- */
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
    const query = { input_tokens: q.n, output_tokens: q.m, batch: q.batch, law: s.law || undefined };
    if (s.law !== ACROSS) return predict(DATA.groups[index], DATA.laws, query);
    if (!DATA.across[index]) throw new Error("the law across models was not fitted to this model");
    return predictAcross(DATA.across[index], query);
  };
  const attempt = (action) => {
    try { return action(); } catch (error) { return { error: error.message }; }
  };

  /* The sweet spot in words. */
  const spot = (index, s) => {
    if (s.law === ACROSS) return "–";
    const found = attempt(() => sweetSpot(DATA.groups[index], DATA.laws, s.n, s.batch, s.law || undefined));
    if (found.error) return "–";
    const tokens = (x) => whole(Math.floor(x + 0.5));
    if (found.status === "interior") {
      return `${tokens(found.output_tokens)} (within 1 %: ${tokens(found.plateau_low)} to ${tokens(found.plateau_high)})`;
    }
    const [low, high] = DATA.groups[index].measured_range.output_tokens;
    return found.status === "not identified" ? "not identified by these cells" : `none between ${whole(low)} and ${whole(high)}`;
  };

  /* --- the answer ---------------------------------------------------------------------------------------------- */
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
    const late = LATENCIES.filter(([name]) => answers.some((p) => p.latency_s?.[name]));
    const rows = s.groups.map((index, i) => {
      const row = make("tr"), p = answers[i];
      row.append(swatch(index));
      if (p.error) {
        row.append(make("td", p.error, { colspan: shown.length + late.length + 2 }));
        return row;
      }
      for (const [key, unit, words] of shown) row.append(cell(words, interval(p, key, unit)));
      for (const [name, factor, words] of late) {
        const { value, low, high } = p.latency_s[name] ?? {};
        const [middle, least, most] = [value, low, high].map((x) => x === undefined ? "" : number(factor * x));
        row.append(cell(words, middle && `${middle} [${least}, ${most}]`));
      }
      row.append(make("td", spot(index, s), { "data-head": "sweet spot, output tokens" }), cell("law", p.law));
      return row;
    });
    fill(get("costs"), [["model"], ...[...shown, ...late].map((one) => [one[2], "number"]), ["sweet spot, output tokens"], ["law", "number"]], rows);
    const notes = new Map();
    s.groups.forEach((index, i) => {
      const said = answers[i].error ? [] : [...answers[i].extrapolates.map((t) => `extrapolates: ${t}`), ...answers[i].warnings];
      for (const text of said) notes.set(text, [...(notes.get(text) || []), DATA.names[index]]);
    });
    get("notes").replaceChildren(...[...notes].map(([text, names]) =>
      make("li", names.length === s.groups.length ? text : `${names.join(", ")}: ${text}`)));
  };

  /* A request as costOf and savingOf expect it; a summary's key differs from that of a request of the same lengths. */
  const request = (index, s, change = {}, summary = false) => {
    const p = ask(index, s, change);
    return { key: `${p.input_tokens}/${p.output_tokens}/${p.batch}/${summary}`, weight: 1, p };
  };
  const changes = (index, s, now) => {
    const list = [];
    if (s.shorter < s.n) {
      list.push([`truncate the prompt to ${whole(s.shorter)}`, () => [request(index, s, { n: s.shorter })]]);
      list.push([`summarise the prompt to ${whole(s.shorter)} tokens first`,
        () => [request(index, s, { m: s.shorter }, true), request(index, s, { n: s.shorter })]]);
    }
    if (s.cap < s.m) list.push([`cap the reply at ${whole(s.cap)}`, () => [request(index, s, { m: s.cap })]]);
    if (s.other !== s.batch) {
      list.push([`batch ${whole(s.other)} instead of ${whole(s.batch)}`, () => [request(index, s, { batch: s.other })]]);
    }
    return list.map(([words, action]) => {
      const then = attempt(action);
      if (then.error) return { words, error: then.error };
      const outside = then.some(({ p }) => p.extrapolates.length);
      const gain = costOf(now)[0] - then.at(-1).p.energy_per_request_j;
      const reuse = then.length > 1 && gain > 0 ? Math.floor(then[0].p.energy_per_request_j / gain) + 1 : null;
      return { words, cost: costOf(then), saved: savingOf(now, then), outside, reuse };
    });
  };
  const ordinal = (x) => `${whole(x)}${["th", "st", "nd", "rd"][x % 100 >= 11 && x % 100 <= 13 ? 0 : x % 10] ?? "th"}`;

  const showInstead = (s, answers) => {
    const rows = [];
    let advice = "";
    s.groups.forEach((index, i) => {
      if (answers[i].error) return;
      const found = changes(index, s, [request(index, s)]);
      for (const one of found) {
        const row = make("tr");
        row.append(swatch(index), make("td", one.words));
        if (one.error) row.append(make("td", one.error, { colspan: 2 }));
        else {
          const signed = (x) => `${x < 0 ? "−" : ""}${number(Math.abs(x))}`;
          const [mid, low, high] = one.saved.percent, [saved, least, most] = one.saved.joules.map(signed);
          const words = one.saved.joules[1] > 0 ? `saves ${signed(mid)} % [${signed(low)}, ${signed(high)}]`
            : one.saved.joules[2] < 0 ? `costs ${signed(-mid)} % more [${signed(-high)}, ${signed(-low)}]`
              : `no clear difference: saves ${saved} J [${least}, ${most}]`;
          row.append(cell("J per request", `${number(one.cost[0])} [${number(one.cost[1])}, ${number(one.cost[2])}]`));
          const said = `${words}${one.outside ? " (extrapolates)" : ""}` +
            (one.reuse ? `; pays off from the ${ordinal(one.reuse)} reply to the same prompt` : "");
          row.append(make("td", said, { "data-head": "compared with now" }));
        }
        rows.push(row);
      }
      const good = found.filter((one) => !one.error && one.saved.joules[1] > 0);
      if (i === 0) {
        const best = good.sort((a, b) => b.saved.joules[0] - a.saved.joules[0])[0];
        const [mid, low, high] = best ? best.saved.percent.map(number) : [];
        advice = best ? ` Of the changes below, this one saves most: ${best.words}, ${mid} % [${low}, ${high}]` +
          `${best.outside ? " (extrapolates)" : ""}.` : " None of the changes below clearly saves energy.";
      }
    });
    fill(get("instead"), [["model"], ["change"], ["J per request", "number"], ["compared with now"]], rows);
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
    svg.setAttribute("aria-label", `${title}, by ${axis.replace("_", " ")}, with intervals; shaded where nothing was measured`);
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
      ` (${first.source in SIMULATED ? "simulated" : first.source}${first.extrapolates.length ? ", extrapolated" : ""}).${advice}`;
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
  if (DATA.across.some(Boolean)) get("law").append(make("option", "across models", { value: ACROSS }));
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
