// A JPEG's bytes become quantised coefficients: baseline and progressive, 8 bits, Huffman (ITU-T T.81).
// What it does not know throws a NotHere, and the browser's decoder takes the file; damage throws an Error.

class NotHere extends Error {}

const MOST_SCANS = 200; // each takes time, whatever its size; programs write some ten

const ZIGZAG = Uint8Array.from([
  0, 1, 8, 16, 9, 2, 3, 10, 17, 24, 32, 25, 18, 11, 4, 5, 12, 19, 26, 33, 40, 48, 41, 34, 27, 20, 13, 6, 7, 14, 21, 28,
  35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23, 30, 37, 44, 51, 58, 59, 52, 45, 38, 31, 39, 46, 53, 60, 61, 54, 47, 55,
  62, 63,
]);

// bytes: Uint8Array. Gives {width, height, components: [{id, h, v, blocksWide, blocksHigh, table, coefficients}],
// maxH, maxV, jfif, adobe, segments}; coefficients: Int16Array, 64 a block, in natural order.
function jpegCoefficients(bytes) {
  const state = { bytes, at: 2, tables: [], huffman: {}, restart: 0, scanned: 0, frame: null, jfif: false, adobe: null, segments: [] };
  if (bytes[0] !== 0xff || bytes[1] !== 0xd8) throw new NotHere("not a JPEG");
  for (;;) {
    const marker = nextMarker(state);
    if (marker === 0xd9) break;
    if (marker === 0 || (marker >= 0xd0 && marker <= 0xd7)) continue;
    const length = word(bytes, state.at);
    const end = state.at + length;
    if (length < 2 || end > bytes.length) throw new Error("a segment is cut off");
    readSegment(state, marker, state.at + 2, end);
    state.at = end;
    if (marker === 0xda) readScan(state);
  }
  if (!state.frame || !state.scanned) throw new Error("holds no picture");
  return { ...state.frame, jfif: state.jfif, adobe: state.adobe, segments: state.segments };
}

function word(bytes, at) {
  return (bytes[at] << 8) | bytes[at + 1];
}

function nextMarker(state) {
  const { bytes } = state;
  while (state.at < bytes.length && bytes[state.at] !== 0xff) state.at++;
  while (state.at < bytes.length && bytes[state.at] === 0xff) state.at++;
  if (state.at < bytes.length) return bytes[state.at++];
  if (state.scanned && !state.frame.progressive) return 0xd9;
  throw new Error("is cut off");
}

function readSegment(state, marker, at, end) {
  const { bytes } = state;
  if (marker === 0xdb) readQuantisation(state, at, end);
  else if (marker === 0xc4) readHuffman(state, at, end);
  else if (marker === 0xdd) state.restart = word(bytes, at);
  else if (marker === 0xc0 || marker === 0xc1 || marker === 0xc2) readFrame(state, marker, at);
  else if (marker === 0xda) readScanHeader(state, at);
  else if (marker === 0xcc || (marker > 0xc2 && marker <= 0xcf && marker !== 0xc8)) throw new NotHere("of a rare kind");
  else if (marker === 0xe0 && text(bytes, at, 4) === "JFIF") state.jfif = true;
  else if (marker === 0xee && text(bytes, at, 5) === "Adobe") state.adobe = bytes[at + 11];
  else if (marker === 0xe1) state.segments.push(bytes.subarray(at, end));
}

function text(bytes, at, length) {
  return String.fromCharCode(...bytes.subarray(at, at + length));
}

function readQuantisation(state, at, end) {
  while (at < end) {
    const wide = state.bytes[at] >> 4;
    const table = (state.tables[state.bytes[at++] & 15] = new Int32Array(64));
    for (let k = 0; k < 64; k++, at += wide ? 2 : 1) table[ZIGZAG[k]] = wide ? word(state.bytes, at) : state.bytes[at];
  }
}

// A table of 16 bits of look-ahead: length << 8 | symbol; 0: no such code.
function readHuffman(state, at, end) {
  while (at < end) {
    const name = state.bytes[at++];
    const counts = state.bytes.subarray(at, at + 16);
    const look = new Uint16Array(65536);
    let code = 0;
    at += 16;
    for (let length = 1; length <= 16; length++) {
      for (let n = 0; n < counts[length - 1]; n++, code++) {
        const first = code << (16 - length);
        if (first > 65535) throw new Error("a Huffman table is damaged");
        look.fill((length << 8) | state.bytes[at++], first, first + (1 << (16 - length)));
      }
      code <<= 1;
    }
    state.huffman[name] = look;
  }
}

