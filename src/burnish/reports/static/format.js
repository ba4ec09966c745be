"use strict";
/* Numbers and times as short texts. */

const format = (() => {
  /* Three significant digits, whole from a thousand on. */
  function number(value) {
    if (value === null || value === undefined) return "-";
    const size = Math.abs(value);
    if (size >= 1000) return Math.round(value).toLocaleString("en");
    if (size !== 0 && size < 0.001) return value.toExponential(1).replace(".0e", "e");
    return String(Number(value.toPrecision(3)));
  }

  function percent(value) {
    return value === null || value === undefined ? "-" : `${(100 * value).toFixed(1)}%`;
  }

  function seconds(value) {
    if (value === null || value === undefined) return "-";
    if (value < 1) return `${format.number(1000 * value)} ms`;
    if (value < 60) return `${value.toFixed(1)} s`;
    const whole = Math.round(value);
    if (whole < 3600) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
    return `${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)} min`;
  }

  function moment(atS) {
    return new Date(1000 * atS).toLocaleString("en-GB", { dateStyle: "medium", timeStyle: "medium" });
  }

  function signed(value) {
    return value === null || value === undefined ? "-" : `${value > 0 ? "+" : ""}${number(value)}`;
  }

  return { number, percent, seconds, moment, signed };
})();
