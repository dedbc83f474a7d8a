// Crops of people and the decoding of heatmaps: the steps of docs/export.md, as trunchier does them.

/**
 * Source pixels of each output pixel along one axis, with linear weights; black outside, and before
 * that a Gaussian blur that repeats the border.
 *
 * @param {number[]} at positions of the output pixels in the source
 * @param {number} length of the source axis, pixels
 * @param {number} sigma of the blur, source pixels; 0: none
 * @returns {{index: number, weight: number}[][]}
 */
function taps(at, length, sigma) {
  const reach = Math.floor(4 * sigma + 0.5);
  const kernel = [];
  for (let i = -reach; i <= reach; i++) kernel.push(sigma ? Math.exp(-i * i / (2 * sigma * sigma)) : 1);
  const sum = kernel.reduce((a, b) => a + b);
  return at.map((position) => {
    const low = Math.floor(position);
    const near = new Map();
    for (const [index, weight] of [[low, low + 1 - position], [low + 1, position - low]]) {
      if (index < 0 || index >= length) continue;
      kernel.forEach((share, k) => {
        const source = Math.min(Math.max(index + k - reach, 0), length - 1);
        near.set(source, (near.get(source) || 0) + weight * share / sum);
      });
    }
    return [...near].map(([index, weight]) => ({ index, weight }));
  });
}

/**
 * Resample an image at a grid of positions and normalize it.
 *
 * @param {{data: Uint8ClampedArray, width: number, height: number}} image RGBA
 * @param {number[]} columns x of the output's columns, pixels of the image
 * @param {number[]} rows y of its rows
 * @param {{mean: number[], std: number[], channels: string}} facts of the model
 * @param {number} sigma of a blur, pixels of the image
 * @returns {Float32Array} (3, rows, columns)
 */
function resample(image, columns, rows, facts, sigma = 0) {
  const across = taps(columns, image.width, sigma), down = taps(rows, image.height, sigma);
  const lines = new Map(); // by row of the image: (columns, 3)
  const line = (y) => {
    if (!lines.has(y)) {
      const sums = new Float32Array(3 * columns.length);
      across.forEach((near, column) => {
        for (const { index, weight } of near) {
          const from = 4 * (y * image.width + index);
          for (let c = 0; c < 3; c++) sums[3 * column + c] += weight * image.data[from + c];
        }
      });
      lines.set(y, sums);
    }
    return lines.get(y);
  };
  const area = rows.length * columns.length, crop = new Float32Array(3 * area);
  const sums = new Float32Array(3 * columns.length);
  down.forEach((near, row) => {
    sums.fill(0);
    for (const { index, weight } of near) {
      const values = line(index);
      for (let i = 0; i < sums.length; i++) sums[i] += weight * values[i];
    }
    for (let c = 0; c < 3; c++) {
      const from = facts.channels === 'BGR' ? 2 - c : c;
      for (let column = 0; column < columns.length; column++) {
        const value = (Math.round(sums[3 * column + from]) - facts.mean[c]) / facts.std[c];
        crop[c * area + row * columns.length + column] = value;
      }
    }
  });
  return crop;
}

const range = (count, value) => Array.from({ length: count }, (_, i) => value(i));

/**
 * The crop of a pose model (UDP).
 *
 * @param {number[]} box x1, y1, x2, y2, pixels of the image
 * @returns {{crop: Float32Array, corner: number[], size: number[]}} what it shows, x before y
 */
export function cropPose(image, box, facts) {
  const [width, height] = facts.input_size, aspect = width / height;
  const w = (box[2] - box[0]) * facts.box_padding, h = (box[3] - box[1]) * facts.box_padding;
  const size = w > h * aspect ? [w, w / aspect] : [h * aspect, h];
  const corner = [0, 1].map((i) => (box[i] + box[i + 2] - size[i]) / 2);
  const columns = range(width, (i) => corner[0] + i * size[0] / (width - 1));
  const rows = range(height, (i) => corner[1] + i * size[1] / (height - 1));
  return { crop: resample(image, columns, rows, facts), corner, size };
}

/**
 * The crop of a mesh model: the middle columns of a square, blurred if it is reduced much.
 *
 * @returns {{crop: Float32Array, center: number[], side: number}} the square, pixels of the image
 */
