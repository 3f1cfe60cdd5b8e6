// A PNG's bytes become {width, height, data: Uint8Array of R, G, B}, by the rules of predict.py: 16 bits keep their
// upper 8, transparency shows the background. What it does not know throws a NotHere, and the browser decodes.

const PNG = [137, 80, 78, 71, 13, 10, 26, 10];

async function pngPixels(bytes, background, darkest) {
  const chunks = pngChunks(bytes);
  const [width, height] = [long(chunks.IHDR, 0), long(chunks.IHDR, 4)];
  const [bits, kind, interlaced] = [chunks.IHDR[8], chunks.IHDR[9], chunks.IHDR[12]];
  const channels = { 0: 1, 2: 3, 3: 1, 4: 2, 6: 4 }[kind];
  if (!channels || interlaced || ![1, 2, 4, 8, 16].includes(bits)) throw new NotHere("of a rare kind");
  checkSize(width, height);
  const rowBytes = Math.ceil((width * channels * bits) / 8);
  const raw = await inflated(chunks.IDAT, height * (rowBytes + 1));
  const rows = unfiltered(raw, height, rowBytes, Math.max(1, (channels * bits) / 8));
  const values = unpacked(rows, width, height, channels, bits, rowBytes);
  if (kind === 0 && bits === 16) checkGrey(values, darkest);
  return { width, height, data: asRgb(values, { kind, bits, width, height, chunks, background }), exif: chunks.eXIf };
}

function long(bytes, at) {
  return ((bytes[at] << 24) | (bytes[at + 1] << 16) | (bytes[at + 2] << 8) | bytes[at + 3]) >>> 0;
}

function pngChunks(bytes) {
  const chunks = { IDAT: [] };
  for (let at = 8; at + 12 <= bytes.length; ) {
    const [length, name] = [long(bytes, at), text(bytes, at + 4, 4)];
    const content = bytes.subarray(at + 8, at + 8 + length);
    if (content.length < length) throw new Error("is cut off");
    if (name === "IDAT") chunks.IDAT.push(content);
    else chunks[name] ??= content;
    at += 12 + length;
  }
  if (chunks.IHDR?.length !== 13) throw new Error("its header is damaged");
  return chunks;
}

async function inflated(parts, length) {
  const reader = new Blob(parts).stream().pipeThrough(new DecompressionStream("deflate")).getReader();
  const bytes = new Uint8Array(length);
  let at = 0;
  while (at < length) {
    const { done, value } = await reader.read().catch(() => ({ done: true }));
    if (done) throw new Error("its pixels are damaged or cut off");
    const part = value.subarray(0, length - at);
    bytes.set(part, at);
    at += part.length;
  }
  reader.cancel();
  return bytes;
}

function unfiltered(raw, height, rowBytes, step) {
  const rows = new Uint8Array(height * rowBytes);
  for (let y = 0; y < height; y++) {
    const filter = raw[y * (rowBytes + 1)];
    const [from, to] = [y * (rowBytes + 1) + 1, y * rowBytes];
    for (let x = 0; x < rowBytes; x++) {
      const left = x >= step ? rows[to + x - step] : 0;
      const above = y ? rows[to + x - rowBytes] : 0;
      let guess = 0;
      if (filter === 1) guess = left;
      else if (filter === 2) guess = above;
      else if (filter === 3) guess = (left + above) >> 1;
      else if (filter === 4) guess = paeth(left, above, y && x >= step ? rows[to + x - rowBytes - step] : 0);
      rows[to + x] = raw[from + x] + guess;
    }
  }
  return rows;
}

function paeth(left, above, corner) {
  const [a, b, c] = [Math.abs(above - corner), Math.abs(left - corner), Math.abs(left + above - 2 * corner)];
  return a <= b && a <= c ? left : b <= c ? above : corner;
}

// One number a channel, as the file has it: Uint16Array.
function unpacked(rows, width, height, channels, bits, rowBytes) {
  const values = new Uint16Array(width * height * channels);
  for (let y = 0, at = 0; y < height; y++) {
    for (let n = 0; n < width * channels; n++) {
      const place = y * rowBytes + ((n * bits) >> 3);
      if (bits === 16) values[at++] = (rows[place] << 8) | rows[place + 1];
      else values[at++] = (rows[place] >> (8 - bits - ((n * bits) & 7))) & ((1 << bits) - 1);
    }
  }
  return values;
}

function checkGrey(values, darkest) {
  let highest = 0;
  for (const value of values) if (value > highest) highest = value;
  if (highest < darkest) throw new Error("its 16-bit values are all but black; save it with 8 bits");
}

function asRgb(values, { kind, bits, width, height, chunks, background }) {
  const data = new Uint8Array(3 * width * height);
  const toByte = (value) => (bits === 16 ? value >> 8 : bits === 8 ? value : (value * 255) / ((1 << bits) - 1));
  const clear = kind === 0 || kind === 2 ? clearColour(chunks.tRNS, bits) : null;
  const step = { 0: 1, 2: 3, 3: 1, 4: 2, 6: 4 }[kind];
  const [r, g, b] = kind === 2 || kind === 6 ? [0, 1, 2] : [0, 0, 0];
  for (let n = 0, from = 0, to = 0; n < width * height; n++, from += step, to += 3) {
    let colour;
    let alpha = 255;
    if (kind === 3) {
      colour = chunks.PLTE.subarray(3 * values[from], 3 * values[from] + 3);
      alpha = chunks.tRNS?.[values[from]] ?? 255;
    } else {
      colour = [toByte(values[from + r]), toByte(values[from + g]), toByte(values[from + b])];
      if (kind === 4 || kind === 6) alpha = toByte(values[from + step - 1]);
      else if (clear && [r, g, b].every((place, c) => values[from + place] === clear[c])) alpha = 0;
    }
    for (let c = 0; c < 3; c++) data[to + c] = alpha === 255 ? colour[c] : over(colour[c], background[c], alpha);
  }
  return data;
}

function clearColour(content, bits) {
  if (!content) return null;
  if (bits === 16) throw new NotHere("of a rare kind");
  const colour = Array.from({ length: content.length / 2 }, (_, n) => word(content, 2 * n));
  return colour.length === 1 ? [colour[0], colour[0], colour[0]] : colour;
}

// As Pillow's alpha_composite lays a colour over an opaque one.
function over(colour, behind, alpha) {
  const sum = 128 * (colour * alpha + behind * (255 - alpha)) + (128 << 7);
  return ((sum >> 8) + sum) >> 15;
}
