"use strict";
/* One trajectory, turn by turn or token by token. */

const detailView = (() => {
  const { element } = dom;
  /* Nats from which on a token counts as more surprising: about 5, 18, 40, 63, 86, 98 and 99.97% against it. */
  const LEVELS = [0.05, 0.2, 0.5, 1, 2, 4, 8];
  let asTokens = false;

  function render(one, texts, open) {
    const body = element("div", { class: "stack" });
    const readout = element("div", { class: "card readout muted", "aria-live": "polite" });
    const buttons = [["Messages", false], ["Tokens", true]].map(([title, tokens]) =>
      element("button", { type: "button", onclick: () => { asTokens = tokens; show(); } }, title));

    function show() {
      buttons.forEach((button, index) => button.setAttribute("aria-pressed", String(asTokens === (index === 1))));
      dom.fill(body, asTokens ? scale() : null, one.nodes.map((node, index) => turn(one, node, index, texts, asTokens)));
      readout.hidden = !asTokens;
      readout.textContent = "Point at a token for its id, log-probability and policy version.";
    }

    body.addEventListener("mouseover", (event) => {
      if (event.target.classList.contains("token") && event.target.title) readout.textContent = event.target.title;
    });
    show();
    return element("div", { class: "detail" }, head(one, buttons, open), body, readout, verdict(one), diagnosisView.render(one), overridesView.render(one));
  }

  function head(one, buttons, open) {
    const tags = Object.entries(one.tags).map(([name, value]) => element("span", { class: "pill" }, `${name}: ${value}`));
    const members = one.group.length < 2 ? null : element("div", { class: "members" }, element("span", { class: "muted" }, "group"),
      one.group.map((member) => element("button", {
        type: "button", title: `${member.id}: reward ${format.number(member.reward)}, advantage ${format.signed(member.advantage)}, ${member.fate}`,
        "aria-current": member.id === one.id ? "true" : null, onclick: () => open(member.id),
      }, format.number(member.reward))));
    const facts = [
      ["step", `${one.phase} ${one.step}, sampled by policy version ${one.policy_version}`],
      ["task", one.task_id],
      ["reward", `${one.reward === null ? "none" : format.number(one.reward)}, advantage ${one.advantage === null ? "none" : format.signed(one.advantage)}`],
      ["cost", `${one.action_tokens} tokens sampled in ${one.turns} turns, context of ${one.context_tokens}; ${format.seconds(one.total_s)}, of it ${format.seconds(one.tool_s)} in tools`],
    ];
    return element("article", { class: "card stack" },
      element("div", { class: "detail-head" }, element("h2", { class: "id" }, one.id),
        element("span", { class: `pill ${theme.fateClass(one.fate)}` }, one.fate),
        element("span", { class: `pill ${theme.outcomeClass(one.outcome)}` }, one.outcome),
        element("span", { class: "switch" }, buttons)),
      dom.facts(facts), tags.length ? element("div", { class: "chips" }, tags) : null, members);
  }

  function turn(one, node, index, texts, tokens) {
    const first = node.messages[0] || { role: "user" };
    const failed = node.messages.some((message) => message.is_error);
    const title = node.messages.length > 1 ? [...new Set(node.messages.map((message) => message.role))].join(" + ") : first.role;
    const header = element("header", {}, element("b", {}, title),
      element("span", {}, `${node.ids.length} tokens`), element("span", {}, format.seconds(node.duration_s)),
      node.fork ? element("span", { class: "pill warn" }, `fork: ${node.fork}`) : null,
      node.parent !== index - 1 && index > 0 ? element("span", {}, node.parent < 0 ? "new root" : `continues turn ${node.parent}`) : null);
    const content = tokens && node.ids.length ? tokenView(node, texts) : node.messages.map((item) => message(item, one));
    return element("article", { class: `card turn role-${failed ? "error" : first.role}` }, header, content);
  }

  function message(one, whole) {
    const texts = one.parts.map((part) => "text" in part
      ? element("div", { class: one.role === "tool" ? "text code" : "text" }, part.text)
      : imageView.figure(part, shownImages(whole).indexOf(part), whole));
    const calls = (one.tool_calls || []).map(call);
    const label = one.role === "tool" && one.name ? element("div", { class: "muted mono" }, `${one.is_error ? "error from" : "result of"} ${one.name}`) : null;
    const empty = !texts.length && !calls.length ? element("p", { class: "muted" }, "(empty turn)") : null;
    return element("div", { class: "message" }, label, texts, calls, empty);
  }

  /* The image parts of a trajectory in their order: evidence counts them from 0. */
  function shownImages(whole) {
    return whole.nodes.flatMap((node) => node.messages.flatMap((item) => item.parts.filter((part) => "sha256" in part)));
  }

  function call(one) {
    const pairs = Object.entries(one.arguments).map(([name, value]) => [name, typeof value === "string" ? value : JSON.stringify(value)]);
    return element("div", { class: "call" }, element("b", {}, one.name || "(no name)"),
      pairs.length ? element("dl", {}, pairs.map(([name, text]) => [element("dt", {}, name), element("dd", {}, text)])) : null,
      one.error ? element("p", { class: "bad" }, one.error) : null);
  }

  function tokenView(node, texts) {
    const version = (index) => (Array.isArray(node.versions) ? node.versions[index] : node.versions);
    return element("div", { class: "tokens" }, node.ids.map((id, index) => {
      const logprob = node.logprobs?.[index] ?? null;
      const text = tokenText(texts[id], id);
      if (logprob === null) return element("span", { class: "token shown", title: `id ${id}, shown to the policy` }, text);
      const share = `${(100 * Math.exp(logprob)).toPrecision(3)}%`;
      const title = `id ${id}, log-probability ${logprob.toFixed(3)} (${share}), version ${version(index)}`;
      return element("span", { class: `token s${level(logprob)}`, title }, text);
    }));
  }

  function level(logprob) {
    return LEVELS.filter((bound) => -logprob >= bound).length;
  }

  function tokenText(text, id) {
    if (text === undefined) return `#${id} `;
    return text === "" ? "\u2205" : text.replaceAll("\n", "\u21b5\n").replaceAll("\t", "\u21e5\t");
  }

  function scale() {
    const marks = ["certain", ...LEVELS.map((bound) => `${(100 * Math.exp(-bound)).toPrecision(2)}%`)];
    return element("div", { class: "scale" }, "probability at most",
      marks.map((text, index) => element("span", { class: `token s${index}` }, text)), element("span", { class: "token shown" }, "shown, not sampled"));
  }

  function verdict(one) {
    const grades = one.grades.map((grade) => element("tr", {},
      element("th", { scope: "row" }, `${grade.grader} ${grade.version}`),
      element("td", {}, grade.score === null ? "none" : format.number(grade.score)),
      element("td", { class: "wide-text" }, grade.cause, Object.keys(grade.evidence).length ? dom.json(grade.evidence) : null),
      element("td", {}, format.seconds(grade.cost_s))));
    const counters = Object.entries(one.counters).filter(([, value]) => value).map(([name, value]) => element("span", { class: "pill" }, `${name} ${value}`));
    const end = [["outcome", [one.outcome, one.cause, one.detail].filter(Boolean).join(": ")], ["answer", one.answer || "(none)"], ["seed", one.seed]];
    return element("article", { class: "card stack" }, element("h2", {}, "How it ended"), dom.facts(end),
      counters.length ? element("div", { class: "chips" }, counters) : null,
      one.grades.length ? dom.table(["grader", "score", "evidence", "cost"], grades) : element("p", { class: "muted" }, "No grades."),
      Object.keys(one.final_state).length ? element("details", {}, element("summary", {}, "final state"), dom.json(one.final_state)) : null);
  }

  return { render };
})();
