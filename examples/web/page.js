// The page: inputs, the box of the person, drawing. Networks run in worker.js.
import { BodyPainter } from './body.js';
import { boxAround } from './crops.js';

const $ = (id) => document.getElementById(id);
const MIN_SCORE = 0.3; // of keypoints that are drawn
const MAX_SIDE = 1600; // pixels of the canvases
const SMALLEST_BOX = 12; // pixels of the screen; a shorter drag is a click
const LINE = ['#1e90ff', '#2bc45c', '#ff8a1f']; // middle, left, right
const JOINTS_25 = 25; // of the body's joints, those of OpenPose come first

const frame = document.createElement('canvas'); // what is predicted, in full resolution
const query = new URLSearchParams(location.search);
let models, painter, stream, box = null, tracked = null, shown = null, busy = false, again = false;
let rate = 0, drag = null;

// --- errors and the worker -------------------------------------------------------------------------
function fail(error) {
  $('error').textContent = error.message || String(error);
  $('error').hidden = false;
}

const noError = () => { $('error').hidden = true; };

let worker;
const waiting = new Map();

/** Let the worker do something; `moved`: objects handed over. */
function ask(action, content = {}, moved = []) {
  const id = waiting.size ? Math.max(...waiting.keys()) + 1 : 0;
  return new Promise((resolve, reject) => {
    waiting.set(id, { resolve, reject });
    worker.postMessage({ id, action, ...content }, moved);
  });
}

function startWorker() {
  worker = new Worker('worker.js', { type: 'module' });
  worker.onmessage = ({ data: { id, value, error } }) => {
    const { resolve, reject } = waiting.get(id);
    waiting.delete(id);
    if (error === undefined) resolve(value); else reject(Error(error));
  };
  worker.onerror = (event) => {
    fail(Error(`The worker failed: ${event.message || 'worker.js was not loaded'}`));
  };
}

/** Threads of WebAssembly need headers that sw.js adds from the second load on: reload once. */
async function isolate() {
  const registered = navigator.serviceWorker?.register('sw.js');
  if (!registered || self.crossOriginIsolated) {
    registered?.catch(() => {}); // it is there, and there is no network
    return;
  }
  await registered;
  await navigator.serviceWorker.ready;
  if (self === self.top && !sessionStorage.getItem('reloaded')) {
    sessionStorage.setItem('reloaded', 'yes');
    location.reload();
    await new Promise(() => {});
  }
}

async function start() {
  if (typeof WebAssembly === 'undefined') throw Error('This browser has no WebAssembly.');
  await isolate().catch(() => {}); // without it: one thread, and no use without a network
  startWorker();
  const started = await ask('start', { backend: query.get('backend') });
  models = started.models;
  const { backend, threads } = started;
  const count = `${threads} thread${threads > 1 ? 's' : ''}`;
  $('backend').textContent = backend === 'webgpu' ? 'WebGPU' : `WebAssembly, ${count}`;
  $('status').textContent = 'Ready';
  for (const id of ['open', 'camera', 'sample']) $(id).disabled = false;
}

// --- inputs ----------------------------------------------------------------------------------------
async function openPhoto(blob, name) {
  stopCamera();
  noError();
  let image;
  try {
    image = await createImageBitmap(blob);
  } catch {
    throw Error(`${name} is not an image that this browser can read.`);
  }
  take(image, image.width, image.height);
  box = tracked = null;
  await predict();
}

/** Make an image or video the frame that is predicted. */
function take(source, width, height) {
  frame.width = width;
  frame.height = height;
  frame.getContext('2d', { willReadFrequently: true }).drawImage(source, 0, 0);
  $('hint').hidden = true;
  $('stage').classList.add('ready');
  $('whole').disabled = false;
}

async function startCamera() {
  noError();
  if (!navigator.mediaDevices) {
    throw Error('No camera: browsers give one only to pages at https:// or at localhost.');
  }
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { width: 640, height: 480 } });
  } catch (error) {
    const reasons = {
      NotAllowedError: 'the browser was not allowed to use it',
      NotFoundError: 'none is connected', NotReadableError: 'another program uses it',
    };
    throw Error(`No camera: ${reasons[error.name] || error.message}.`);
  }
  const video = document.createElement('video'), mine = stream;
  Object.assign(video, { srcObject: stream, muted: true, playsInline: true });
  stream.getVideoTracks()[0].onended = () => {
    stopCamera();
    fail(Error('The camera was disconnected.'));
  };
  await video.play();
  $('camera').textContent = 'Stop camera';
  box = tracked = null;
  let last = performance.now();
  rate = 0;
  while (stream === mine) {
    take(video, video.videoWidth, video.videoHeight);
    await predict();
    await new Promise(requestAnimationFrame);
    const now = performance.now(), current = 1000 / (now - last);
    rate = rate ? 0.9 * rate + 0.1 * current : current;
    last = now;
    $('rate').textContent = rate.toFixed(1);
  }
}

