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
  search: for (const name of new Set([chosen, ...Object.keys(laws)])) {
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

  const terms = laws[fit.law].terms;
  const features = {};
  for (const term of terms) features[term.name] = FORMS[term.form](n, m) / (term.per_batch ? batch : 1);
  const kept = terms.filter((term) => term.name in fit.terms).map((term) => term.name);

  const outside = {};
  for (const [name, value] of [["input_tokens", n], ["output_tokens", m], ["batch", batch], ["total_tokens", n + m]]) {
    const [low, high] = group.measured_range[name];
    if (value < low || value > high) {
      const measured = low === high ? low : `${low}-${high}`;
      outside[name] = `${name} ${value} is ${value < low ? "below" : "above"} the measured ${measured}`;
    }
  }
  if ("input_tokens" in outside || "output_tokens" in outside) delete outside.total_tokens; // it says nothing new
  const extrapolates = Object.values(outside);
  if (!extrapolates.length) {
    for (const [dropped, weights] of Object.entries(fit.merged)) {
      const parts = Object.entries(weights).map(([name, weight]) => weight * features[name]);
      const size = parts.reduce((sum, part) => sum + Math.abs(part), 0) + Math.abs(features[dropped]);
      if (Math.abs(features[dropped] - parts.reduce((sum, part) => sum + part, 0)) > 1e-6 * size) {
        extrapolates.push("the measured cells vary the lengths only together, not as this request would need");
        break;
      }
    }
  }

  const energy = kept.reduce((sum, name) => sum + fit.terms[name].value * features[name], 0);
  if (!(energy > 0)) {
    throw new Error(`${fit.law} gives no positive energy here (${extrapolates.join("; ") || "inside its range"}); ` +
      "ask nearer to the measured cells");
  }
  const coefficients = kept.reduce((sum, a, i) => sum + kept.reduce(
    (part, b, j) => part + features[a] * features[b] * fit.covariance[i][j], 0), 0);
  const scatter = (fit.relative_residual_sd * energy) ** 2;
  const half = fit.t_quantile_95 * Math.sqrt(scatter + Math.max(coefficients, 0));
  const low = Math.max(energy - half, 0), high = energy + half;
  return {
    model: group.model, gpu: group.gpu, engine: group.engine, precision: group.precision, source: group.source,
    law: fit.law, input_tokens: n, output_tokens: m, batch,
    energy_per_request_j: energy * m, energy_per_request_low_j: low * m, energy_per_request_high_j: high * m,
    energy_per_output_token_j: energy, energy_per_output_token_low_j: low, energy_per_output_token_high_j: high,
    energy_batch_j: energy * m * batch,
    extrapolates, warnings,
  };
}
