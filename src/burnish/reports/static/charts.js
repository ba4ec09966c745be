"use strict";
/* Charts by Apache ECharts.  A chart is described as

   {kind: "line" | "bar" | "path", step: "RL step", log: true, range: [0, 1], labels: ["a", ...], named: true, marks: [...], series: [
     {name, points: [[step, value], ...], color, dashed, band: [[low, high], ...], errors: [[low, high], ...], show, at, ends}]}

   band: shaded, one interval for each point.  errors: bars at the points.  show(value) gives the text of a value.
   path: points joined in their own order, whatever their x; `at` says of each what it is, `ends` names the first and the
   last.  labels: of a bar chart's places, whose steps are then 0, 1, ...  named: a single series has its legend too.
   marks: {from, to, color} of findings on a line chart: shaded from the estimated onset to the step of the alarm.
   fromZero: the axis of values begins at 0, so that noise looks as small as it is.
   kind "timeline" is described in timeline.js. */

const charts = (() => {
  const HELPER = "helper:";
  const drawn = new Map();
  const observer = new ResizeObserver((entries) => {
    for (const entry of entries) if (entry.contentRect.width > 0) echarts.getInstanceByDom(entry.target)?.resize();
  });

  function draw(target, description) {
    drawn.set(target, description);
    if (target.clientWidth === 0) return; // In a hidden section; drawn when it is shown.
    let chart = echarts.getInstanceByDom(target);
    if (!chart) {
      chart = echarts.init(target);
      observer.observe(target);
    }
    chart.setOption(option(description), { notMerge: true });
  }

  function redraw(section) {
    for (const [target, description] of drawn) if (section.contains(target)) draw(target, description);
  }

  function option(description) {
    const ink = theme.color("ink");
    const muted = theme.color("muted");
    const palette = theme.palette();
    if (description.kind === "timeline") return timeline.option(description, axes(muted), ink);
    const series = description.series.map((one, index) => ({ ...one, color: one.color || palette[index % palette.length] }));
    if (description.kind === "line") dodge(series.filter((one) => one.errors));
    const steps = description.kind === "bar" ? axisOfSteps(series) : null;
    const isPath = description.kind === "path";
    if (description.marks?.length && series.length) series[0] = { ...series[0], marks: description.marks };
    const alone = series.length === 1 && !description.named && !series[0].band && !series[0].errors;
    const axis = axes(muted);
    return {
      animation: false,
      aria: { enabled: true },
      textStyle: { fontFamily: getComputedStyle(document.body).fontFamily, color: ink },
      grid: { left: 46, right: 18, top: alone ? 14 : 34, bottom: 38 },
      legend: {
        show: !alone, type: "scroll", left: 0, top: 0, itemWidth: 14, itemHeight: 8, itemGap: 14,
        textStyle: { color: ink, fontSize: 12, lineHeight: 18 }, pageTextStyle: { color: muted }, inactiveColor: muted,
        pageIconColor: ink, pageIconInactiveColor: muted, pageIconSize: 10, data: series.map((one) => one.name),
      },
      tooltip: {
        trigger: isPath ? "item" : "axis", confine: true, backgroundColor: theme.color("card"), borderColor: theme.color("line"), padding: [6, 10],
        axisPointer: { type: description.kind === "bar" ? "shadow" : "line", lineStyle: { color: muted } },
        formatter: (found) => tip(description, series, [found].flat()),
      },
      xAxis: {
        ...axis, splitLine: { show: false }, name: description.step, nameLocation: "middle", nameGap: 22,
        ...(steps ? { type: "category", data: description.labels || steps } : { type: "value", ...(isPath ? { scale: true } : extent(series)), minInterval: 1 }),
      },
      yAxis: {
        ...axis, type: description.log ? "log" : "value", axisLine: { show: false }, scale: description.kind !== "bar" && !description.fromZero,
        min: description.range?.[0], max: description.range?.[1],
        axisLabel: { ...axis.axisLabel, formatter: (value) => (description.share ? `${Number((100 * value).toPrecision(2))}%` : short(value)) },
      },
      series: series.flatMap((one) => (steps ? bar(one, steps) : isPath ? path(one) : line(one, description))),
    };
  }

  function axes(muted) {
    return {
      nameTextStyle: { color: muted, fontSize: 11 },
      axisLabel: { color: muted, fontSize: 11, hideOverlap: true },
      axisLine: { lineStyle: { color: theme.color("line") } },
      axisTick: { show: false },
      splitLine: { lineStyle: { color: theme.color("line"), width: 1 } },
    };
  }

  function short(value) {
    const size = Math.abs(value);
    if (size >= 1e6) return `${Number((value / 1e6).toPrecision(3))}M`;
    if (size >= 1e4) return `${Number((value / 1e3).toPrecision(3))}k`;
    if (size !== 0 && size < 1e-3) return value.toExponential(1).replace(".0e", "e");
    return String(Number(value.toPrecision(4)));
  }

  /* Bars of several series at one step stand beside each other. */
  function dodge(series) {
    series.forEach((one, index) => { one.shift = 7 * index; });
  }

  function axisOfSteps(series) {
    return [...new Set(series.flatMap((one) => one.points.map(([step]) => step)))].sort((a, b) => a - b);
  }

  function extent(series) {
    const steps = axisOfSteps(series);
    if (steps.length === 0) return {};
    const first = steps[0];
    const last = steps[steps.length - 1];
    return last > first ? { min: first, max: last } : { min: first - 1, max: last + 1 };
  }

  function bar(one, steps) {
    const values = new Map(one.points);
    const made = [{
      type: "bar", name: one.name, id: one.name, stack: "all", data: steps.map((step) => values.get(step) ?? 0),
      itemStyle: { color: one.color, opacity: one.errors ? 0.55 : 1 }, barCategoryGap: steps.length > 80 ? "0%" : "18%",
    }];
    if (one.errors) made.push(errorBars(one));
    return made;
  }

  /* Later points are larger, so that the direction shows without a word. */
  function path(one) {
    const last = one.points.length - 1;
    const data = one.points.map((value, index) => ({
      value, symbolSize: last ? 5 + (5 * index) / last : 9,
      label: { show: last > 0 && (index === 0 || index === last) && Boolean(one.ends), position: "top", distance: 6, formatter: () => one.ends[index] },
    }));
    const made = [{
      type: "line", name: one.name, id: one.name, data, color: one.color, symbol: "circle", showAllSymbol: true,
      lineStyle: { width: 1.5, opacity: 0.7 }, label: { color: theme.color("muted"), fontSize: 10 }, labelLayout: { hideOverlap: true }, z: 3,
    }];
    if (one.errors) made.push(errorBars(one));
    return made;
  }

  function line(one, description) {
    // A logarithmic axis has no place for zero: such a value stands at its foot.
    const floor = description.log ? 1e-9 : -Infinity;
    const made = [];
    if (one.band) made.push(...band(one));
    made.push({
      type: "line", name: one.name, id: one.name, data: one.points.map(([step, value]) => [step, Math.max(value, floor)]),
      color: one.color, lineStyle: { width: one.dashed ? 1.5 : 2, type: one.dashed ? "dashed" : "solid", opacity: one.errors && one.points.length < 3 ? 0 : 1 },
      symbol: one.dashed ? "none" : "circle", symbolSize: one.errors ? 7 : 5, symbolOffset: [one.shift || 0, 0], showSymbol: one.points.length < 30,
      sampling: one.points.length > 1500 ? "lttb" : undefined, z: 3, ...(one.marks ? marked(one.marks) : {}),
    });
    if (one.errors) made.push(errorBars(one));
    return made;
  }

  function marked(marks) {
    const area = { silent: true, data: marks.map((mark) => [{ xAxis: mark.from, itemStyle: { color: mark.color, opacity: 0.1 } }, { xAxis: mark.to }]) };
    const line = {
      silent: true, symbol: "none", label: { show: false },
      data: marks.map((mark) => ({ xAxis: mark.to, lineStyle: { color: mark.color, type: "solid", width: 1, opacity: 0.7 } })),
    };
    return { markArea: area, markLine: line };
  }

  /* Two stacked lines: an invisible one at the low end, and the distance to the high end filled. */
  function band(one) {
    const known = one.points.map(([step], index) => [step, ...(one.band[index] || [null, null])]).filter(([, low, high]) => low !== null && high !== null);
    const base = {
      type: "line", name: one.name, stack: `band ${one.name}`, stackStrategy: "all", symbol: "none", silent: true,
      lineStyle: { opacity: 0 }, color: one.color, z: 1,
    };
    return [
      { ...base, id: `${HELPER}low ${one.name}`, data: known.map(([step, low]) => [step, low]) },
      { ...base, id: `${HELPER}high ${one.name}`, data: known.map(([step, low, high]) => [step, high - low]), areaStyle: { color: one.color, opacity: 0.18 } },
    ];
  }

  function errorBars(one) {
    return {
      type: "custom", name: one.name, id: `${HELPER}errors ${one.name}`, silent: true, z: 4, clip: false, color: one.color,
      data: one.points.map(([step], index) => [step, ...one.errors[index]]), encode: { x: 0, y: [1, 2] },
      renderItem(_, api) {
        const [place, high] = api.coord([api.value(0), api.value(2)]);
        const x = place + (one.shift || 0);
        const [, low] = api.coord([api.value(0), api.value(1)]);
        const style = { stroke: one.color, lineWidth: 1.5, fill: null };
        const stroke = (x1, y1, x2, y2) => ({ type: "line", shape: { x1, y1, x2, y2 }, style });
        return { type: "group", children: [stroke(x, low, x, high), stroke(x - 4, low, x + 4, low), stroke(x - 4, high, x + 4, high)] };
      },
    };
  }

  /* The tooltip is built of elements, so that no name is ever read as markup. */
  function tip(description, series, found) {
    const shown = found.filter((item) => !item.seriesId.startsWith(HELPER));
    const { element } = dom;
    const rows = shown.map((item) => {
      const one = series.find((candidate) => candidate.name === item.seriesId);
      const value = Array.isArray(item.value) ? item.value[1] : item.value;
      const exact = Array.isArray(item.value) ? one.points[item.dataIndex]?.[1] ?? value : value;
      if (description.kind === "bar" && !description.labels && !exact) return null;
      const text = (one.show || format.number)(exact);
      const interval = (one.band || one.errors)?.[item.dataIndex];
      const range = interval && interval[0] !== null ? ` (${(one.show || format.number)(interval[0])} to ${(one.show || format.number)(interval[1])})` : "";
      const at = one.at ? element("div", { class: "muted" }, one.at[item.dataIndex]) : null;
      return [element("div", {}, element("span", { class: "dot", style: { background: one.color } }), element("span", {}, one.name), element("span", {}, text + range)), at];
    });
    const step = !shown.length ? "" : description.kind === "path" ? format.number(shown[0].value[0]) : shown[0].axisValue;
    return element("div", { class: "tip" }, element("strong", {}, `${description.step} ${step}`), rows);
  }

  theme.onChange(() => redraw(document.body));
  return { draw, redraw };
})();
