"use strict";
/* Images of a trajectory with the evidence that graders found in it drawn over them, in pixels of the image. */

const imageView = (() => {
  const { element } = dom;
  const SVG = "http://www.w3.org/2000/svg";
  const LEAST_SIDE = 224;
  const DATA = /^data:image\/(png|jpeg|gif);base64,[A-Za-z0-9+/=]+$/;

  /* All marks of a trajectory: {kind, numbers, label, frame, ok}; ok is null where nobody judged. */
  function marksOf(one) {
    return one.grades.flatMap((grade) => {
      const { points, places, boxes } = grade.evidence;
      return [...read(points ?? places, "point", 2), ...read(boxes, "box", 4)];
    });
  }

  /* Each item is [label, numbers..., frame] or an object with x and y (or x1, y1, x2, y2), label, frame and ok. */
  function read(items, kind, count) {
    if (!Array.isArray(items)) return [];
    const names = kind === "point" ? [["x", "x_px"], ["y", "y_px"]] : [["x1", "x1_px"], ["y1", "y1_px"], ["x2", "x2_px"], ["y2", "y2_px"]];
    return items.map((item) => {
      const list = Array.isArray(item);
      const numbers = list ? item.slice(1, 1 + count) : names.map(([short, long]) => item?.[short] ?? item?.[long]);
      const frame = list ? item[1 + count] ?? 0 : item?.frame ?? 0;
      return { kind, numbers, label: String((list ? item[0] : item?.label) ?? ""), frame, ok: list ? null : item?.ok ?? null };
    }).filter((mark) => mark.numbers.length === count && mark.numbers.every((value) => Number.isFinite(value)));
  }

  /* The image `part`, the frame-th of its trajectory. */
  function figure(part, frame, one) {
    const title = `image ${part.width_px} x ${part.height_px}, ${part.sha256.slice(0, 12)}`;
    const source = one.images?.[part.sha256];
    const marks = marksOf(one).filter((mark) => mark.frame === frame);
    const caption = element("figcaption", { class: "muted" }, title, marks.map((mark) => element("span", { class: "pill" }, said(mark))));
    if (!source || !DATA.test(source)) return element("figure", { class: "image" }, element("span", { class: "pill" }, `${title}, not in this report`), caption);
    const scale = Math.max(1, Math.round(LEAST_SIDE / Math.max(part.width_px, part.height_px)));
    const frameBox = element("div", { class: "seen", style: { width: `${part.width_px * scale}px` } },
      element("img", { src: source, alt: title, width: part.width_px, height: part.height_px }), overlay(part, marks));
    return element("figure", { class: "image" }, frameBox, caption);
  }

  function said(mark) {
    const verdict = mark.ok === null ? "" : mark.ok ? ", right" : ", wrong";
    return `${mark.label || mark.kind} (${mark.numbers.join(", ")})${verdict}`;
  }

  function overlay(part, marks) {
    const svg = shape("svg", { viewBox: `0 0 ${part.width_px} ${part.height_px}`, "aria-hidden": "true" });
    const unit = Math.max(part.width_px, part.height_px) / 100;
    for (const mark of marks) {
      const verdict = mark.ok === null ? "claimed" : mark.ok ? "right" : "wrong";
      const [a, b, c, d] = mark.numbers;
      const made = mark.kind === "point"
        ? shape("circle", { cx: a, cy: b, r: 3 * unit })
        : shape("rect", { x: Math.min(a, c), y: Math.min(b, d), width: Math.abs(c - a), height: Math.abs(d - b) });
      made.setAttribute("class", `mark ${verdict}`);
      made.setAttribute("stroke-width", String(unit));
      const title = shape("title", {});
      title.textContent = dom.visible(said(mark));
      made.append(title);
      svg.append(made);
    }
    return svg;
  }

  function shape(name, attributes) {
    const made = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, String(value));
    return made;
  }

  return { figure, marksOf };
})();
