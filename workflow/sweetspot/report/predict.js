/* The library's predictions, sweet spots and savings in JavaScript, for the page. They must equal those of `sweetspot
   predict` and `sweetspot advise`: tests/report/test_page_explorer.py compares them in a real browser. The laws and
   their terms come as data from predictor.json; a new step of a prediction must be added here too. */
"use strict";

const ROUTINGS = { // the share of experts that a batch activates, from the share that one token activates
  even: (share, batch) => 1 - (1 - share) ** batch,
  skewed: (share, batch) => (batch * share) / (1 + (batch - 1) * share),
  "even^2": (share, batch) => (1 - (1 - share) ** batch) ** 2,
};

const NEXT_TO_NOTHING = 0.05, OVER_CAP = 1.05, UNDER_IDLE = 0.95; // as in predictor.py and prediction.py
const NORMAL_95 = 1.9599639845400536; // as in intervals.py
const UNKNOWN = 0.95; // relative half-width of an interval from which on a request is refused, as in predictor.py
const PLATEAU = 0.01, STEPS = 481, REACH = 64, OCTAVES = [-20, 40], HALVINGS = 60; // as in sweet_spots.py
const SIMULATED = { // as in vocabulary.py
  "simulated": "SIMULATED",
  "simulated-kernels": "SIMULATED (kernel times measured by NVIDIA, power modelled)",
};
const simulated = (source) => // as in predictor.py and prediction.py
  source in SIMULATED ? [`${SIMULATED[source]}: fitted to a simulated GPU, not to measurements`] : [];

const sum = (numbers) => numbers.reduce((total, one) => total + one, 0);

/* The factor of a term's coefficient: the sum of c n^a m^b, scaled for `requests` in flight; and its derivative with
   respect to m, times m. As in laws.py. */
const fullOf = (term, n, m, requests) => (term.saturates_at ? (requests * (n + m / 2) / term.saturates_at) ** 4 : 0);
const scaleOf = (term, n, m, requests, share) => (term.routing ? ROUTINGS[term.routing](share, requests) : 1)
  / requests ** term.batch_power / (1 + fullOf(term, n, m, requests)) ** 0.25;
const termValue = (term, n, m, requests, share) =>
  sum(term.parts.map(([c, a, b]) => c * n ** a * m ** b)) * scaleOf(term, n, m, requests, share);
function termSlope(term, n, m, requests, share) {
  const full = fullOf(term, n, m, requests), falls = full / (1 + full) * m / (2 * n + m);
  return sum(term.parts.map(([c, a, b]) => (b - falls) * c * n ** a * m ** b)) * scaleOf(term, n, m, requests, share);
}

/* The share of a mixture's experts that one token activates; 1 for a dense model. */
const shareOf = (group) => (group.experts ? group.experts.per_token / group.experts.experts : 1);

/* Number of waves, inferred from the lengths at which the KV cache was full: most, likely and fewest. */
function wavesOf(group, total, batch) {
  if (!group.kv_capacity.length) return [1, 1, 1];
  const points = group.kv_capacity.map((full) => [full.total_tokens, full.tokens]);
  const after = points.find(([tokens]) => tokens > total) ?? points.at(-1);
  const before = points.findLast(([tokens]) => tokens <= total) ?? after;
  const share = after[0] > before[0] ? (total - before[0]) / (after[0] - before[0]) : 0;
  const [least, likely, below] = before[1].map((x, i) => x + (after[1][i] - x) * share);
  return [Math.trunc(least / total), Math.trunc(likely / total), Math.ceil(below / total) - 1].map(
    (together) => Math.ceil(batch / Math.max(1, together)));
}

/* Rounds as Python's format does: halves to even. */
function rounded(x) {
  const near = Math.round(x);
  return Math.abs(x % 1) === 0.5 && near % 2 ? near - 1 : near;
}

const octaves = (value, [low, high]) => Math.max(0, Math.log2(low / value), Math.log2(value / high));

function checkRequest(n, m, batch, limit) {
  for (const [name, value] of [["input_tokens", n], ["output_tokens", m], ["batch", batch]]) {
    if (!(value > 0 && value < 2 ** 31) || value !== Math.floor(value)) {
      throw new Error(`${name} is ${value}: give a whole number of at least 1`);
    }
  }
  if (limit && n + m > limit.tokens) {
    throw new Error(`a request of ${n} + ${m} tokens cannot run: more than ${limit.tokens} exceed ${limit.because}`);
  }
}

