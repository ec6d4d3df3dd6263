/* The controls of the page. Every number comes from `predict`, every chart from `Chart`. */
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
    ["energy_per_request", "j", "J per request", 1],
    ["energy_per_output_token", "j", "J per 1,000 output tokens", 1000],
    ["duration", "s", "s for the batch", 1],
    ["power", "w", "W", 1],
  ];
  /* Latencies in latency_s of a prediction: name, factor and words. */
  const LATENCIES = [
    ["ttft_p95_s", 1, "first token, s (p95)"],
    ["tpot_p95_s", 1000, "further tokens, ms each (p95)"],
  ];
  const ACROSS = "across-models";
  const CELLS = DATA.cells.group.map((_, i) => Object.fromEntries(Object.entries(DATA.cells).map(([name, values]) => [name, values[i]])));
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
    other: Number(get("other").value), price: Number(get("price").value), latency: get("latency").value,
    axis: get("axis").value, focus: Number(get("focus").value), bound: fromBound(get("bound").value),
    groups: ORDER.filter((i) => form.elements[`model-${i}`].checked),
  });
  const J_PER_KWH = 3.6e6, WH_PER_KJ = 1 / 3.6;
  const perThousand = (p) => 1000 * p.energy_per_output_token_j;
  /* J and Wh for 1,000 output tokens, and what a million of them costs where a price is given. */
  const metric = (p) => {
    const { price } = state(), money = price > 0 ? [`${number(price * 1e6 * p.energy_per_output_token_j / J_PER_KWH)} per million`] : [];
    return [`${number(perThousand(p))} J`, `${number(perThousand(p) / 1000 * WH_PER_KJ)} Wh`, ...money];
  };
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
      const m = Math.round(found.output_tokens), further = attempt(() => ask(index, s, { m: Math.ceil(1.1 * m) }));
      const full = !further.error && further.waves > attempt(() => ask(index, s, { m })).waves ? ", just before the KV cache is full" : "";
      return `${tokens(found.output_tokens)} (within 1 %: ${tokens(found.plateau_low)} to ${tokens(found.plateau_high)}${full})`;
    }
    const [low, high] = DATA.groups[index].measured_range.output_tokens;
    return found.status === "not identified" ? "not identified by these cells" : `none between ${whole(low)} and ${whole(high)}`;
  };

  /* The sweet spot in a sentence: what an output token costs there, against what it costs in the reply asked for. */
  const sentence = (s, now) => {
    if (now.error || s.law === ACROSS) return `sweet spot ${spot(s.focus, s)}`;
    const found = attempt(() => sweetSpot(DATA.groups[s.focus], DATA.laws, s.n, s.batch, s.law || undefined));
    const there = (joules) => {
      const less = 100 * (1 - joules / now.energy_per_output_token_j);
      return `${number(joules)} J` + (less > 1 ? `, ${number(less)} % less than in a reply of ${whole(s.m)}` : ", as in the reply asked for");
    };
    if (found.status === "interior") {
      return `the sweet spot is a reply of ${spot(s.focus, s)} tokens; an output token there costs ${there(found.energy_per_output_token_j)}`;
    }
    const ends = DATA.groups[s.focus].measured_range.output_tokens.map((m) => ({ m, p: attempt(() => ask(s.focus, s, { m })) }));
    const able = ends.filter(({ p }) => !p.error).sort((x, y) => x.p.energy_per_output_token_j - y.p.energy_per_output_token_j);
    return `no sweet spot ${spot(s.focus, s).replace(/^none /, "")}` + (able.length === 2 ?
      `; of these ends, a reply of ${whole(able[0].m)} costs least per output token: ${there(able[0].p.energy_per_output_token_j)}` : "");
  };

  /* --- the answer ---------------------------------------------------------------------------------------------- */
  const interval = (p, key, unit, factor = 1) => {
    const [value, low, high] = ["", "low_", "high_"].map((end) => p[`${key}_${end}${unit}`] ?? null);
    return low === null ? number(factor * value) : `${number(factor * value)} [${number(factor * low)}, ${number(factor * high)}]`;
  };
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
        row.append(make("td", p.error, { colspan: shown.length + late.length + 3 }));
        return row;
      }
      for (const [key, unit, words, factor] of shown) row.append(cell(words, interval(p, key, unit, factor)));
      row.append(cell("per 1,000 output tokens", metric(p).slice(1).join(", ")));
      for (const [name, factor, words] of late) {
        const { value, low, high } = p.latency_s[name] ?? {};
        const [middle, least, most] = [value, low, high].map((x) => x === undefined ? "" : number(factor * x));
        row.append(cell(words, middle && `${middle} [${least}, ${most}]`));
      }
      row.append(make("td", spot(index, s), { "data-head": "sweet spot, output tokens" }), cell("law", p.law));
      return row;
    });
    fill(get("costs"), [["model"], ...shown.map((one) => [one[2], "number"]),
      [s.price > 0 ? "Wh per 1,000 output tokens, and cost per million" : "Wh per 1,000 output tokens", "number"],
      ...late.map((one) => [one[2], "number"]), ["sweet spot, output tokens"], ["law", "number"]], rows);
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

  const showInstead = (s, answer) => {
    if (answer.error) {
      fill(get("instead"), [["change"], ["J per request", "number"], ["compared with now"]], []);
      return "";
    }
    const signed = (x) => `${x < 0 ? "−" : ""}${number(Math.abs(x))}`;
    const found = changes(s.focus, s, [request(s.focus, s)]);
    const rows = found.map((one) => {
      const row = make("tr");
      row.append(make("th", one.words, { scope: "row" }));
      if (one.error) {
        row.append(make("td", one.error, { colspan: 2 }));
        return row;
      }
      const [mid, low, high] = one.saved.percent, [saved, least, most] = one.saved.joules.map(signed);
      const words = one.saved.joules[1] > 0 ? `saves ${signed(mid)} % [${signed(low)}, ${signed(high)}]`
        : one.saved.joules[2] < 0 ? `costs ${signed(-mid)} % more [${signed(-high)}, ${signed(-low)}]`
          : `no clear difference: saves ${saved} J [${least}, ${most}]`;
      row.append(cell("J per request", `${number(one.cost[0])} [${number(one.cost[1])}, ${number(one.cost[2])}]`));
      const said = `${words}${one.outside ? " (extrapolates)" : ""}` +
        (one.reuse ? `; pays off from the ${ordinal(one.reuse)} reply to the same prompt` : "");
      row.append(make("td", said, { "data-head": "compared with now" }));
      return row;
    });
    fill(get("instead"), [["change"], ["J per request", "number"], ["compared with now"]], rows);
    const best = found.filter((one) => !one.error && one.saved.joules[1] > 0).sort((a, b) => b.saved.joules[0] - a.saved.joules[0])[0];
    const [mid, low, high] = best ? best.saved.percent.map(number) : [];
    return best ? ` Of the changes under “Explore”, this one saves most: ${best.words}, ${mid} % [${low}, ${high}]` +
      `${best.outside ? " (extrapolates)" : ""}.` : " None of the changes under “Explore” clearly saves energy.";
  };

  /* --- the first screen in words ----------------------------------------------------------------------------------- */
  const told = (s, answers) => {
    const able = s.groups.map((index, i) => ({ index, p: answers[i] })).filter(({ p }) => !p.error);
    const asked = `${whole(s.n)} input and ${whole(s.m)} output tokens at batch ${whole(s.batch)}`;
    const source = (p) => `${p.source in SIMULATED ? "simulated" : p.source}${p.extrapolates.length ? ", extrapolated" : ""}`;
    if (!s.groups.length) return "Choose a model.";
    if (!able.length) return answers[s.groups.indexOf(s.focus)]?.error ?? answers[0].error;
    able.sort((a, b) => a.p.energy_per_request_j - b.p.energy_per_request_j);
    const [least, most] = [able[0], able.at(-1)], own = able.find(({ index }) => index === s.focus);
    const cost = ({ index, p }) => `${DATA.names[index]}, ${interval(p, "energy_per_request", "j")} J per request (${source(p)})`;
    if (able.length === 1) return `A request of ${asked} costs with ${cost(able[0])}.`;
    return `A request of ${asked} costs least with ${cost(least)}, most with ${cost(most)}: ` +
      `${number(most.p.energy_per_request_j / least.p.energy_per_request_j)} times as much.` +
      (own && own !== least && own !== most ? ` ${cost(own)}.` : "");
  };
  const showBounded = (s) => {
    const all = shown.settings(), [title, unit] = shown.LATENCY[s.latency];
    const rows = s.groups.map((index) => {
      const row = make("tr"), best = shown.cheapest(all.filter((p) => p.group === index), s.bound);
      row.append(swatch(index));
      if (best) {
        row.append(cell("batch", whole(best.batch)), cell("J per 1,000 output tokens", number(best.j)), cell(`${title}, ${unit}`, number(best.late)),
          cell("tokens/s", best.rate ? number(best.rate) : "–"), cell("tokens per J", number(best.per_joule)));
      } else row.append(make("td", all.some((p) => p.group === index) ? "no measured batch is as fast" : "no such latency is known", { colspan: 5 }));
      return { row, j: best ? best.j : Infinity };
    }).sort((a, b) => a.j - b.j);
    fill(get("bounded"), [["model"], ["batch", "number"], ["J per 1,000 output tokens", "number"], [`${title}, ${unit}`, "number"],
      ["tokens/s", "number"], ["tokens per J", "number"]], rows.map(({ row }) => row));
    const best = shown.cheapest(all, s.bound);
    get("bound-words").textContent = `${number(s.bound)} ${unit}`;
    get("bound").setAttribute("aria-valuetext", `${number(s.bound)} ${unit}`);
    get("under").textContent = best ? `Within ${number(s.bound)} ${unit} (${title}), the cheapest setting is ${best.words}.`
      : `No ticked model is that fast at ${whole(s.n)} input and ${whole(s.m)} output tokens.`;
  };

  /* --- what is shown ------------------------------------------------------------------------------------------------ */
  let latest = [];
  const shown = views({ DATA, CELLS, ask, attempt, number, whole, interval, perThousand, metric, state, answers: () => latest });
  const focusOn = (index) => {
    if (index === undefined || !form.elements[`model-${index}`]) return;
    form.elements[`model-${index}`].checked = true;
    get("focus").value = index;
    update();
  };
  const pick = (point) => focusOn(point.group);
  const charts = [
    new Chart("ranking", shown.ranking, pick),
    new Chart("map", shown.map, (point) => { get("input").value = point.input_tokens; get("output").value = point.output_tokens; update(); }),
    new Chart("reply", shown.reply, (point) => { get("output").value = point.x; update(); }),
    new Chart("prompt", shown.prompt, (point) => { get("input").value = point.x; update(); }),
    new Chart("batch", shown.batch, (point) => { get("batch").value = point.x; update(); }),
    new Chart("pareto", shown.pareto, pick),
    new Chart("throughput", shown.throughput, pick),
    ...["spots", "ratios", "residuals", "errors", "sensors"].map((name) => new Chart(name, shown[name])),
  ];
  let bounds = [1, 1];
  const fromBound = (place) => bounds[0] * (bounds[1] / bounds[0]) ** (place / 1000);
  let waiting = false;
  const update = () => {
    const s = state();
    if (!s.groups.includes(s.focus) && s.groups.length) {
      get("focus").value = s.groups[0];
      s.focus = s.groups[0];
    }
    for (const [name, value] of [["input", s.n], ["output", s.m]]) {
      const slide = get(`${name}-slide`);
      if (fromSlide(name, slide.value) !== value) slide.value = toSlide(name, Math.max(value, 1));
      slide.setAttribute("aria-valuetext", `${whole(value)} tokens`);
    }
    latest = s.groups.map((index) => attempt(() => ask(index, s)));
    const own = latest[s.groups.indexOf(s.focus)] ?? { error: "" };
    showCosts(s, latest);
    get("answer").textContent = told(s, latest) + (s.groups.length ? showInstead(s, own) : "");
    const unable = s.groups.filter((_, i) => latest[i].error);
    const why = new Map();
    for (const index of unable) {
      const said = latest[s.groups.indexOf(index)].error.replace(` of ${DATA.groups[index].model}`, "");
      why.set(said, [...(why.get(said) ?? []), DATA.names[index]]);
    }
    get("cannot").textContent = [...why].map(([said, names]) => `${names.join(", ")}: ${said}.`).join(" ");
    for (const name of document.querySelectorAll(".focus-name")) name.textContent = DATA.names[s.focus];
    get("spot").textContent = s.groups.length ? `${DATA.names[s.focus]} after a prompt of ${whole(s.n)} at batch ${whole(s.batch)}: ` +
      `${sentence(s, own)}.` : "";
    const late = shown.settings().map((p) => p.late);
    bounds = late.length ? [Math.min(...late), Math.max(...late)] : [1, 1];
    showBounded(state());
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => { // a slider moves more often than the screen is drawn
      waiting = false;
      for (const chart of charts) chart.update();
    });
  };

  /* --- wiring -------------------------------------------------------------------------------------------------- */
  DATA.names.forEach((name, index) => {
    const label = make("label"), box = make("input", undefined, { type: "checkbox", name: `model-${index}` });
    box.checked = true;
    label.append(box, make("span", "", { class: "swatch", style: `background:${DATA.looks[index].colour}` }), name);
    get("models").append(label);
    get("focus").append(make("option", name, { value: index }));
  });
  get("focus").value = DATA.asked.group;
  get("models-fold").hidden = DATA.names.length < 2;
  for (const law of Object.keys(DATA.laws)) {
    if (DATA.groups.some((g) => (g.laws[law] || []).some((fit) => !("skipped" in fit)))) get("law").append(make("option", law, { value: law }));
  }
  if (DATA.across.some(Boolean)) get("law").append(make("option", "across models", { value: ACROSS }));
  for (const [key, [title]] of Object.entries(shown.LATENCY)) get("latency").append(make("option", title, { value: key }));
  for (const [key, [title]] of Object.entries(shown.PLACES)) {
    if (CELLS.some((c) => (c[key] ?? null) !== null)) get("axis").append(make("option", title, { value: key }));
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
  for (const part of document.querySelectorAll(".live")) part.hidden = false;
  update();
  watch(charts);
});
