"use strict";
/* The first tab: what the run achieved, and how it stands. */

const overviewTab = (() => {
  const { element, fill, card } = dom;
  const parts = {};

  function build(section) {
    for (const name of ["tiles", "headline", "charts", "phases", "events"]) parts[name] = element("div", {});
    parts.charts.className = "grid";
    section.append(element("div", { class: "stack" }, parts.tiles, parts.headline, parts.charts, parts.phases, parts.events));
    curvesTab.buildCards(parts.charts, "overview");
  }

  function update(view) {
    fill(parts.tiles, tiles(view));
    fill(parts.headline, headline(view.headline));
    fill(parts.phases, phases(view.phases));
    fill(parts.events, events(view.events));
  }

  function tiles(view) {
    const wall = view.facts.find(([title]) => title === "wall time");
    const rl = view.scalars.rl.steps;
    const rate = view.phases.filter((phase) => phase.tokens_per_s).pop();
    const newest = view.evaluations.filter((one) => one.split === "heldout" && one.mode === "greedy").pop() || view.evaluations.at(-1);
    const planned = view.manifest.recipe?.rl?.steps;
    const pairs = [
      newest ? [format.percent(newest.mean), `held-out success (${newest.title})`] : null,
      rl.length ? [planned ? `${rl.at(-1)} of ${planned}` : rl.at(-1), "RL steps"] : null,
      view.ledger.dispatched ? [format.number(view.ledger.dispatched), "RL episodes"] : null,
      view.ledger.dispatched ? [format.number(view.ledger.failed), "of them failed (no reward)"] : null,
      rate ? [format.number(rate.tokens_per_s), `tokens/s (${rate.title})`] : null,
      wall ? [wall[1], "wall time"] : null,
    ];
    return element("div", { class: "card tiles" }, pairs.filter(Boolean).map(([value, title]) => element("div", {}, element("b", {}, value), element("span", {}, title))));
  }

  function headline(table) {
    const note = "Share of held-out tasks that are solved, with 95% intervals. Unseen templates never occur in training.";
    if (!table.rows.length) return card("Held-out success", note, element("p", { class: "muted" }, "No evaluation yet."));
    const rows = table.rows.map((row) => element("tr", {}, element("th", { scope: "row" }, row.title), row.cells.map(figure)));
    return card("Held-out success", note, dom.table(["", ...table.columns.map((column) => column.title)], rows));
  }

  function figure(cell) {
    if (!cell) return element("td", { class: "figure muted" }, "-");
    const place = (share) => `${(100 * share).toFixed(2)}%`;
    const range = element("i", { style: { left: place(cell.low ?? 0), width: place((cell.high ?? 1) - (cell.low ?? 0)) } });
    const point = cell.mean === null ? null : element("b", { style: { left: place(cell.mean) } });
    const excluded = cell.excluded ? `, ${cell.excluded} excluded` : "";
    const small = `${format.percent(cell.low).replace("%", "")} to ${format.percent(cell.high)}`;
    return element("td", { class: "figure" },
      element("b", {}, format.percent(cell.mean)), " ", element("small", {}, small),
      element("div", { class: "interval", "aria-hidden": "true" }, range, point),
      element("small", {}, `${format.number(cell.successes)} of ${cell.n}${excluded}`));
  }

  function phases(rows) {
    if (!rows.length) return null;
    const cells = rows.map((row) => element("tr", {},
      element("th", { scope: "row" }, row.title), element("td", {}, format.number(row.steps)),
      element("td", {}, format.seconds(row.seconds)), element("td", {}, row.tokens_per_s ? format.number(row.tokens_per_s) : "-")));
    const note = "Tokens per second: trained ones in SFT, sampled ones over the rollout time in RL.";
    return card("Time", note, dom.table(["phase", "steps", "time", "tokens/s"], cells));
  }

  function events(rows) {
    if (!rows.length) return null;
    const cells = [...rows].reverse().map((event) => element("tr", {},
      element("td", {}, event.phase ? `${event.phase} ${event.step}` : "-"),
      element("td", {}, element("span", { class: /finding|invariant|violat|nonfinite|error/.test(event.kind) ? "pill bad" : "pill" }, event.kind)),
      element("td", { class: "wide-text" }, event.detail,
        Object.keys(event.data).length ? element("details", {}, element("summary", {}, "data"), dom.json(event.data)) : null),
      element("td", { class: "muted" }, format.moment(event.at_s))));
    return card("Events and findings", "The newest first.", dom.table(["step", "kind", "what", "when"], cells));
  }

  return { build, update };
})();
