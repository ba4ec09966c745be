"use strict";
/* The trajectory browser.  Its source is the sample in the file, or the server of the live page. */

const trajectoriesTab = (() => {
  const { element, fill, fillSelect } = dom;
  const PAGE = 50;
  const REWARDS = {
    full: (value) => value !== null && value >= 1,
    positive: (value) => value !== null && value > 0,
    zero: (value) => value !== null && value <= 0,
    none: (value) => value === null,
  };
  const controls = {};
  const parts = {};
  let source = null;
  let view = null;
  let offset = 0;
  let current = "";
  let asked = 0;

  /* The trajectories inside the file. */
  function fileSource(sample) {
    const rows = sample.trajectories;
    const haystacks = new Map();
    const haystack = (one) => {
      if (!haystacks.has(one.id)) haystacks.set(one.id, JSON.stringify([one.id, one.task_id, one.answer, one.nodes.map((node) => node.messages)]).toLowerCase());
      return haystacks.get(one.id);
    };
    const order = { rl: 0, eval: 1, sft: 2 };
    const sorted = [...rows].sort((a, b) => order[a.phase] - order[b.phase] || b.step - a.step || (a.id < b.id ? -1 : 1));
    return {
      total: () => rows.length,
      facets(browse) {
        const steps = {};
        for (const [phase, known] of Object.entries(browse.steps)) {
          steps[phase] = known.map((info) => ({ ...info, n: rows.filter((one) => one.phase === phase && one.step === info.step).length })).filter((info) => info.n);
        }
        const present = (names, field) => names.filter((name) => rows.some((one) => one[field] === name));
        return { steps, fates: present(browse.fates, "fate"), outcomes: present(browse.outcomes, "outcome") };
      },
      async list(filter) {
        const text = JSON.stringify(filter.text.toLowerCase()).slice(1, -1);
        const found = sorted.filter((one) => (!filter.phase || one.phase === filter.phase)
          && (!filter.step || one.step === Number(filter.step))
          && (!filter.fate || one.fate === filter.fate)
          && (!filter.outcome || one.outcome === filter.outcome)
          && (!filter.reward || REWARDS[filter.reward](one.reward))
          && (!text || haystack(one).includes(text)));
        return { total: found.length, offset: filter.offset, rows: found.slice(filter.offset, filter.offset + PAGE) };
      },
      async open(id) {
        const one = rows.find((candidate) => candidate.id === id);
        if (!one) throw new Error(`${id} is not among the trajectories inside this file; burnish view shows all of them`);
        return { one, texts: sample.texts };
      },
    };
  }

  function liveSource(ask) {
    return {
      total: () => view.browse.total,
      facets: (browse) => browse,
      list: (filter) => ask("api/trajectories", { ...filter, limit: PAGE }),
      async open(id) {
        const one = await ask("api/trajectory", { id });
        return { one, texts: one.texts };
      },
    };
  }

  function build(section, chosen) {
    source = chosen;
    const choice = (name, title) => {
      controls[name] = element("select", { id: `filter-${name}`, onchange: () => { if (name === "phase") offerSteps(); restart(); } });
      return element("label", {}, title, controls[name]);
    };
    let waiting = 0;
    controls.text = element("input", {
      type: "search", id: "filter-text", placeholder: "in messages, answers, ids", maxlength: 200,
      oninput: () => { clearTimeout(waiting); waiting = setTimeout(restart, 250); },
    });
    const filters = element("form", { class: "filters", onsubmit: (event) => event.preventDefault() },
      choice("phase", "phase"), choice("step", "step"), choice("fate", "fate"), choice("outcome", "outcome"), choice("reward", "reward"),
      element("label", {}, "text", controls.text));
    parts.count = element("p", { class: "muted", role: "status" });
    parts.rows = element("ol", { id: "rows" });
    parts.back = element("button", { type: "button", onclick: () => move(-PAGE) }, "Back");
    parts.more = element("button", { type: "button", onclick: () => move(PAGE) }, "More");
    parts.place = element("span", { class: "muted" });
    parts.detail = element("div", { id: "detail" }, element("p", { class: "muted" }, "Choose a trajectory to read it turn by turn."));
    const list = element("div", { class: "card list" }, parts.count, parts.rows, element("div", { class: "pager" }, parts.back, parts.place, parts.more));
    section.append(filters, element("div", { class: "browser" }, list, parts.detail));
    fillSelect(controls.reward, [["", "any"], ["full", "full (1 or more)"], ["positive", "above 0"], ["zero", "0 or less"], ["none", "none"]]);
  }

  function offer() {
    const facets = source.facets(view.browse);
    const names = { rl: "RL", eval: "held-out evaluation", sft: "demonstrations" };
    fillSelect(controls.phase, [["", "all"], ...Object.keys(names).filter((phase) => facets.steps[phase]?.length).map((phase) => [phase, names[phase]])]);
    fillSelect(controls.fate, [["", "any"], ...facets.fates.map((name) => [name, name])]);
    fillSelect(controls.outcome, [["", "any"], ...facets.outcomes.map((name) => [name, name])]);
    offerSteps();
  }

  function offerSteps() {
    const steps = source.facets(view.browse).steps[controls.phase.value] || [];
    fillSelect(controls.step, [["", "all"], ...[...steps].reverse().map((info) => [info.step, info.title ? `${info.step}: ${info.title}` : info.step])]);
    controls.step.disabled = !steps.length;
  }

  function restart() {
    offset = 0;
    return refresh();
  }

  function move(by) {
    offset = Math.max(0, offset + by);
    parts.rows.scrollTop = 0;
    return refresh();
  }

  async function refresh() {
    const filter = { offset };
    for (const name of ["phase", "step", "fate", "outcome", "reward", "text"]) filter[name] = controls[name].value;
    const turn = ++asked; // An answer that comes late must not replace a newer one.
    try {
      const page = await source.list(filter);
      if (turn === asked) show(page);
    } catch (error) {
      if (turn === asked) fill(parts.count, element("span", { class: "bad" }, error.message));
    }
  }

  function show(page) {
    const all = view.browse.total;
    const inside = source.total() === all ? "" : ` in this file, which carries a sample of all ${format.number(all)} (burnish view opens the rest)`;
    fill(parts.count, `${format.number(page.total)} of ${format.number(source.total())} trajectories${inside}`);
    fill(parts.rows, page.rows.map(row));
    parts.place.textContent = page.total ? `${page.offset + 1} to ${page.offset + page.rows.length}` : "nothing fits";
    parts.back.disabled = page.offset === 0;
    parts.more.disabled = page.offset + page.rows.length >= page.total;
    mark();
  }

  function row(one) {
    const button = element("button", { type: "button", class: "row", onclick: () => { location.hash = `trajectories/${one.id}`; } },
      element("span", { class: "mono" }, one.id), element("b", {}, one.reward === null ? "no reward" : format.number(one.reward)),
      element("span", { class: "muted" }, one.answer || "(no answer)"),
      element("span", { class: `muted ${one.outcome === "completed" ? "" : theme.outcomeClass(one.outcome)}` }, one.outcome === "completed" ? one.fate : one.outcome));
    button.dataset.id = one.id;
    return element("li", {}, button);
  }

  function mark() {
    for (const button of parts.rows.querySelectorAll("button")) {
      if (button.dataset.id === current) button.setAttribute("aria-current", "true");
      else button.removeAttribute("aria-current");
    }
  }

  async function open(id) {
    if (id === current) return;
    current = id;
    mark();
    try {
      const { one, texts } = await source.open(id);
      if (id !== current) return;
      fill(parts.detail, detailView.render(one, texts, (other) => { location.hash = `trajectories/${other}`; }));
      if (window.matchMedia("(max-width: 900px)").matches) parts.detail.scrollIntoView({ block: "start" });
    } catch (error) {
      if (id === current) fill(parts.detail, element("p", { class: "notice bad" }, error.message));
      current = id === current ? "" : current;
    }
  }

  function update(newest) {
    view = newest;
    offer();
    return refresh();
  }

  return { build, update, open, fileSource, liveSource };
})();
