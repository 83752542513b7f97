// Dragged points: what the network `tracks` draws, and the last correction of a motion. The steps are those of
// src/lfdm/export/dragging.py. Places (x, y) are -1 and 1 at the outer edges of the frame.

const OUTSIDE = 9; // a place whose point draws nothing
const [SAME_PLACE, CONFLICT] = [0.5, 1]; // in cells, as in src/lfdm/motion/track_conflicts.py

/** Return where a point is in frame k of `frames`: it moves smoothly over the whole video. */
function place({ source, target }, k, frames) {
  const u = frames > 1 ? k / (frames - 1) : 0;
  const eased = u * u * (3 - 2 * u);
  return source.map((value, axis) => value + eased * (target[axis] - value));
}

/** Throw an error that names two points with different displacements and the same target in a frame. */
export function checkConflicts(points, frames, [h, w], [height, width]) {
  const [cells, pixels] = [[w / 2, h / 2], [width / 2, height / 2]];
  const apart = (a, b) => length(a.map((value, axis) => value - b[axis]), cells);
  const name = ({ source }) => source.map((value, axis) => Math.round((value + 1) * pixels[axis])).join();
  for (let k = 0; k < frames; k += 1) {
    const places = points.map((point) => place(point, k, frames));
    const moved = places.map((at, i) => at.map((value, axis) => value - points[i].source[axis]));
    for (let i = 0; i < points.length; i += 1) {
      for (let j = i + 1; j < points.length; j += 1) {
        if (apart(places[i], places[j]) < SAME_PLACE && apart(moved[i], moved[j]) > CONFLICT) {
          throw new Error(`points ${name(points[i])} and ${name(points[j])} have the same target in frame ${k}; change one of them`);
        }
      }
    }
  }
}

/** Return source (m, 2), position (m, 2) and frame (m,) of all points in all frames, with one outside, so that there is one. */
export function observed(points, frames) {
  const [source, position, frame] = [[OUTSIDE, OUTSIDE], [OUTSIDE, OUTSIDE], [0n]];
  for (const point of points) {
    for (let k = 0; k < frames; k += 1) {
      source.push(...point.source);
      position.push(...place(point, k, frames));
      frame.push(BigInt(k));
    }
  }
  return { source: Float32Array.from(source), position: Float32Array.from(position), frame: BigInt64Array.from(frame) };
}

/** Correct a flow (2, t, h, w) in place by the little that it may be corrected. */
export function correct(flow, points, [frames, h, w], { image_size: [height, width], tracks }) {
  if (!points.length) return;
  const half = [width / 2, height / 2];
  for (let k = 0; k < frames; k += 1) {
    const channels = [0, 1].map((c) => flow.subarray((c * frames + k) * h * w, (c * frames + k + 1) * h * w));
    const places = points.map((point) => place(point, k, frames));
    const rests = points.map(({ source }, i) => {
      const wanted = source.map((value, axis) => value - places[i][axis]);
      const rest = wanted.map((value, axis) => value - read(channels[axis], places[i], h, w));
      const limit = Math.max(length(wanted, half) * tracks.max_corrected_share, tracks.max_correction);
      const share = Math.min(limit / Math.max(length(rest, half), 1e-9), 1);
      return rest.map((value) => value * share);
    });
    const bumps = places.map((at) => bump(at, h, w, tracks.correction_radius));
    const gram = places.map((at) => bumps.map((one) => read(one, at, h, w)));
    refine(gram, rests, tracks).forEach((weight, i) => {
      channels.forEach((channel, axis) => bumps[i].forEach((value, cell) => { channel[cell] += weight[axis] * value; }));
    });
  }
}

function length(vector, scale) {
  return Math.hypot(vector[0] * scale[0], vector[1] * scale[1]);
}

/** Return the bilinear value of a map (h, w) at a place; outside it is that of the border. */
function read(map, [x, y], h, w) {
  const inside = (value, size) => Math.min(Math.max(((value + 1) * size) / 2 - 0.5, 0), size - 1);
  const [column, row] = [inside(x, w), inside(y, h)];
  const [left, top] = [Math.floor(column), Math.floor(row)];
  const [right, bottom] = [Math.min(left + 1, w - 1), Math.min(top + 1, h - 1)];
  const [u, v] = [column - left, row - top];
  const above = map[top * w + left] * (1 - u) + map[top * w + right] * u;
  const below = map[bottom * w + left] * (1 - u) + map[bottom * w + right] * u;
  return above * (1 - v) + below * v;
}

/** Return the Gaussian (h, w) around a place. */
function bump([x, y], h, w, radius) {
  return Float64Array.from({ length: h * w }, (_, cell) => {
    const across = (((2 * (cell % w) + 1) / w - 1 - x) * w) / 2;
    const down = (((2 * Math.floor(cell / w) + 1) / h - 1 - y) * h) / 2;
    return Math.exp(-(across ** 2 + down ** 2) / (2 * radius ** 2));
  });
}

/** Solve gram @ x = rests with damping, as often as `refinements` for what is left. */
function refine(gram, rests, { ridge, refinements }) {
  const damped = gram.map((row, i) => row.map((value, j) => value + (i === j ? ridge : 0)));
  const weights = rests.map(() => [0, 0]);
  for (let k = 0; k < refinements; k += 1) {
    const left = rests.map((rest, i) => rest.map((value, axis) => value - gram[i].reduce((sum, g, j) => sum + g * weights[j][axis], 0)));
    solve(damped, left).forEach((more, i) => more.forEach((value, axis) => { weights[i][axis] += value; }));
  }
  return weights;
}

/** Solve matrix @ x = right for rows of two values, by elimination with pivots. */
function solve(matrix, right) {
  const n = matrix.length;
  const rows = matrix.map((row, i) => [...row, ...right[i]]);
  for (let i = 0; i < n; i += 1) {
    let pivot = i;
    for (let j = i + 1; j < n; j += 1) if (Math.abs(rows[j][i]) > Math.abs(rows[pivot][i])) pivot = j;
    [rows[i], rows[pivot]] = [rows[pivot], rows[i]];
    for (let j = 0; j < n; j += 1) {
      if (j === i) continue;
      const factor = rows[j][i] / rows[i][i];
      for (let c = i; c < n + 2; c += 1) rows[j][c] -= factor * rows[i][c];
    }
  }
  return rows.map((row, i) => [row[n] / row[i], row[n + 1] / row[i]]);
}
