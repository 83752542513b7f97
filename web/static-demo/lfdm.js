// An exported lfdm pipeline in the browser. The steps are those of src/lfdm/export/runtime.py, where they are explained.

import { checkConflicts, correct, observed } from "./dragging.js";

const MAX_STRAIGHT_SIGMA = 0.999;
const NUM_TRAIN_TIMESTEPS = 1000;

export class Pipeline {
  /** Load the files that `lfdm export` has written to the folder `url`; `ort` is onnxruntime-web. */
  static async load(url, ort, onProgress = () => {}) {
    const settings = await (await fetchFile(`${url}/pipeline.json`)).json();
    if (settings.version !== 3) throw new Error(`pipeline.json: version must be 3; got ${settings.version}`);
    const networks = {};
    for (const name of ["encoder", "denoiser", "decoder", ...(settings.tracks ? ["tracks"] : [])]) {
      onProgress(`loading the ${name}`);
      const data = await (await fetchFile(`${url}/${settings.files[name]}`)).arrayBuffer();
      networks[name] = await ort.InferenceSession.create(data, { executionProviders: ["wasm"] });
    }
    return new Pipeline(settings, networks, ort);
  }

  constructor(settings, networks, ort) {
    Object.assign(this, { settings, networks, ort });
  }

  /**
   * Make a video: a Uint8ClampedArray of RGBA pixels per frame.
   *
   * pixels: RGBA of an image of the model's size. condition: a label, or null. noise: a Float32Array of (3, t, h, w), by default
   * drawn from the seed. points: [{source: [x, y], target: [x, y]}], where points of the image go, -1 to 1 at its edges; only for
   * models that follow tracks. onStep(done, total) is called after every step.
   */
  async generate({ pixels, condition, frames, steps, guidance, seed = 0, noise = null, points = [], onStep = () => {} }) {
    const { settings } = this;
    if (points.length && !settings.tracks) throw new Error("points need a model that follows tracks");
    const label = condition ?? (points.length ? settings.tracks.free_label : null);
    const [height, width] = settings.image_size;
    const image = this.tensor(toPlanes(pixels, height * width), [1, 3, height, width]);
    const encoded = await this.networks.encoder.run({ image });
    const scales = this.networks.encoder.outputNames.map((name) => encoded[name]);
    const latent = scales[scales.length - 1];
    const [h, w] = latent.dims.slice(2);
    checkConflicts(points, frames, [h, w], settings.image_size);
    const size = 3 * frames * h * w;
    const levels = this.levels(steps);
    const tracks = settings.tracks ? await this.maps(points, [1, 3, frames, h, w]) : null;
    const denoise = this.denoiser(latent, tracks, label, label === null ? 1 : guidance, frames);
    let x = noise ?? gaussian(seed, size);
    let before = null;
    for (let i = 0; i < steps; i += 1) {
      const [now, then] = [levels[i], levels[i + 1]];
      const clean = await denoise(x, now, then);
      let target = clean;
      if (settings.schedule.sampler === "dpmpp_2m" && before && then.sigma > 0) {
        const ratio = (logSnr(then) - logSnr(now)) / (logSnr(now) - logSnr(levels[i - 1]));
        target = clean.map((value, k) => value + (ratio / 2) * (value - before[k]));
      }
      const shrink = then.sigma / now.sigma;
      const gain = then.alpha - now.alpha * shrink;
      x = x.map((value, k) => shrink * value + gain * target[k]);
      before = clean;
      onStep(i + 1, steps);
    }
    const [flow, occlusion] = this.toMotion(this.clamp(x, frames * h * w), frames, h, w);
    correct(flow.data, points, [frames, h, w], settings);
    return this.decode(image, scales, flow, occlusion, frames);
  }

  tensor(data, dims) {
    return new this.ort.Tensor("float32", data, dims);
  }