export function cropMesh(image, box, facts) {
  const [wide, tall] = facts.box_aspect, size = facts.crop_size, margin = Math.floor(size / 8);
  const center = [0, 1].map((i) => (box[i] + box[i + 2]) / 2);
  const width = (box[2] - box[0]) * facts.box_padding;
  const height = (box[3] - box[1]) * facts.box_padding;
  const side = Math.max(width, height * wide / tall, height, width * tall / wide);
  const reduced = side / 2 / size, sigma = reduced > 1.1 ? (reduced - 1) / 2 : 0;
  const at = (middle) => range(size, (i) => middle + (i - size / 2) * side / size);
  const columns = at(center[0]).slice(margin, size - margin);
  return { crop: resample(image, columns, at(center[1]), facts, sigma), center, side };
}

/**
 * Keypoints of heatmaps: maxima, refined by one Newton step on the logarithm of the smoothed map.
 *
 * @param {Float32Array} heatmaps (count, height, width)
 * @param {number[]} dims of them
 * @param {{corner: number[], size: number[]}} crop see `cropPose`
 * @returns {{x: number, y: number, score: number}[]} pixels of the image
 */
export function decode(heatmaps, [count, height, width], { corner, size }) {
  const kernel = range(11, (i) => Math.exp(-((i - 5) ** 2) / 8));
  const sum = kernel.reduce((a, b) => a + b);
  const area = height * width, half = new Float64Array(area), smooth = new Float64Array(area);
  return range(count, (k) => {
    const map = heatmaps.subarray(k * area, (k + 1) * area);
    let best = 0, highest = 0;
    for (let i = 1; i < area; i++) if (map[i] > map[best]) best = i;
    blur(map, half, height, width, width, 1, kernel, sum);
    blur(half, smooth, width, height, 1, width, kernel, sum);
    for (let i = 0; i < area; i++) highest = Math.max(highest, smooth[i]);
    const score = map[best], x = best % width, y = Math.floor(best / width);
    const log = (dx, dy) => {
      const column = Math.min(Math.max(x + dx, 0), width - 1);
      const row = Math.min(Math.max(y + dy, 0), height - 1);
      return Math.log(Math.min(Math.max(smooth[row * width + column] * score / highest, 1e-3), 50));
    };
    const c = log(0, 0), slope = [(log(1, 0) - log(-1, 0)) / 2, (log(0, 1) - log(0, -1)) / 2];
    const mixed = (log(-1, -1) - log(0, -1) - log(-1, 0) + 2 * c - log(1, 0) - log(0, 1) + log(1, 1)) / 2;
    const xx = log(-1, 0) - 2 * c + log(1, 0) + 1.2e-7, yy = log(0, -1) - 2 * c + log(0, 1) + 1.2e-7;
    const determinant = xx * yy - mixed * mixed;
    const column = x - (yy * slope[0] - mixed * slope[1]) / determinant;
    const row = y - (xx * slope[1] - mixed * slope[0]) / determinant;
    return {
      x: corner[0] + column / (width - 1) * size[0],
      y: corner[1] + row / (height - 1) * size[1],
      score,
    };
  });
}

/** Convolve `lines` lines of `length` values; zeros beyond. */
function blur(from, to, lines, length, lineStep, step, kernel, sum) {
  for (let line = 0; line < lines; line++) {
    for (let i = 0; i < length; i++) {
      let value = 0;
      for (let k = Math.max(0, 5 - i); k < Math.min(11, length + 5 - i); k++) {
        value += kernel[k] * from[line * lineStep + (i + k - 5) * step];
      }
      to[line * lineStep + i * step] = value / sum;
    }
  }
}

/**
 * Box around keypoints, for the next frame; null: too few of them are sure.
 *
 * @param {{x: number, y: number, score: number}[]} keypoints
 */
export function boxAround(keypoints, { width, height }) {
  const sure = keypoints.filter(({ score }) => score >= 0.3);
  if (sure.length < 6) return null;
  const xs = sure.map(({ x }) => x), ys = sure.map(({ y }) => y);
  const low = [Math.min(...xs), Math.min(...ys)], high = [Math.max(...xs), Math.max(...ys)];
  const margin = 0.12 * Math.max(high[0] - low[0], high[1] - low[1]);
  const box = [low[0] - margin, low[1] - margin, high[0] + margin, high[1] + margin];
  const inside = [0, 0, width, height].map((limit, i) => (
    i < 2 ? Math.max(box[i], limit) : Math.min(box[i], limit)));
  return inside[2] - inside[0] > 16 && inside[3] - inside[1] > 16 ? inside : null;
}
