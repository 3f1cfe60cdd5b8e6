// An answer becomes elements. Texts are set as text, never as markup.

const NUMBERS = ["no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"];

function element(name, { text: words, ...attributes } = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) if (value !== null) made.setAttribute(key, value);
  if (words !== undefined) made.textContent = words;
  made.append(...children.filter((child) => child !== null));
  return made;
}

function percent(share) {
  const value = 100 * share;
  if (value > 99 && value < 99.95) return `${value.toFixed(1)}\u00a0%`;
  if (value < 1) return value < 0.1 ? "under 0.1\u00a0%" : `${value.toFixed(1)}\u00a0%`;
  return `${Math.round(value)}\u00a0%`;
}

function listed(names) {
  return names.length < 2 ? names.join("") : `${names.slice(0, -1).join(", ")} or ${names.at(-1)}`;
}

// The prediction set in words.
function setInWords(names, rule) {
  const often = Math.round(10 * rule.coverage * 10) / 10;
  const right = Number.isInteger(often) ? `right ${NUMBERS[often]} times in ten` : `right with ${percent(rule.coverage)}`;
  if (names.length === 1) return `Only ${names[0]} is likely enough; such an answer is ${right}.`;
  const count = NUMBERS[names.length] ?? String(names.length);
  if (names.length > 8) return `It is one of ${count} classes: such an answer is ${right}.`;
  return `One of these ${count}, ${right}: ${listed(names)}.`;
}

function answerView(answer, preview, values) {
  const labels = new Map(values.names.map((name, label) => [name, label]));
  const readable = (name) => values.classes[labels.get(name)] ?? name;
  const best = answer.classes[0];
  const bestLabel = labels.get(best.class);
  const headline = answer.none_of_these
    ? "None of these, it seems"
    : element("span", {}, `${readable(best.class)} `, element("small", { text: percent(best.probability) }));
  const said = element("div", { class: "said" }, element("h2", { tabindex: "-1" }, headline));
  if (answer.none_of_these) {
    said.append(element("p", { class: "caution", text: `This picture is unlike those that the model knows. The most similar class is ${readable(best.class)}.` }));
  } else if (answer.prediction_set) {
    said.append(element("p", { class: "set", text: setInWords(answer.prediction_set.map(readable), values.prediction_set) }));
  }
  const region = (picture) => seenRegion(picture, values.preprocessing);
  const heated = heatedPicture(preview, answer.heat_maps, answer.classes.map((one) => readable(one.class)), region);
  said.append(bars(answer.classes, readable, labels, values, heated.show && answer.heat_maps.length, heated.show));
  if (!answer.exact) said.append(element("p", { class: "soft", text: "Your browser has decoded this picture, so that its pixels may differ slightly from those of training." }));
  const view = element("article", { class: "answer" }, heated.view, said);
  const alike = lookAlikes(bestLabel, values);
  if (alike) view.append(alike);
  return view;
}

// The first `mapped` of the classes are buttons that show the heat map of theirs.
function bars(classes, readable, labels, values, mapped, showMap) {
  const list = element("ol", { class: "bars", "aria-label": "the most likely classes" });
  const choose = (place) => {
    list.querySelectorAll("button").forEach((one, n) => one.setAttribute("aria-pressed", String(n === place)));
    showMap(place);
  };
  for (const [place, { class: name, probability }] of classes.entries()) {
    const fill = element("span", { class: "fill" });
    fill.style.width = `${Math.max(0.5, 100 * probability)}%`;
    const words = element(
      "span",
      { class: "bar-text" },
      element("span", { class: "bar-name", text: readable(name) }),
      element("span", { class: "share", text: percent(probability) }),
      element("span", { class: "track", "aria-hidden": "true" }, fill),
    );
    const parts = [values.pictures.length ? thumb(labels.get(name), values) : null, words];
    const pressed = { type: "button", class: "row", title: "Show its heat map", "aria-pressed": String(place === 0) };
    const row = place < mapped ? element("button", pressed, ...parts) : element("span", { class: "row" }, ...parts);
    if (place < mapped) row.addEventListener("click", () => choose(place));
    list.append(element("li", {}, row));
  }
  return list;
}

function thumb(label, values, which = 0) {
  const source = values.pictures[label]?.[which];
  if (!source) return element("span", { class: "thumb" });
  return element("img", { class: "thumb", src: source, alt: "", width: "56", height: "56" });
}

// The classes that the model confuses with one, and what tells them apart.
function lookAlikes(label, values) {
  const others = values.look_alikes[label] ?? [];
  if (others.length === 0) return null;
  const view = element("section", { class: "alike" }, element("h3", { text: `Similar to ${values.classes[label]}` }));
  for (const other of others) view.append(lookAlike(label, other, values));
  return view;
}

function lookAlike(label, other, values) {
  const sides = element("div", { class: "sides" }, side(label, values), side(other.label, values));
  const view = element("div", { class: "pair" }, sides);
  if (other.attributes.length) {
    const head = element("tr", {}, element("th", { scope: "col", text: "seen in, of 100 pictures" }),
      element("th", { scope: "col", class: "n", text: values.classes[label] }),
      element("th", { scope: "col", class: "n", text: values.classes[other.label] }));
    const rows = other.attributes.map(({ name, a, b }) => element("tr", {}, element("th", { scope: "row", text: name }),
      element("td", { class: "n", text: String(Math.round(a)) }), element("td", { class: "n", text: String(Math.round(b)) })));
    view.append(element("table", {}, element("thead", {}, head), element("tbody", {}, ...rows)));
  }
  return view;
}

function side(label, values) {
  const name = values.classes[label];
  const shown = (values.pictures[label] ?? []).map((source) => element("img", { src: source, alt: `typical picture of ${name}` }));
  return element("figure", {}, element("div", { class: "two" }, ...shown), element("figcaption", { text: name }));
}
