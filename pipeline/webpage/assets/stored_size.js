// Width and height of a picture when it is stored, before its centre is cropped: as by predict.py.

function storedSize(width, height, given) {
  const side = given.resize_px;
  if (given.resize === "squash") return [side, side];
  const scale = side / Math.min(width, height);
  return [width, height].map((length) => Math.max(side, roundedToEven(length * scale)));
}

function roundedToEven(value) {
  const low = Math.floor(value);
  const rest = value - low;
  return rest < 0.5 || (rest === 0.5 && low % 2 === 0) ? low : low + 1;
}
