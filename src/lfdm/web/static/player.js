// Plays videos next to their flow and occlusion on one timeline. Runs in gr.HTML, which provides element, props and watch.
// props.value: null or {num_frames, columns, fps, videos: [{title, path, file, name, max_flow, sheets: {video, flow, occlusion}}]},
// where a sheet is a single picture of all frames, row by row.
const find = (selector) => element.querySelector(selector);
const list = find(".lf-videos"), slider = find(".lf-timeline input"), toggle = find(".lf-toggle"), count = find(".lf-count");
let sound = null, audible = false; // the first video's mp4, and whether it is heard
let tracks = [], marks = [], current = null, frame = 0, playing = false, clock = 0;

const COLOURS = ["#e11d48", "#2563eb", "#059669", "#9333ea", "#d97706"];
const make = (tag, className, text) => {
  const node = document.createElement(tag);
  node.className = className;
  if (text) node.textContent = text;
  return node;
};

function draw() {
  for (const { canvas, sheet } of tracks) {
    const x = (frame % current.columns) * canvas.width, y = Math.floor(frame / current.columns) * canvas.height;
    const context = canvas.getContext("2d");
    context.clearRect(0, 0, canvas.width, canvas.height); // frames may have alpha
    context.drawImage(sheet, x, y, canvas.width, canvas.height, 0, 0, canvas.width, canvas.height);
    canvas.dataset.frame = frame;
  }
  for (const { layer, points } of marks) drawPoints(layer, points);
  slider.value = frame;
  count.textContent = `${frame + 1} / ${current.num_frames}`;
}

function drawPoints(layer, points) { // a ring where a point should be, a dot where it came to
  const labels = [];
  layer.replaceChildren();
  points.forEach((point, index) => {
    const target = point.target[frame], reached = point.reached[frame], colour = COLOURS[index % COLOURS.length];
    const add = (place, attributes) => {
      const node = document.createElementNS("http://www.w3.org/2000/svg", "circle");
      const all = { cx: `${100 * place[0]}%`, cy: `${100 * place[1]}%`, ...attributes };
      Object.entries(all).forEach(([key, value]) => node.setAttribute(key, value));
      layer.append(node);
    };
    if (target) add(target, { class: "lf-ring", r: 3, fill: "none", stroke: colour, "stroke-width": 0.9 });
    if (reached) add(reached, { class: "lf-dot", r: 1.2, fill: colour, stroke: "#fff", "stroke-width": 0.3 });
    const number = points.slice(0, index + 1).filter((other) => other.kind === point.kind).length;
    if (point.distance[frame] !== null) labels.push(`${point.kind} ${number}: ${point.distance[frame].toFixed(1)} px`);
  });
  layer.nextSibling.textContent = labels.join(" · ");
}

function hear() {
  if (!sound) return;
  if (playing && audible) {
    sound.currentTime = frame / current.fps;
    sound.play().catch(() => {});
  } else sound.pause();
}

function play(on) {
  playing = on;
  hear();
  toggle.textContent = on ? "Pause" : "Play";
  element.dataset.playing = on;
  if (on) {
    clock = performance.now();
    requestAnimationFrame(tick);
  }
}

function tick(now) {
  if (!playing || !current || !element.isConnected) return;
  const passed = Math.floor(((now - clock) * current.fps) / 1000);
  if (passed > 0) {
    clock += (passed * 1000) / current.fps;
    const again = frame + passed >= current.num_frames;
    frame = (frame + passed) % current.num_frames;
    draw();
    if (again) hear();
  }
  requestAnimationFrame(tick);
}

async function load(url) {
  const sheet = new Image();
  sheet.src = url;
  await sheet.decode();
  return sheet;
}

async function addTrack(row, video, kind, caption) {
  const figure = make("figure", "lf-" + kind);
  const canvas = make("canvas", "");
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", `${kind} of ${video.title}`);
  canvas.dataset.kind = kind;
  const text = make("figcaption", "", caption);
  figure.append(canvas, text);
  if (kind === "video" && video.points.length) {
    const layer = document.createElementNS("http://www.w3.org/2000/svg", "svg"), box = make("div", "lf-shown");
    box.append(canvas, layer, make("output", "lf-errors"));
    figure.prepend(box);
    marks.push({ layer, points: video.points });
  }
  row.append(figure);
  const sheet = await load(video.sheets[kind]);
  canvas.width = sheet.naturalWidth / current.columns;
  canvas.height = sheet.naturalHeight / Math.ceil(current.num_frames / current.columns);
  canvas.style.aspectRatio = `${canvas.width} / ${canvas.height}`;
  const layer = canvas.nextElementSibling;
  if (layer instanceof SVGElement) {
    layer.setAttribute("viewBox", `0 0 100 ${(100 * canvas.height) / canvas.width}`);
    layer.style.aspectRatio = canvas.style.aspectRatio;
  }
  canvas.classList.toggle("lf-pixels", kind === "video" && canvas.width <= 128);
  if (kind === "flow") text.prepend(make("span", "lf-wheel"));
  tracks.push({ canvas, sheet });
}

function soundButton(url) {
  sound = new Audio(url);
  audible = false; // browsers play no sound that the user has not started
  const button = make("button", "lf-button lf-sound", "Sound");
  button.type = "button";
  button.setAttribute("aria-pressed", "false");
  button.onclick = () => {
    audible = !audible;
    button.setAttribute("aria-pressed", String(audible));
    hear();
  };
  return button;
}

async function addVideo(video) {
  const head = make("div", "lf-head");
  const link = make("a", "lf-download", "Download mp4");
  const blob = await (await fetch(video.file)).blob(); // right away: the server removes it after a few minutes
  link.href = URL.createObjectURL(blob);
  link.download = video.name;
  head.append(make("strong", "", video.title));
  if (video.has_sound) head.append(soundButton(link.href));
  head.append(link);
  const row = make("div", "lf-row");
  const box = make("section", "lf-result");
  box.append(head, row);
  list.append(box);
  await addTrack(row, video, "video", "Video");
  await addTrack(row, video, "flow", `Flow, up to ${video.max_flow.toFixed(1)} px`);
  await addTrack(row, video, "occlusion", "Occlusion, black: inpainted");
}

async function render() {
  const value = props.value;
  if (value === current) return;
  play(false);
  list.replaceChildren();
  tracks = [];
  marks = [];
  sound = null;
  current = value;
  element.classList.toggle("lf-has-result", Boolean(value));
  if (!value) return;
  frame = 0;
  slider.max = value.num_frames - 1;
  try {
    for (const video of value.videos) await addVideo(video);
  } catch (error) {
    list.replaceChildren(make("p", "lf-note", "The result is no longer on the server; generate it again."));
    return;
  }
  draw();
  element.dataset.ready = String(value.videos[0].file);
  const first = value.videos[0];
  window.lfdmLastResult = { path: first.path, url: list.querySelector("a").href, name: first.name };
  window.dispatchEvent(new Event("lfdm-result"));
  if (!matchMedia("(prefers-reduced-motion: reduce)").matches) play(true);
}

toggle.onclick = () => play(!playing);
slider.oninput = () => { play(false); frame = Number(slider.value); draw(); };
watch("value", render);
render();