function stopCamera() {
  stream?.getTracks().forEach((track) => track.stop());
  stream = null;
  $('camera').textContent = 'Start camera';
  $('rate').textContent = '';
}

// --- prediction ------------------------------------------------------------------------------------
async function predict() {
  if (busy) { // with the newest box and frame, when the worker is free
    again = true;
    return;
  }
  const tasks = ['pose', 'mesh'].filter((task) => $(task).checked);
  busy = true;
  try {
    const whole = [0, 0, frame.width, frame.height], used = tracked || box || whole;
    const image = await createImageBitmap(frame);
    if (!stream) $('status').textContent = 'Predicting';
    const result = await ask('predict', { image, box: used, tasks }, [image]);
    shown = { ...result, box: used, isWhole: used === whole };
    if (stream || shown.isWhole) {
      const joints = result.body?.joints.slice(0, JOINTS_25).map((each) => ({ ...each, score: 1 }));
      tracked = boxAround(result.keypoints || joints || [], frame);
      if (tracked && !stream) again = true; // once more, in a box that fits
    }
    for (const task of ['pose', 'mesh']) {
      const time = result.milliseconds[task];
      $(`${task}-time`).textContent = time === undefined ? '' : `${time.toFixed(0)} ms`;
    }
    $('facts').hidden = false;
    const sure = (result.keypoints || []).filter(({ score }) => score >= MIN_SCORE).length;
    const unsure = result.keypoints && sure < 4;
    $('status').textContent = unsure ? 'Few keypoints found; drag a box around the person' : 'Ready';
    draw();
  } finally {
    busy = false;
  }
  const repeat = again && !stream;
  again = false;
  if (repeat) await predict();
}

// --- drawing ---------------------------------------------------------------------------------------
/** Fit the canvases to the stage; returns screen pixels per pixel of the frame. */
function layout() {
  const { clientWidth, clientHeight } = $('stage');
  const scale = Math.min(clientWidth / frame.width, clientHeight / frame.height);
  const shrunk = Math.min(1, MAX_SIDE / Math.max(frame.width, frame.height));
  const [width, height] = [frame.width * scale, frame.height * scale];
  for (const id of ['picture', 'body', 'lines']) {
    const canvas = $(id), ratio = id === 'lines' ? scale * devicePixelRatio : shrunk;
    const size = [Math.round(frame.width * ratio), Math.round(frame.height * ratio)];
    if (canvas.width !== size[0] || canvas.height !== size[1]) [canvas.width, canvas.height] = size;
    Object.assign(canvas.style, {
      width: `${width}px`, height: `${height}px`,
      left: `${(clientWidth - width) / 2}px`, top: `${(clientHeight - height) / 2}px`,
    });
  }
  return scale;
}

function draw() {
  if (!frame.width || !$('hint').hidden) return;
  const scale = layout(), picture = $('picture');
  picture.getContext('2d').drawImage(frame, 0, 0, picture.width, picture.height);
  drawBody();
  const lines = $('lines').getContext('2d');
  lines.resetTransform();
  lines.clearRect(0, 0, $('lines').width, $('lines').height);
  lines.scale(scale * devicePixelRatio, scale * devicePixelRatio);
  const unit = 1 / scale; // a pixel of the screen
  if (shown?.keypoints && $('pose').checked) drawSkeleton(lines, shown.keypoints, unit);
  const outline = drag ? boxOf(drag) : shown && !shown.isWhole ? shown.box : null;
  if (outline) {
    lines.lineWidth = 1.5 * unit;
    lines.strokeStyle = 'rgba(255, 255, 255, .8)';
    lines.setLineDash([6 * unit, 5 * unit]);
    lines.strokeRect(outline[0], outline[1], outline[2] - outline[0], outline[3] - outline[1]);
    lines.setLineDash([]);
  }
}

function drawBody() {
  const visible = shown?.body && $('mesh').checked;
  $('body').hidden = !visible;
  $('body').style.opacity = $('opacity').value;
  if (!visible || !painter) return;
  const { focal_length: focal, crop_size: size } = models.mesh;
  painter.draw(shown.body, focal / size, [frame.width, frame.height]);
}

