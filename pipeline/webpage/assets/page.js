// The page: takes pictures by a drop, the clipboard, a dialogue or a camera, and shows what the engine says of them.

const TOP = 5;
const MOST_ANSWERS = 50;
const values = JSON.parse(document.getElementById("values").textContent);
const engine = new Engine(values);
const [state, results, choose] = ["state", "results", "choose"].map((id) => document.getElementById(id));

let ready = null;

function say(words, kind = "") {
  state.textContent = words;
  state.className = kind;
}

async function start() {
  try {
    const said = await engine.start();
    say(said.text, said.whole ? "good" : "");
    return true;
  } catch (error) {
    say(`This page does not answer: ${error.message ?? error}.`.replace(/\.\.$/, "."), "bad");
    document.body.dataset.state = "failed";
    return false;
  }
}

// One after the other: the queue is a chain of promises.
let queue = Promise.resolve();

function take(files) {
  for (const file of files) queue = queue.then(() => show(file));
  return queue;
}

async function show(file) {
  if (!(await ready)) return;
  document.body.dataset.state = "busy";
  results.setAttribute("aria-busy", "true");
  const name = file.name || "the picture";
  try {
    const answer = await engine.answer(file, TOP);
    const view = answerView(answer, await previewOf(file, answer, name), values);
    put(view);
    view.querySelector("h2").focus({ preventScroll: true });
    view.scrollIntoView({ block: "nearest" });
  } catch (error) {
    const words = String(error.message ?? error);
    put(element("p", { class: "caution", role: "alert", text: /^[A-Z]/.test(words) ? words : `${name} ${words}.` }));
  }
  results.setAttribute("aria-busy", "false");
  document.body.dataset.state = "ready";
}

// The newest stands first. The browser keeps a picture that it shows by an address until the address is taken back.
function put(view) {
  results.prepend(view);
  while (results.children.length > MOST_ANSWERS) {
    for (const image of results.lastElementChild.querySelectorAll('img[src^="blob:"]')) URL.revokeObjectURL(image.src);
    results.lastElementChild.remove();
  }
}

// What the model saw of a picture; of a server's answer the file, as the browser shows it.
async function previewOf(file, answer, name) {
  if (!answer.crop) {
    const source = URL.createObjectURL(file);
    return element("img", { src: source, alt: `your picture, ${name}` });
  }
  const side = values.preprocessing.image_px;
  const canvas = element("canvas", { width: side, height: side, role: "img", "aria-label": `what the model sees of ${name}` });
  const shown = new ImageData(side, side);
  for (let n = 0, from = 0; n < shown.data.length; n += 4) {
    for (let c = 0; c < 3; c++) shown.data[n + c] = answer.crop[from++];
    shown.data[n + 3] = 255;
  }
  canvas.getContext("2d").putImageData(shown, 0, 0);
  return canvas;
}

function pictures(list) {
  return Array.from(list ?? []).filter((file) => file.type.startsWith("image/") || file.type === "");
}

function listen() {
  for (const input of document.querySelectorAll("input[type=file]")) {
    input.addEventListener("change", () => {
      take(Array.from(input.files));
      input.value = "";
    });
  }
  for (const button of document.querySelectorAll("button[data-opens]")) {
    button.addEventListener("click", () => document.getElementById(button.dataset.opens).click());
  }
  for (const name of ["dragenter", "dragover", "dragleave", "drop"]) {
    document.addEventListener(name, (event) => {
      event.preventDefault();
      choose.classList.toggle("over", name === "dragenter" || name === "dragover");
      if (name === "drop") take(pictures(event.dataTransfer?.files));
    });
  }
  document.addEventListener("paste", (event) => take(pictures(event.clipboardData?.files)));
}

// Every class, found by a part of its name.
function listClasses() {
  const list = document.getElementById("classes");
  const items = values.classes.map((name, label) =>
    element("li", {}, values.pictures.length ? thumb(label, values) : null, element("span", { text: name })));
  list.append(...items);
  document.getElementById("find").addEventListener("input", (event) => {
    const words = event.target.value.toLowerCase().split(/\s+/).filter(Boolean);
    items.forEach((item, label) => {
      item.hidden = !words.every((word) => values.classes[label].toLowerCase().includes(word));
    });
  });
}

listen();
listClasses();
ready = new Promise((resolve) => {
  requestAnimationFrame(() => setTimeout(() => start().then(resolve)));
});
ready.then((good) => {
  if (good) document.body.dataset.state = "ready";
});
window.plumage = { engine, ready, inWords: setInWords, heatInWords };
