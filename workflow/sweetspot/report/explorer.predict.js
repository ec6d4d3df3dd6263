/* predictor.predict in JavaScript, for the page. It must say what the library says: tests/test_page_explorer.py compares
   the two in a real browser. Laws come as data from laws.py; a new form of a term, or a new step of predict, goes here. */
"use strict";

const FORMS = {
  "1": (n, m) => 1,
  "n/m": (n, m) => n / m,
  "m": (n, m) => m,
  "n": (n, m) => n,
  "n^2/m": (n, m) => n * (n / m),
  "1/m": (n, m) => 1 / m,
  "n + m/2": (n, m) => n + (m - 1) / 2,
  "n^2 + nm + m^2/3": (n, m) => n * (n + m - 1) + (m - 1) * (2 * m - 1) / 6,
};

const ROUTINGS = { // the share of experts that a batch activates, by the share that one token does
  even: (share, batch) => 1 - (1 - share) ** batch,
  skewed: (share, batch) => (batch * share) / (1 + (batch - 1) * share),
};

const UNDETERMINED = 1.0, OVER_TDP = 1.05, UNDER_IDLE = 0.95; // as in predictor.py

/* How often the KV cache has to be filled, by where it was seen full: most, likely and fewest waves. */
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

/* As Python's format does it: halves to the even neighbour. */
function rounded(x) {
  const near = Math.round(x);
  return Math.abs(x % 1) === 0.5 && near % 2 ? near - 1 : near;
}

const octaves = (value, [low, high]) => Math.max(0, Math.log2(low / value), Math.log2(value / high));

/* Energy of one request among `batch` equal ones. `group` is one of predictor.json's groups, `laws` what explorer.py
   made of laws.LAWS, `law` another law than the chosen one (or nothing). Returns the fields of predictor.Prediction;
   throws an Error with the library's words where it raises SweetspotError. */
