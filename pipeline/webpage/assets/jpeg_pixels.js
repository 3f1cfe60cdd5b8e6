// Coefficients of a JPEG become pixels, by the integer arithmetic of libjpeg-turbo: the accurate inverse cosine
// transform, its reduced forms where a picture is scaled while it decodes, "fancy" upsampling, and its colours.

const C4 = [15137, -6270, -1730, 11893, -17799, 8697, -4176, -4926, 7373, 20995];
const C2 = [-5906, 6967, -10426, 29692];

// read: of jpegCoefficients; scale: 1, 2, 4 or 8, by which its sides are divided.
// Gives {width, height, data: Uint8Array of R, G, B}.
function jpegPixels(read, scale) {
  const least = 8 / scale;
  const [width, height] = [Math.ceil(read.width / scale), Math.ceil(read.height / scale)];
  const planes = read.components.map((one) => fullPlane(read, one, least, width, height));
  const data = new Uint8Array(3 * width * height);
  if (planes.length === 1) {
    for (let n = 0, at = 0; at < data.length; n++) data[at++] = data[at++] = data[at++] = planes[0][n];
  } else if (isRgb(read)) {
    for (let n = 0, at = 0; at < data.length; n++) for (const plane of planes) data[at++] = plane[n];
  } else colours(planes, data);
  return { width, height, data };
}

function isRgb(read) {
  if (read.jfif) return false;
  if (read.adobe !== null) return read.adobe === 0;
  return String.fromCharCode(...read.components.map((one) => one.id)) === "RGB";
}

function colours([luma, blue, red], data) {
  const [crR, crG, cbG, cbB] = [0, 0, 0, 0].map(() => new Int32Array(256));
  for (let n = 0, x = -128; n < 256; n++, x++) {
    crR[n] = (91881 * x + 32768) >> 16;
    cbB[n] = (116130 * x + 32768) >> 16;
    crG[n] = -46802 * x;
    cbG[n] = -22554 * x + 32768;
  }
  const clamped = new Uint8ClampedArray(data.buffer);
  for (let n = 0, at = 0; at < data.length; n++) {
    clamped[at++] = luma[n] + crR[red[n]];
    clamped[at++] = luma[n] + ((cbG[blue[n]] + crG[red[n]]) >> 16);
    clamped[at++] = luma[n] + cbB[blue[n]];
  }
}

// The samples of a component in the size of the picture: Uint8Array [height * width].
function fullPlane(read, one, least, width, height) {
  let side = least;
  while (
    side < 8 && (read.maxH * least) % (one.h * side * 2) === 0 && (read.maxV * least) % (one.v * side * 2) === 0
  ) side *= 2;
  const own = {
    stride: one.blocksWide * side,
    width: Math.ceil((read.width * one.h * side) / (read.maxH * 8)),
    height: Math.ceil((read.height * one.v * side) / (read.maxV * 8)),
    data: samples(one, side),
  };
  const [h, v] = [(read.maxH * least) / (one.h * side), (read.maxV * least) / (one.v * side)];
  if (!Number.isInteger(h) || !Number.isInteger(v)) throw new NotHere("of rare proportions");
  const fancy = least > 1;
  if (h === 2 && v === 1 && fancy && own.width > 2) return doubledAcross(own, width, height);
  if (h === 1 && v === 2 && fancy) return doubledDown(own, width, height);
  if (h === 2 && v === 2 && fancy && own.width > 2) return doubled(own, width, height);
  return repeated(own, h, v, width, height);
}

function repeated(own, h, v, width, height) {
  const plane = new Uint8Array(width * height);
  for (let y = 0, at = 0; y < height; y++) {
    const row = Math.floor(y / v) * own.stride;
    for (let x = 0; x < width; x++) plane[at++] = own.data[row + Math.floor(x / h)];
  }
  return plane;
}

function doubledAcross(own, width, height) {
  const plane = new Uint8Array(width * height);
  const last = own.width - 1;
  for (let y = 0, at = 0; y < height; y++) {
    const row = y * own.stride;
    for (let x = 0; x < width; x++) {
      const here = x >> 1;
      const beside = x & 1 ? here + 1 : here - 1;
      const value = own.data[row + here];
      plane[at++] = beside < 0 || beside > last ? value : (3 * value + own.data[row + beside] + (x & 1 ? 2 : 1)) >> 2;
    }
  }
  return plane;
}

function neighbourRow(own, y) {
  return Math.min(own.height - 1, Math.max(0, y & 1 ? (y >> 1) + 1 : (y >> 1) - 1)) * own.stride;
}

function doubledDown(own, width, height) {
  const plane = new Uint8Array(width * height);
  for (let y = 0, at = 0; y < height; y++) {
    const [row, other] = [(y >> 1) * own.stride, neighbourRow(own, y)];
    for (let x = 0; x < width; x++) plane[at++] = (3 * own.data[row + x] + own.data[other + x] + (y & 1 ? 2 : 1)) >> 2;
  }
  return plane;
}

function doubled(own, width, height) {
  const plane = new Uint8Array(width * height);
  const last = own.width - 1;
  const sums = new Int32Array(own.width);
  for (let y = 0, at = 0; y < height; y++) {
    const [row, other] = [(y >> 1) * own.stride, neighbourRow(own, y)];
    for (let x = 0; x <= last; x++) sums[x] = 3 * own.data[row + x] + own.data[other + x];
    for (let x = 0; x < width; x++) {
      const here = x >> 1;
      const beside = Math.min(last, Math.max(0, x & 1 ? here + 1 : here - 1));
      plane[at++] = (3 * sums[here] + sums[beside] + (x & 1 ? 7 : 8)) >> 4;
    }
  }
  return plane;
}