/* The fit that covers `batch`: of the requested law, or else of the law for every batch. */
function fitFor(group, batch, law, warnings) {
  for (const name of new Set([law, group.law_any_batch])) {
    for (const fit of group.laws[name] || []) {
      if (!("skipped" in fit) && ((name === law && fit.batch === batch) || fit.batch === null)) {
        if (!group.batches.includes(batch)) {
          warnings.push(`batch ${batch} was not measured: predicted by ${name} from ${group.batches.join(", ")}`);
        } else if (name !== law) {
          warnings.push(`${law} was not fitted for batch ${batch}: predicted by ${name}`);
        }
        return fit;
      }
    }
  }
  throw new Error(`${group.model}: nothing fitted for batch ${batch}; measured: ${group.batches.join(", ")} ` +
    "(a batch between them needs a law fitted to two batches or more)");
}

/* A warning if energy and duration contradict each other. */
function impossible(power, idle, cap) {
  if (power && cap && power > cap * OVER_CAP) {
    return [`energy over duration is ${rounded(power)} W, above the board's power cap of ${rounded(cap)} W`];
  }
  if (power && idle && power < idle * UNDER_IDLE) {
    return [`energy over duration is ${rounded(power)} W, below the board's idle power of ${rounded(idle)} W`];
  }
  return [];
}

/* The fields of prediction.Prediction from energy and duration of a batch run, each [value, low, high]. */
function prediction(origin, [n, m, batch], energy, duration, [idle, cap], single, rest) {
  const power = duration ? energy[0] / duration[0] : null;
  const triple = (name, unit, numbers) => ({
    [`${name}_${unit}`]: numbers[0], [`${name}_low_${unit}`]: numbers[1], [`${name}_high_${unit}`]: numbers[2] });
  return {
    model: origin.model, gpu: origin.gpu, engine: origin.engine, precision: origin.precision,
    parallelism: origin.parallelism, source: origin.source,
    input_tokens: n, output_tokens: m, batch,
    ...triple("energy_per_request", "j", energy.map((x) => x / batch)),
    energy_per_request_single_low_j: single[1] / batch, energy_per_request_single_high_j: single[2] / batch,
    ...triple("energy_per_output_token", "j", energy.map((x) => x / batch / m)),
    energy_batch_j: energy[0], ...triple("duration", "s", duration ?? [null, null, null]), power_w: power, ...rest,
    warnings: [...rest.warnings, ...impossible(power, idle, cap)],
  };
}

const around = (value, half) => [value, Math.max(value * (1 - half), 0), value * (1 + half)];

/* As in intervals.py: relative standard deviation of cells about the law, for a batch run of `size` (J or s). */
const scatterAt = (fit, size) => fit.relative_residual_sd * (fit.residual_size / size) ** fit.residual_power;

/* Relative half-width for the scatter of cells about a law and for its coefficients, at so many output tokens. */
function scatterOf(fit, terms, features, value, tokens) {
  const kept = terms.filter((term) => term.name in fit.terms).map((term) => term.name);
  const coefficients = sum(kept.map((a, i) => sum(kept.map((b, j) => features[a] * features[b] * fit.covariance[i][j]))));
  return fit.t_quantile_95 * fit.interval_scale *
    Math.sqrt(scatterAt(fit, value * tokens) ** 2 + Math.max(coefficients, 0) / value ** 2);
}

/* Energy of one request among `batch` equal ones. `group` is one of predictor.json's groups, `laws` its laws, `law` a
   law other than the chosen one (or nothing). Returns the fields of prediction.Prediction; throws an Error with the
   library's message where the library raises SweetspotError. */
