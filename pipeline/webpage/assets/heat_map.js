// Where a picture speaks for a class: a grid of numbers from 0 on, laid over what the model saw of the picture.

const INFERNO = [[0, 0, 4], [66, 10, 104], [147, 38, 103], [221, 81, 58], [252, 165, 10], [252, 255, 164]];
const STRENGTH = 0.75; // opacity of the heat where it is strongest

// The picture of an answer with the maps of its classes: an element, and how to show the map of a class (null: none).
function heatedPicture(preview, maps, names, region) {
  if (!maps) return { view: element("div", { class: "asked" }, preview), show: null };
  const canvas = element("canvas", { class: "heat", "aria-hidden": "true" });
  const seen = element("div", { class: "seen" }, preview, canvas);
  const place = () => Object.assign(canvas.style, region(preview));
  if (preview.complete === false) preview.addEventListener("load", place);
  else place();
  const words = element("p", { class: "soft" });
  const button = element("button", { type: "button", class: "small", text: "Heat map" });
  let [on, chosen] = [true, 0];
  const show = (place_, wanted = true) => {
    [chosen, on] = [place_, wanted];
    seen.classList.toggle("heated", on);
    button.setAttribute("aria-pressed", String(on));
    drawHeat(canvas, maps[chosen]);
    words.textContent = on ? heatInWords(maps[chosen], names[chosen]) : "";
  };
  button.addEventListener("click", () => show(chosen, !on));
  show(0);
  return { view: element("div", { class: "asked" }, seen, button, words), show };
}

// The canvas has a pixel a number; the browser enlarges it smoothly.
function drawHeat(canvas, grid) {
  [canvas.height, canvas.width] = [grid.length, grid[0].length];
  const pixels = new ImageData(canvas.width, canvas.height);
  const largest = Math.max(...grid.flat()) || 1;
  grid.flat().forEach((value, n) => pixels.data.set([...inferno(value / largest), 255 * STRENGTH * (value / largest)], 4 * n));
  canvas.getContext("2d").putImageData(pixels, 0, 0);
}

function inferno(share) {
  const at = share * (INFERNO.length - 1);
  const low = Math.min(Math.floor(at), INFERNO.length - 2);
  return INFERNO[low].map((value, c) => value + (at - low) * (INFERNO[low + 1][c] - value));
}

// Where the middle of the heat lies.
function heatInWords(grid, name) {
  let [sum, down, across] = [0, 0, 0];
  grid.forEach((row, y) => row.forEach((value, x) => {
    sum += value;
    down += (value * (y + 0.5)) / grid.length;
    across += (value * (x + 0.5)) / row.length;
  }));
  if (sum === 0) return `Nothing in the picture speaks for ${name}.`;
  const third = (share) => (share < 0.4 ? 0 : share > 0.6 ? 2 : 1);
  const where = [
    ["at the upper left", "at the top", "at the upper right"],
    ["at the left", "around the centre", "at the right"],
    ["at the lower left", "at the bottom", "at the lower right"],
  ][third(down / sum)][third(across / sum)];
  return `Warm colours: what speaks for ${name}, most of it ${where}.`;
}

// The part of a picture that the model saw, its centre, as the style of what is laid over it. A canvas shows that part alone.
function seenRegion(picture, given) {
  const { naturalWidth, naturalHeight } = picture;
  const sides = naturalWidth ? storedSize(naturalWidth, naturalHeight, given) : [given.image_px, given.image_px];
  const [width, height] = sides.map((side) => (100 * given.image_px) / side);
  return { left: `${50 - width / 2}%`, top: `${50 - height / 2}%`, width: `${width}%`, height: `${height}%` };
}
