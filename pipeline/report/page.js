"use strict";
// The page works without this script: it adds sorting, searching, the matrix and the map.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const scheme = matchMedia("(prefers-color-scheme: dark)"), paper = matchMedia("print");

  /** A canvas whose drawing surface has the pixels of the screen; `draw(context, side)` in CSS pixels. */
  function surface(canvas, draw) {
    const paint = () => {
      const side = canvas.clientWidth, ratio = window.devicePixelRatio || 1;
      if (!side) return;
      canvas.width = canvas.height = Math.round(side * ratio);
      const context = canvas.getContext("2d");
      context.setTransform(ratio, 0, 0, ratio, 0, 0);
      context.clearRect(0, 0, side, side);
      draw(context, side);
    };
    new ResizeObserver(paint).observe(canvas);
    scheme.addEventListener("change", paint);
    paper.addEventListener("change", paint);
    return paint;
  }

  function table() {
    const body = byId("class-table").tBodies[0], kept = new Map([...body.rows].map((row) => [Number(row.dataset.label), row]));
    const heads = [...byId("class-table").tHead.rows[0].cells], first = body.rows[0];
    const numbers = data.classes, limit = numbers ? 200 : Infinity; // of many classes the page has some rows, and the data all
    const field = { 2: 0, 3: 1, 5: 2, 6: 3, 7: 4 }, taken = ([, , , , , label]) => (label < 0 ? "" : data.names[label]);
    let labels = numbers ? data.names.map((_, label) => label) : [...kept.keys()];
    const inCell = (cell) => cell.dataset.value ?? (cell.firstChild?.textContent.trim() || "");
    const inData = (label, column) => (column === 1 ? data.names[label] : column === 8 ? taken(numbers[label]) : numbers[label][field[column]]);
    const value = (label, column) => (numbers ? inData(label, column) : inCell(kept.get(label).cells[column]));
    const collator = new Intl.Collator("en", { numeric: true });

    heads.forEach((head, column) => head.querySelector("button")?.addEventListener("click", () => {
      const numeric = first.cells[column].dataset.value !== undefined;
      const before = head.getAttribute("aria-sort");
      const descending = before === "none" ? numeric : before === "ascending";
      heads.forEach((other) => other.hasAttribute("aria-sort") && other.setAttribute("aria-sort", "none"));
      head.setAttribute("aria-sort", descending ? "descending" : "ascending");
      const compare = numeric
        ? (a, b) => value(a, column) - value(b, column)
        : (a, b) => collator.compare(value(a, column), value(b, column));
      labels = labels.sort((a, b) => (descending ? -1 : 1) * compare(a, b));
      show();
    }));

    function show() {
      const words = byId("class-search").value.toLowerCase().split(/\s+/);
      const found = labels.filter((label) => words.every((word) => value(label, 1).toLowerCase().includes(word)));
      const shown = found.slice(0, limit).map((label) => kept.get(label) ?? row(label)), all = labels.length;
      body.replaceChildren(...shown);
      const first = shown.length < found.length ? `the first ${shown.length} of ` : "";
      byId("class-count").textContent = first + (found.length === all ? `${all} classes` : `${found.length} of ${all} classes`);
    }

    /** The row of a class that the page does not have. */
    function row(label) {
      const [n, accuracy, precision, f1, trained, , low, high] = numbers[label], made = first.cloneNode(true);
      const percent = (part) => `${Math.round(100 * part)}\u00a0%`, share = (part) => (n ? percent(part) : "–");
      const words = { 1: data.names[label], 2: n, 3: share(accuracy), 5: precision === null ? "–" : percent(precision), 6: share(f1), 7: trained, 8: taken(numbers[label]) };
      for (const [column, text] of Object.entries(words)) made.cells[column].textContent = text;
      made.cells[0].replaceChildren();
      if (!n) made.cells[4].replaceChildren();
      else {
        const [, interval, point] = made.cells[4].querySelectorAll("rect");
        interval.setAttribute("x", 100 * low);
        interval.setAttribute("width", 100 * (high - low));
        point.setAttribute("x", Math.max(100 * accuracy - 1, 0));
        made.cells[4].querySelector("span").textContent = `${Math.round(100 * low)} to ${percent(high)}`;
      }
      made.dataset.label = label;
      return made;
    }

    byId("class-search").addEventListener("input", show);
  }

  function matrix() {
    const canvas = byId("matrix"), said = byId("matrix-cell");
    const n = data.names.length, counts = new Map(data.cells.map(([t, p, c]) => [t * n + p, c]));
    const totals = new Array(n).fill(0);
    for (const [t, , c] of data.cells) totals[t] += c;
    const orders = { similar: data.order, label: data.names.map((_, label) => label) };
    let order = orders.similar, place = inverse(order);
    let view = { x: 0, y: 0, span: n }, chosen = null; // the part that is shown, in cells; the chosen cell, by position

    function inverse(list) {
      const at = new Array(n);
      list.forEach((label, position) => { at[label] = position; });
      return at;
    }

    const paint = surface(canvas, (context, side) => {
      const cell = side / view.span, gap = cell > 6 ? 1 : 0;
      const low = colour("--accent-fill"), high = colour("--accent"), right = colour("--rule");
      for (const [t, p, c] of data.cells) {
        const x = (place[p] - view.x) * cell, y = (place[t] - view.y) * cell;
        if (x + cell < 0 || y + cell < 0 || x > side || y > side) continue;
        context.globalAlpha = 1;
        context.fillStyle = t === p ? right : low;
        const extent = Math.max(cell - gap, 1.5);
        context.fillRect(x, y, extent, extent);
        if (t !== p) {
          context.globalAlpha = c / data.largest;
          context.fillStyle = high;
          context.fillRect(x, y, extent, extent);
        }
      }
      context.globalAlpha = 1;
      if (cell >= 14) nameRows(context, side, cell);
      if (chosen) {
        context.strokeStyle = colour("--ink");
        context.lineWidth = 2;
        context.strokeRect((chosen.x - view.x) * cell - 1, (chosen.y - view.y) * cell - 1, cell + 2, cell + 2);
      }
    });

    /** Each row's class beside its cell on the diagonal, on the side that has more room. */
    function nameRows(context, side, cell) {
      context.font = `${Math.min(13, 0.6 * cell)}px ${getComputedStyle(canvas).fontFamily}`;
      context.fillStyle = colour("--ink");
      context.textBaseline = "middle";
      for (let at = Math.floor(view.x); at < Math.min(n, view.x + view.span); at++) {
        const x = (at - view.x) * cell, y = (at - view.y + 0.5) * cell, onTheRight = x + cell / 2 < side / 2;
        context.textAlign = onTheRight ? "left" : "right";
        context.fillText(data.names[order[at]], onTheRight ? x + cell + 5 : x - 5, y);
      }
    }

    function choose(x, y) {
      chosen = { x: Math.min(n - 1, Math.max(0, x)), y: Math.min(n - 1, Math.max(0, y)) };
      const t = order[chosen.y], p = order[chosen.x], count = counts.get(t * n + p) || 0;
      const images = `${count} of ${totals[t]} image${totals[t] === 1 ? "" : "s"}`;
      said.replaceChildren(t === p ? `${data.names[t]}: ${images} right` : `${data.names[t]} taken for ${data.names[p]}: ${images}`);
      const pair = pairOf(t, p);
      if (pair >= 0) {
        const link = document.createElement("a");
        link.href = `#pair-${pair}`;
        link.textContent = "see the pair";
        said.append(". ", link);
      }
      paint();
    }

    const pairOf = (t, p) => data.pairs.findIndex(([a, b]) => a === Math.min(t, p) && b === Math.max(t, p));

    function zoom(factor, x = chosen ? chosen.x + 0.5 : view.x + view.span / 2, y = chosen ? chosen.y + 0.5 : view.y + view.span / 2) {
      const span = Math.min(n, Math.max(Math.min(4, n), view.span * factor)), shrunk = span / view.span;
      move(x - (x - view.x) * shrunk, y - (y - view.y) * shrunk, span);
    }

    function move(x, y, span = view.span) {
      const within = (value) => Math.min(n - span, Math.max(0, value));
      view = { x: within(x), y: within(y), span };
      canvas.style.touchAction = span < n ? "none" : "pan-y";
      paint();
    }

    const cellAt = (event) => {
      const box = canvas.getBoundingClientRect(), cell = box.width / view.span;
      return [view.x + (event.clientX - box.left) / cell, view.y + (event.clientY - box.top) / cell];
    };
    let held = null;
    canvas.addEventListener("pointerdown", (event) => {
      held = { at: cellAt(event), moved: false };
      if (view.span < n) canvas.setPointerCapture(event.pointerId);
    });
    canvas.addEventListener("pointermove", (event) => {
      const [x, y] = cellAt(event);
      if (held && view.span < n && (held.moved || Math.hypot(x - held.at[0], y - held.at[1]) > view.span / 60)) {
        held.moved = true;
        move(view.x + held.at[0] - x, view.y + held.at[1] - y);
      } else if (!held && event.pointerType === "mouse") choose(Math.floor(x), Math.floor(y));
    });
    canvas.addEventListener("pointerup", (event) => {
      if (held && !held.moved) choose(...cellAt(event).map(Math.floor));
      held = null;
    });
    canvas.addEventListener("pointercancel", () => { held = null; });
    canvas.addEventListener("wheel", (event) => {
      if (!event.ctrlKey && document.activeElement !== canvas) return; // the page scrolls until the matrix is in use
      event.preventDefault();
      zoom(event.deltaY > 0 ? 1.2 : 1 / 1.2, ...cellAt(event));
    }, { passive: false });
    const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    canvas.addEventListener("keydown", (event) => {
      if (steps[event.key]) {
        const at = chosen || { x: Math.floor(view.x), y: Math.floor(view.y) }, [dx, dy] = chosen ? steps[event.key] : [0, 0];
        choose(at.x + dx, at.y + dy);
        const reach = (value, start) => Math.min(Math.max(start, value + 1 - view.span), value);
        move(reach(chosen.x, view.x), reach(chosen.y, view.y));
      } else if (event.key === "+" || event.key === "=") zoom(1 / 1.5);
      else if (event.key === "-") zoom(1.5);
      else if (event.key === "0") move(0, 0, n);
      else if (event.key === "Enter") said.querySelector("a")?.click();
      else return;
      event.preventDefault();
    });
    byId("zoom-in").addEventListener("click", () => zoom(1 / 1.6));
    byId("zoom-out").addEventListener("click", () => zoom(1.6));
    byId("zoom-all").addEventListener("click", () => move(0, 0, n));
    byId("matrix-order").addEventListener("change", (event) => {
      order = orders[event.target.value];
      place = inverse(order);
      chosen = null;
      said.textContent = "No cell is chosen.";
      paint();
    });
  }

  function map() {
    const canvas = byId("map");
    if (!canvas) return;
    const n = data.names.length, position = new Array(n), margin = 14;
    data.order.forEach((label, at) => { position[label] = at; });
    let wanted = -1, named = null;
    const spot = ([x, y], side) => [margin + (x / 1000) * (side - 2 * margin), margin + (y / 1000) * (side - 2 * margin)];
    const radius = data.points.length > 2000 ? 2.2 : 3.6;

    const paint = surface(canvas, (context, side) => {
      const light = scheme.matches && !paper.matches ? 66 : 42;
      const draw = (point, strong) => {
        const [x, y] = spot(point, side), hue = (360 * position[point[2]]) / n;
        context.globalAlpha = strong ? 0.9 : 0.13;
        context.beginPath();
        context.arc(x, y, radius, 0, 7);
        context.fillStyle = context.strokeStyle = `hsl(${hue} 55% ${light}%)`;
        if (point[2] === point[3]) context.fill();
        else { context.lineWidth = 1.4; context.stroke(); }
      };
      if (wanted >= 0) data.points.forEach((point) => point[2] !== wanted && draw(point, false));
      data.points.forEach((point) => (wanted < 0 || point[2] === wanted) && draw(point, true));
      context.globalAlpha = 1;
      if (named) {
        const [x, y] = spot(named, side);
        context.beginPath();
        context.arc(x, y, radius + 4, 0, 7);
        context.lineWidth = 1.5;
        context.strokeStyle = colour("--ink");
        context.stroke();
      }
    });

    const name = (event) => {
      const box = canvas.getBoundingClientRect();
      let best = 18;
      named = null;
      for (const point of data.points) {
        if (wanted >= 0 && point[2] !== wanted) continue;
        const [x, y] = spot(point, box.width), away = Math.hypot(x + box.left - event.clientX, y + box.top - event.clientY);
        if (away < best) { best = away; named = point; }
      }
      if (named) {
        const [, , label, guess] = named;
        byId("map-point").textContent = label === guess ? `${data.names[label]}, right` : `${data.names[label]}, taken for ${data.names[guess]}`;
      }
      paint();
    };
    canvas.addEventListener("pointermove", name);
    canvas.addEventListener("click", name);
    byId("map-class").addEventListener("change", (event) => {
      wanted = Number(event.target.value);
      named = null;
      const own = data.points.filter((point) => point[2] === wanted), right = own.filter((point) => point[2] === point[3]);
      byId("map-point").textContent = wanted < 0 ? "Point at a dot to have it named." : `${data.names[wanted]}: ${own.length} images, ${right.length} right.`;
      paint();
    });
  }

  /** A link to a pair opens it; print shows every pair. */
  function pages() {
    const open = () => {
      const target = /^#pair-\d+$/.test(location.hash) && byId(location.hash.slice(1));
      if (!target) return;
      target.open = true;
      target.scrollIntoView();
      target.querySelector("summary").focus({ preventScroll: true });
    };
    addEventListener("hashchange", open);
    document.addEventListener("click", (event) => { // the same link twice changes no hash
      if (event.target.closest?.("a")?.getAttribute("href") === location.hash) open();
    });
    addEventListener("beforeprint", () => document.querySelectorAll("#pairs details").forEach((one) => { one.open = true; }));
    open();
  }

  table();
  matrix();
  map();
  pages();
})();
