// The page: picks a picture, asks the worker for a video, plays it and saves it.

import { makePoints } from "./points.js";
import { GIFEncoder, applyPalette, quantize } from "./gifenc.esm.js";

const EXAMPLES = ["puppet-1.png", "puppet-2.png", "puppet-3.png", "puppet-4.png"];
const ENLARGED = 4; // factor of downloads
const RECORDING_TRIES = 3;
const RECORDINGS = ["video/webm;codecs=vp9", "video/webm"]; // frames of VP9 state their colours; most players take VP8's for others
const $ = (id) => document.getElementById(id);
const canvas = $("canvas");
const worker = new Worker("worker.js", { type: "module" });
const waiting = new Map(); // by id of the request: {resolve, reject, onStep}
const state = { settings: null, pixels: null, frames: [], shown: 0, playing: true, busy: false, points: [] };
const points = makePoints(state, $("points"), $("clear"), () => { if (state.frames.length > 1) show([state.pixels]); });

worker.onmessage = ({ data }) => {
  if (data.status) say(data.status);
  if (data.failed) say(`The model could not be loaded: ${data.failed}`, true);
  if (data.ready) begin(data.ready, data.threads);
  const request = waiting.get(data.id);
  if (!request) return;
  if (data.step) request.onStep(...data.step);
  if (data.frames) request.resolve(data.frames);
  if (data.error) request.reject(new Error(data.error));
};
worker.onerror = (event) => say(`The worker failed: ${event.message}`, true);

/** Ask the worker for a video; see Pipeline.generate in lfdm.js. */
function generate(request, onStep = () => {}) {
  const id = crypto.randomUUID?.() ?? String(Math.random());
  return new Promise((resolve, reject) => {
    waiting.set(id, { resolve, reject, onStep });
    worker.postMessage({ id, ...request });
  }).finally(() => waiting.delete(id));
}

function say(text, isError = false) {
  $("status").textContent = text;
  $("status").classList.toggle("error", isError);
}

function begin(settings, threads) {
  state.settings = settings;
  [canvas.height, canvas.width] = settings.image_size;
  $("action").replaceChildren(...settings.labels.map((label) => new Option(label)));
  $("frames").value = settings.num_frames;
  $("frames").max = 4 * settings.num_frames;
  $("steps").value = settings.num_inference_steps;
  $("guidance").value = settings.guidance_scale;
  $("guidance").max = settings.network.max_guidance ?? 10;
  $("hint").hidden = !settings.tracks;
  if (settings.tracks) points.begin(settings.image_size);
  if (settings.tracks?.free_label) $("action").value = settings.tracks.free_label; // other actions move against drags
  say(`ready (${threads} ${threads === 1 ? "thread" : "threads"})`);
  $("examples").querySelector("button")?.click();
}

for (const name of EXAMPLES) {
  const button = document.createElement("button");
  button.type = "button";
  button.setAttribute("aria-pressed", "false");
  button.innerHTML = `<img src="images/${name}" alt="${name.replace(".png", "").replace("-", " ")}">`;
  button.onclick = async () => take(await (await fetch(`images/${name}`)).blob(), button);
  $("examples").append(button);
}

/** Take a picture file: fit it into the model's frame over white, with black borders as in training. */
async function take(file, button = null) {
  if (!state.settings) return;
  let bitmap;
  try {
    bitmap = await createImageBitmap(file);
  } catch {
    say(`${file.name ?? "This file"} is not a picture that this browser can read; use PNG, JPEG or WebP.`, true);
    return;
  }
  const [height, width] = state.settings.image_size;
  const sheet = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
  sheet.fillStyle = "black";
  sheet.fillRect(0, 0, width, height);
  const scale = Math.min(width / bitmap.width, height / bitmap.height);
  const [w, h] = [Math.floor(bitmap.width * scale + 1e-6), Math.floor(bitmap.height * scale + 1e-6)];
  const [x, y] = [Math.floor((width - w) / 2), Math.floor((height - h) / 2)];
  sheet.fillStyle = "white";
  sheet.fillRect(x, y, w, h);
  sheet.imageSmoothingQuality = "high";
  sheet.drawImage(bitmap, x, y, w, h);
  state.pixels = sheet.getImageData(0, 0, width, height).data;
  for (const other of $("examples").children) other.setAttribute("aria-pressed", String(other === button));
  if (button) $("file").value = ""; // the same file can be chosen again
  points.clear();
  show([state.pixels]);
  if (!state.busy) say("ready");
  $("generate").disabled = state.busy;
}

$("file").onchange = () => { if ($("file").files[0]) take($("file").files[0]); };
for (const name of ["dragenter", "dragover", "dragleave", "drop"]) {
  $("drop").addEventListener(name, (event) => {
    event.preventDefault();
    $("drop").classList.toggle("over", name === "dragenter" || name === "dragover");
    if (name !== "drop" || !event.dataTransfer.files[0]) return;
    $("file").files = event.dataTransfer.files; // shows its name
    take(event.dataTransfer.files[0]);
  });
}

