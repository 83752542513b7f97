// Chooses a picture (with a brush for its motion mask) or a driving clip. Runs in gr.HTML, which provides element, props, trigger
// and upload.
// props.value: {image: example name or {path}, mask: data URL or null} of a picture, {path} of a clip.
const isClip = props.kind === "clip";
const find = (selector) => element.querySelector(selector);
const stage = find(".lf-stage"), input = find("input[type=file]"), note = find(".lf-note");
const picture = find(".lf-frame img"), clip = find("video"), canvas = find("canvas");
const paintButton = find(".lf-paint"), clearButton = find(".lf-clear");
const MASK_SIDE = 256;
let chosen = null, painting = false, last = null, painted = false, sentMask = null;
let controls = null; // made by controls.js

const showNote = (text) => { note.textContent = text || ""; note.hidden = !text; };

function setValue(mask) {
  if (mask !== undefined) sentMask = mask;
  props.value = isClip ? chosen : chosen && { image: chosen, mask: sentMask, ...(controls && controls.value()) };
  trigger("input");
}

function show(url, name) {
  element.querySelectorAll(".lf-example").forEach((e) => e.setAttribute("aria-pressed", String(e.dataset.name === name)));
  stage.classList.toggle("lf-filled", true);
  const moving = isClip && !/\.gif$/i.test(name);
  picture.hidden = moving;
  if (clip) clip.hidden = !moving;
  picture.alt = name;
  (moving ? clip : picture).src = url;
  clearMask();
  if (controls) controls.clear();
}

async function send(file, use) { // calls `use` with the path of the uploaded file
  if (!file) return;
  showNote("Uploading " + file.name + " ...");
  try {
    const megabytes = (file.size / 1e6).toFixed(1);
    if (file.size > props.max_bytes) throw new Error(`a file may have at most ${props.max_bytes / 1e6} MB; this one has ${megabytes} MB`);
    use((await upload(file)).path);
  } catch (error) {
    showNote("Upload failed: " + (error.message || error));
  }
}

function uploadFile(file) {
  return send(file, (path) => {
    chosen = { path };
    show(URL.createObjectURL(file), file.name);
    showNote("");
    setValue();
  });
}

picture.onerror = () => {
  if (!chosen) return;
  stage.classList.remove("lf-filled");
  showNote(`${picture.alt}: the browser cannot show this file; the model may still read it.`);
};
picture.onload = () => {
  showNote("");
  stage.classList.toggle("lf-small", picture.naturalWidth <= 256);
  if (!canvas) return;
  const scale = MASK_SIDE / Math.max(picture.naturalWidth, picture.naturalHeight);
  if (controls) controls.fit();
  canvas.width = Math.max(1, Math.round(picture.naturalWidth * scale));
  canvas.height = Math.max(1, Math.round(picture.naturalHeight * scale));
};
if (clip) clip.onerror = () => { if (chosen && !clip.hidden) showNote("The browser cannot play this file; the model may still read it."); };

input.onchange = () => { uploadFile(input.files[0]); input.value = ""; };
find(".lf-choose").onclick = () => input.click();
stage.ondragover = (event) => { event.preventDefault(); stage.classList.add("lf-over"); };
stage.ondragleave = () => stage.classList.remove("lf-over");
stage.ondrop = (event) => { event.preventDefault(); stage.classList.remove("lf-over"); uploadFile(event.dataTransfer.files[0]); };
stage.onclick = () => { if (!chosen) input.click(); };
element.querySelectorAll(".lf-example").forEach((button) => {
  button.onclick = () => { chosen = button.dataset.name; show(button.querySelector("img").src, chosen); setValue(); };
});
const reuse = find(".lf-reuse");
if (reuse) {
  const update = () => { reuse.disabled = !window.lfdmLastResult; };
  window.addEventListener("lfdm-result", update);
  update();
  reuse.onclick = () => {
    const result = window.lfdmLastResult;
    chosen = { path: result.path };
    show(result.url, result.name);
    setValue();
  };
}

// ------------------------------------------------------------------------------------------------------------- brush

function clearMask() {
  painted = false;
  sentMask = null;
  if (!canvas) return;
  canvas.getContext("2d").clearRect(0, 0, canvas.width, canvas.height);
  stage.classList.remove("lf-masked");
}

function sendMask() {
  setValue(painted ? maskOf(canvas) : null);
}

function maskOf(canvas) {
  const flat = document.createElement("canvas");
  flat.width = canvas.width;
  flat.height = canvas.height;
  const context = flat.getContext("2d");
  context.drawImage(canvas, 0, 0);
  const pixels = context.getImageData(0, 0, flat.width, flat.height);
  for (let i = 0; i < pixels.data.length; i += 4) {
    const moves = pixels.data[i + 3];
    pixels.data.set([moves, moves, moves, 255], i);
  }
  context.putImageData(pixels, 0, 0);
  return flat.toDataURL("image/png");
}

function locate(event, width, height, target) { // in pixels of a picture that is shown in `target`
  const box = target.getBoundingClientRect();
  const scale = Math.min(box.width / width, box.height / height); // object-fit: contain
  return [(event.clientX - box.left - box.width / 2) / scale + width / 2, (event.clientY - box.top - box.height / 2) / scale + height / 2];
}

function stroke(event) {
  paint(canvas, event, "#f97316"); // only its alpha becomes the mask
  painted = true;
  stage.classList.add("lf-masked");
}

function paint(canvas, event, colour) {
  const [x, y] = locate(event, canvas.width, canvas.height, canvas);
  const context = canvas.getContext("2d");
  context.lineCap = context.lineJoin = "round";
  context.strokeStyle = colour;
  context.lineWidth = find(".lf-brush").value * MASK_SIDE;
  context.beginPath();
  context.moveTo(...(last || [x, y]));
  context.lineTo(x, y);
  context.stroke();
  last = [x, y];
}

if (canvas) {
  paintButton.onclick = () => {
    painting = !painting;
    if (painting && controls) controls.choose(null);
    paintButton.setAttribute("aria-pressed", String(painting));
    stage.classList.toggle("lf-painting", painting);
  };
  clearButton.onclick = () => { clearMask(); setValue(null); };
  canvas.onpointerdown = (event) => {
    if (!painting || !chosen) return;
    event.preventDefault();
    canvas.setPointerCapture(event.pointerId);
    last = null;
    stroke(event);
    canvas.onpointermove = stroke;
  };
  canvas.onpointerup = canvas.onpointercancel = () => {
    if (!canvas.onpointermove) return;
    canvas.onpointermove = null;
    sendMask();
  };
}
