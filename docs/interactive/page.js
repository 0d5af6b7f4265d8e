// The page: a memory of a few drawings, a query that is drawn or corrupted, and what is read.
"use strict";

(() => {
  const SIDE = 28;
  const READS = 4;
  const AT_FIRST = 6;
  const ASKED = 4;

  const bytesOf = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const model = new KanervaMachine(bytesOf(KANERVA_MODEL));
  const drawings = unpack(bytesOf(KANERVA_DRAWINGS));
  const page = (name) => document.getElementById(`memory-${name}`);

  const state = { memory: model.emptyMemory(), items: [], query: drawings[ASKED].slice(), next: 0 };

  // Drawings of SIDE x SIDE pixels, a bit each.
  function unpack(bytes) {
    const size = SIDE * SIDE;
    return Array.from({ length: (bytes.length * 8) / size }, (_, n) => (
      Float32Array.from({ length: size }, (__, i) => {
        const bit = n * size + i;
        return (bytes[bit >> 3] >> (7 - (bit & 7))) & 1;
      })
    ));
  }

  function paint(canvas, pixels) {
    const context = canvas.getContext("2d");
    const image = context.createImageData(SIDE, SIDE);
    pixels.forEach((ink, i) => {
      image.data.fill(Math.round(255 * (1 - ink)), 4 * i, 4 * i + 3);
      image.data[4 * i + 3] = 255;
    });
    context.putImageData(image, 0, 0);
  }

  function tile(pixels, caption, label) {
    const figure = document.createElement("figure");
    const canvas = document.createElement("canvas");
    canvas.width = SIDE;
    canvas.height = SIDE;
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", label);
    paint(canvas, pixels);
    const text = document.createElement("figcaption");
    text.textContent = caption;
    figure.append(canvas, text);
    return figure;
  }

  function write(pixels) {
    const item = { pixels: pixels.slice(), ...model.item(pixels) };
    state.memory.write(item.weights, item.values);
    state.items.push(item);
  }

  function forget(item) {
    const place = state.items.indexOf(item);
    if (place < 0) return; // what is not there cannot be taken out
    state.memory.forget(item.weights, item.values);
    state.items.splice(place, 1);
  }

  // The stored item whose address is most alike, and by what cosine.
  function nearest(weights) {
    const norm = (w) => Math.hypot(...w);
    let best = { item: null, cosine: -Infinity };
    for (const item of state.items) {
      const product = item.weights.reduce((sum, value, i) => sum + value * weights[i], 0);
      const cosine = product / (norm(item.weights) * norm(weights));
      if (cosine > best.cosine) best = { item, cosine };
    }
    return best;
  }

  function reads() {
    const share = page("aware").checked ? Number(page("noise").value) / 100 : 0;
    const found = [];
    let query = state.query;
    for (let step = 0; step < READS; step++) {
      const read = model.read(query, state.memory);
      found.push(read);
      query = combine(read.picture, state.query, share);
    }
    return found;
  }

  function draw() {
    const found = reads();
    const last = found[READS - 1];
    const { item: alike, cosine } = nearest(last.weights);
    paint(page("query"), state.query);
    const row = page("reads");
    row.replaceChildren(...found.map((read, i) => (
      tile(read.picture, `read ${i + 1}`, `what read ${i + 1} gives`)
    )));
    const stored = page("stored");
    stored.replaceChildren(...state.items.map((item, i) => {
      const figure = tile(item.pixels, "", `stored drawing ${i + 1}`);
      figure.classList.toggle("memory-alike", item === alike);
      const use = button("query", `ask for stored drawing ${i + 1}`, () => {
        state.query = item.pixels.slice();
      });
      const remove = button("forget", `forget stored drawing ${i + 1}`, () => forget(item));
      figure.lastChild.append(use, remove);
      return figure;
    }));
    bars(page("address"), last.weights);
    const words = [`${state.items.length} drawings in ${model.slots} slots.`];
    words.push(`Variance of the last read: ${last.variance.toFixed(2)}.`);
    if (alike) words.push(`Its address has a cosine of ${cosine.toFixed(2)} with the marked one's.`);
    page("words").textContent = words.join(" ");
  }

  function button(text, label, action) {
    const element = document.createElement("button");
    element.type = "button";
    element.textContent = text;
    element.setAttribute("aria-label", label);
    element.addEventListener("click", () => { action(); draw(); });
    return element;
  }

  function bars(svg, weights) {
    const most = Math.max(...weights.map(Math.abs), 1e-6);
    const width = 100 / weights.length;
    svg.innerHTML = Array.from(weights, (weight, i) => {
      const height = (Math.abs(weight) / most) * 19;
      const top = weight > 0 ? 20 - height : 20;
      return `<rect x="${i * width}" y="${top}" width="${width * 0.8}" height="${height}"/>`;
    }).join("");
  }

  function ink(from, to, value) {
    const steps = Math.ceil(4 * Math.hypot(to.x - from.x, to.y - from.y)) + 1;
    for (let s = 0; s <= steps; s++) {
      const x = from.x + ((to.x - from.x) * s) / steps;
      const y = from.y + ((to.y - from.y) * s) / steps;
      for (let row = Math.floor(y - 1); row <= y + 1; row++) {
        for (let column = Math.floor(x - 1); column <= x + 1; column++) {
          const near = Math.hypot(column + 0.5 - x, row + 0.5 - y) < (value ? 0.75 : 1.5);
          const inside = row >= 0 && row < SIDE && column >= 0 && column < SIDE;
          if (near && inside) state.query[row * SIDE + column] = value;
        }
      }
    }
  }

  function corrupt(share) {
    state.query = state.query.map((pixel) => (
      Math.random() < share ? Number(Math.random() < 0.5) : pixel
    ));
  }

  function listen() {
    const canvas = page("query");
    let last = null;
    let pointer = null;
    let waiting = false;
    const place = (event) => {
      const box = canvas.getBoundingClientRect();
      return {
        x: ((event.clientX - box.left) / box.width) * SIDE,
        y: ((event.clientY - box.top) / box.height) * SIDE,
      };
    };
    const move = (event) => {
      if (!last || event.pointerId !== pointer) return;
      const here = place(event);
      ink(last, here, event.shiftKey || event.buttons & 2 || page("erase").checked ? 0 : 1);
      last = here;
      paint(canvas, state.query);
      if (!waiting) {
        waiting = true;
        requestAnimationFrame(() => { waiting = false; draw(); });
      }
    };
    canvas.addEventListener("pointerdown", (event) => {
      if (last) return; // a second finger
      canvas.setPointerCapture(event.pointerId);
      pointer = event.pointerId;
      last = place(event);
      move(event);
    });
    canvas.addEventListener("pointermove", move);
    canvas.addEventListener("contextmenu", (event) => event.preventDefault());
    for (const end of ["pointerup", "pointercancel"]) {
      canvas.addEventListener(end, (event) => { if (event.pointerId === pointer) last = null; });
    }
    const actions = {
      clear: () => state.query.fill(0),
      corrupt: () => corrupt(Number(page("noise").value) / 100),
      write: () => write(state.query),
      more: () => { write(drawings[state.next++ % drawings.length]); },
      empty: () => { state.memory = model.emptyMemory(); state.items = []; },
    };
    for (const [name, action] of Object.entries(actions)) {
      page(name).addEventListener("click", () => { action(); draw(); });
    }
    page("aware").addEventListener("change", draw);
    page("noise").addEventListener("input", () => {
      page("share").textContent = `${page("noise").value} %`;
      draw();
    });
  }

  for (; state.next < AT_FIRST; state.next++) write(drawings[state.next]);
  listen();
  corrupt(0.15);
  draw();
  document.body.dataset.memory = "ready";
})();
