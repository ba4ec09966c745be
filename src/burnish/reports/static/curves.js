"use strict";
/* Every curve of a run: the cards of the overview, those of the second tab, and any stored scalar. */

const curvesTab = (() => {
  const { element, fill } = dom;
  const cards = [];
  const explorer = {};
  let view = null;

  /* [step, value] of a scalar, missing values left out. */
  function points(phase, name) {
    const columns = view.scalars[phase];
    const values = columns.values[name] || [];
    return columns.steps.map((step, index) => [step, values[index]]).filter(([, value]) => value !== null && value !== undefined);
  }

  function lines(phase, names, rest = {}) {
    const series = Object.entries(names).map(([name, title]) => ({ name: title, points: points(phase, name) })).filter((one) => one.points.length);
    return series.length ? { kind: "line", step: phase === "rl" ? "RL step" : `${phase.toUpperCase()} step`, series, ...rest } : null;
  }

  function stacked(series) {
    const filled = series.filter((one) => one.points.some(([, value]) => value > 0));
    return filled.length ? { kind: "bar", step: "RL step", series: filled } : null;
  }

  function reward() {
    const mean = points("rl", "reward/mean");
    if (!mean.length) return null;
    const bands = new Map(view.scalars.rl.steps.map((step, index) => [step, view.reward_band[index]]));
    const band = mean.map(([step]) => bands.get(step) || [null, null]);
    const hasBand = band.some(([low]) => low !== null);
    const name = hasBand ? "mean reward, band: 95% interval over groups" : "mean reward";
    return { kind: "line", step: "RL step", series: [{ name, points: mean, ...(hasBand ? { band } : {}) }] };
  }

  /* Held-out success over RL steps; what was measured before RL stands at step 0. */
  function heldOut() {
    const hasSft = view.evaluations.some((one) => one.label === "after_sft");
    const before = hasSft ? view.evaluations.filter((one) => one.label === "before") : [];
    const used = view.evaluations.filter((one) => !before.includes(one));
    const byTitle = new Map();
    const order = (one) => `${one.split === "heldout" ? 0 : 1} ${one.split} ${one.mode}`;
    for (const one of [...used].sort((a, b) => order(a).localeCompare(order(b)))) {
      if (one.mean === null) continue;
      const step = one.phase === "rl" ? one.step : 0;
      if (!byTitle.has(one.title)) byTitle.set(one.title, new Map());
      byTitle.get(one.title).set(step, one);
    }
    const series = [...byTitle].map(([name, rows]) => {
      const ordered = [...rows].sort(([a], [b]) => a - b);
      return { name, show: format.percent, points: ordered.map(([step, one]) => [step, one.mean]), errors: ordered.map(([, one]) => [one.low, one.high]) };
    });
    const last = Math.max(0, ...series.flatMap((one) => one.points.map(([step]) => step)));
    const start = before.find((one) => one.split === "heldout" && one.mode === "greedy") || before[0];
    if (start && start.mean !== null && last > 0) {
      series.push({ name: "before SFT", dashed: true, color: theme.color("c6"), show: format.percent, points: [[0, start.mean], [last, start.mean]] });
    }
    return series.length ? { kind: "line", step: "RL step", share: true, range: [0, 1], series } : null;
  }

  function fates() {
    return stacked(["trained", "filtered", "dropped", "failed"].map((name) => ({ name, color: theme.fate(name), points: points("rl", `episodes/${name}`) })));
  }

  function outcomes() {
    const names = Object.keys(view.scalars.rl.values).filter((name) => name.startsWith("outcome/")).map((name) => name.slice(8));
    return stacked(names.map((name) => ({ name, color: theme.outcome(name), points: points("rl", `outcome/${name}`) })));
  }

  function groups() {
    const all = new Map(points("rl", "groups/dispatched"));
    const signal = points("rl", "groups/signal");
    return stacked([
      { name: "with signal", color: theme.color("c1"), points: signal },
      { name: "all rewards equal", color: theme.color("c6"), points: signal.map(([step, value]) => [step, (all.get(step) ?? value) - value]) },
    ]);
  }

  function times() {
    const learn = new Map(points("rl", "time/learn_s"));
    const rollout = new Map(points("rl", "time/rollout_s"));
    const rest = points("rl", "time/step_s").map(([step, value]) => [step, Math.max(0, value - (learn.get(step) ?? 0) - (rollout.get(step) ?? 0))]);
    return stacked([
      { name: "rollout", points: [...rollout], show: format.seconds },
      { name: "learning and checks", points: [...learn], show: format.seconds },
      { name: "grouping and storing", points: rest, show: format.seconds, color: theme.color("c6") },
    ]);
  }

  function checks() {
    const made = lines("rl", { "check/canary_nats": "canary (nats)", "check/ratio_nats": "ratio (nats)", "check/micro_batch": "micro-batch (relative)" }, { log: true });
    if (!made) return null;
    const steps = view.scalars.rl.steps;
    const tolerances = new Map(view.checks.filter((one) => one.tolerance !== null).map((one) => [one.tolerance, one]));
    for (const tolerance of tolerances.keys()) {
      made.series.push({ name: `tolerance ${format.number(tolerance)}`, dashed: true, color: theme.color("c7"), points: [[steps[0], tolerance], [steps.at(-1), tolerance]] });
    }
    return made;
  }

  const CARDS = [
    ["overview", "reward", "Reward", "Mean over the episodes of a step that carry one. Groups, not episodes, are the independent observations of the band.", reward],
    ["overview", "held-out", "Held-out success", "Points with 95% intervals; evaluations on the way use fewer tasks.", heldOut],
    ["overview", "fates", "What became of the episodes", "Filtered: all rewards of the group were equal. Failed: no reward, left out of loss and baseline.", fates],
    ["overview", "outcomes", "Why episodes ended", null, outcomes],
    ["Warm start", "sft-loss", "SFT loss", "Negative log-likelihood of the demonstrated tokens, in nats.", () => lines("sft", { nll_nats_mean: "nats per token" }) || lines("sft", { loss: "loss" })],
    ["Warm start", "sft-norm", "SFT gradient norm", "Before clipping.", () => lines("sft", { grad_norm: "gradient norm" })],
    ["Learning", "loss", "RL loss", "It need not fall: its gradient is what counts.", () => lines("rl", { loss: "loss" })],
    ["Learning", "entropy", "Entropy", "Of the policy on its trained tokens, in nats.", () => lines("rl", { entropy_nats_mean: "nats per token" })],
    ["Learning", "grad-norm", "Gradient norm", "Before clipping.", () => lines("rl", { grad_norm: "gradient norm" })],
    ["Learning", "clip", "Clipped tokens", "Share of trained tokens whose ratio left the trust region on the side where it counts.", () => lines("rl", { clipped_low_mean: "below", clipped_high_mean: "above" }, { share: true })],
    ["Learning", "log-ratio", "Log ratio, learner to sampler", "Absolute, in nats, before any clipping.", () => lines("rl", { log_ratio_behaviour_abs_nats_mean: "mean", log_ratio_behaviour_abs_nats_max: "largest" }, { log: true })],
    ["Learning", "kl", "KL divergence", "In nats per token.", () => lines("rl", { kl_behaviour_nats_mean: "to the sampling policy", kl_reference_nats_mean: "to the reference" })],
    ["Episodes", "groups", "Groups with signal", "Only groups with different rewards teach anything.", groups],
    ["Episodes", "tools", "Tool calls and what went wrong with them", "Per step.", () => lines("rl", { "count/tool_calls": "calls", "count/tool_errors": "tool errors", "count/malformed_calls": "unreadable", "count/invalid_arguments": "invalid arguments", "count/unknown_tools": "unknown tool" })],
    ...costCards({ view: () => view, points, lines, stacked }),
    ["Always-on checks", "checks", "Largest differences", "Sampler against learner on the canary prompts and on fresh samples; gradients with other micro-batches. Logarithmic.", checks],
    ["Time", "times", "Seconds per RL step", null, times],
    ["Time", "rate", "Sampled tokens per second", "During rollouts.", () => lines("rl", { "rate/sampled_tokens_per_s": "tokens/s" })],
  ];

  function buildCards(parent, group) {
    for (const [at, id, title, note, describe] of CARDS) {
      if (at !== group) continue;
      const chart = element("div", { class: "chart", id: `chart-${id}` });
      const made = dom.card(title, note, chart);
      parent.append(made);
      cards.push({ made, chart, describe, parent });
    }
  }

  function build(section) {
    const stack = element("div", { class: "stack" });
    section.append(stack);
    stack.append(buildExplorer());
    for (const group of new Set(CARDS.map(([at]) => at))) {
      if (group === "overview") continue;
      const grid = element("div", { class: "grid" });
      const whole = element("div", { class: "stack" }, element("h2", { class: "group-title" }, group), grid);
      stack.append(whole);
      buildCards(grid, group);
    }
  }

  function buildExplorer() {
    explorer.search = element("input", { type: "search", placeholder: "Search scalars", "aria-label": "Search scalars", oninput: listScalars });
    explorer.select = element("select", { size: 12, id: "scalar", "aria-label": "Scalar to plot", onchange: plotScalar });
    explorer.log = element("input", { type: "checkbox", onchange: plotScalar });
    explorer.chart = element("div", { class: "chart", id: "chart-scalar" });
    const pick = element("div", { class: "pick" }, explorer.search, explorer.select, element("label", {}, explorer.log, "logarithmic axis"));
    return dom.card("Any stored scalar", null, element("div", { class: "explorer" }, pick, explorer.chart));
  }

  function listScalars() {
    const wanted = explorer.search.value.trim().toLowerCase();
    const names = ["rl", "sft", "eval"].flatMap((phase) => Object.keys(view.scalars[phase].values).sort().map((name) => `${phase}: ${name}`));
    const shown = names.filter((name) => name.toLowerCase().includes(wanted));
    const kept = explorer.select.value;
    fill(explorer.select, shown.map((name) => element("option", { value: name }, name)));
    explorer.select.value = shown.includes(kept) ? kept : shown.find((name) => name === "rl: reward/mean") || shown[0] || "";
    plotScalar();
  }

  function plotScalar() {
    const chosen = explorer.select.value;
    const [phase, name] = [chosen.slice(0, chosen.indexOf(":")), chosen.slice(chosen.indexOf(":") + 2)];
    if (!chosen) return;
    const stride = view.scalars[phase].stride;
    const title = `${chosen}${stride > 1 ? ` (every ${stride}th step)` : ""}`;
    const made = lines(phase, { [name]: title }, { log: explorer.log.checked });
    charts.draw(explorer.chart, made || { kind: "line", step: "step", series: [{ name: `${title}: no finite value`, points: [] }] });
  }

  function update(newest) {
    view = newest;
    for (const card of cards) {
      const description = card.describe();
      card.made.hidden = !description;
      if (description) charts.draw(card.chart, description);
    }
    for (const grid of new Set(cards.map((card) => card.parent))) {
      if (grid.closest("#tab-curves")) grid.parentElement.hidden = [...grid.children].every((made) => made.hidden);
    }
    listScalars();
  }

  theme.onChange(() => view && update(view));
  return { build, buildCards, update };
})();
