"use strict";
/* What people say of a trajectory: shown in every page, added to in a live one that takes it. */

const overridesView = (() => {
  const { element, fill } = dom;
  /* Typed once for all trajectories of this page. */
  const kept = { by: "", token: "" };
  let rows = [];
  let send = null;
  let panel = null;

  /* send(values, token) stores one; without it nothing can be added. */
  function accept(sender) {
    send = sender;
  }

  function update(view) {
    rows = view.overrides.rows;
    if (panel && panel.list.isConnected) fill(panel.list, listed(panel.one));
  }

  /* What was said of one trajectory, oldest first. */
  function of(id) {
    return rows.filter((row) => row.trajectory_id === id);
  }

  function render(one) {
    panel = { one, list: element("div", {}, listed(one)) };
    if (!send && !of(one.id).length) return null;
    return element("article", { class: "card stack", id: "overrides" }, element("h2", {}, "What people say"),
      panel.list, send ? form(one) : null);
  }

  function listed(one) {
    const own = of(one.id);
    if (!own.length) return element("p", { class: "muted" }, "Nobody has said otherwise.");
    return dom.table(["what", "before", "now", "by", "reason", "when"], own.map((row) => element("tr", {},
      element("th", { scope: "row" }, `${row.kind} ${row.name}`),
      element("td", {}, row.before === null ? "none" : format.number(row.before)),
      element("td", {}, row.score === null ? row.label : format.number(row.score)),
      element("td", { class: "wide-text" }, row.by), element("td", { class: "wide-text" }, row.reason),
      element("td", {}, format.moment(row.at_s)))));
  }

  function form(one) {
    const names = { grade: one.grades.map((grade) => grade.grader), flag: families(one), label: [] };
    const kinds = Object.keys(names).filter((kind) => kind === "label" || names[kind].length);
    const field = (name, attributes) => element("input", { name, id: `override-${name}`, required: true, maxlength: 500, ...attributes });
    const kind = element("select", { id: "override-kind", onchange: offer });
    const name = element("select", { id: "override-name" });
    const label = field("label", { placeholder: "owner=environment" });
    const score = field("score", { type: "number", min: 0, max: 1, step: "any", placeholder: "0 to 1" });
    const by = field("by", { value: kept.by, maxlength: 100 });
    const reason = field("reason", {});
    const token = field("token", { type: "password", value: kept.token, autocomplete: "off", title: "what burnish view printed when it started" });
    const said = element("p", { role: "status", id: "override-said" });
    const button = element("button", { type: "submit" }, "Add");
    const row = (title, control) => element("label", {}, title, control);
    const rowOf = { name: row("name", name), label: row("name=value", label), score: row("score", score) };

    function offer() {
      const isLabel = kind.value === "label";
      dom.fillSelect(name, isLabel ? [["", ""]] : names[kind.value].map((one) => [one, one]));
      rowOf.name.hidden = rowOf.score.hidden = isLabel;
      rowOf.label.hidden = !isLabel;
      label.required = isLabel;
      score.required = !isLabel;
      score.placeholder = kind.value === "flag" ? "1: honest, 0: a cheat" : "0 to 1";
    }

    async function add(event) {
      event.preventDefault();
      Object.assign(kept, { by: by.value, token: token.value });
      const values = { trajectory: one.id, by: by.value, reason: reason.value };
      if (kind.value === "label") values.label = label.value;
      else Object.assign(values, { [kind.value]: name.value, score: Number(score.value) });
      button.disabled = true;
      try {
        await send(values, token.value);
        said.className = "good";
        said.textContent = "Stored.";
        reason.value = score.value = label.value = "";
      } catch (error) {
        said.className = "bad";
        said.textContent = dom.visible(error.message);
      }
      button.disabled = false;
    }

    dom.fillSelect(kind, kinds.map((one) => [one, one]));
    offer();
    return element("form", { class: "override", onsubmit: add },
      row("what", kind), rowOf.name, rowOf.label, rowOf.score, row("by", by), row("reason", reason), row("token", token), button,
      element("p", { class: "muted" }, "Words are only ever added; the last one on a name counts. The token is printed by burnish view."), said);
  }

  function families(one) {
    const flags = one.grades.flatMap((grade) => (Array.isArray(grade.evidence.flags) ? grade.evidence.flags : []));
    return [...new Set(flags.map((flag) => flag?.family).filter((family) => typeof family === "string"))];
  }

  return { accept, update, render, of, kept };
})();