function predict(group, laws, { input_tokens: n, output_tokens: m, batch, law: wanted }) {
  checkRequest(n, m, batch, group.limit);
  const warnings = [], chosen = wanted || group.law;
  if (!chosen) throw new Error(`${group.model}: ${group.chosen_because}`);
  const fit = fitFor(group, batch, chosen, warnings);
  warnings.push(...simulated(group.source));

  const [most, waves, fewest] = wavesOf(group, n + m, batch), together = batch / waves;
  if (waves > 1) warnings.push(`the KV cache cannot hold ${batch} such requests at once: they run in ${waves} waves`);
  const share = shareOf(group), terms = laws[fit.law].terms;
  const featuresOf = (requests) => Object.fromEntries(terms.map(
    (term) => [term.name, termValue(term, n, m, requests, share)]));
  const features = featuresOf(together);
  const kept = terms.filter((term) => term.name in fit.terms).map((term) => term.name);

  const outside = {};
  const asked = { input_tokens: n, output_tokens: m, batch, total_tokens: n + m, tokens_in_flight: together * (n + m) };
  for (const [name, value] of Object.entries(asked)) {
    const [low, high] = group.measured_range[name];
    if (value < low || value > high) {
      const measured = low === high ? low : `${low}-${high}`;
      outside[name] = `${name} ${rounded(value)} is ${value < low ? "below" : "above"} the measured ${measured}`;
    }
  }
  if ("input_tokens" in outside || "output_tokens" in outside) delete outside.total_tokens; // adds nothing
  if (["input_tokens", "output_tokens", "batch", "total_tokens"].some((name) => name in outside)) {
    delete outside.tokens_in_flight;
  }
  const range = group.measured_range;
  const place = Object.entries({ batch, input_tokens: n, output_tokens: m }).map(
    ([name, value]) => Math.min(Math.max(value, range[name][0]), range[name][1]));
  const lacks = [[1, "largest"], [-1, "smallest"]].map(([sign, corners]) => {
    const cells = group.measured_corners[corners];
    return cells.length ? Math.min(...cells.map(
      (cell) => Math.max(...place.map((value, i) => sign * Math.log2(value / cell[i]))))) : 0;
  });
  const gap = Math.max(...lacks) > 1 ? Math.max(...lacks) : 0;
  if (gap && !Object.keys(outside).length) {
    outside.cells = `no cell combines such lengths and batch: the nearest is a factor of ${rounded(2 ** gap)} away`;
  }
  const extrapolates = Object.values(outside);

  const energy = kept.reduce((sum, name) => sum + fit.terms[name].value * features[name], 0);
  if (!(energy > 0)) {
    throw new Error(`${fit.law} gives no positive energy here (${extrapolates.join("; ") || "inside its range"}); ` +
      "ask for a request closer to the measured cells");
  }
  const silent = terms.filter((term) => fit.terms[term.name].from_prior).map(
    (term) => ({ name: term.name, share: fit.terms[term.name].value * features[term.name] / energy }));
  const likely = sum(silent.map(({ share }) => share));
  if (likely >= NEXT_TO_NOTHING) {
    const names = silent.filter(({ share: part }) => part > 0).map(({ name }) => name).join(", ");
    warnings.push(`${rounded(100 * likely)}% of the energy (${names}) is not determined by the cells: ` +
      "it is what such GPUs make likely");
  }
  const beyond = Math.max(octaves(n, range.input_tokens), octaves(m, range.output_tokens)) + gap;
  const apartBy = Math.min(...range.requests_in_flight.map((known) => Math.abs(Math.log2(together / known))));
  const distanceOf = (its) => NORMAL_95 * Math.hypot(its.relative_error_per_octave.lengths * beyond,
    its.relative_error_per_octave.batch * apartBy);
  const parts = { law: scatterOf(fit, terms, features, energy, m * batch), distance: distanceOf(fit) };
  if (group.sensor_gain !== null) parts.sensor_gain = group.sensor_gain;
  let half = Math.hypot(...Object.values(parts));
  const apart = (valueOf) => { // relative difference with another number of waves
    const perToken = (its) => kept.reduce((sum, name) => sum + valueOf(name) * its[name], 0);
    return Math.max(...[fewest, most].map(
      (number) => Math.abs(perToken(featuresOf(batch / number)) / perToken(features) - 1)));
  };
  if (fewest < most) { // then the interval also covers the energy with the other number
    const away = apart((name) => fit.terms[name].value);
    parts.waves = Math.sqrt(away * (away + 2 * half));
    half += away;
    extrapolates.push(`the measured cells do not determine this batch's number of waves: ${fewest} to ${most}`);
  }
  if (half >= UNKNOWN) {
    throw new Error(`${group.model}: the measured cells do not determine the energy of ${n} + ${m} tokens at batch ` +
      `${batch} (its interval is ±${rounded(100 * half)}%); measure cells closer to it`);
  }
  let duration = null;
  if (fit.duration) {
    const perToken = kept.reduce((total, name) => total + (fit.duration.terms[name] || 0) * features[name], 0);
    if (perToken > 0) duration = perToken * m * batch;
  }
  let late = fit.duration ? Math.hypot(
    fit.duration.t_quantile_95 * scatterAt(fit.duration, duration ?? 1) * fit.interval_scale, parts.distance) : 0;
  if (duration) late += apart((name) => fit.duration.terms[name] || 0);
  const again = group.repetition, all = energy * m * batch;
  const single = again ? Math.hypot(half, again.t_quantile_95 * scatterAt(again, all)) : half;
  return prediction(group, [n, m, batch], around(all, half), duration && around(duration, late),
    [group.idle_w, group.power_cap_w], around(all, single),
    { law: fit.law, cells: group.cells ?? 0, waves, interval_parts: parts, extrapolates, warnings,
      latency_s: latencies(group, laws, n, m, batch, together, [fewest, most].map((number) => batch / number), distanceOf) });
}

