// Runs the networks beside the page, so that it stays responsive.
import { cropMesh, cropPose, decode } from './crops.js';

const THREADS = 4; // more gain nothing for one crop
let runtime, models, options;
const sessions = {};

/** Load onnxruntime-web: on WebGPU where there is one, else WebAssembly with SIMD and threads. */
async function start({ backend }) {
  models = await (await fetched('models.json')).json();
  const adapter = backend !== 'wasm' && navigator.gpu && await navigator.gpu.requestAdapter();
  if (backend === 'webgpu' && !adapter) throw Error('This browser has no WebGPU; use WebAssembly.');
  const kind = adapter ? 'webgpu' : 'wasm';
  runtime = await import(`./ort/ort.${kind}.bundle.min.mjs`);
  const threads = self.crossOriginIsolated ? Math.min(THREADS, navigator.hardwareConcurrency) : 1;
  runtime.env.wasm.wasmPaths = new URL('ort/', self.location.href).href;
  runtime.env.wasm.numThreads = threads;
  runtime.env.logLevel = 'error';
  options = { executionProviders: adapter ? ['webgpu', 'wasm'] : ['wasm'], logSeverityLevel: 3 };
  return { models, backend: kind, threads };
}

async function fetched(path) {
  const response = await fetch(path);
  if (!response.ok) throw Error(`${path}: ${response.status}; build the page with "make web"`);
  return response;
}

async function session(task) {
  sessions[task] ??= (async () => {
    const bytes = await (await fetched(models[task].file)).arrayBuffer();
    return runtime.InferenceSession.create(bytes, options);
  })();
  return sessions[task];
}

async function network(task, crop) {
  const [width, height] = models[task].input_size;
  const images = new runtime.Tensor('float32', crop, [1, 3, height, width]);
  const began = performance.now();
  const outputs = await (await session(task)).run({ images });
  return { outputs, milliseconds: performance.now() - began };
}

/** Predict the person in a box of an image, with each of `tasks`. */
async function predict({ image, box, tasks }) {
  const canvas = new OffscreenCanvas(image.width, image.height);
  const context = canvas.getContext('2d', { willReadFrequently: true });
  context.drawImage(image, 0, 0);
  image.close();
  const pixels = context.getImageData(0, 0, canvas.width, canvas.height);
  const result = { milliseconds: {} };
  for (const task of tasks) {
    const facts = models[task];
    const crop = (task === 'pose' ? cropPose : cropMesh)(pixels, box, facts);
    await session(task);
    const { outputs, milliseconds } = await network(task, crop.crop);
    result.milliseconds[task] = milliseconds;
    if (task === 'pose') {
      const { data, dims } = outputs.heatmaps;
      result.keypoints = decode(data, dims.slice(1), crop);
    } else {
      const { center, side } = crop, points = outputs.crop_keypoints.data;
      result.body = {
        center, side, vertices: outputs.vertices.data, joints: [],
        translation: outputs.camera_translation.data,
      };
      for (let i = 0; i < points.length; i += 2) {
        result.body.joints.push({ x: center[0] + side * points[i], y: center[1] + side * points[i + 1] });
      }
    }
  }
  return result;
}

const ACTIONS = { start, predict };

self.onmessage = async ({ data: { id, action, ...rest } }) => {
  try {
    self.postMessage({ id, value: await ACTIONS[action](rest) });
  } catch (error) {
    self.postMessage({ id, error: error.message || String(error) });
  }
};