function drawSkeleton(lines, points, unit) {
  const names = models.pose.keypoint_names;
  const side = (index) => (names[index].startsWith('left') ? 1 : names[index].startsWith('right') ? 2 : 0);
  lines.lineCap = 'round';
  for (const [a, b] of models.pose.skeleton) {
    if (Math.min(points[a].score, points[b].score) < MIN_SCORE) continue;
    lines.beginPath();
    lines.moveTo(points[a].x, points[a].y);
    lines.lineTo(points[b].x, points[b].y);
    lines.lineWidth = 4 * unit;
    lines.strokeStyle = LINE[side(a) === side(b) ? side(a) : 0];
    lines.stroke();
  }
  points.forEach((point, index) => {
    if (point.score < MIN_SCORE) return;
    lines.beginPath();
    lines.arc(point.x, point.y, 4 * unit, 0, 2 * Math.PI);
    lines.fillStyle = LINE[side(index)];
    lines.fill();
    lines.lineWidth = 1.5 * unit;
    lines.strokeStyle = 'white';
    lines.stroke();
  });
}

// --- the box of the person -------------------------------------------------------------------------
function pixel(event) {
  const { left, top, width } = $('picture').getBoundingClientRect(), ratio = frame.width / width;
  const limited = (value, limit) => Math.min(Math.max(value, 0), limit);
  return [
    limited((event.clientX - left) * ratio, frame.width),
    limited((event.clientY - top) * ratio, frame.height),
  ];
}

const boxOf = ({ from, to }) => [
  Math.min(from[0], to[0]), Math.min(from[1], to[1]),
  Math.max(from[0], to[0]), Math.max(from[1], to[1]),
];

$('stage').addEventListener('pointerdown', (event) => {
  if (!frame.width || !$('hint').hidden) return;
  $('stage').setPointerCapture(event.pointerId);
  drag = { from: pixel(event), to: pixel(event) };
});
$('stage').addEventListener('pointermove', (event) => {
  if (!drag) return;
  drag.to = pixel(event);
  draw();
});
$('stage').addEventListener('pointerup', () => {
  if (!drag) return;
  const chosen = boxOf(drag), ratio = $('picture').getBoundingClientRect().width / frame.width;
  drag = null;
  if (Math.min(chosen[2] - chosen[0], chosen[3] - chosen[1]) * ratio < SMALLEST_BOX) {
    draw();
    return;
  }
  [box, tracked] = [chosen, null];
  if (!stream) predict().catch(fail);
});
$('stage').addEventListener('pointercancel', () => {
  drag = null;
  draw();
});
$('whole').addEventListener('click', () => {
  box = tracked = null;
  if (!stream) predict().catch(fail);
});

// --- controls --------------------------------------------------------------------------------------
$('open').addEventListener('click', () => $('file').click());
$('file').addEventListener('change', () => {
  const [file] = $('file').files;
  $('file').value = '';
  if (file) openPhoto(file, file.name).catch(fail);
});
$('sample').addEventListener('click', async () => {
  try {
    const response = await fetch('models/sample.jpg');
    if (!response.ok) throw Error(`models/sample.jpg: ${response.status}`);
    await openPhoto(await response.blob(), 'sample.jpg');
  } catch (error) {
    fail(error);
  }
});
$('camera').addEventListener('click', () => {
  if (stream) stopCamera(); else startCamera().catch((error) => { stopCamera(); fail(error); });
});
$('opacity').addEventListener('input', draw);
for (const task of ['pose', 'mesh']) {
  $(task).addEventListener('change', () => {
    if (task === 'mesh' && $('mesh').checked) loadPainter().catch(fail);
    if (frame.width && $('hint').hidden && !stream) predict().catch(fail);
  });
}
for (const kind of ['dragover', 'dragleave', 'drop']) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    $('stage').classList.toggle('over', kind === 'dragover');
    const file = kind === 'drop' && event.dataTransfer.files[0];
    if (file && models) openPhoto(file, file.name).catch(fail);
  });
}
new ResizeObserver(draw).observe($('stage'));

async function loadPainter() {
  if (painter) return;
  const response = await fetch('models/faces.bin');
  if (!response.ok) throw Error(`models/faces.bin: ${response.status}`);
  painter = new BodyPainter($('body'), new Uint16Array(await response.arrayBuffer()));
  draw();
}

/** For tests and the console: the last result, and the frame that it is of. */
self.trunchier = {
  get shown() { return shown; },
  get frame() { return frame.toDataURL('image/png'); },
  get rate() { return rate; },
  get busy() { return busy; },
  get ready() { return Boolean(models); },
  openPhoto,
  setBox(chosen) { [box, tracked] = [chosen, null]; return predict(); },
};

start().catch((error) => {
  $('status').textContent = 'Not available';
  fail(error);
});
