// Runs the networks apart from the page, which stays responsive. Messages: {id, ...arguments} -> {id, step}, {id, frames} or {id, error}.

import * as ort from "./ort.wasm.min.mjs";
import { Pipeline } from "./lfdm.js";

ort.env.wasm.wasmPaths = new URL("./", import.meta.url).href;
ort.env.wasm.numThreads = self.crossOriginIsolated ? Math.min(8, navigator.hardwareConcurrency || 1) : 1;

const loading = Pipeline.load("./model", ort, (text) => postMessage({ status: text }));
loading.then(
  (pipeline) => postMessage({ ready: pipeline.settings, threads: ort.env.wasm.numThreads }),
  (error) => postMessage({ failed: String(error.message ?? error) }),
);

self.onmessage = async ({ data: { id, ...request } }) => {
  try {
    const pipeline = await loading;
    const frames = await pipeline.generate({ ...request, onStep: (done, total) => postMessage({ id, step: [done, total] }) });
    postMessage({ id, frames }, frames.map((frame) => frame.buffer));
  } catch (error) {
    postMessage({ id, error: String(error.message ?? error) });
  }
};