// Every block of a component, of side * side samples: Uint8Array.
function samples(one, side) {
  const stride = one.blocksWide * side;
  const data = new Uint8ClampedArray(stride * one.blocksHigh * side);
  const transform = { 8: inverse8, 4: inverse4, 2: inverse2, 1: inverse1 }[side];
  const block = new Int32Array(64);
  const work = new Int32Array(64);
  for (let row = 0, from = 0; row < one.blocksHigh; row++) {
    for (let column = 0; column < one.blocksWide; column++, from += 64) {
      for (let k = 0; k < 64; k++) block[k] = one.coefficients[from + k] * one.table[k];
      transform(block, work, data, row * side * stride + column * side, stride);
    }
  }
  return data;
}

function inverse8(block, work, data, at, stride) {
  for (let n = 0; n < 8; n++) line8(block, n, 8, work, n, 8, 11);
  for (let n = 0; n < 8; n++) {
    line8(work, 8 * n, 1, work, 8 * n, 1, 18);
    for (let x = 0; x < 8; x++) data[at + n * stride + x] = work[8 * n + x] + 128;
  }
}

// One line of 8 (Loeffler, Ligtenberg & Moschytz 1989), 13 bits after the point.
function line8(from, a, step, to, b, stride, shift) {
  const half = 1 << (shift - 1);
  const [s0, s1, s2, s3] = [from[a], from[a + step], from[a + 2 * step], from[a + 3 * step]];
  const [s4, s5, s6, s7] = [from[a + 4 * step], from[a + 5 * step], from[a + 6 * step], from[a + 7 * step]];
  const even = (s2 + s6) * 4433;
  const [e2, e3] = [even - s6 * 15137, even + s2 * 6270];
  const [e0, e1] = [(s0 + s4) * 8192, (s0 - s4) * 8192];
  const [t10, t13, t11, t12] = [e0 + e3, e0 - e3, e1 + e2, e1 - e2];
  const z5 = (s7 + s3 + s5 + s1) * 9633;
  const [z1, z2] = [(s7 + s1) * -7373, (s5 + s3) * -20995];
  const [z3, z4] = [(s7 + s3) * -16069 + z5, (s5 + s1) * -3196 + z5];
  const o0 = s7 * 2446 + z1 + z3;
  const o1 = s5 * 16819 + z2 + z4;
  const o2 = s3 * 25172 + z2 + z3;
  const o3 = s1 * 12299 + z1 + z4;
  to[b] = (t10 + o3 + half) >> shift;
  to[b + 7 * stride] = (t10 - o3 + half) >> shift;
  to[b + stride] = (t11 + o2 + half) >> shift;
  to[b + 6 * stride] = (t11 - o2 + half) >> shift;
  to[b + 2 * stride] = (t12 + o1 + half) >> shift;
  to[b + 5 * stride] = (t12 - o1 + half) >> shift;
  to[b + 3 * stride] = (t13 + o0 + half) >> shift;
  to[b + 4 * stride] = (t13 - o0 + half) >> shift;
}

function inverse4(block, work, data, at, stride) {
  for (let n = 0; n < 8; n++) if (n !== 4) line4(block, n, 8, work, n, 8, 12);
  for (let n = 0; n < 4; n++) {
    line4(work, 8 * n, 1, work, 8 * n, 1, 19);
    for (let x = 0; x < 4; x++) data[at + n * stride + x] = work[8 * n + x] + 128;
  }
}

function line4(from, a, step, to, b, stride, shift) {
  const half = 1 << (shift - 1);
  const [s1, s2, s3] = [from[a + step], from[a + 2 * step], from[a + 3 * step]];
  const [s5, s6, s7] = [from[a + 5 * step], from[a + 6 * step], from[a + 7 * step]];
  const base = from[a] * 16384;
  const even = s2 * C4[0] + s6 * C4[1];
  const inner = s7 * C4[2] + s5 * C4[3] + s3 * C4[4] + s1 * C4[5];
  const outer = s7 * C4[6] + s5 * C4[7] + s3 * C4[8] + s1 * C4[9];
  to[b] = (base + even + outer + half) >> shift;
  to[b + 3 * stride] = (base + even - outer + half) >> shift;
  to[b + stride] = (base - even + inner + half) >> shift;
  to[b + 2 * stride] = (base - even - inner + half) >> shift;
}

function inverse2(block, work, data, at, stride) {
  for (const n of [0, 1, 3, 5, 7]) line2(block, n, 8, work, n, 8, 13);
  for (let n = 0; n < 2; n++) {
    line2(work, 8 * n, 1, work, 8 * n, 1, 20);
    for (let x = 0; x < 2; x++) data[at + n * stride + x] = work[8 * n + x] + 128;
  }
}

function line2(from, a, step, to, b, stride, shift) {
  const half = 1 << (shift - 1);
  const base = from[a] * 32768;
  const odd = from[a + 7 * step] * C2[0] + from[a + 5 * step] * C2[1] + from[a + 3 * step] * C2[2] + from[a + step] * C2[3];
  to[b] = (base + odd + half) >> shift;
  to[b + stride] = (base - odd + half) >> shift;
}

function inverse1(block, work, data, at) {
  data[at] = ((block[0] + 4) >> 3) + 128;
}