/* The latencies of a request, as in latency.py: {name: {value, low, high}} in s. */
function latencies(group, laws, n, m, batch, requests, ends, distanceOf) {
  const found = {};
  for (const [name, fit] of Object.entries(group.latency ?? {})) {
    const terms = laws[fit.law].terms, pass = fit.pass_tokens;
    const featuresOf = (together) => {
      const whole = together * n;
      const seen = pass === null ? n
        : (fit.share === null ? (whole + Math.min(whole, pass)) / 2 : Math.min(whole, fit.share * whole + pass / 2)) / together;
      return Object.fromEntries(terms.map((term) => [term.name, termValue(term, seen, m, together, 1)]));
    };
    const lawOf = (features) => sum(terms.map(({ name: term }) => (fit.terms[term]?.value ?? 0) * features[term]));
    const seconds = (together) => lawOf(featuresOf(together)) * together * (fit.law === "ttft" ? m : 1);
    const features = featuresOf(requests), value = lawOf(features);
    if (value <= 0 || (fit.law === "tpot" && m === 1)) continue;
    const half = Math.hypot(scatterOf(fit, terms, features, value, batch * m), distanceOf(fit));
    const apart = Math.max(...ends.map((other) => Math.abs(seconds(other) / seconds(requests) - 1)));
    const [middle, low, high] = around(seconds(requests), half + apart);
    found[name] = { value: middle, low, high };
  }
  return found;
}

/* The sweet spot after a prompt of n tokens, as predictor.sweet_spot finds it: {status} and, if there is one,
   output_tokens, plateau_low, plateau_high, energy_per_output_token_j. */
function sweetSpot(group, laws, n, batch, wanted) {
  const chosen = wanted || group.law, none = (status) => ({ status });
  if (chosen === group.law) {
    const distance = (spot) => [Math.abs(Math.log(spot.batch / batch)), Math.abs(Math.log(spot.input_tokens / n))];
    const nearer = (one, other) => {
      const [a, b] = [distance(one), distance(other)];
      return a[0] < b[0] || (a[0] === b[0] && a[1] < b[1]);
    };
    const nearest = group.sweet_spots.reduce((best, one) => (!best || nearer(one, best) ? one : best), null);
    if (!nearest || nearest.status === "not identified") return none("not identified");
  } else if (!laws[chosen].terms.some((term) => term.parts.some(([, , b]) => b > 0))) return none("not identified");
  const fit = fitFor(group, batch, chosen, []), share = shareOf(group);
  const [low, high] = group.measured_range.output_tokens;
  const total = (of, m, requests) => sum(laws[fit.law].terms.map(
    (term) => (fit.terms[term.name]?.value ?? 0) * of(term, n, m, requests, share)));
  const energyAt = (m, requests = batch) => total(termValue, m, requests), slope = (m) => total(termSlope, m, batch);
  if (group.kv_capacity.length) {
    const replies = [...new Set(Array.from({ length: STEPS },
      (_, i) => Math.floor(low * (high / low) ** (i / (STEPS - 1)) + 0.5)))];
    const together = replies.map((m) => batch / wavesOf(group, n + m, batch)[1]);
    if (Math.min(...together) < batch) {
      const energies = replies.map((m, i) => energyAt(m, together[i]));
      const best = energies.indexOf(Math.min(...energies)), most = (1 + PLATEAU) * energies[best];
      if (best === 0 || best === replies.length - 1) return none("no interior minimum");
      let first = best, last = best;
      while (first > 0 && energies[first - 1] <= most) first--;
      while (last < replies.length - 1 && energies[last + 1] <= most) last++;
      return { status: "interior", output_tokens: replies[best], plateau_low: replies[first],
        plateau_high: replies[last], energy_per_output_token_j: energies[best] };
    }
  }
  const halve = (from, to, isBefore) => { // bisects for where isBefore turns false, between `from` and `to`
    let [inside, outside] = [from, to];
    for (let i = 0; i < HALVINGS; i++) {
      const middle = (inside + outside) / 2;
      if (isBefore(middle)) inside = middle; else outside = middle;
    }
    return [inside, outside];
  };
  let spot = null;
  for (let octave = OCTAVES[0]; octave <= OCTAVES[1] && spot === null; octave++) {
    const [from, to] = [2 ** octave, 2 ** (octave + 1)];
    if (slope(from) < 0 && slope(to) >= 0) spot = sum(halve(from, to, (m) => slope(m) < 0)) / 2;
  }
  if (spot === null) return none("no interior minimum");
  const least = energyAt(spot), isFlat = (m) => energyAt(m) <= (1 + PLATEAU) * least;
  const edge = (outside) => (isFlat(outside) ? outside : halve(spot, outside, isFlat)[0]);
  return { status: low <= spot && spot <= high ? "interior" : "outside measured range", output_tokens: spot,
    plateau_low: edge(Math.max(1, spot / REACH)), plateau_high: edge(spot * REACH), energy_per_output_token_j: least };
}

