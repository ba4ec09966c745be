"use strict";
/* Findings and decisions over the steps of a run, one row for each monitor and each knob.  Described as

   {kind: "timeline", step: "RL step", extent: [first, last], rows: ["text", ...], marks: [{step, text}],
    spans: [{row, from, to, color, hollow, lines: ["text of the tooltip", ...]}]}

   A span runs from the estimated onset to the step of the alarm, where its dot stands; marks are lines over all rows. */

const timeline = (() => {
  const ROW_PX = 26;

  function height(description) {
    return 72 + ROW_PX * description.rows.length;
  }

  function option(description, axis, ink) {
    const { rows, spans, marks, extent } = description;
    const muted = theme.color("muted");
    return {
      animation: false,
      aria: { enabled: true },
      grid: { left: 8, right: 24, top: 22, bottom: 26, containLabel: true },
      tooltip: {
        trigger: "item", confine: true, backgroundColor: theme.color("card"), borderColor: theme.color("line"), padding: [6, 10],
        formatter: (item) => tip(spans[item.dataIndex]),
      },
      xAxis: { ...axis, type: "value", min: extent[0], max: extent[1], minInterval: 1, name: description.step, nameLocation: "middle", nameGap: 22, splitLine: { show: false } },
      yAxis: {
        ...axis, type: "category", data: rows, inverse: true, splitLine: { show: true, lineStyle: { color: theme.color("line") } }, axisLine: { show: false },
        axisLabel: { color: ink, fontSize: 12, width: Math.min(250, window.innerWidth / 3), overflow: "truncate", interval: 0 },
      },
      series: [{
        type: "custom", id: "spans", name: "findings and decisions", data: spans.map((span) => [span.from, span.to, span.row]),
        encode: { x: [0, 1], y: 2 }, clip: false, renderItem: (item, api) => shape(spans[item.dataIndex], api),
        markLine: {
          silent: true, symbol: "none", label: { color: muted, fontSize: 11, formatter: (item) => item.name, position: "start", distance: 4 },
          lineStyle: { color: theme.color("c7"), type: "dashed", width: 1.5 }, data: marks.map((mark) => ({ name: mark.text, xAxis: mark.step })),
        },
      }],
    };
  }

  /* A bar from the onset to the alarm, and a dot where it fired. */
  function shape(span, api) {
    const [left, y] = api.coord([span.from, span.row]);
    const [right] = api.coord([span.to, span.row]);
    const bar = { type: "rect", shape: { x: left, y: y - 3, width: Math.max(0, right - left), height: 6, r: 3 }, style: { fill: span.color, opacity: 0.35 } };
    const dot = { type: "circle", shape: { cx: right, cy: y, r: 5.5 }, style: { fill: span.hollow ? theme.color("card") : span.color, stroke: span.color, lineWidth: 2 } };
    return { type: "group", children: span.to > span.from ? [bar, dot] : [dot] };
  }

  function tip(span) {
    const { element } = dom;
    const [first, ...rest] = span.lines;
    return element("div", { class: "tip" }, element("strong", {}, first), rest.map((line) => element("p", {}, line)));
  }

  return { option, height };
})();
