// Points of the picture that are dragged with mouse, pen or finger, drawn over it. A tap makes a point that stays.

const TAP = 1; // pixels of the picture below which a drag is a tap
const RADIUS = 0.018; // of a point, as a part of the picture's width
const SVG = "http://www.w3.org/2000/svg";

/**
 * Put points into `state.points`, {source, target}, (x, y) with -1 and 1 at the edges of the picture.
 *
 * sheet: the SVG element over the picture. button: removes all points. onStart is called when a point is begun.
 */
export function makePoints(state, sheet, button, onStart) {
  let [height, width] = [1, 1];
  let active = null;

  const place = (event) => {
    const box = sheet.getBoundingClientRect();
    const inside = (value) => Math.min(Math.max(value, -0.999), 0.999);
    return [inside((2 * (event.clientX - box.left)) / box.width - 1), inside((2 * (event.clientY - box.top)) / box.height - 1)];
  };

  const draw = () => {
    const shown = state.points.flatMap(({ source, target }) => {
      const [from, to] = [source, target].map(([x, y]) => [((x + 1) * width) / 2, ((y + 1) * height) / 2]);
      const dot = (name, [cx, cy]) => element("circle", { class: name, cx, cy, r: RADIUS * width });
      const line = element("line", { x1: from[0], y1: from[1], x2: to[0], y2: to[1] });
      return from.join() === to.join() ? [dot("pin", from)] : [line, dot("source", from), dot("target", to)];
    });
    sheet.replaceChildren(...shown);
    button.disabled = !state.points.length;
  };

  const finish = () => {
    if (!active) return;
    const [x, y] = active.target.map((value, axis) => value - active.source[axis]);
    if (Math.hypot((x * width) / 2, (y * height) / 2) < TAP) active.target = active.source;
    active = null;
    draw();
  };

  sheet.addEventListener("pointerdown", (event) => {
    if (active || state.busy || !state.pixels || event.button !== 0) return;
    event.preventDefault();
    onStart();
    sheet.setPointerCapture(event.pointerId);
    const source = place(event);
    active = { source, target: source, pointer: event.pointerId };
    state.points.push(active);
    draw();
  });
  sheet.addEventListener("pointermove", (event) => {
    if (active?.pointer !== event.pointerId) return;
    active.target = place(event);
    draw();
  });
  for (const name of ["pointerup", "pointercancel"]) {
    sheet.addEventListener(name, (event) => { if (active?.pointer === event.pointerId) finish(); });
  }

  const clear = () => {
    state.points = [];
    active = null;
    draw();
  };
  button.onclick = clear;
  return {
    clear,
    begin([rows, columns]) {
      [height, width] = [rows, columns];
      sheet.setAttribute("viewBox", `0 0 ${width} ${height}`);
      sheet.removeAttribute("hidden");
    },
  };
}

function element(name, attributes) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}