function predict(group, laws, { input_tokens: n, output_tokens: m, batch, law: wanted }) {
  for (const [name, value] of [["input_tokens", n], ["output_tokens", m], ["batch", batch]]) {
    if (!(value > 0 && value < 2 ** 31) || value !== Math.floor(value)) {
      throw new Error(`${name} is ${value}: give a whole number of at least 1`);
    }
  }
  const chosen = wanted || group.law;
  const warnings = [];
  if (!chosen) throw new Error(`${group.model}: ${group.chosen_because}`);

  let fit = null;
  search: for (const name of new Set([chosen, group.law_any_batch])) {
    for (const one of group.laws[name] || []) {
      if (!("skipped" in one) && ((name === chosen && one.batch === batch) || one.batch === null)) {
        if (!group.batches.includes(batch)) {
          warnings.push(`batch ${batch} was not measured: ${name} carries over from ${group.batches.join(", ")}`);
        } else if (name !== chosen) {
          warnings.push(`${chosen} was not fitted for batch ${batch}: predicted by ${name}`);
        }
        fit = one;
        break search;
      }
    }
  }
  if (!fit) {
    throw new Error(`${group.model}: nothing fitted for batch ${batch}; measured: ${group.batches.join(", ")} ` +
      "(a batch between them needs a law fitted to two batches or more)");
  }
  if (group.source === "simulated") warnings.push("SIMULATED: fitted to a simulated GPU, not to measurements");

  const [most, waves, fewest] = wavesOf(group, n + m, batch), together = batch / waves;
  if (waves > 1) warnings.push(`the KV cache does not hold ${batch} such requests: ${waves} waves`);
  const mixture = group.experts;
  const share = mixture ? mixture.per_token / mixture.experts : 1;
  const terms = laws[fit.law].terms;
  const featuresOf = (requests) => Object.fromEntries(terms.map((term) => [
    term.name, FORMS[term.form](n, m) * (term.routing ? ROUTINGS[term.routing](share, requests) : 1) /
      (term.per_batch ? requests : 1)]));
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
  if ("input_tokens" in outside || "output_tokens" in outside) delete outside.total_tokens; // it says nothing new
  if (["input_tokens", "output_tokens", "batch", "total_tokens"].some((name) => name in outside)) {
    delete outside.tokens_in_flight;
  }
  const range = group.measured_range;
  const place = Object.entries({ batch, input_tokens: n, output_tokens: m }).map(
    ([name, value]) => Math.min(Math.max(value, range[name][0]), range[name][1]));
  const lacks = [[1, "largest"], [-1, "smallest"]].map(([sign, corners]) => {
    const cells = (group.measured_corners ?? {})[corners] ?? [];
    return cells.length ? Math.min(...cells.map(
      (cell) => Math.max(...place.map((value, i) => sign * Math.log2(value / cell[i]))))) : 0;
  });
  const gap = Math.max(...lacks) > 1 ? Math.max(...lacks) : 0;
  if (gap && !Object.keys(outside).length) {
    outside.cells = `no measured cell combines such lengths and batch: the nearest is ${rounded(2 ** gap)} times away`;
  }
  const extrapolates = Object.values(outside);
  let undetermined = false;
  for (const [dropped, weights] of Object.entries(fit.merged)) {
    const parts = Object.entries(weights).map(([name, weight]) => weight * features[name]);
    const size = parts.reduce((sum, part) => sum + Math.abs(part), 0) + Math.abs(features[dropped]);
    if (Math.abs(features[dropped] - parts.reduce((sum, part) => sum + part, 0)) > 1e-6 * size) undetermined = true;
  }

  const energy = kept.reduce((sum, name) => sum + fit.terms[name].value * features[name], 0);
  if (!(energy > 0)) {
    throw new Error(`${fit.law} gives no positive energy here (${extrapolates.join("; ") || "inside its range"}); ` +
      "ask nearer to the measured cells");
  }
  const coefficients = kept.reduce((sum, a, i) => sum + kept.reduce(
    (part, b, j) => part + features[a] * features[b] * fit.covariance[i][j], 0), 0);
  const variance = fit.relative_residual_sd ** 2 + Math.max(coefficients, 0) / energy ** 2;
  const per = fit.relative_error_per_octave;
  const beyond = Math.max(octaves(n, range.input_tokens), octaves(m, range.output_tokens)) + gap;
  const parts = {
    law: fit.t_quantile_95 * fit.interval_scale * Math.sqrt(variance),
    distance: fit.t_quantile_95 * Math.hypot(per.lengths * beyond, per.batch * octaves(together, range.requests_in_flight)),
  };
  if (undetermined) {
    parts.distance = Math.max(parts.distance, UNDETERMINED);
    if (!extrapolates.length) {
      extrapolates.push("the measured cells vary the lengths only together, not as this request would need");
    }
  }
  if (group.sensor_gain !== null) parts.sensor_gain = group.sensor_gain;
  let half = Math.hypot(...Object.values(parts));
  const apart = (valueOf) => { // by which share another number of waves is away
    const perToken = (its) => kept.reduce((sum, name) => sum + valueOf(name) * its[name], 0);
    return Math.max(...[fewest, most].map(
      (number) => Math.abs(perToken(featuresOf(batch / number)) / perToken(features) - 1)));
  };
  if (fewest < most) { // then the interval reaches as far around the energy of the other number
    const away = apart((name) => fit.terms[name].value);
    parts.waves = Math.sqrt(away * (away + 2 * half));
    half += away;
    extrapolates.push(`the measured cells do not tell in how many waves this batch runs: ${fewest} to ${most}`);
  }
  const low = Math.max(energy * (1 - half), 0), high = energy * (1 + half);

  let duration = null;
  if (fit.duration) {
    const perToken = kept.reduce((sum, name) => sum + (fit.duration.terms[name] || 0) * features[name], 0);
    if (perToken > 0) duration = perToken * m * batch;
  }
  let late = fit.duration ? Math.hypot(
    fit.duration.t_quantile_95 * fit.duration.relative_residual_sd * fit.interval_scale, parts.distance) : 0;
  if (duration) late += apart((name) => fit.duration.terms[name] || 0);
  const power = duration ? energy * m * batch / duration : null;
  if (power && group.power_cap_w && power > group.power_cap_w * OVER_TDP) {
    warnings.push(`energy over duration is ${rounded(power)} W, above the ${rounded(group.power_cap_w)} W of the board`);
  } else if (power && group.idle_w && power < group.idle_w * UNDER_IDLE) {
    warnings.push(`energy over duration is ${rounded(power)} W, below the ${rounded(group.idle_w)} W of the idle board`);
  }
  return {
    model: group.model, gpu: group.gpu, engine: group.engine, precision: group.precision, source: group.source,
    law: fit.law, input_tokens: n, output_tokens: m, batch,
    energy_per_request_j: energy * m, energy_per_request_low_j: low * m, energy_per_request_high_j: high * m,
    energy_per_output_token_j: energy, energy_per_output_token_low_j: low, energy_per_output_token_high_j: high,
    energy_batch_j: energy * m * batch, waves,
    duration_s: duration, duration_low_s: duration && Math.max(duration * (1 - late), 0),
    duration_high_s: duration && duration * (1 + late), power_w: power, interval_parts: parts,
    extrapolates, warnings,
  };
}
