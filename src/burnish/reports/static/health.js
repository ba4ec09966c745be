"use strict";
/* The health tab: what the run looks like, findings and decisions over its steps, and the signals that were watched. */

const healthTab = (() => {
  const { element, fill, card } = dom;
  const SHOWN_CAUSES = 3;
  const SEVERITY = { alarm: "bad", warning: "warn" };
  const parts = {};
  const panels = new Map();

  function build(section) {
    for (const name of ["tiles", "causes", "timeline", "findings", "decisions", "panels", "horizons"]) parts[name] = element("div", {});
    parts.chart = element("div", { class: "chart", id: "chart-timeline" });
    parts.timeline.append(card("Findings and decisions over the run", "A bar begins at the estimated onset and ends in the dot where the alarm fired. A hollow dot is a decision that was not carried out (dry run).", parts.chart));
    parts.panels.className = "stack";
    section.append(element("div", { class: "stack" }, parts.tiles, parts.causes, parts.timeline, parts.findings, parts.decisions, parts.panels, parts.horizons));
  }

  function update(view) {
    const { health } = view;
    fill(parts.tiles, health.is_stored ? tiles(health) : nothing());
    fill(parts.causes, health.is_stored || health.findings.length ? causes(health) : null);
    const described = timelineOf(health, view.scalars.rl.steps);
    parts.timeline.hidden = !described;
    if (described) {
      parts.chart.style.height = `${timeline.height(described)}px`;
      charts.draw(parts.chart, described);
    }
    fill(parts.findings, findings(health));
    fill(parts.decisions, decisions(health));
    for (const panel of health.panels) draw(panel, view);
    for (const [id, made] of panels) made.card.hidden = !health.panels.some((panel) => panel.id === id);
    fill(parts.horizons, horizons(health.horizons));
  }

  function nothing() {
    return card("Health was not watched", null, element("p", { class: "muted" }, "This run stored no health signals. The recipe key health.on switches them on."));
  }

  function tiles({ watched, findings, decisions }) {
    const alarms = findings.filter((one) => one.severity === "alarm").length;
    const done = decisions.filter((one) => !one.dry_run).length;
    const pairs = [
      [format.number(watched.steps), "steps watched"],
      watched.monitors === null ? null : [watched.monitors, "monitors"],
      watched.rate === null ? null : [format.number(watched.rate), "false alarms per 1,000 steps, by calibration"],
      [alarms, alarms === 1 ? "alarm" : "alarms"],
      [findings.length - alarms, "warnings"],
      decisions.length ? [`${done} of ${decisions.length}`, "decisions carried out"] : null,
    ];
    return element("div", { class: "card tiles" }, pairs.filter(Boolean).map(([value, title]) => element("div", {}, element("b", {}, value), element("span", {}, title))));
  }

  function causes({ causes: rows, silence, unexplained, by_chance: byChance }) {
    const notes = ["Ranked by how much of what was found each cause explains; `burnish why` prints the same."];
    if (byChance !== null) notes.push(` That so many findings come by chance alone has a probability of at most ${format.number(byChance)}.`);
    const rest = unexplained.length ? element("p", { class: "muted" }, "No known cause: ", unexplained.join(", ")) : null;
    if (!rows.length) return card("What this looks like", unexplained.length ? notes.join("") : null, rest || element("p", { class: "muted" }, silence));
    const shown = rows.slice(0, SHOWN_CAUSES).filter((one, index) => index === 0 || one.strength !== "possible");
    const weaker = rows.slice(shown.length);
    return card("What this looks like", notes.join(""), element("ol", { class: "causes" }, shown.map(cause)),
      weaker.length ? element("details", {}, element("summary", {}, `${weaker.length} weaker`), element("ol", { class: "causes", start: shown.length + 1 }, weaker.map(cause))) : null, rest);
  }

  function cause(one) {
    return element("li", {},
      element("h3", {}, one.title, " ", element("span", { class: "pill" }, one.strength)),
      element("p", {}, one.meaning),
      element("p", { class: "muted" }, one.when),
      element("ul", {}, one.evidence.map((line) => element("li", {}, line))),
      element("p", {}, "Look at: ", one.look, one.trajectory_ids.length ? ["; ", links(one.trajectory_ids)] : null),
      element("p", {}, "Do: ", one.advice.map(([key, text], index) => [index ? "; " : "", element("code", {}, key), ` (${text})`])));
  }

  function links(ids) {
    return ids.map((id, index) => [index ? ", " : "", element("a", { class: "mono", href: `#trajectories/${encodeURIComponent(id)}` }, id)]);
  }

  function timelineOf({ findings, decisions, damage }, steps) {
    if (!findings.length && !decisions.length) return null;
    const rows = [];
    const place = (text) => (rows.includes(text) ? rows.indexOf(text) : rows.push(text) - 1);
    const spans = [...findings].sort((a, b) => started(a) - started(b)).map((one) => ({
      row: place(one.monitor), from: started(one), to: one.step, color: theme.color(one.severity === "alarm" ? "c7" : "c8"), hollow: false,
      lines: [`RL step ${one.step}: ${one.monitor}`, one.summary, one.onset_step >= 0 ? `onset about step ${one.onset_step}` : "onset unknown"],
    }));
    for (const one of decisions) {
      spans.push({
        row: place(one.title), from: one.step, to: one.step, color: theme.color(one.release ? "c3" : "c5"), hollow: one.dry_run,
        lines: [`RL step ${one.step}: ${one.title}${one.release ? ", released" : ""}`, one.reason, one.dry_run ? "would have been done (dry run)" : "was done"],
      });
    }
    const first = Math.min(...steps, ...spans.map((span) => span.from));
    const last = Math.max(...steps, ...spans.map((span) => span.to));
    const marks = damage ? [{ step: damage.step, text: "held-out success fell" }] : [];
    return { kind: "timeline", step: "RL step", extent: [first, last > first ? last : first + 1], rows, spans, marks };
  }

  function started(one) {
    return one.onset_step >= 0 ? Math.min(one.onset_step, one.step) : one.step;
  }

  function findings({ findings: rows, left_out: leftOut }) {
    if (!rows.length) return null;
    const cells = [...rows].reverse().map((one) => element("tr", {},
      element("td", {}, one.step),
      element("td", {}, one.onset_step >= 0 ? one.onset_step : "-"),
      element("td", { class: "mono narrow-text" }, one.monitor),
      element("td", {}, one.kind.replaceAll("_", " ")),
      element("td", {}, element("span", { class: `pill ${SEVERITY[one.severity] || ""}` }, one.severity)),
      element("td", {}, one.rate === null ? "rule" : format.number(one.rate)),
      element("td", { class: "wide-text" }, one.summary,
        one.trajectory_ids.length ? element("p", {}, links(one.trajectory_ids)) : null,
        Object.keys(one.evidence).length ? element("details", {}, element("summary", {}, "evidence"), dom.json(one.evidence)) : null)));
    const note = "The newest first. False alarms per 1,000 steps are those that the threshold was calibrated for; a rule has none.";
    const titles = ["step", "onset", "monitor", "kind", "severity", "false / 1,000", "what"];
    return card("Findings", leftOut ? `${note} ${leftOut} older ones are not shown.` : note, dom.table(titles, cells));
  }

  function decisions({ decisions: rows }) {
    if (!rows.length) return null;
    const cells = [...rows].reverse().map((one) => element("tr", {},
      element("td", {}, one.step),
      element("td", {}, one.title),
      element("td", {}, element("span", { class: one.dry_run ? "pill" : "pill good" }, one.dry_run ? "would have been" : "done")),
      element("td", { class: "wide-text" }, one.release ? "back to the recipe" : one.values),
      element("td", { class: "wide-text" }, one.reason, one.findings.length ? element("p", { class: "muted mono" }, one.findings.join(", ")) : null)));
    return card("Decisions", "The newest first. In a dry run each is written down and none is carried out.", dom.table(["step", "knob", "", "values", "why"], cells));
  }

  function draw(panel, view) {
    if (!panels.has(panel.id)) add(panel);
    const columns = view.scalars.rl;
    const show = panel.share ? format.percent : format.number;
    const series = panel.lines.map(([name, title]) => ({
      name: title, show,
      points: columns.steps.map((step, index) => [step, columns.values[name]?.[index]]).filter(([, value]) => value !== null && value !== undefined),
    })).filter((one) => one.points.length);
    if (panel.floor !== null && columns.steps.length) {
      series.push({ name: "floor", dashed: true, show, color: theme.color("c6"), points: [[columns.steps[0], panel.floor], [columns.steps.at(-1), panel.floor]] });
    }
    const marks = panel.marks.map((mark) => ({ from: mark.from, to: mark.to, color: theme.color(mark.severity === "alarm" ? "c7" : "c8") }));
    charts.draw(panels.get(panel.id).chart, { kind: "line", step: "RL step", share: panel.share, fromZero: true, marks, named: true, series });
  }

  function add(panel) {
    const chart = element("div", { class: "chart", id: `chart-health-${panel.id}` });
    const made = card(panel.title, panel.note, chart);
    panels.set(panel.id, { card: made, chart });
    group(panel.group).append(made);
  }

  function group(title) {
    const known = [...parts.panels.children].find((one) => one.dataset.group === title);
    if (known) return known.querySelector(".grid");
    const grid = element("div", { class: "grid" });
    parts.panels.append(element("div", { class: "stack", "data-group": title }, element("h2", { class: "group-title" }, title), grid));
    return grid;
  }

  /* Success by horizon, of windows of steps: a table, since neither axis is a curve. */
  function horizons(table) {
    if (!table.rows.length) return null;
    const cells = table.rows.map((row) => element("tr", {}, element("th", { scope: "row" }, row.title),
      row.cells.map((value) => element("td", { class: "heat", style: { background: `color-mix(in srgb, var(--c3) ${value === null ? 0 : Math.round(45 * value)}%, transparent)` } }, format.percent(value)))));
    return card("Success by horizon", "Turns that an episode took, against windows of training steps. A dash: no episode of that length.", dom.table(["turns", ...table.columns], cells));
  }

  return { build, update };
})();