/* --- what a change of requests saves, as in costs.py ------------------------------------------------------------- */
const gainOf = (p) => (p.interval_parts.sensor_gain ?? 0) * p.energy_per_request_j;
/* Half-widths without the sensors' gain, common to all requests; those of negative weight belong to the other side. */
const ownOf = (requests) => sum(requests.map(({ weight, p }) => Math.max(weight, 0) * Math.sqrt(Math.max(
  (p.energy_per_request_high_j - p.energy_per_request_j) ** 2 - gainOf(p) ** 2, 0))));
const totalOf = (requests, of) => sum(requests.map(({ weight, p }) => weight * of(p)));

/* The cost of consecutive requests, in J: [value, low, high]. A request is {key, weight, p}. */
function costOf(requests) {
  const value = totalOf(requests, (p) => p.energy_per_request_j);
  const half = Math.hypot(ownOf(requests), totalOf(requests, gainOf));
  return [value, Math.max(value - half, 0), value + half];
}

/* What `then` saves over `now`: {joules, percent}, each [value, low, high]. What both share cancels. */
function savingOf(now, then) {
  const less = (some, others) => some.map(({ key, weight, p }) => ({
    key, p, weight: weight - sum(others.filter((other) => other.key === key).map((other) => other.weight)) }));
  const [ownBefore, ownAfter] = [ownOf(less(now, then)), ownOf(less(then, now))];
  const [before, , most] = costOf(now), after = costOf(then)[0];
  const saved = before - after, ratio = after / before, shared = ownOf(now) - ownBefore;
  const half = Math.hypot(ownBefore, ownAfter, totalOf(now, gainOf) - totalOf(then, gainOf));
  const relative = Math.hypot(ownBefore * ratio, ownAfter, shared * (1 - ratio)) / before;
  return { joules: [saved, saved - half, Math.min(saved + half, most)],
    percent: [1 - ratio, 1 - ratio - relative, Math.min(1 - ratio + relative, 1)].map((x) => 100 * x) };
}

