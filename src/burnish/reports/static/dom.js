"use strict";
/* Building elements.  What a run wrote is untrusted: it goes in as text, never as markup. */

const dom = (() => {
  const HIDDEN = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u061c\u200b\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]/g;

  /* Characters that would not be seen, or would turn the text around them, as visible codes. */
  function visible(text) {
    return String(text).replace(HIDDEN, (character) => `\u27e8U+${character.charCodeAt(0).toString(16).toUpperCase().padStart(4, "0")}\u27e9`);
  }

  /* element("p", {class: "muted", onclick: f}, "text", [more, children]): null and false are left out. */
  function element(tag, attributes = {}, ...children) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (value === null || value === undefined || value === false) continue;
      if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
      else if (name === "style") Object.assign(made.style, value);
      else made.setAttribute(name, value === true ? "" : visible(value));
    }
    append(made, children);
    return made;
  }

  function append(parent, children) {
    for (const child of children.flat(Infinity)) {
      if (child === null || child === undefined || child === false) continue;
      parent.append(child instanceof Node ? child : visible(child));
    }
  }

  function fill(parent, ...children) {
    parent.replaceChildren();
    append(parent, children);
  }

  /* A select whose options are [value, text]; keeps its choice where that is still there. */
  function fillSelect(select, options) {
    const chosen = select.value;
    fill(select, options.map(([value, text]) => element("option", { value }, text)));
    select.value = options.some(([value]) => String(value) === chosen) ? chosen : String(options[0][0]);
  }

  function card(title, note, ...children) {
    const head = element("header", {}, element("h2", {}, title), note ? element("p", {}, note) : null);
    return element("article", { class: "card" }, head, children);
  }

  function facts(pairs) {
    return element("dl", { class: "facts" }, pairs.map(([title, text]) => [element("dt", {}, title), element("dd", {}, text)]));
  }

  function table(titles, rows) {
    const head = element("thead", {}, element("tr", {}, titles.map((title) => element("th", { scope: "col" }, title))));
    return element("div", { class: "scroll" }, element("table", {}, head, element("tbody", {}, rows)));
  }

  function json(value) {
    return element("pre", {}, JSON.stringify(value, null, 2));
  }

  return { visible, element, fill, fillSelect, card, facts, table, json };
})();
