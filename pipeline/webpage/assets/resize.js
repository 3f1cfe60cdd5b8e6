// Pixels are resized as OpenCV does it, to the bit: INTER_AREA where they shrink, then INTER_CUBIC where they grow.
// Pictures are {width, height, data: Uint8Array of R, G, B}.

// given: `preprocessing` of the export. What the model sees of a picture: Uint8Array [P, P, 3].
// width, height: to which it is resized before; those of the whole picture decide, as it may be scaled already.
function cropOf(picture, [width, height], given) {
  let pixels = picture;
  if (pixels.width > width || pixels.height > height) {
    pixels = resizedArea(pixels, Math.min(pixels.width, width), Math.min(pixels.height, height));
  }
  if (pixels.width !== width || pixels.height !== height) pixels = resizedCubic(pixels, width, height);
  return centreCrop(pixels, given.pad_px, given.image_px);
}

function centreCrop(pixels, pad, side) {
  const crop = new Uint8Array(3 * side * side);
  const top = Math.floor((pixels.height + 2 * pad - side) / 2) - pad;
  const left = Math.floor((pixels.width + 2 * pad - side) / 2) - pad;
  for (let y = Math.max(0, -top); y < Math.min(side, pixels.height - top); y++) {
    const first = Math.max(0, -left);
    const from = 3 * ((y + top) * pixels.width + left + first);
    const length = 3 * (Math.min(side, pixels.width - left) - first);
    crop.set(pixels.data.subarray(from, from + length), 3 * (y * side + first));
  }
  return crop;
}

function resizedArea(pixels, width, height) {
  const [acrossBy, downBy] = [1 / (width / pixels.width), 1 / (height / pixels.height)];
  const whole = (scale) => Math.abs(scale - Math.round(scale)) < Number.EPSILON;
  if (whole(acrossBy) && whole(downBy)) return blockMeans(pixels, width, height, Math.round(acrossBy), Math.round(downBy));
  const across = areaTable(pixels.width, width, acrossBy);
  const down = areaTable(pixels.height, height, downBy);
  const data = new Uint8ClampedArray(3 * width * height);
  const [line, sums] = [new Float32Array(3 * width), new Float32Array(3 * width)];
  let row = -1;
  const write = () => {
    for (let n = 0; n < sums.length; n++) data[3 * width * row + n] = sums[n]; // rounds half to even
  };
  for (const { to, from, share } of down) {
    weightedLine(pixels, from, across, line);
    if (to !== row) {
      if (row >= 0) write();
      row = to;
      for (let n = 0; n < sums.length; n++) sums[n] = Math.fround(share * line[n]);
    } else for (let n = 0; n < sums.length; n++) sums[n] += Math.fround(share * line[n]);
  }
  write();
  return { width, height, data: new Uint8Array(data.buffer) };
}

function weightedLine(pixels, y, across, line) {
  line.fill(0);
  const start = 3 * pixels.width * y;
  for (const { to, from, share } of across) {
    for (let c = 0; c < 3; c++) line[3 * to + c] += Math.fround(pixels.data[start + 3 * from + c] * share);
  }
}

function areaTable(length, wanted, scale) {
  const table = [];
  const add = (to, from, share) => table.push({ to, from, share: Math.fround(share) });
  for (let to = 0; to < wanted; to++) {
    const [begin, end] = [to * scale, to * scale + scale];
    const cell = Math.min(scale, length - begin);
    const last = Math.min(Math.floor(end), length - 1);
    const first = Math.min(Math.ceil(begin), last);
    if (first - begin > 1e-3) add(to, first - 1, (first - begin) / cell);
    for (let from = first; from < last; from++) add(to, from, 1 / cell);
    if (end - last > 1e-3) add(to, last, Math.min(end - last, 1, cell) / cell);
  }
  return table;
}

// Where both sides shrink by whole numbers, a pixel is the mean of a block.
function blockMeans(pixels, width, height, across, down) {
  const data = new Uint8ClampedArray(3 * width * height);
  const share = Math.fround(1 / (across * down));
  for (let y = 0, at = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      for (let c = 0; c < 3; c++) {
        let sum = 0;
        for (let row = 0; row < down; row++) {
          const from = 3 * ((y * down + row) * pixels.width + x * across) + c;
          for (let n = 0; n < across; n++) sum += pixels.data[from + 3 * n];
        }
        data[at++] = across === 2 && down === 2 ? (sum + 2) >> 2 : Math.fround(sum * share);
      }
    }
  }
  return { width, height, data: new Uint8Array(data.buffer) };
}

// In floats of 32 bits, whose products are added without rounding (FMA), as Intel's IPP within OpenCV does it; where
// a sum is within rounding of a half, that may be one level off.
function resizedCubic(pixels, width, height) {
  const across = cubicTable(pixels.width, width);
  const lines = new Map();
  const lineOf = (y) => {
    const row = Math.min(pixels.height - 1, Math.max(0, y));
    if (!lines.has(row)) lines.set(row, cubicLine(pixels, row, across));
    return lines.get(row);
  };
  const data = new Uint8ClampedArray(3 * width * height);
  const f = Math.fround;
  cubicTable(pixels.height, height).forEach(({ first, weights }, y) => {
    const four = [0, 1, 2, 3].map((n) => lineOf(first + n));
    for (let n = 0; n < 3 * width; n++) {
      const before = f(weights[0] * four[0][n] + f(weights[1] * four[1][n]));
      const after = f(weights[2] * four[2][n] + f(weights[3] * four[3][n]));
      data[3 * width * y + n] = f(before + after); // rounds half to even
    }
    lines.delete(first - 1);
  });
  return { width, height, data: new Uint8Array(data.buffer) };
}

function cubicLine(pixels, y, across) {
  const line = new Float32Array(3 * across.length);
  const start = 3 * pixels.width * y;
  const value = (x, c) => pixels.data[start + 3 * Math.min(pixels.width - 1, Math.max(0, x)) + c];
  across.forEach(({ first, weights }, x) => {
    for (let c = 0; c < 3; c++) {
      line[3 * x + c] = weighted(value(first, c), value(first + 1, c), value(first + 2, c), value(first + 3, c), weights);
    }
  });
  return line;
}

function weighted(a, b, c, d, weights) {
  const f = Math.fround;
  return f(weights[3] * d + f(weights[2] * c + f(weights[1] * b + f(weights[0] * a))));
}

function cubicTable(length, wanted) {
  const A = -0.75;
  return Array.from({ length: wanted }, (_, n) => {
    const place = (n + 0.5) * (length / wanted) - 0.5;
    const before = Math.floor(place);
    const x = place - before;
    const w0 = ((A * (x + 1) - 5 * A) * (x + 1) + 8 * A) * (x + 1) - 4 * A;
    const w1 = ((A + 2) * x - (A + 3)) * x * x + 1;
    const w2 = ((A + 2) * (1 - x) - (A + 3)) * (1 - x) * (1 - x) + 1;
    return { first: before - 1, weights: Float32Array.of(w0, w1, w2, 1 - w0 - w1 - w2) };
  });
}