function readFrame(state, marker, at) {
  const { bytes } = state;
  if (state.frame) throw new NotHere("of several frames");
  const [bits, height, width, count] = [bytes[at], word(bytes, at + 1), word(bytes, at + 3), bytes[at + 5]];
  if (bits !== 8 || height === 0 || (count !== 1 && count !== 3)) throw new NotHere("of a rare kind");
  const components = [];
  for (let n = 0; n < count; n++) {
    const place = at + 6 + 3 * n;
    components.push({ id: bytes[place], h: bytes[place + 1] >> 4, v: bytes[place + 1] & 15, tableNumber: bytes[place + 2] });
  }
  const maxH = Math.max(...components.map((one) => one.h));
  const maxV = Math.max(...components.map((one) => one.v));
  if (width * height === 0 || components.some((one) => one.h < 1 || one.v < 1 || one.h > 4 || one.v > 4)) {
    throw new Error("its header is damaged");
  }
  checkSize(width, height);
  const [wide, high] = [Math.ceil(width / (8 * maxH)), Math.ceil(height / (8 * maxV))];
  for (const one of components) {
    one.ownWide = Math.ceil(Math.ceil((width * one.h) / maxH) / 8);
    one.ownHigh = Math.ceil(Math.ceil((height * one.v) / maxV) / 8);
    one.blocksWide = wide * one.h;
    one.blocksHigh = high * one.v;
    one.coefficients = new Int16Array(64 * one.blocksWide * one.blocksHigh);
  }
  state.frame = { width, height, components, maxH, maxV, wide, high, progressive: marker === 0xc2 };
}

function readScanHeader(state, at) {
  const { bytes, frame } = state;
  if (!frame) throw new Error("its pixels come before their size");
  const count = bytes[at++];
  const parts = [];
  for (let n = 0; n < count; n++, at += 2) {
    const component = frame.components.find((one) => one.id === bytes[at]);
    if (!component) throw new Error("a scan is of an unknown component");
    component.table ??= state.tables[component.tableNumber]?.slice();
    parts.push({ component, dc: bytes[at + 1] >> 4, ac: bytes[at + 1] & 15, previous: 0 });
  }
  state.scan = { parts, start: bytes[at], end: bytes[at + 1], high: bytes[at + 2] >> 4, low: bytes[at + 2] & 15 };
  state.scanned += 1;
  if (state.scanned > MOST_SCANS) throw new Error("has too many scans; save it again");
}

function readScan(state) {
  const { frame, scan } = state;
  const reader = new BitReader(state.bytes, state.at);
  const decode = blockDecoder(frame, scan, state.huffman);
  const single = scan.parts.length === 1 ? scan.parts[0].component : null;
  const [wide, high] = single ? [single.ownWide, single.ownHigh] : [frame.wide, frame.high];
  let left = state.restart || Infinity;
  scan.run = 0;
  for (let y = 0; y < high; y++) {
    for (let x = 0; x < wide; x++) {
      if (left-- === 0) {
        reader.restart();
        scan.run = 0;
        for (const part of scan.parts) part.previous = 0;
        left = state.restart - 1;
      }
      if (single) decode(reader, scan.parts[0], 64 * (y * single.blocksWide + x));
      else for (const part of scan.parts) decodeUnit(decode, reader, part, x, y);
    }
  }
  state.at = reader.end();
}

function decodeUnit(decode, reader, part, x, y) {
  const { h, v, blocksWide } = part.component;
  for (let row = 0; row < v; row++) {
    for (let column = 0; column < h; column++) decode(reader, part, 64 * ((y * v + row) * blocksWide + x * h + column));
  }
}

class BitReader {
  constructor(bytes, at) {
    Object.assign(this, { bytes, at, held: 0, count: 0, missing: 0 });
  }

  // Have at least 16 bits; after a marker zeros, as libjpeg gives them, though not many: the file is cut off then.
  fill() {
    while (this.count <= 16) {
      let byte = 0;
      const found = this.bytes[this.at];
      if (found === undefined || (found === 0xff && this.bytes[this.at + 1] !== 0)) {
        if (++this.missing > 4) throw new Error("is cut off");
      } else {
        byte = found;
        this.at += found === 0xff ? 2 : 1;
      }
      this.held = ((this.held << 8) | byte) & 0xffffff;
      this.count += 8;
    }
  }

  symbol(look) {
    if (this.count < 16) this.fill();
    const entry = look[(this.held >> (this.count - 16)) & 0xffff];
    if (entry === 0) throw new Error("its pixels are damaged");
    this.count -= entry >> 8;
    return entry & 255;
  }

