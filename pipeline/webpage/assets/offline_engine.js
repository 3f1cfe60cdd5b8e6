// The engine in the page: onnxruntime-web in one thread, on the model that came with the page.

const GRAVE = 0.05; // a relative difference of logits from which on the page does not answer

class OfflineEngine {
  constructor(values) {
    this.values = values;
  }

  // Load, and verify the golden pictures. Gives a sentence; throws where the model does not answer as it should.
  async start() {
    const [module, wasm, model] = await Promise.all(["engine-module", "engine-wasm", "model"].map(part));
    const address = URL.createObjectURL(new Blob([module], { type: "text/javascript" }));
    const ort = await import(address);
    URL.revokeObjectURL(address);
    Object.assign(ort.env.wasm, { numThreads: 1, wasmBinary: wasm });
    this.ort = ort;
    this.session = await ort.InferenceSession.create(model, { graphOptimizationLevel: "all" });
    return this.verified();
  }

  async verified() {
    const { pictures, tolerance } = this.values.golden;
    const checks = [];
    for (const picture of pictures) checks.push(await this.check(picture));
    this.checks = checks;
    const worst = Math.max(...checks.map((one) => one.difference));
    const said = `largest difference of logits ${worst.toExponential(0)} of the largest`;
    if (checks.some((one) => !one.sameLabel) || !(worst <= Math.max(GRAVE, tolerance))) {
      throw new Error(`it does not answer in this browser as the trained model does (${said})`);
    }
    const same = checks.filter((one) => one.samePixels).length;
    const count = pictures.length;
    const whole = worst <= tolerance && same === count;
    if (!whole) return { whole, text: `The ${count} golden pictures have the trained model's labels here; ${same} have all its pixels (${said}).` };
    if (this.values.form !== "int8") {
      return { whole, text: `Verified: all ${count} golden pictures have the trained model's pixels and logits here (${said}).` };
    }
    return { whole, text: `Verified: all ${count} golden pictures have the trained model's pixels and the labels of its 8-bit form here (${said}).` };
  }

  async check(picture) {
    const { crop } = await readPicture(bytes64(picture.content), this.values.preprocessing);
    const { logits } = await this.outputs(crop);
    const [wanted, { tolerance }] = [picture.logits, this.values.golden];
    let [largest, difference, best, bestWanted] = [0, 0, 0, 0];
    wanted.forEach((value, n) => {
      largest = Math.max(largest, Math.abs(value));
      difference = Math.max(difference, Math.abs(value - logits[n]));
      if (logits[n] > logits[best]) best = n;
      if (value > wanted[bestWanted]) bestWanted = n;
    });
    return {
      samePixels: (await sha256(crop)) === picture.crop_sha256,
      sameLabel: wanted[bestWanted] - wanted[best] <= tolerance * largest,
      difference: difference / largest,
    };
  }

  async outputs(crop) {
    const side = this.values.preprocessing.image_px;
    const planes = new Uint8Array(crop.length);
    for (let n = 0, from = 0; n < side * side; n++) {
      for (let c = 0; c < 3; c++) planes[c * side * side + n] = crop[from++];
    }
    const images = new this.ort.Tensor("uint8", planes, [1, 3, side, side]);
    const found = await this.session.run({ images });
    const outputs = Object.fromEntries(Object.entries(found).map(([name, tensor]) => [name, tensor.data]));
    if (found.heat_maps) outputs.heat_maps = grids(found.heat_maps);
    return outputs;
  }

  // What the model says of a file, as predict.py and the server do, and the crop that it saw.
  async answer(file, top) {
    const { crop, exact } = await readPicture(new Uint8Array(await file.arrayBuffer()), this.values.preprocessing);
    const found = await this.outputs(crop);
    const maps = found.heat_maps ? { heat_maps: found.heat_maps.slice(0, top) } : {};
    return { ...this.named(found, top), ...maps, crop, exact, logits: found.logits };
  }

  named(found, top) {
    const { names, unknown, prediction_set: rule } = this.values;
    const { logits, probabilities } = found;
    const order = Array.from(logits.keys()).sort((a, b) => logits[b] - logits[a] || a - b);
    const said = { classes: order.slice(0, top).map((n) => ({ class: names[n], probability: probabilities[n] })) };
    if (unknown) said.none_of_these = Number(found.known_score[0]) < unknown.lowest_score;
    if (rule) {
      const shares = Array.from(logits, (value) => Math.exp(value - logits[order[0]]));
      const sum = shares.reduce((total, share) => total + share);
      const inside = (n) => shares[n] / sum >= 1 - rule.threshold;
      said.prediction_set = order.filter((n, place) => place === 0 || inside(n)).map((n) => names[n]);
    }
    return said;
  }
}

// A tensor [1, K, h, w] as K grids of rows.
function grids({ data, dims: [, count, height, width] }) {
  const row = (start) => Array.from(data.subarray(start, start + width));
  return Array.from({ length: count }, (_, k) =>
    Array.from({ length: height }, (_, y) => row((k * height + y) * width)));
}

function bytes64(text) {
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(text);
  const binary = atob(text);
  const bytes = new Uint8Array(binary.length);
  for (let n = 0; n < bytes.length; n++) bytes[n] = binary.charCodeAt(n);
  return bytes;
}

// The browser's own where the page is in a secure context; a file is one in Chrome and Firefox, and not in every browser.
async function sha256(bytes) {
  if (!globalThis.crypto?.subtle) return "";
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  return Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

const Engine = OfflineEngine;
