"use strict";
/* Puts the page together, and in live mode keeps it up to date. */

(() => {
  const { element, fill } = dom;
  const TABS = ["overview", "curves", "health", "trajectories", "run"];
  const FAST_MS = 1000;
  const SLOW_MS = 8000;
  const data = JSON.parse(document.getElementById("data").textContent);
  const isLive = data.mode === "live";
  const sections = Object.fromEntries(TABS.map((name) => [name, document.getElementById(`tab-${name}`)]));
  const stale = new Set();
  let view = null;

  async function ask(path, values) {
    const query = new URLSearchParams(Object.entries(values).filter(([, value]) => value !== "" && value !== null));
    const answer = await fetch(`${path}?${query}`, { cache: "no-store" });
    const body = await answer.json();
    if (!answer.ok) throw new Error(body.error || `the server answered ${answer.status}`);
    return body;
  }

  async function tell(values, token) {
    const headers = { "Content-Type": "application/json", [data.token_header]: token };
    const answer = await fetch("api/override", { method: "POST", headers, body: JSON.stringify(values) });
    const body = await answer.json();
    if (!answer.ok) throw new Error(body.error || `the server answered ${answer.status}`);
    take(await ask("api/overview", {}));
  }

  /* "#trajectories/rl/000012/0003/05" names a tab, and what to open in it. */
  function place() {
    const hash = decodeURIComponent(location.hash.slice(1));
    const cut = hash.indexOf("/");
    const tab = cut < 0 ? hash : hash.slice(0, cut);
    return { tab: TABS.includes(tab) ? tab : "overview", id: cut < 0 ? "" : hash.slice(cut + 1) };
  }

  function show() {
    const { tab, id } = place();
    for (const name of TABS) sections[name].hidden = name !== tab;
    for (const link of document.querySelectorAll("nav a")) {
      if (link.dataset.tab === tab) link.setAttribute("aria-current", "page");
      else link.removeAttribute("aria-current");
    }
    if (!view) return;
    if (stale.delete(tab)) updates[tab]();
    charts.redraw(sections[tab]);
    if (tab === "trajectories" && id) trajectoriesTab.open(id);
  }

  const updates = {
    overview: () => { overviewTab.update(view); curvesTab.update(view); },
    curves: () => curvesTab.update(view),
    health: () => healthTab.update(view),
    trajectories: () => trajectoriesTab.update(view),
    run: () => fill(sections.run, runTab()),
  };

  function take(newest) {
    view = newest;
    overridesView.update(view);
    diagnosisView.update();
    TABS.forEach((name) => stale.add(name));
    header();
    show();
  }

  function header() {
    const { state, detail, live } = view.status;
    const badge = document.getElementById("run-state");
    const kind = { running: "good", finished: "good", stopped: "warn", interrupted: "warn", failed: "bad" }[state] || "";
    badge.className = `state ${kind} ${live ? "live" : ""}`;
    badge.textContent = state;
    document.title = dom.visible(`${view.name} · Burnish`);
    fill(document.getElementById("run-name"), view.name);
    const wanted = ["environment", "model", "seed", "recipe"];
    const known = wanted.map((name) => view.facts.find(([title]) => title === name)).filter(Boolean);
    fill(document.getElementById("run-line"), known.map(([title, text]) => (title === "seed" ? `seed ${text}` : text)).join("  ·  "));
    const reasons = [];
    if (detail) reasons.push(element("p", { class: `notice ${kind === "bad" ? "bad" : ""}`, id: "reason" }, `The run is ${state}. ${detail}`));
    else if (state === "interrupted") reasons.push(element("p", { class: "notice" }, "The run was interrupted: no process writes to it. `burnish resume` goes on."));
    fill(document.getElementById("notices"), reasons, view.problems.map((text) => element("p", { class: "notice bad" }, text)));
  }

  function runTab() {
    const checks = view.checks.map((one) => {
      const fits = one.largest !== null && (one.tolerance === null || one.largest <= one.tolerance);
      return element("tr", {}, element("th", { scope: "row" }, `${one.title} (${one.unit})`), element("td", {}, one.n),
        element("td", {}, format.number(one.last)), element("td", {}, format.number(one.largest)),
        element("td", {}, one.tolerance === null ? "not stored" : format.number(one.tolerance)),
        element("td", { class: fits ? "good" : "bad" }, one.tolerance === null ? "-" : fits ? "holds" : "violated"));
    });
    const ledger = Object.entries(view.ledger).map(([name, value]) => [name, format.number(value)]);
    return element("div", { class: "stack" },
      dom.card("This run", null, dom.facts([...view.facts, ["started", format.moment(view.status.created_at_s)], ["page made", format.moment(view.generated_at_s)]])),
      view.checks.length ? dom.card("Always-on checks", "A violated check stops the run.", dom.table(["check", "times", "last", "largest", "tolerance", ""], checks)) : null,
      view.ledger.dispatched ? dom.card("Accounting of RL episodes", "dispatched = trained + filtered + dropped + failed", dom.facts(ledger)) : null,
      dom.card("Manifest", "Everything that the run was started with.", element("details", {}, element("summary", {}, "manifest.json"), dom.json(view.manifest))));
  }

  /* Asks for what is new.  The pause is at least ten times what the answer took: watching must not slow the training. */
  async function follow() {
    const started = performance.now();
    let pause = FAST_MS;
    try {
      if (!document.hidden || !view) {
        const newest = await ask("api/overview", { revision: view ? view.revision : "" });
        if (!newest.unchanged) take(newest);
      }
      connection(view.status.live ? "following" : "");
      pause = view.status.live ? FAST_MS : SLOW_MS;
    } catch (error) {
      connection(view ? `not updating: ${error.message}` : `cannot read the run: ${error.message}`);
    }
    setTimeout(follow, Math.max(pause, 10 * (performance.now() - started)));
  }

  function connection(text) {
    document.getElementById("connection").textContent = dom.visible(text);
  }

  const source = isLive ? trajectoriesTab.liveSource(ask) : trajectoriesTab.fileSource(data.sample);
  overviewTab.build(sections.overview);
  curvesTab.build(sections.curves);
  healthTab.build(sections.health);
  trajectoriesTab.build(sections.trajectories, source);
  if (data.token_header) {
    overridesView.accept(tell);
    diagnosisView.accept(tell);
  }
  window.addEventListener("hashchange", show);
  if (isLive) {
    show();
    follow();
  } else {
    take(data.overview);
  }
})();