/* --- the law across models, as in across_models.py --------------------------------------------------------------- */
/* How much of each priced quantity one batch run needs, in the order of across_models.TERMS. */
function priced(a, sizes, n, m, batch, waves, parallelism) {
  const product = (matrices) => sum(matrices.map(([inputs, outputs]) => inputs * outputs));
  const layers = (of) => sum(a.blocks.map((one) => one.count * of(one)));
  const attended = (one, tokens) => {
    const w = one.window ?? Infinity, whole = w * (w + 1) / 2, rest = tokens % w, triangle = (x) => x * (x + 1) / 2;
    if (tokens <= w) return triangle(tokens);
    return one.chunked ? Math.floor(tokens / w) * whole + triangle(rest) : whole + (tokens - w) * w;
  };
  const read = (one) => attended(one, n + m - 1) - attended(one, n);
  const weights = (one) => product(one.matrices) + one.convolution, ends = product(a.ends), head = product(a.head);
  const token = layers((one) => 2 * (weights(one) + one.experts_per_token * one.expert_weights) + one.state_flops) + 2 * ends;
  const decoded = (one) => 2 * one.heads * (one.latent ? one.cached + one.latent : one.head_size + one.value_size) * read(one);
  const filled = (one) => 2 * one.heads * (one.head_size + one.value_size) * attended(one, n);
  const prefill = token * n + layers(filled) + 2 * head, decode = (m - 1) * (token + 2 * head) + layers(decoded);
  const passBytes = (tokens) => layers((one) => {
    const experts = one.experts && one.experts * (1 - (1 - one.experts_per_token / one.experts) ** tokens);
    const plain = one.plain_weights + experts * one.plain_expert_weights;
    return (weights(one) + experts * one.expert_weights - plain) * sizes.weight + plain * sizes.plain;
  }) + ends * sizes.plain + head * (a.plain_head ? sizes.plain : sizes.weight);
  const kept = (one) => one.shares_cache ? 0 : Math.min(n, one.window ?? Infinity);
  const cache = layers((one) => (kept(one) + read(one) + m - 1) * one.cached * sizes.cached + (2 * m - 1) * one.state_bytes);
  const together = batch / waves, bytes = passBytes(together * n) + (m - 1) * passBytes(together);
  const boards = (kind) => +(new RegExp(`${kind}(\\d+)`).exec(parallelism)?.[1] ?? 1);
  const tensor = boards("tp"), stages = boards("pp");
  const sums = tensor > 1 ? 2 * layers(() => 1) / stages * 2 * (tensor - 1) / tensor : 0;
  const sent = (sums + (stages > 1)) * batch * (n + m - 1) * a.hidden * 2;
  return [batch * prefill, batch * decode, waves * bytes, batch * cache, waves * m,
    waves * m * layers(() => 1), batch * m, sent];
}

/* `across` is what explorer.py prepares for one model of an entry of the law. */
function predictAcross(across, { input_tokens: n, output_tokens: m, batch }) {
  const most = across.architecture.max_positions;
  checkRequest(n, m, batch, { tokens: most, because: `the ${most} positions of ${across.architecture.name}` });
  const { architecture: a, memory, measured_range: range } = across;
  let waves = 1;
  if (memory.kv_cache_bytes !== null) {
    const each = sum(a.blocks.map((one) => one.count * (one.state_bytes +
      (one.shares_cache ? 0 : Math.min(n + m, one.window ?? Infinity) * one.cached * memory.cached))));
    const together = each ? Math.floor(Math.max(0, memory.kv_cache_bytes) / each) : batch;
    if (together < 1) {
      throw new Error(`${a.name}: ${memory.weights_gb} GB of weights and the KV cache of one request of ${n} + ${m} ` +
        `tokens do not fit on ${memory.board}`);
    }
    waves = Math.ceil(batch / together);
  }
  const row = priced(a, memory, n, m, batch, waves, across.parallelism).slice(0, across.own.energy.prices.length);
  const asked = { input_tokens: n, output_tokens: m, batch };
  const squares = { true: 0, false: 0 }, extrapolates = [];
  for (const [name, value] of Object.entries(asked)) {
    const [low, high] = range[name];
    squares[low < high] += octaves(value, range[name]) ** 2;
    if (value < low || value > high) {
      extrapolates.push(`${name} ${value} is ${value < low ? "below" : "above"} the measured ` +
        (low === high ? `${low}, the only ${name} in the rows` : `${low}-${high}`));
    }
  }
  const evaluate = (law, own) => {
    const value = sum(own.prices.map((price, i) => price * row[i]));
    if (value <= 0) throw new Error("the law across models gives no positive value here; ask for a request closer to its rows");
    const prices = sum(row.map((x, i) => sum(row.map((y, j) => x * y * own.covariance[i][j])))) / value ** 2;
    const parts = { law: law.quantile * Math.sqrt(Math.max(prices, 0) + law.cell ** 2),
      distance: Math.hypot(law.quantile * law.cell * Math.sqrt(squares.true), Math.sqrt(squares.false) * Math.LN2) };
    const spread = Math.exp(Math.hypot(parts.law, parts.distance));
    return [[value, value / spread, value * spread], parts];
  };
  const [energy, parts] = evaluate(across.energy, across.own.energy);
  const duration = across.duration && across.own.duration ? evaluate(across.duration, across.own.duration)[0] : null;
  const warnings = [...simulated(across.source), "the law across models knows no time to first token or per token"];
  if (waves > 1) warnings.push(`the KV cache cannot hold the batch at once: assumed to run in ${waves} waves`);
  return prediction(across, [n, m, batch], energy, duration, [across.idle_w, across.power_cap_w], energy,
    { law: "across-models", cells: across.cells, waves, interval_parts: parts, extrapolates, warnings, latency_s: {} });
}
