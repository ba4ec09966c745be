"use strict";
/* Cards about what episodes cost, about runs whose episodes and optimizer steps overlap, and about ratios. */

const costCards = (() => {
  const COST = "Cost and length";
  const ASYNC = "Asynchrony";
  const OFF_POLICY = "Off-policy correction";
  const NOTICEABLE_NATS = 1e-3;
  const DROPPED = { stale: "too stale", surplus: "surplus of a group", cancelled: "cancelled" };
  const CENTRES = { p50: "median", p90: "90th percentile" };

  /* {NAME_p50: "median", NAME_p90: "90th percentile"}, and the mean where another scalar holds it. */
  function quantiles(name, mean) {
    const found = mean ? { [mean]: "mean" } : {};
    for (const [suffix, title] of Object.entries(CENTRES)) found[`${name}_${suffix}`] = title;
    return found;
  }

  /* {ratio_NAME_SUFFIX: title} of the three ratios, by the policy below the fraction. */
  function ratios(prefix, suffix) {
    return Object.fromEntries(["behaviour", "proximal", "reference"].map((name) => [`${prefix}_${name}_${suffix}`, `learner / ${name}`]));
  }

  /* tools: {view(), points(phase, name), lines(phase, names, rest), stacked(series)} of the curves. */
  function make({ view, points, lines, stacked }) {
    const isAsync = () => Boolean(view().scalars.rl.values["staleness/mean"]);
    const ifAsync = (describe) => () => (isAsync() ? describe() : null);
    /* Where the policy moves between sampling and training: not in a synchronous run of one update a step. */
    const isOffPolicy = () => isAsync() || points("rl", "log_ratio_behaviour_abs_nats_mean").some(([, value]) => value > NOTICEABLE_NATS);
    const ifOffPolicy = (describe) => () => (isOffPolicy() ? describe() : null);
    const seconds = (description) => description && { ...description, series: description.series.map((one) => ({ ...one, show: format.seconds })) };

    function truncations() {
      const names = Object.keys(view().scalars.rl.values).filter((name) => name.startsWith("outcome/truncated:")).sort();
      // A step without one stores nothing, and has its place all the same.
      const made = stacked(names.map((name) => {
        const found = new Map(points("rl", name));
        return { name: name.slice(18).replaceAll("_", " "), points: view().scalars.rl.steps.map((step) => [step, found.get(step) ?? 0]) };
      }));
      return made && { ...made, named: true };
    }

    function charge() {
      const found = points("rl", "reward/charged_mean");
      return found.some(([, value]) => value !== 0) ? lines("rl", { "reward/charged_mean": "reward" }) : null;
    }

    function tradeoff() {
      const curves = view().cost.tradeoff;
      if (!curves.length) return null;
      const series = curves.map((curve) => {
        const known = curve.points.filter((point) => point.tokens !== null && point.success !== null);
        return {
          name: curve.title, show: format.percent, points: known.map((point) => [point.tokens, point.success]),
          at: known.map((point) => `${point.at}, ${format.number(point.n)} episodes`),
          ...(known.some((point) => point.interval) ? { errors: known.map((point) => point.interval || [null, null]) } : { ends: known.map((point) => point.at) }),
        };
      }).filter((one) => one.points.length);
      return series.length ? { kind: "path", step: "mean sampled tokens of an episode", share: true, range: [0, 1], series } : null;
    }

    function lengthBins() {
      const { rows, first, last } = view().cost.bins;
      if (rows.length < 2) return null;
      const name = first === last ? `RL step ${last}` : `RL steps ${first} to ${last}`;
      const labels = rows.map((row) => (row.low === row.high ? `${row.low}` : `${row.low}\u2013${row.high}`));
      const series = [{ name, show: format.percent, points: rows.map((row, index) => [index, row.success]), errors: rows.map((row) => row.interval), at: rows.map((row) => `${format.number(row.n)} episodes`) }];
      return { kind: "bar", step: "sampled tokens", share: true, range: [0, 1], labels, series };
    }

    function byStaleness() {
      const { steps, buckets } = view().cost.staleness;
      return stacked(buckets.map((bucket, index) => ({
        name: bucket.title, points: steps.map((step, place) => [step, bucket.tokens[place]]), color: theme.ramp(index, buckets.length),
      })));
    }

    function staleness() {
      const made = lines("rl", { "staleness/mean": "mean", "staleness/max": "largest" });
      const recipe = view().manifest.recipe;
      const bound = recipe?.rollout?.max_staleness * (recipe?.rl?.updates ?? 1); // Given in steps, of so many versions each.
      const steps = view().scalars.rl.steps;
      if (made && Number.isFinite(bound)) {
        made.series.push({ name: `bound ${bound}`, dashed: true, color: theme.color("c7"), points: [[steps[0], bound], [steps.at(-1), bound]] });
      }
      return made;
    }

    function fates() {
      return stacked(["trained", "filtered", "dropped", "failed", "pending"].map((name) => ({ name, color: theme.fate(name), points: points("rl", `episodes/${name}`) })));
    }

    function dropped() {
      return stacked(Object.entries(DROPPED).map(([key, name]) => ({ name, points: points("rl", `dropped/${key}`) })));
    }

    function split() {
      const wait = points("rl", "time/wait_s").length ? "time/wait_s" : "time/rollout_s";
      const parts = { [wait]: "waiting", "time/learn_s": "learning and checks", "time/pause_s": "pausing samplers" };
      return stacked(Object.entries(parts).map(([key, name]) => ({ name, points: points("rl", key), show: format.seconds })));
    }

    const moments = (prefix, suffix) => ifOffPolicy(() => lines("rl", ratios(prefix, suffix)));

    function sampleSizes() {
      return lines("rl", {
        ratio_behaviour_ess_raw_token: "learner / behaviour, tokens", ratio_behaviour_ess_raw_sequence: "learner / behaviour, sequences",
        ratio_proximal_ess_raw_token: "learner / proximal, tokens", correction_ess_token: "correction as applied, tokens",
      }, { share: true });
    }

    function corrected() {
      return lines("rl", { correction_above_mean: "above the cap", correction_below_mean: "below the floor", masked_mean: "masked" }, { share: true });
    }

    return [
      [COST, "tradeoff", "Success against length", "Each point is a window of RL steps, or an evaluation with its 95% interval; lines run in the order of training. Up and to the left is better.", tradeoff],
      [COST, "length-bins", "Success by length", "Training episodes of the newest RL steps, in bins of about equal number. 95% intervals over groups.", lengthBins],
      [COST, "cost-tokens", "Sampled tokens per episode", null, () => lines("rl", quantiles("cost/action_tokens", "tokens/per_episode"))],
      [COST, "cost-turns", "Turns per episode", null, () => lines("rl", quantiles("cost/turns", "episodes/turns"))],
      [COST, "cost-context", "Context per episode", "Tokens shown and sampled, in the longest path.", () => lines("rl", quantiles("cost/context_tokens"))],
      [COST, "cost-truncated", "Episodes cut by a limit", "By the limit that cut them, per step.", truncations],
      [COST, "cost-tool-s", "Tool seconds per episode", null, () => seconds(lines("rl", quantiles("time/episode_tool_s")))],
      [COST, "cost-episode-s", "Wall seconds per episode", "From its start to its end, waiting for the sampler included.", () => seconds(lines("rl", quantiles("time/episode_s")))],
      [COST, "cost-charge", "Reward taken by token cost", "Mean over the episodes that have a reward.", charge],
      [ASYNC, "staleness", "Staleness of trained tokens", "Learner version minus the version that sampled the token.", ifAsync(staleness)],
      [ASYNC, "staleness-histogram", "Trained tokens by staleness", "In policy versions.", ifAsync(byStaleness)],
      [ASYNC, "async-fates", "Episodes by fate", "Pending: begun and not yet consumed at the end of the step.", ifAsync(fates)],
      [ASYNC, "async-dropped", "Why episodes were dropped", null, ifAsync(dropped)],
      [ASYNC, "async-time", "Seconds per RL step", "What the learner did: waiting for episodes, learning, pausing samplers for new weights.", ifAsync(split)],
      [ASYNC, "async-depth", "Steps of episodes under way", "As many as keep the learner busy, within the bound on staleness.", ifAsync(() => lines("rl", { "pool/depth_steps": "steps" }))],
      [ASYNC, "async-pool", "Pool", "Episodes under way, and finished ones that wait for the learner.", ifAsync(() => lines("rl", { "pool/in_flight": "in flight", "pool/ready": "ready" }))],
      [ASYNC, "async-waited", "Finished episodes waited for the learner", "Before they were consumed.", ifAsync(() => seconds(lines("rl", { "pool/waited_s": "seconds" })))],
      [ASYNC, "async-workers", "Workers replaced, episodes begun again", null, ifAsync(() => stacked([{ name: "workers replaced", color: theme.color("c7"), points: points("rl", "workers/replaced") }, { name: "episodes begun again", points: points("rl", "pool/requeued") }]))],
      [OFF_POLICY, "ratios", "The three ratios", "Mean over trained tokens, raw, before any truncation; 1 where the two policies are equal.", moments("ratio", "mean")],
      [OFF_POLICY, "ratio-moments", "Second moment of the log ratio", "In nats squared, raw. It grows with every difference, where signs cancel in a mean.", moments("log_ratio", "squared_mean")],
      [OFF_POLICY, "sample-sizes", "Effective sample size", "Share of the tokens or sequences, of raw ratios before any truncation; 100% where all weigh the same.", ifOffPolicy(sampleSizes)],
      [OFF_POLICY, "corrected", "Tokens that correction changed", "Share of trained tokens.", ifOffPolicy(corrected)],
    ];
  }

  return make;
})();
