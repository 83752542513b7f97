
// -------------------------------------------------------------------------------- controls: drags, pins, strength, end pose
// Continues picker.js. `controls.value()` is {control, end_image}: the text of a control.json or null, an upload or null.
function makeControls() {
  const SVG = "http://www.w3.org/2000/svg", COLOURS = ["#e11d48", "#2563eb", "#059669", "#9333ea", "#d97706"];
  const MAX_POSITIONS = 8, MIN_DRAG = 0.01; // positions of a path that are sent; shortest drag, in longer sides of the picture
  const part = find(".lf-part"), paths = find(".lf-paths"), list = find(".lf-list");
  const slider = find(".lf-value"), endFile = find(".lf-end-file");
  let mode = null, drags = [], pins = [], strength = false, end = null, drawn = null, started = 0;
  const side = () => Math.max(picture.naturalWidth, picture.naturalHeight);
  const place = (event) => {
    const [x, y] = locate(event, picture.naturalWidth, picture.naturalHeight, paths);
    return [Math.min(Math.max(x, 0), picture.naturalWidth), Math.min(Math.max(y, 0), picture.naturalHeight)];
  };
  const round = (value) => Math.round(value * 1000) / 1000;

  function timed(drag) { // [time, x, y] of at most MAX_POSITIONS positions; without its own timing a drag is eased over the video
    const steps = drag.steps, last = steps[steps.length - 1];
    if (drag.timing === "eased") return [[1, round(last[1]), round(last[2])]];
    const chosen = [];
    for (let i = 1; i <= MAX_POSITIONS; i++) { // at even times, or at even lengths of the path
      const step = at(steps, i / MAX_POSITIONS, drag.timing === "even" ? 3 : 0);
      chosen.push([i / MAX_POSITIONS, round(step[1]), round(step[2])]);
    }
    return chosen;
  }

  function at(steps, share, axis) { // the interpolated step where `axis` of the steps (0 time, 3 length) has a share of its end
    const goal = share * steps[steps.length - 1][axis];
    const i = Math.max(1, steps.findIndex((step) => step[axis] >= goal - 1e-9));
    const [a, b] = [steps[i - 1], steps[i]], weight = b[axis] > a[axis] ? (goal - a[axis]) / (b[axis] - a[axis]) : 1;
    return a.map((value, k) => value + weight * (b[k] - value));
  }

  function value() {
    const isSet = drags.length || pins.length || strength;
    return { control: isSet ? JSON.stringify(content()) : null, end_image: end && { path: end.path } };
  }

  function content() {
    return {
      size: [picture.naturalHeight, picture.naturalWidth],
      drags: drags.map((drag) => ({ from: [round(drag.steps[0][1]), round(drag.steps[0][2])], path: timed(drag) })),
      pins: pins.map((pin) => pin.map(round)),
      strengths: strength ? [{ mask: maskOf(part), value: Number(slider.value) }] : [],
    };
  }

  function shape(name, attributes) {
    const node = document.createElementNS(SVG, name);
    Object.entries(attributes).forEach(([key, text]) => node.setAttribute(key, text));
    paths.append(node);
  }

  function draw() {
    const width = side() / 90;
    paths.replaceChildren();
    [...drags, ...(drawn ? [drawn] : [])].forEach((drag, index) => {
      const colour = COLOURS[index % COLOURS.length], steps = drag.steps, last = steps[steps.length - 1];
      const points = steps.map((step) => `${step[1]},${step[2]}`).join(" ");
      shape("polyline", { points, fill: "none", stroke: colour, "stroke-width": width });
      const sent = drag === drawn ? [] : timed(drag);
      sent.forEach(([, x, y]) => {
        shape("circle", { cx: x, cy: y, r: 0.9 * width, fill: "#fff", stroke: colour, "stroke-width": width / 3 });
      });
      shape("circle", { cx: steps[0][1], cy: steps[0][2], r: 1.6 * width, fill: colour });
      shape("circle", { cx: last[1], cy: last[2], r: 2.4 * width, fill: "none", stroke: colour, "stroke-width": width });
    });
    pins.forEach(([x, y]) => {
      const box = { x: x - 1.5 * width, y: y - 1.5 * width, width: 3 * width, height: 3 * width };
      shape("rect", { ...box, fill: "#111827", stroke: "#fff", "stroke-width": width / 2 });
    });
  }

  function entry(text, colour, remove) {
    const item = document.createElement("li"), mark = document.createElement("i"), button = document.createElement("button");
    mark.style.background = colour;
    item.append(mark, text);
    button.type = "button";
    button.textContent = "Remove";
    button.className = "lf-remove";
    button.onclick = () => { remove(); changed(); };
    item.append(button);
    list.append(item);
    return item;
  }

  function describe() {
    list.replaceChildren();
    drags.forEach((drag, index) => {
      const item = entry(`Drag ${index + 1}`, COLOURS[index % COLOURS.length], () => drags.splice(index, 1));
      const timing = document.createElement("select");
      timing.setAttribute("aria-label", `Timing of drag ${index + 1}`);
      Object.entries({ drawn: "as drawn", even: "even speed", eased: "straight, eased" }).forEach(([key, text]) => {
        timing.add(new Option(text, key, false, key === drag.timing));
      });
      timing.onchange = () => { drag.timing = timing.value; changed(); };
      item.insertBefore(timing, item.lastChild);
    });
    pins.forEach((pin, index) => entry(`Pin ${index + 1}`, "#111827", () => pins.splice(index, 1)));
    if (strength) entry(`Painted part: strength ${slider.value}`, "#2563eb", clearPart);
    if (end) entry(`End pose: ${end.name}`, "#6b7280", () => { end = null; });
    list.hidden = !list.children.length;
  }

  function changed() {
    describe();
    draw();
    setValue();
  }

  function clearPart() {
    strength = false;
    part.getContext("2d").clearRect(0, 0, part.width, part.height);
  }

  function choose(chosenMode) {
    mode = chosenMode === mode ? null : chosenMode;
    if (mode && painting) paintButton.click();
    element.querySelectorAll(".lf-mode").forEach((button) => button.setAttribute("aria-pressed", String(button.dataset.mode === mode)));
    stage.classList.toggle("lf-controlling", Boolean(mode));
    find(".lf-amount").hidden = mode !== "strength";
    find(".lf-size").style.display = mode === "strength" ? "flex" : "";
  }

  function begin(event) {
    if (!mode || !chosen) return;
    event.preventDefault();
    paths.setPointerCapture(event.pointerId);
    if (mode === "strength") {
      last = null;
      paint(part, event, "#2563eb");
      strength = true;
    } else {
      started = event.timeStamp;
      drawn = { steps: [[0, ...place(event), 0]], timing: "drawn" }; // milliseconds, x, y, length
      draw();
    }
    paths.onpointermove = follow;
  }

  function follow(event) {
    if (mode === "strength") return paint(part, event, "#2563eb");
    const before = drawn.steps[drawn.steps.length - 1], [x, y] = place(event), length = Math.hypot(x - before[1], y - before[2]);
    if (mode === "pin" || length < 0.3 * (side() / 256)) return;
    drawn.steps.push([event.timeStamp - started, x, y, before[3] + length]);
    draw();
  }

  function finish() {
    if (!paths.onpointermove) return;
    paths.onpointermove = null;
    if (mode === "pin") pins.push(drawn.steps[0].slice(1, 3));
    if (mode === "drag" && drawn.steps[drawn.steps.length - 1][3] > MIN_DRAG * side()) drags.push(drawn);
    drawn = null;
    changed();
  }

  function chooseEnd(file) {
    return send(file, (path) => {
      end = { path, name: file.name };
      showNote("");
      changed();
    });
  }

  element.querySelectorAll(".lf-mode").forEach((button) => { button.onclick = () => choose(button.dataset.mode); });
  slider.oninput = () => { find(".lf-amount span").textContent = slider.value; if (strength) changed(); };
  find(".lf-end").onclick = () => endFile.click();
  endFile.onchange = () => { chooseEnd(endFile.files[0]); endFile.value = ""; };
  paths.onpointerdown = begin;
  paths.onpointerup = paths.onpointercancel = finish;
  return {
    value,
    choose,
    clear() { // a new picture
      drags = []; pins = []; end = null;
      clearPart();
      describe();
      draw();
    },
    fit() {
      paths.setAttribute("viewBox", `0 0 ${picture.naturalWidth} ${picture.naturalHeight}`);
      part.width = Math.max(1, Math.round((MASK_SIDE * picture.naturalWidth) / side()));
      part.height = Math.max(1, Math.round((MASK_SIDE * picture.naturalHeight) / side()));
      draw();
    },
  };
}

if (props.controls) controls = makeControls();
const first = find(".lf-example");
if (first) first.click();
