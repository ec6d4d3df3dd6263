/* What each chart of the page shows. `page` gives the data, the state of the controls and the predictions. */
function views({ DATA, CELLS, ask, attempt, number, whole, interval, perThousand, metric, state, answers }) {
  const SHAPES = { o: "circle", s: "square", "^": "triangle-up", D: "diamond", v: "triangle-down", P: "cross", X: "wedge" };
  const DASHES = { o: [1, 0], s: [8, 3], "^": [2, 3], D: [8, 3, 2, 3], v: [5, 2], P: [3, 1], X: [1, 2] };
  const names = DATA.names, J = "J per 1,000 output tokens";
  const scaleOf = (values) => ({ domain: names, range: values });
  const legend = (shown) => (shown.length > 1 ? { title: null, values: shown.map((i) => names[i]) } : null);
  const colour = (shown) => ({ field: "model", type: "nominal", legend: legend(shown),
    scale: scaleOf(DATA.looks.map((look) => look.colour)) });
  const shape = (shown) => ({ field: "model", type: "nominal", legend: legend(shown),
    scale: scaleOf(DATA.looks.map((look) => SHAPES[look.marker])) });
  const dash = (shown) => ({ field: "model", type: "nominal", legend: legend(shown), scale: scaleOf(DATA.looks.map((look) => DASHES[look.marker])) });
  /* A click on a name of the legend leaves that model alone in strong colour. */
  const PICKED = { name: "picked", select: { type: "point", fields: ["model"] }, bind: "legend" };
  const faded = (strong, weak = 0.07) => ({ condition: { param: "picked", value: strong }, value: weak });
  const picking = (shown) => (shown.length > 1 ? { params: [PICKED] } : {});
  const opacity = (shown, strong) => (shown.length > 1 ? faded(strong) : { value: strong });
  const data = (values) => ({ values });
  const nearest = (values, wanted) => values.reduce((best, one) => (
    Math.abs(Math.log(one / wanted)) < Math.abs(Math.log(best / wanted)) ? one : best));
  const steps = (from, to, count) => [...new Set(Array.from({ length: count },
    (_, i) => Math.max(1, Math.round(from * (to / from) ** (i / (count - 1))))))];
  const cellWords = (c) => `${names[c.group]}, batch ${whole(c.batch)}, ${whole(c.n)} tokens in, ${whole(c.m)} out`;

  /* --- the first screen -------------------------------------------------------------------------------------------- */
  function ranking() {
    const s = state(), narrow = innerWidth < 480;
    const points = answers().flatMap((p, i) => (p.error ? [] : [{ model: names[s.groups[i]], group: s.groups[i],
      j: perThousand(p), low: 1000 * p.energy_per_output_token_low_j, high: 1000 * p.energy_per_output_token_high_j,
      colour: DATA.looks[s.groups[i]].colour,
      label: narrow ? `${number(perThousand(p))} J` : metric(p).join(" · "), words: `${names[s.groups[i]]}: ${interval(p, "energy_per_output_token", "j", 1000)} J, ` +
        `${metric(p).slice(1).join(", ")} per 1,000 output tokens${p.extrapolates.length ? " (extrapolated)" : ""}` }]));
    if (!points.length) return { empty: "No model can answer this request." };
    points.sort((a, b) => a.j - b.j);
    const y = { field: "model", type: "nominal", sort: points.map((p) => p.model), title: null,
      axis: { labelLimit: narrow ? 130 : 190, grid: false, domain: false, ticks: false } };
    const most = Math.max(...points.map((p) => Math.min(p.high, 3 * p.j)));
    const x = { field: "j", type: "quantitative", title: J, scale: { domain: [0, most * 1.75], nice: false }, axis: { tickCount: 4, format: "~s" } };
    const focus = names[s.focus];
    return { points, x: "j", y: "model", rows: true, height: 27 * points.length + 50,
      label: `Models by ${J}, the cheapest first`,
      layer: [
        { data: data(points), mark: { type: "bar", height: 15, cornerRadiusEnd: 2, cursor: "pointer" }, encoding: { x, y,
          color: { field: "colour", type: "nominal", scale: null, legend: null },
          opacity: { condition: { test: { field: "model", equal: focus }, value: 1 }, value: 0.55 } } },
        { data: data(points), mark: { type: "rule", strokeWidth: 1.5, clip: true }, encoding: { x: { ...x, field: "low" }, x2: { field: "high" }, y } },
        { data: data(points), mark: { type: "text", align: "left", dx: 6, clip: false }, encoding: { y, text: { field: "label" },
          x: { ...x, field: "end" } }, transform: [{ calculate: `min(datum.high, ${most})`, as: "end" }] },
      ] };
  }

  function map() {
    const s = state(), group = DATA.groups[s.focus], own = CELLS.filter((c) => c.group === s.focus);
    const batch = nearest([...new Set(own.map((c) => c.batch))], s.batch), here = own.filter((c) => c.batch === batch);
    const missing = DATA.missing.filter(([index, size]) => index === s.focus && size === batch);
    const sorted = (values) => [...new Set(values)].sort((a, b) => a - b);
    const inputs = sorted([...here.map((c) => c.n), ...missing.map((c) => c[2])]);
    const outputs = sorted([...here.map((c) => c.m), ...missing.map((c) => c[3])]);
    const least = Math.min(...here.map((c) => c.j)), most = Math.max(...here.map((c) => c.j));
    const cell = (n, m) => ({ x: outputs.indexOf(m), y: inputs.indexOf(n), left: outputs.indexOf(m) - 0.5,
      right: outputs.indexOf(m) + 0.5, low: inputs.indexOf(n) - 0.5, high: inputs.indexOf(n) + 0.5 });
    const points = here.map((c) => {
      const rgb = heat(Math.log(c.j / least) / Math.log(Math.max(most / least, 2)));
      return { ...cell(c.n, c.m), input_tokens: c.n, output_tokens: c.m, j: 1000 * c.j, text: number(1000 * c.j).replaceAll(",", ""),
        colour: `rgb(${rgb})`, ink: readableOn(rgb), words: `${cellWords(c)}: ${number(1000 * c.j)} ${J}` +
          `${c.sd ? ` ± ${number(1000 * c.sd)} (SD of ${c.repetitions})` : ""}, ${number(c.j / least)} times the best cell` };
    });
    const lacking = missing.map(([, , n, m, why]) => ({ ...cell(n, m), input_tokens: n, output_tokens: m, words: `${whole(n)} tokens in, ${whole(m)} out: ${why}` }));
    const between = (values, wanted) => { // a place on an axis of measured lengths, by the logarithm
      const above = values.findIndex((value) => value >= wanted);
      if (above < 0) return values.length - 1;
      return above === 0 ? 0 : above - Math.log(values[above] / wanted) / Math.log(values[above] / values[above - 1]);
    };
    const ridge = group.sweet_spots.filter((spot) => spot.batch === batch && spot.status === "interior" && inputs.includes(spot.input_tokens))
      .sort((a, b) => a.input_tokens - b.input_tokens).map((spot) => ({ x: between(outputs, spot.output_tokens),
        y: inputs.indexOf(spot.input_tokens) - 0.3, words: `sweet spot after ${whole(spot.input_tokens)} tokens: ${whole(Math.round(spot.output_tokens))} tokens` }));
    const axis = (values, title, field) => ({ field, type: "quantitative", title, scale: { domain: [-0.5, values.length - 0.5], nice: false, zero: false },
      axis: { values: values.map((_, i) => i), labelExpr: `${JSON.stringify(values.map(String))}[round(datum.value)]`, grid: false, domain: false, ticks: false } });
    const x = axis(outputs, "output tokens", "left"), y = axis(inputs, "input tokens", "low");
    const size = Math.min(12, 560 / outputs.length / 4);
    return { points: [...points, ...lacking], x: "x", y: "y", height: Math.max(170, Math.min(330, 34 * inputs.length + 50)),
      label: `${names[s.focus]}, batch ${whole(batch)}: measured ${J} by input and output tokens; darkest: ` +
        `${number(most / least)} times the lightest${ridge.length ? "; line: sweet spot by the law" : ""}`,
      layer: [
        { data: data(points), mark: { type: "rect", stroke: "var(--paper)", strokeWidth: 1 }, encoding: { x, x2: { field: "right" }, y,
          y2: { field: "high" }, color: { field: "colour", type: "nominal", scale: null } } },
        { data: data(lacking), mark: { type: "text", text: "–", color: MUTED }, encoding: { x: { ...x, field: "x" }, y: { ...y, field: "y" } } },
        { data: data(ridge), mark: { type: "line", color: "#1976d2", strokeWidth: 1.5, strokeOpacity: 0.6, point: { shape: "diamond", size: 50, fill: "#1976d2", stroke: "#ffffff", strokeWidth: 1, opacity: 1 } },
          encoding: { x: { ...x, field: "x" }, y: { ...y, field: "y" } } },
        { data: data(points), mark: { type: "text", dy: -4, fontSize: size }, encoding: { x: { ...x, field: "x" }, y: { ...y, field: "y" },
          text: { field: "text" }, color: { field: "ink", type: "nominal", scale: null } } },
      ] };
  }

  /* --- explore ------------------------------------------------------------------------------------------------------ */
  const AXES = {
    m: { title: "output tokens", range: "output_tokens" },
    n: { title: "input tokens", range: "input_tokens" },
    batch: { title: "batch (requests in flight)", range: "batch" },
  };
  /* Energy against one of m, n and batch, the other two as asked: laws as lines, cells as points. */
  function curve(axis) {
    const s = state(), { title, range } = AXES[axis], groups = s.groups, first = DATA.groups[s.focus];
    const each = (ends, pick) => pick(...groups.map((i) => DATA.groups[i].measured_range[range][ends]));
    const [low, high] = [each(0, Math.min), each(1, Math.max)], beyond = axis === "batch" ? 1.25 : 1.5;
    const xs = steps(Math.max(1, Math.min(low / beyond, s[axis])), Math.max(high * beyond, s[axis]), 41);
    const wavesAt = (index, x) => attempt(() => ask(index, s, { [axis]: x })).waves;
    /* Both sides of each place where another wave begins, so that the jump is drawn as one. */
    const jumps = (index) => xs.slice(1).flatMap((to, i) => {
      let [before, after] = [xs[i], to];
      const waves = wavesAt(index, before);
      if (!(wavesAt(index, after) > waves)) return [];
      while (after - before > 1) {
        const middle = Math.floor((before + after) / 2);
        if (wavesAt(index, middle) > waves) after = middle; else before = middle;
      }
      return [before, after];
    });
    const lines = groups.flatMap((index) => [...new Set([...xs, ...jumps(index)])].sort((a, b) => a - b).flatMap((x) => {
      const p = attempt(() => ask(index, s, { [axis]: x }));
      return p.error ? [] : [{ model: names[index], group: index, x, j: perThousand(p), waves: p.waves,
        low: 1000 * p.energy_per_output_token_low_j, high: 1000 * p.energy_per_output_token_high_j,
        words: `${names[index]}, ${whole(x)} ${title}: ${interval(p, "energy_per_output_token", "j", 1000)} ${J}` +
          `${p.extrapolates.length ? " (extrapolated)" : ""}${p.waves > 1 ? `, in ${p.waves} waves` : ""}` }];
    }));
    const others = Object.keys(AXES).filter((other) => other !== axis);
    const dots = CELLS.filter((c) => groups.includes(c.group) && others.every((other) => c[other] === s[other]))
      .map((c) => ({ model: names[c.group], group: c.group, x: c[axis], j: 1000 * c.j, words: `measured: ${cellWords(c)}: ${number(1000 * c.j)} ${J}` }));
    const label = `${J} against ${title}, ${others.map((other) => `${whole(s[other])} ${AXES[other].title}`).join(", ")}`;
    if (!lines.length) return { empty: "No model can answer this request." };
    const own = lines.filter((p) => p.group === s.focus), full = own.findIndex((p, i) => i && p.waves > 1 && own[i - 1].waves === 1);
    const least = Math.min(...[...lines, ...dots].map((p) => p.j)), most = Math.max(...[...lines, ...dots].map((p) => p.j));
    const domain = [least / 1.25, most * 1.25];
    const x = lengths("x", title, xs), y = amounts("j", J, { scale: { domain, clamp: true } });
    const outside = [[xs[0], low], [high, xs.at(-1)]].filter(([a, b]) => b > a).map(([a, b]) => ({ a, b }));
    const marked = [{ x: s[axis], text: "asked", at: 2 }];
    if (full > 0) marked.push({ x: own[full].x, text: `KV cache full: ${own[full].waves} waves`, at: 17 });
    return { entries: groups.length, points: [...own, ...lines.filter((p) => p.group !== s.focus), ...dots], x: "x", y: "j", label,
      layer: [
        { data: data(lines), mark: { type: "line", strokeWidth: 2, clip: true }, ...picking(groups), encoding: { x, y, color: colour(groups), strokeDash: dash(groups), opacity: opacity(groups, 1) } },
        { data: data(outside), mark: { type: "rect", color: GRID, opacity: 0.4 }, encoding: { x: { ...x, field: "a" }, x2: { field: "b" } } },
        { data: data(own), mark: { type: "area", opacity: 0.18, clip: true, color: DATA.looks[s.focus].colour }, encoding: { x, y: { ...y, field: "low" }, y2: { field: "high" } } },
        { data: data(dots), mark: { type: "point", filled: true, size: 46, stroke: "var(--paper)", strokeWidth: 0.7 }, encoding: { x, y, color: colour(groups), shape: shape(groups), opacity: opacity(groups, 1) } },
        { data: data(marked), mark: { type: "rule", strokeDash: [3, 3], color: MUTED }, encoding: { x } },
        ...["left", "right"].map((align) => ({ data: data(marked.filter((one) => (one.x > Math.sqrt(xs[0] * xs.at(-1)) ? "right" : "left") === align)),
          mark: { type: "text", align, baseline: "top", dx: align === "left" ? 4 : -4, color: MUTED },
          encoding: { x, y: { field: "at", type: "quantitative", scale: null, axis: null }, text: { field: "text" } } })),
      ] };
  }

  /* --- compare ------------------------------------------------------------------------------------------------------ */
  const LATENCY = {
    request: ["whole request", "s", (p) => p.duration_s],
    ttft: ["time to first token, p95", "s", (p) => p.latency_s?.ttft_p95_s?.value],
    tpot: ["time per further token, p95", "ms", (p) => p.latency_s?.tpot_p95_s && 1000 * p.latency_s.tpot_p95_s.value],
  };
  /* Every ticked model at batches inside its measured range: energy, latency, throughput. */
  function settings() {
    const s = state(), [, unit, of] = LATENCY[s.latency];
    return s.groups.flatMap((index) => {
      const group = DATA.groups[index], [low, high] = group.measured_range.batch;
      const batches = [...new Set([...steps(low, high, 13), ...group.batches])].sort((a, b) => a - b);
      return batches.flatMap((batch) => {
        const p = attempt(() => ask(index, s, { batch })), late = p.error ? undefined : of(p);
        if (!(late > 0)) return [];
        const rate = p.duration_s ? batch * s.m / p.duration_s : null;
        return [{ model: names[index], group: index, batch, j: perThousand(p), late, rate, per_joule: 1 / p.energy_per_output_token_j,
          words: `${names[index]}, batch ${whole(batch)}: ${interval(p, "energy_per_output_token", "j", 1000)} J and ` +
            `${metric(p).slice(1).join(", ")} per 1,000 output tokens, ${number(late)} ${unit}` + (rate ? `, ${number(rate)} tokens/s` : "") }];
      });
    });
  }
  /* No other setting has both less energy and less latency. */
  const onFront = (all) => all.filter((p) => !all.some((q) => q.j <= p.j && q.late <= p.late && (q.j < p.j || q.late < p.late)));
  function pareto() {
    const s = state(), [title, unit] = LATENCY[s.latency], all = settings();
    if (!all.length) return { empty: "The rows have no such latency, so there is nothing to draw." };
    const front = onFront(all), best = cheapest(all, s.bound);
    const x = amounts("late", `${title}, ${unit}`), y = amounts("j", J);
    for (const p of all) Object.assign(p, { front: front.includes(p), over: p.late > s.bound });
    const strong = { condition: [{ test: "datum.over", value: 0.25 }], value: 1 };
    return { entries: s.groups.length, points: all, x: "late", y: "j", height: 300,
      label: `${J} against ${title} over batches; filled points: no other setting needs less of both`,
      layer: [
        { data: data(all), mark: { type: "line", strokeWidth: 1.2 }, ...picking(s.groups), encoding: { x, y, order: { field: "batch" }, color: colour(s.groups), opacity: opacity(s.groups, 0.5) } },
        { data: data(all.filter((p) => !p.front)), mark: { type: "point", size: 34, fill: "var(--paper)", strokeWidth: 1.4 }, encoding: { x, y, color: colour(s.groups), shape: shape(s.groups), opacity: strong } },
        { data: data(all.filter((p) => p.front)), mark: { type: "point", filled: true, size: 64 }, encoding: { x, y, color: colour(s.groups), shape: shape(s.groups), opacity: strong } },
        { data: data([...front].sort((a, b) => a.late - b.late)), mark: { type: "line", interpolate: "step-after", strokeDash: [2, 3], color: INK, strokeWidth: 1 }, encoding: { x, y } },
        { data: data([{ late: s.bound, text: "your bound" }]), mark: { type: "rule", color: ALARM, strokeWidth: 1.5 }, encoding: { x } },
        { data: data([{ late: s.bound, text: "your bound" }]), mark: { type: "text", color: ALARM, align: "right", baseline: "top", dx: -4, y: 2 }, encoding: { x, text: { field: "text" } } },
        { data: data(best ? [{ ...best, text: `${best.model}, batch ${whole(best.batch)}` }] : []), mark: { type: "point", size: 260, color: ALARM, strokeWidth: 2.5 }, encoding: { x, y } },
      ] };
  }
  const cheapest = (all, bound) => all.filter((p) => p.late <= bound).reduce((best, p) => (!best || p.j < best.j ? p : best), null);
  function throughput() {
    const s = state(), all = settings().filter((p) => p.rate);
    if (!all.length) return { empty: "The rows have no durations, so there is nothing to draw." };
    const x = amounts("rate", "output tokens per second, all requests together"), y = amounts("per_joule", "tokens per joule (tokens/s per W)");
    return { entries: s.groups.length, points: all, x: "rate", y: "per_joule", height: 300, label: "Throughput per watt against throughput, over batches",
      layer: [
        { data: data(all), mark: { type: "line", strokeWidth: 1.2 }, ...picking(s.groups), encoding: { x, y, order: { field: "batch" }, color: colour(s.groups), opacity: opacity(s.groups, 0.6) } },
        { data: data(all), mark: { type: "point", filled: true, size: 40 }, encoding: { x, y, color: colour(s.groups), shape: shape(s.groups), opacity: opacity(s.groups, 1) } },
      ] };
  }
  function spots() {
    const s = state(), interior = s.groups.flatMap((index) => DATA.groups[index].sweet_spots.map((spot) => ({ ...spot, index })))
      .filter((spot) => spot.status === "interior");
    if (!interior.length) return { empty: "No ticked model has a sweet spot inside its measured replies." };
    const batch = nearest([...new Set(interior.map((spot) => spot.batch))], s.batch);
    const points = interior.filter((spot) => spot.batch === batch).map((spot) => {
      const [low, high] = DATA.groups[spot.index].measured_range.output_tokens;
      const ends = [spot.output_tokens_low ?? low, spot.output_tokens_high ?? high];
      return { model: names[spot.index], x: spot.input_tokens, m: spot.output_tokens, low: Math.max(ends[0], low / 2), high: Math.min(ends[1], high * 2),
        words: `${names[spot.index]}, batch ${whole(batch)}, prompt of ${whole(spot.input_tokens)}: ${whole(Math.round(spot.output_tokens))} tokens ` +
          `[${spot.output_tokens_low === null ? "unbounded" : whole(Math.round(ends[0]))}, ${spot.output_tokens_high === null ? "unbounded" : whole(Math.round(ends[1]))}]` };
    });
    const x = lengths("x", "input tokens", interior.map((spot) => spot.input_tokens)), y = amounts("m", "m*, output tokens");
    return { entries: s.groups.length, points, x: "x", y: "m", label: `Sweet spot against prompt length, batch ${whole(batch)}, with 95 % sets`,
      layer: [
        { data: data(points), mark: { type: "line", strokeWidth: 1.5 }, ...picking(s.groups), encoding: { x, y, color: colour(s.groups), strokeDash: dash(s.groups), opacity: opacity(s.groups, 1) } },
        { data: data(points), mark: { type: "rule", strokeWidth: 1 }, encoding: { x, y: { ...y, field: "low" }, y2: { field: "high" }, color: colour(s.groups), opacity: opacity(s.groups, 0.5) } },
        { data: data(points), mark: { type: "point", filled: true, size: 50 }, encoding: { x, y, color: colour(s.groups), shape: shape(s.groups), opacity: opacity(s.groups, 1) } },
      ] };
  }
  function ratios() {
    const s = state(), rows = DATA.ratios.filter((row) => s.groups.includes(row.group));
    if (!rows.length) return { empty: "Choose a model." };
    const worst = (index) => Math.max(...rows.filter((row) => row.group === index).map((row) => row.ratio));
    const order = [...new Set(rows.map((row) => row.group))].sort((a, b) => worst(b) - worst(a));
    const points = rows.map((row) => ({ ...row, model: names[row.group], words: `${names[row.group]}, batch ${whole(row.batch)}: ` +
      `worst ${number(1000 * row.worst)} (${whole(row.worst_input_tokens)} in, ${whole(row.worst_output_tokens)} out), best ${number(1000 * row.best)} ` +
      `(${whole(row.best_input_tokens)} in, ${whole(row.best_output_tokens)} out) ${J}: factor ${number(row.ratio)}` }));
    const batches = [...new Set(rows.map((row) => row.batch))].sort((a, b) => a - b);
    const x = amounts("ratio", "worst / best energy per output token", { scale: { domainMin: 1 } });
    const y = { field: "model", type: "nominal", title: null, sort: order.map((i) => names[i]), axis: { grid: false, domain: false, ticks: false, labelLimit: 190 } };
    return { points, x: "ratio", y: "model", rows: true, height: 24 * order.length + 90, label: "Worst over best measured cell, by model and batch",
      layer: [
        { data: data(points), mark: { type: "point", filled: true, size: 70 }, encoding: { x, y,
          color: { field: "batch", type: "ordinal", title: "batch", sort: batches, scale: { range: batches.map((_, i) => `rgb(${heat(0.25 + 0.6 * i / Math.max(batches.length - 1, 1))})`) } } } },
      ] };
  }

  /* --- accuracy ----------------------------------------------------------------------------------------------------- */
  const PLACES = { j: ["measured J per 1,000 output tokens", 1000], n: ["input tokens", 1], m: ["output tokens", 1], batch: ["batch", 1],
    temperature_c: ["GPU temperature, °C", 1], time_s: ["time in the session, s", 1] };
  /* Held-out error of every cell, against what might explain it. */
  function residuals() {
    const s = state(), [title, factor] = PLACES[s.axis];
    const cells = CELLS.filter((c) => s.groups.includes(c.group) && c.predicted > 0 && (c[s.axis] ?? null) !== null);
    if (!cells.length) return { empty: "No cell was held out." };
    const points = cells.map((c) => ({ model: names[c.group], at: factor * c[s.axis], error: 100 * (c.predicted / c.j - 1),
      words: `${cellWords(c)}: predicted ${number(1000 * c.predicted)}, measured ${number(1000 * c.j)} ${J}, ${number(100 * (c.predicted / c.j - 1))} %` }));
    const sizes = points.map((p) => Math.abs(p.error)).sort((a, b) => a - b);
    const reach = sizes[Math.min(Math.ceil(0.95 * sizes.length), sizes.length) - 1];
    const x = ["temperature_c", "time_s"].includes(s.axis) ? { field: "at", type: "quantitative", title, scale: { zero: false } }
      : s.axis === "j" ? amounts("at", title) : lengths("at", title, points.map((p) => p.at));
    const y = { field: "error", type: "quantitative", title: "predicted / measured − 1, %" };
    const mean = sizes.reduce((a, b) => a + b, 0) / sizes.length;
    return { entries: s.groups.length, points, x: "at", y: "error", height: 280,
      label: `Held-out error of ${whole(points.length)} cells against ${title}; MAPE ${number(mean)} %; shaded: 95 % of the cells`,
      layer: [
        { data: data(points), mark: { type: "point", filled: true, size: 26 }, ...picking(s.groups), encoding: { x, y, color: colour(s.groups), shape: shape(s.groups), opacity: opacity(s.groups, 0.65) } },
        { data: data([{ low: -reach, high: reach }]), mark: { type: "rect", color: GRID, opacity: 0.35 }, encoding: { y: { ...y, field: "low" }, y2: { field: "high" } } },
        { data: data([{ error: 0 }]), mark: { type: "rule" }, encoding: { y } },
      ] };
  }
  function errors() {
    const s = state(), rows = DATA.errors.filter((row) => s.groups.includes(row.group));
    if (!rows.length) return { empty: "Choose a model." };
    const schemes = [...new Set(rows.map((row) => row.scheme))], said = (scheme) => (scheme === "in-sample" ? scheme : `held-out: ${scheme}`);
    const laws = [...new Set(rows.map((row) => row.law))];
    const points = rows.map((row) => ({ ...row, model: names[row.group], mape: Math.max(row.mape, 0.001), said: said(row.scheme),
      words: `${names[row.group]}, law ${row.law}, ${said(row.scheme)}: MAPE ${number(row.mape)} %` }));
    const means = laws.flatMap((law) => schemes.flatMap((scheme) => {
      const own = points.filter((p) => p.law === law && p.scheme === scheme);
      const mape = own.reduce((total, p) => total + p.mape, 0) / own.length;
      return own.length ? [{ law, said: said(scheme), mape, models: own.length, text: number(mape),
        words: `law ${law}, ${said(scheme)}: MAPE ${number(mape)} %, mean of ${own.length} models` }] : [];
    }));
    const order = schemes.map(said);
    const x = amounts("mape", "MAPE, %"), y = { field: "law", type: "nominal", title: null, sort: laws, axis: { grid: true, domain: false, ticks: false } };
    const place = { field: "said", type: "nominal", sort: order };
    const hue = { ...place, legend: { title: null }, scale: { domain: order, range: ["#8a929b", "#0072b2", "#d55e00", "#009e73", "#c56a9d", "#96741a"] } };
    return { points: means, x: "mape", y: "law", rows: true, wide: 250, entries: schemes.length, height: (8 + 8 * schemes.length) * laws.length + 50,
      label: "MAPE by law and scheme; ticks: mean over the ticked models, dots: each model; dotted: 1.79 %, the paper's mean over its 13 models",
      layer: [
        { data: data(points), mark: { type: "circle", size: 16 }, encoding: { x, y, yOffset: place, color: hue, opacity: { value: 0.55 } } },
        { data: data(means), mark: { type: "tick", thickness: 3, size: 9 }, encoding: { x, y, yOffset: place, color: hue } },
        { data: data([{ mape: 1.79 }]), mark: { type: "rule", strokeDash: [2, 3] }, encoding: { x } },
      ] };
  }
  function sensors() {
    const rows = DATA.sensors;
    if (!rows.length) return { empty: "The rows hold one energy sensor only." };
    const points = rows.map((row) => ({ ...row, words: `${row.sensor}: ${whole(row.rows)} rows between ${number(row.low)} and ${number(row.high)} % of the counter` }));
    const x = { field: "middle", type: "quantitative", title: "integrated power / energy counter − 1, %", scale: { zero: false } };
    const y = { field: "rows", type: "quantitative", title: "rows", stack: null, scale: { type: "symlog" } };
    return { points, x: "middle", y: "rows", wide: 250, label: "Integrated power against the energy counter: how many rows differ by how much",
      layer: [
        { data: data(points), mark: { type: "bar", opacity: 0.6 }, encoding: { x: { ...x, field: "low" }, x2: { field: "high" }, y,
          color: { field: "sensor", type: "nominal", legend: { title: null }, scale: { range: ["#0072b2", "#d98a1f"] } } } },
        { data: data([-1, 1].map((sign) => ({ middle: sign * DATA.tolerance_percent }))), mark: { type: "rule", strokeDash: [3, 3] }, encoding: { x } },
      ] };
  }
  return { LATENCY, PLACES, settings, cheapest, nearest, ranking, map, reply: () => curve("m"), prompt: () => curve("n"), batch: () => curve("batch"),
    pareto, throughput, spots, ratios, residuals, errors, sensors };
}
