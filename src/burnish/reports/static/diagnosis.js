"use strict";
/* Which step of a failed trajectory was the critical one; a live page that takes words takes a correction too. */

const diagnosisView = (() => {
  const { element, fill } = dom;
  const LABEL = "diagnosis";
  let send = null;
  let panel = null;

  /* send(values, token) stores one; without it nothing can be corrected. */
  function accept(sender) {
    send = sender;
  }

  /* What people said has changed. */
  function update() {
    if (panel && panel.said.isConnected) showWords(panel);
  }

  function render(one) {
    const found = one.diagnosis;
    if (!found) return null;
    panel = { one, found, said: element("div", { class: "stack" }), rows: new Map(), step: null };
    const wanted = (row) => row.found.length || row.p >= 0.005 || row.step === found.critical?.step;
    const isShort = found.rows.every(wanted);
    const all = isShort ? null : element("button", { type: "button", "aria-pressed": "false", onclick: toggle }, "All messages");
    const table = dom.table(["message", "who", "says or calls, and what was found there"], found.rows.map(row));
    table.classList.add("diagnosis-log");
    found.rows.forEach((item) => { panel.rows.get(item.step).hidden = !wanted(item); });

    function toggle() {
      const isAll = all.getAttribute("aria-pressed") !== "true";
      all.setAttribute("aria-pressed", String(isAll));
      found.rows.forEach((item) => { panel.rows.get(item.step).hidden = !(isAll || wanted(item)); });
    }

    const built = element("article", { class: "card stack", id: "diagnosis" },
      element("div", { class: "detail-head" }, element("h2", {}, "What went wrong"), all ? element("span", { class: "switch" }, all) : null),
      panel.said, table, send ? form(panel) : null);
    showWords(panel);
    return built;
  }

  function row(item) {
    const made = element("tr", {},
      element("th", { scope: "row" }, send ? element("button", { type: "button", title: "the critical step is this one", onclick: () => choose(item.step) }, item.step) : item.step,
        item.p >= 0.005 ? element("span", { class: "muted" }, ` p ${item.p.toFixed(2)}`) : null),
      element("td", {}, item.role),
      element("td", { class: "wide-text" }, element("div", { class: "text" }, item.text),
        item.found.map((one) => element("div", { class: "bad" }, `${one.constraint}: ${one.why}`,
          element("span", { class: "muted" }, ` (${one.category}, ${one.owner}, severity ${format.number(one.severity)})`)))));
    panel.rows.set(item.step, made);
    return made;
  }

  function choose(step) {
    if (!panel.step) return;
    panel.step.value = step;
    panel.step.scrollIntoView({ block: "nearest" });
    panel.step.focus();
  }

  /* The last word of a person, null where nobody spoke; what a word leaves out stays. */
  function lastWord({ one, found }) {
    const word = overridesView.of(one.id).filter((item) => item.kind === "label" && item.name === LABEL).at(-1);
    if (!word) return null;
    const [step, category, owner] = word.label.split("/");
    return { step: Number(step), category: category || found.critical?.category || "inconclusive", owner: owner || found.critical?.owner || "unknown", by: word.by, reason: word.reason };
  }

  function showWords(shown) {
    const { critical } = shown.found;
    const word = lastWord(shown);
    const same = word && critical && word.step === critical.step && word.category === critical.category && word.owner === critical.owner;
    const machine = critical === null ? element("p", {}, "Burnish does not know: nothing stands out enough to accuse a step.")
      : element("p", {}, verdict(critical), element("span", { class: "muted" }, ` by Burnish, p ${critical.p.toFixed(2)}: ${critical.why}`));
    fill(shown.said, word ? element("p", { id: "diagnosis-word" }, verdict(word), element("span", { class: "muted" }, ` says ${word.by}${same ? ", as Burnish does" : ""}: ${word.reason}`)) : null,
      same ? null : machine);
    const step = (word || critical)?.step;
    for (const [number, line] of shown.rows) line.classList.toggle("critical", number === step);
    if (shown.rows.has(step)) shown.rows.get(step).hidden = false;
  }

  function verdict({ step, category, owner }) {
    return [element("b", {}, `message ${step} `), element("span", { class: "pill bad" }, category), " ", element("span", { class: "pill" }, owner)];
  }

  function form(shown) {
    const { one, found } = shown;
    const start = lastWord(shown) || found.critical || { step: 1, category: "inconclusive", owner: "unknown" };
    const { kept } = overridesView;
    const input = (name, attributes) => element("input", { name, id: `diagnosis-${name}`, required: true, maxlength: 500, ...attributes });
    const choice = (name, values) => {
      const made = element("select", { name, id: `diagnosis-${name}` });
      dom.fillSelect(made, values.map((value) => [value, value]));
      made.value = start[name];
      return made;
    };
    const step = input("step", { type: "number", min: 1, max: found.messages, step: 1, value: start.step });
    const category = choice("category", one.choices.categories);
    const owner = choice("owner", one.choices.owners);
    const by = input("by", { value: kept.by, maxlength: 100 });
    const reason = input("reason", {});
    const token = input("token", { type: "password", value: kept.token, autocomplete: "off", title: "what burnish view printed when it started" });
    const said = element("p", { role: "status", id: "diagnosis-said" });
    const button = element("button", { type: "submit" }, "Say so");
    const labelled = (title, control) => element("label", {}, title, control);
    shown.step = step;

    async function add(event) {
      event.preventDefault();
      Object.assign(kept, { by: by.value, token: token.value });
      button.disabled = true;
      try {
        await send({ trajectory: one.id, label: `${LABEL}=${step.value}/${category.value}/${owner.value}`, by: by.value, reason: reason.value }, token.value);
        said.className = "good";
        said.textContent = "Stored.";
        reason.value = "";
      } catch (error) {
        said.className = "bad";
        said.textContent = dom.visible(error.message);
      }
      button.disabled = false;
    }

    return element("form", { class: "override", onsubmit: add },
      labelled("critical message", step), labelled("category", category), labelled("owner", owner), labelled("by", by), labelled("reason", reason), labelled("token", token), button,
      element("p", { class: "muted" }, "Say what it should have been; sent as it stands, you say that it is right. Words are only ever added, the last one counts, and burnish diagnose measures itself by them. The token is printed by burnish view."), said);
  }

  return { accept, update, render };
})();
