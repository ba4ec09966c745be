"use strict";
/* The colours of the stylesheet, for canvases. */

const theme = (() => {
  const FATES = { trained: "c1", filtered: "c6", dropped: "c8", failed: "c7", held_out: "c5", demonstration: "c3", pending: "c2" };
  const OUTCOMES = {
    "completed": "c3", "truncated:turns": "c8", "truncated:turn_tokens": "c2", "truncated:episode_tokens": "c2",
    "truncated:context_tokens": "c2", "truncated:time": "c8", "error:model": "c7", "error:environment": "c4",
    "error:grader": "c5", "error:infrastructure": "c6",
  };
  const PALETTE = ["c1", "c2", "c3", "c4", "c5", "c7", "c8", "c6"];
  const scheme = window.matchMedia("(prefers-color-scheme: dark)");

  function color(name) {
    return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
  }

  function fateClass(fate) {
    return { trained: "good", failed: "bad", dropped: "warn" }[fate] || "";
  }

  function outcomeClass(outcome) {
    if (outcome === "completed") return "good";
    return outcome.startsWith("truncated") ? "warn" : "bad";
  }

  /* Colour `index` of `count` on the way from calm to alarming. */
  function ramp(index, count) {
    const stops = ["c3", "c8", "c7"].map((name) => [1, 3, 5].map((start) => parseInt(color(name).slice(start, start + 2), 16)));
    const at = count > 1 ? (index * (stops.length - 1)) / (count - 1) : 0;
    const [from, to] = [stops[Math.floor(at)], stops[Math.ceil(at)]];
    return `rgb(${from.map((value, place) => Math.round(value + (at % 1) * (to[place] - value))).join(", ")})`;
  }

  return {
    color,
    ramp,
    fate: (name) => color(FATES[name] || "c6"),
    outcome: (name) => color(OUTCOMES[name] || "c6"),
    palette: () => PALETTE.map(color),
    fateClass,
    outcomeClass,
    onChange: (react) => scheme.addEventListener("change", react),
  };
})();