  bits(n) {
    if (n === 0) return 0;
    if (this.count < n) this.fill();
    this.count -= n;
    return (this.held >> this.count) & ((1 << n) - 1);
  }

  signed(n) {
    const value = this.bits(n);
    return n && value < 1 << (n - 1) ? value - (1 << n) + 1 : value;
  }

  restart() {
    const { bytes } = this;
    let at = this.at;
    while (at < bytes.length && !(bytes[at] === 0xff && bytes[at + 1] >= 0xd0 && bytes[at + 1] <= 0xd7)) {
      if (bytes[at] === 0xff && bytes[at + 1] !== 0 && bytes[at + 1] !== 0xff) throw new Error("its pixels are damaged");
      at++;
    }
    Object.assign(this, { at: at + 2, held: 0, count: 0, missing: 0 });
  }

  end() {
    return this.at;
  }
}

// (reader, part, offset) => void: decodes one block of a scan into its component's coefficients.
function blockDecoder(frame, scan, huffman) {
  const table = (kind, number) => {
    const look = huffman[(kind << 4) | number];
    if (!look) throw new Error("a Huffman table is missing");
    return look;
  };
  for (const part of scan.parts) {
    if (!part.component.table) throw new Error("a quantisation table is missing");
    if (scan.start === 0 && (!frame.progressive || scan.high === 0)) part.dcLook = table(0, part.dc);
    if (scan.end > 0) part.acLook = table(1, part.ac);
  }
  if (!frame.progressive) return decodeBaseline;
  if (scan.start === 0) return scan.high === 0 ? (r, p, at) => decodeDcFirst(r, p, at, scan) : (r, p, at) => refineDc(r, p, at, scan);
  return scan.high === 0 ? (r, p, at) => decodeAcFirst(r, p, at, scan) : (r, p, at) => refineAc(r, p, at, scan);
}

function decodeBaseline(reader, part, at) {
  const { coefficients } = part.component;
  part.previous += reader.signed(reader.symbol(part.dcLook));
  coefficients[at] = part.previous;
  for (let k = 1; k < 64; k++) {
    const symbol = reader.symbol(part.acLook);
    const size = symbol & 15;
    if (size === 0) {
      if (symbol !== 0xf0) break;
      k += 15;
      continue;
    }
    k += symbol >> 4;
    if (k > 63) throw new Error("its pixels are damaged");
    coefficients[at + ZIGZAG[k]] = reader.signed(size);
  }
}

function decodeDcFirst(reader, part, at, scan) {
  part.previous += reader.signed(reader.symbol(part.dcLook));
  part.component.coefficients[at] = part.previous << scan.low;
}

function refineDc(reader, part, at, scan) {
  part.component.coefficients[at] |= reader.bits(1) << scan.low;
}

function decodeAcFirst(reader, part, at, scan) {
  if (scan.run > 0) {
    scan.run--;
    return;
  }
  for (let k = scan.start; k <= scan.end; k++) {
    const symbol = reader.symbol(part.acLook);
    const [run, size] = [symbol >> 4, symbol & 15];
    if (size === 0 && run < 15) {
      scan.run = (1 << run) - 1 + reader.bits(run);
      return;
    }
    k += run;
    if (k > 63) throw new Error("its pixels are damaged");
    if (size) part.component.coefficients[at + ZIGZAG[k]] = reader.signed(size) * (1 << scan.low);
  }
}

function refineAc(reader, part, at, scan) {
  const { coefficients } = part.component;
  const bit = 1 << scan.low;
  const refine = (place) => {
    if (reader.bits(1) && (coefficients[place] & bit) === 0) coefficients[place] += coefficients[place] >= 0 ? bit : -bit;
  };
  let k = scan.start;
  while (scan.run === 0 && k <= scan.end) {
    const symbol = reader.symbol(part.acLook);
    let run = symbol >> 4;
    let value = 0;
    if ((symbol & 15) === 0) {
      if (run < 15) {
        scan.run = (1 << run) + reader.bits(run);
        break;
      }
    } else value = reader.bits(1) ? bit : -bit;
    for (; k <= scan.end; k++) {
      const place = at + ZIGZAG[k];
      if (coefficients[place] !== 0) refine(place);
      else if (run-- === 0) {
        if (value) coefficients[place] = value;
        break;
      }
    }
    k++;
  }
  if (scan.run > 0) {
    for (; k <= scan.end; k++) if (coefficients[at + ZIGZAG[k]] !== 0) refine(at + ZIGZAG[k]);
    scan.run--;
  }
}