$("form").onsubmit = async (event) => {
  event.preventDefault();
  state.busy = true;
  $("generate").disabled = true;
  $("progress").hidden = false;
  $("progress").value = 0;
  say("animating");
  const started = performance.now();
  try {
    const request = {
      pixels: state.pixels,
      condition: $("action").value,
      frames: Number($("frames").value),
      steps: Number($("steps").value),
      guidance: Number($("guidance").value),
      seed: Number($("seed").value),
      points: state.points,
    };
    show(await generate(request, (done, total) => { $("progress").value = done / (total + 1); }));
    play(true);
    canvas.scrollIntoView({ block: "nearest" });
    say(`${request.frames} frames in ${((performance.now() - started) / 1000).toFixed(1)} s`);
  } catch (error) {
    say(error.message, true);
  }
  state.busy = false;
  $("generate").disabled = false;
  $("progress").hidden = true;
};

function show(frames) {
  state.frames = frames;
  state.shown = 0;
  for (const name of ["play", "gif", "webm"]) $(name).disabled = frames.length < 2;
  $("points").classList.toggle("playing", frames.length > 1);
  draw(canvas, frames[0]);
}

function draw(target, pixels) {
  const [height, width] = state.settings.image_size;
  target.getContext("2d").putImageData(new ImageData(new Uint8ClampedArray(pixels), width, height), 0, 0);
}

let last = 0;
function tick(now) {
  const delay = 1000 / (state.settings?.fps ?? 8);
  if (state.playing && state.frames.length > 1 && now - last >= delay) {
    last = now;
    state.shown = (state.shown + 1) % state.frames.length;
    draw(canvas, state.frames[state.shown]);
  }
  requestAnimationFrame(tick);
}
requestAnimationFrame(tick);

function play(playing) {
  state.playing = playing;
  $("play").textContent = playing ? "Pause" : "Play";
}
$("play").onclick = () => play(!state.playing);

/** Return a frame enlarged by whole pixels. */
function enlarge(pixels) {
  const [height, width] = state.settings.image_size;
  const large = new Uint8ClampedArray(pixels.length * ENLARGED ** 2);
  const from = new Uint32Array(Uint8ClampedArray.from(pixels).buffer);
  const to = new Uint32Array(large.buffer);
  for (let y = 0; y < height * ENLARGED; y += 1) {
    for (let x = 0; x < width * ENLARGED; x += 1) {
      to[y * width * ENLARGED + x] = from[Math.floor(y / ENLARGED) * width + Math.floor(x / ENLARGED)];
    }
  }
  return large;
}

function save(blob, ending) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = `${$("action").value.replace(/\W+/g, "-")}.${ending}`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

$("gif").onclick = () => {
  const [height, width] = state.settings.image_size.map((side) => side * ENLARGED);
  const gif = GIFEncoder();
  const end = (index) => 10 * Math.round((index * 100) / state.settings.fps); // GIF counts hundredths of a second
  for (const [index, frame] of state.frames.entries()) {
    const pixels = enlarge(frame);
    const palette = quantize(pixels, 256);
    gif.writeFrame(applyPalette(pixels, palette), width, height, { palette, delay: end(index + 1) - end(index) });
  }
  gif.finish();
  save(new Blob([gif.bytes()], { type: "image/gif" }), "gif");
};

/** Return the frames as a recording, which is empty where a busy browser has recorded none. */
async function record() {
  const [height, width] = state.settings.image_size.map((side) => side * ENLARGED);
  const large = document.createElement("canvas");
  [large.height, large.width] = [height, width];
  const paint = (frame) => large.getContext("2d").putImageData(new ImageData(enlarge(frame), width, height), 0, 0);
  paint(state.frames[0]);
  const mimeType = RECORDINGS.find((type) => MediaRecorder.isTypeSupported(type));
  const recorder = new MediaRecorder(large.captureStream(), { mimeType, videoBitsPerSecond: 4_000_000 });
  const parts = [];
  recorder.ondataavailable = ({ data }) => parts.push(data);
  const [started, stopped] = ["start", "stop"].map((name) => new Promise((resolve) => { recorder[`on${name}`] = resolve; }));
  recorder.start();
  await started;
  for (const frame of state.frames) {
    paint(frame);
    await new Promise((resolve) => { setTimeout(resolve, 1000 / state.settings.fps); });
  }
  recorder.stop();
  await stopped;
  return new Blob(parts, { type: "video/webm" });
}

$("webm").onclick = async () => {
  for (let tries = 0; tries < RECORDING_TRIES; tries += 1) {
    const recording = await record();
    if (recording.size) return save(recording, "webm");
  }
  say("This browser has recorded no frame; download the GIF instead.", true);
};

window.lfdm = { generate, state }; // for scripts and tests