  /** Return the maps of points for a sample of the dimensions `dims`. */
  async maps(points, dims) {
    const { source, position, frame } = observed(points, dims[2]);
    const { tracks } = await this.networks.tracks.run({
      source: this.tensor(source, [frame.length, 2]),
      position: this.tensor(position, [frame.length, 2]),
      frame: new this.ort.Tensor("int64", frame, [frame.length]),
      sample: this.tensor(new Float32Array(dims.reduce((a, b) => a * b)), dims),
    });
    return tracks;
  }

  /** Return the noise levels from (nearly) pure noise to clean. */
  levels(steps) {
    const { schedule } = this.settings;
    const levels = [];
    for (let i = 0; i < steps; i += 1) {
      if (schedule.prediction_type === "velocity") {
        const sigma = MAX_STRAIGHT_SIGMA * (1 - i / steps);
        levels.push({ timestep: NUM_TRAIN_TIMESTEPS * sigma, alpha: 1 - sigma, sigma });
      } else {
        const timestep = roundHalfToEven((schedule.first_timestep * (steps - i)) / steps);
        const abar = schedule.alphas_cumprod[timestep];
        levels.push({ timestep, alpha: Math.sqrt(abar), sigma: Math.sqrt(1 - abar) });
      }
    }
    return [...levels, { timestep: 0, alpha: 1, sigma: 0 }];
  }

  /** Return the function (x, level, end of the step) -> x0, under classifier-free guidance, which moves away from `tracks`, too. */
  denoiser(latent, tracks, condition, guidance, frames) {
    const { settings } = this;
    const [, channels, h, w] = latent.dims;
    const chosen = condition === null ? settings.null_embedding : settings.embeddings[settings.labels.indexOf(condition)];
    if (!chosen) throw new Error(`unknown action ${condition}; allowed: ${settings.labels.join(", ")}`);
    const { flow_map: flowMap, max_guidance: largest } = settings.network;
    if (largest !== null && guidance !== 0 && !(guidance >= 1 && guidance <= largest)) {
      throw new Error(`guidance must be 1 to ${largest}, or 0; got ${guidance}`);
    }
    let rows = [settings.null_embedding, chosen];
    if (guidance === 1 || largest !== null) rows = [chosen];
    if (guidance === 0) rows = [settings.null_embedding];
    const b = rows.length;
    const conditions = this.tensor(Float32Array.from(rows.flat()), [b, chosen.length]);
    const latents = this.tensor(repeat(latent.data, b), [b, channels, h, w]);
    const { prediction_type: kind, sampler } = settings.schedule;
    const fill = (value) => this.tensor(new Float32Array(b).fill(value), [b]);
    const additional = largest === null ? {} : { guidance: fill(Math.max(guidance, 1)) };
    if (tracks) {
      const maps = repeat(tracks.data, b);
      if (b > 1) maps.fill(0, 0, tracks.data.length);
      additional.tracks = this.tensor(maps, [b, ...tracks.dims.slice(1)]);
    }
    return async (x, { timestep, alpha, sigma }, end) => {
      if (flowMap) additional.until = fill(sampler === "flow_map" ? end.timestep : timestep);
      const { prediction } = await this.networks.denoiser.run({
        sample: this.tensor(repeat(x, b), [b, 3, frames, h, w]),
        timestep: fill(timestep),
        condition: conditions,
        latent: latents,
        ...additional,
      });
      const values = prediction.data;
      const clean = new Float32Array(x.length);
      for (let k = 0; k < x.length; k += 1) {
        const guided = b === 2 ? values[k] + guidance * (values[k + x.length] - values[k]) : values[k];
        if (kind === "epsilon") clean[k] = (x[k] - sigma * guided) / alpha;
        else clean[k] = (kind === "velocity" ? 1 : alpha) * x[k] - sigma * guided;
      }
      return this.clamp(clean, frames * h * w);
    };
  }

