// A file becomes the pixels that the model takes: decoded, turned, resized and cropped as by predict.py.

const MOST_PIXELS = 100e6;

// Gives {crop: Uint8Array [P, P, 3], exact}; exact: decoded by this page to the bit, and not by the browser.
async function readPicture(bytes, given) {
  const { picture, wanted, exact } = await decoded(bytes, given);
  return { crop: cropOf(picture, wanted ?? storedSize(picture.width, picture.height, given), given), exact };
}

async function decoded(bytes, given) {
  try {
    if (bytes[0] === 0xff && bytes[1] === 0xd8) return { ...jpegPicture(bytes, given), exact: true };
    if (PNG.every((byte, n) => bytes[n] === byte)) {
      const picture = await pngPixels(bytes, given.background, given.darkest_16_bit);
      checkShape(picture.width, picture.height, given);
      return { picture: turned(picture, exifOrientation(picture.exif)), exact: true };
    }
  } catch (error) {
    if (!(error instanceof NotHere)) throw error;
  }
  return { picture: await browserPixels(bytes, given), exact: false };
}

function checkSize(width, height) {
  if (width * height > MOST_PIXELS) throw new Error(`has ${width} × ${height} pixels; make it smaller`);
}

function checkShape(width, height, given) {
  if (width * height === 0) throw new Error("has no pixels");
  if (Math.max(width, height) > given.most_elongated * Math.min(width, height)) {
    throw new Error(`is too elongated with ${width} × ${height} pixels; crop it`);
  }
}

function jpegPicture(bytes, given) {
  const read = jpegCoefficients(bytes);
  checkShape(read.width, read.height, given);
  const orientation = jpegOrientation(read.segments);
  const swaps = orientation >= 5;
  const [width, height] = swaps ? [read.height, read.width] : [read.width, read.height];
  const wanted = storedSize(width, height, given);
  const times = Math.min(Math.floor(width / wanted[0]), Math.floor(height / wanted[1]));
  const scale = read.components.length === 1 ? 1 : [8, 4, 2, 1].find((one) => times >= one) ?? 1;
  return { picture: turned(jpegPixels(read, scale), orientation), wanted };
}

function jpegOrientation(segments) {
  for (const one of segments) {
    if (text(one, 0, 6) === "Exif\0\0") {
      const found = exifOrientation(one.subarray(6));
      if (found) return found;
    }
  }
  for (const one of segments) {
    if (text(one, 0, 28) !== "http://ns.adobe.com/xap/1.0/") continue;
    const found = /tiff:Orientation(?:="|>)([1-8])/.exec(new TextDecoder("latin1").decode(one));
    if (found) return Number(found[1]);
  }
  return 1;
}

// tiff: Uint8Array of EXIF. 1 to 8; 0: it says none.
function exifOrientation(tiff) {
  if (!tiff || tiff.length < 14) return 0;
  const little = tiff[0] === 0x49;
  const view = new DataView(tiff.buffer, tiff.byteOffset, tiff.byteLength);
  const start = view.getUint32(4, little);
  if (start + 2 > tiff.length) return 0;
  const count = view.getUint16(start, little);
  for (let n = 0; n < count; n++) {
    const at = start + 2 + 12 * n;
    if (at + 12 > tiff.length) return 0;
    if (view.getUint16(at, little) === 0x0112) {
      const value = view.getUint16(at + 8, little);
      return value <= 8 ? value : 0;
    }
  }
  return 0;
}

function turned(picture, orientation) {
  if (!(orientation > 1)) return picture;
  const { width, height, data } = picture;
  const swaps = orientation >= 5;
  const [wide, high] = swaps ? [height, width] : [width, height];
  const result = new Uint8Array(data.length);
  const fromRight = orientation === 2 || orientation === 3 || orientation === 7 || orientation === 8;
  const fromBelow = orientation === 3 || orientation === 4 || orientation === 6 || orientation === 7;
  for (let y = 0, to = 0; y < high; y++) {
    for (let x = 0; x < wide; x++, to += 3) {
      const [a, b] = swaps ? [y, x] : [x, y];
      const from = 3 * ((fromBelow ? height - 1 - b : b) * width + (fromRight ? width - 1 - a : a));
      result.set(data.subarray(from, from + 3), to);
    }
  }
  return { width: wide, height: high, data: result };
}

// What only the browser knows: WebP, GIF, BMP, and rare JPEGs and PNGs. Its pixels differ somewhat from Pillow's.
async function browserPixels(bytes, given) {
  const kind = kindOf(bytes);
  if (isHeif(bytes)) throw new Error("is HEIC, which this page does not read; save it as JPEG");
  if (!kind) throw new Error("is not a picture that this page reads; save it as JPEG, PNG or WebP");
  const options = { colorSpaceConversion: "none", imageOrientation: "from-image" };
  const bitmap = await createImageBitmap(new Blob([bytes], { type: kind }), options).catch(() => null);
  if (!bitmap) throw new Error("is damaged, or of a kind that this browser does not read; save it as JPEG");
  checkSize(bitmap.width, bitmap.height);
  checkShape(bitmap.width, bitmap.height, given);
  const canvas = new OffscreenCanvas(bitmap.width, bitmap.height);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.fillStyle = `rgb(${given.background.join(" ")})`;
  context.fillRect(0, 0, bitmap.width, bitmap.height);
  context.drawImage(bitmap, 0, 0);
  const rgba = context.getImageData(0, 0, bitmap.width, bitmap.height).data;
  const data = new Uint8Array((rgba.length / 4) * 3);
  for (let from = 0, to = 0; from < rgba.length; from += 4) for (let c = 0; c < 3; c++) data[to++] = rgba[from + c];
  return { width: bitmap.width, height: bitmap.height, data };
}

// By its brands, as predict.py does.
function isHeif(bytes) {
  const brands = text(bytes, 8, 56);
  return text(bytes, 4, 4) === "ftyp" && /hei[cxms]|hev[cxms]|m[is]f1/.test(brands) && !/avi[fs]/.test(brands);
}

function kindOf(bytes) {
  if (bytes[0] === 0xff && bytes[1] === 0xd8) return "image/jpeg";
  if (text(bytes, 1, 3) === "PNG") return "image/png";
  if (text(bytes, 0, 4) === "RIFF" && text(bytes, 8, 4) === "WEBP") return "image/webp";
  if (text(bytes, 0, 4) === "GIF8") return "image/gif";
  if (text(bytes, 0, 2) === "BM") return "image/bmp";
  return null;
}