  /** Clamp a clean sample (3, t, h, w), of `size` values a channel, to the range of the training data. */
  clamp(sample, size) {
    const { low, high, mean, std } = this.settings.codec;
    if (!low) return sample;
    return sample.map((value, k) => {
      const c = Math.floor(k / size);
      const [m, s] = mean ? [mean[c], std[c]] : [0, 1];
      return Math.min(Math.max(value, (low[c] - m) / s), (high[c] - m) / s);
    });
  }

  /** Return flow (2, t, h, w) and occlusion (t, h, w) of a clean sample. */
  toMotion(sample, frames, h, w) {
    const { kind, corners, still_first_frame: still, mean, std } = this.settings.codec;
    const [size, cells] = [frames * h * w, h * w];
    const values = sample.map((value, k) => {
      const c = Math.floor(k / size);
      return mean ? value * std[c] + mean[c] : value;
    });
    const flow = values.slice(0, 2 * size);
    const occlusion = values.slice(2 * size).map((value) => Math.min(Math.max((value + 1) / 2, 0), 1));
    if (kind === "grid") {
      const place = (i, n) => (corners ? (2 * i) / (n - 1) - 1 : (2 * i + 1) / n - 1);
      for (let k = 0; k < size; k += 1) {
        flow[k] -= place(k % w, w);
        flow[size + k] -= place(Math.floor((k % cells) / w), h);
      }
    }
    if (still) {
      flow.fill(0, 0, cells);
      flow.fill(0, size, size + cells);
      occlusion.fill(1, 0, cells);
    }
    return [this.tensor(flow, [1, 2, frames, h, w]), this.tensor(occlusion, [1, 1, frames, h, w])];
  }

  async decode(image, scales, flow, occlusion, frames) {
    const inputs = { image, flow, occlusion };
    scales.forEach((scale, i) => { inputs[`scale_${i}`] = scale; });
    const wanted = Object.fromEntries(this.networks.decoder.inputNames.map((name) => [name, inputs[name]]));
    const { data } = (await this.networks.decoder.run(wanted)).frames;
    const [height, width] = this.settings.image_size;
    const cells = height * width;
    return Array.from({ length: frames }, (_, t) => {
      const rgba = new Uint8ClampedArray(4 * cells).fill(255);
      for (let c = 0; c < 3; c += 1) {
        const start = (c * frames + t) * cells;
        for (let k = 0; k < cells; k += 1) rgba[4 * k + c] = 255 * data[start + k];
      }
      return rgba;
    });
  }
}

async function fetchFile(url) {
  const response = await fetch(url);
  if (!response.ok) throw new Error(`${url}: ${response.status} ${response.statusText}`);
  return response;
}

/** RGBA bytes -> (3, h, w) in [0, 1]. */
function toPlanes(pixels, cells) {
  const planes = new Float32Array(3 * cells);
  for (let c = 0; c < 3; c += 1) {
    for (let k = 0; k < cells; k += 1) planes[c * cells + k] = pixels[4 * k + c] / 255;
  }
  return planes;
}

function repeat(data, count) {
  const all = new Float32Array(count * data.length);
  for (let i = 0; i < count; i += 1) all.set(data, i * data.length);
  return all;
}

/** Normally distributed numbers by the Box-Muller method, from a small generator (mulberry32). */
function gaussian(seed, size) {
  let state = seed >>> 0;
  const uniform = () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let z = state;
    z = Math.imul(z ^ (z >>> 15), z | 1);
    z ^= z + Math.imul(z ^ (z >>> 7), z | 61);
    return ((z ^ (z >>> 14)) >>> 0) / 4294967296;
  };
  return Float32Array.from({ length: size }, () => Math.sqrt(-2 * Math.log(1 - uniform())) * Math.cos(2 * Math.PI * uniform()));
}

function logSnr({ alpha, sigma }) {
  return Math.log(alpha / sigma);
}

/** Round as Python does. */
function roundHalfToEven(value) {
  const below = Math.floor(value);
  if (value - below !== 0.5) return Math.round(value);
  return below % 2 === 0 ? below : below + 1;
}
