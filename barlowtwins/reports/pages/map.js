"use strict";
// One canvas of points. Whatever text comes from the data is set as textContent, never as markup.
(() => {
  const $ = (id) => document.getElementById(id);
  const data = JSON.parse($("data").textContent);
  function bytes(text) {
    const raw = atob(text), made = new Uint8Array(raw.length);
    for (let i = 0; i < raw.length; i++) made[i] = raw.charCodeAt(i);
    return made;
  }
  const points = new Float32Array(bytes(data.points).buffer); // x0, y0, x1, y1, ...
  const kinds = new Int32Array(bytes(data.kinds).buffer);
  const rows = new Int32Array(bytes(data.rows).buffer);
  const neighbours = new Int32Array(bytes(data.neighbours).buffer);
  const similarity = new Int8Array(bytes(data.similarity).buffer);
  const n = data.n, k = data.k;
  // Two layers: all points, and above them what is chosen or pointed at, which changes with each move of the pointer.
  const canvas = $("map"), context = canvas.getContext("2d");
  const above = $("above"), marks = above.getContext("2d");
  const dark = matchMedia("(prefers-color-scheme: dark)");

  // Colours: ten that differ well, then turns of the golden angle.
  const TEN = ["#2563eb", "#e8590c", "#2f9e44", "#c2255c", "#7048e8", "#0c8599", "#e0a100", "#a0522d", "#868e96", "#f06595"];
  const DARK = ["#6b9bff", "#ff8a4c", "#51cf66", "#f0609e", "#a78bfa", "#3bc9db", "#ffd43b", "#cd853f", "#adb5bd", "#faa2c1"];
  const colour = (kind) => (kind < TEN.length ? (dark.matches ? DARK : TEN)[kind] : `hsl(${(kind * 137.508) % 360} 65% ${dark.matches ? 62 : 45}%)`);

  // Points by kind, so that a colour is set once a frame.
  const counts = new Int32Array(data.names.length);
  for (const kind of kinds) counts[kind]++;
  const members = Array.from(counts, (count) => new Int32Array(count));
  const filled = new Int32Array(counts.length);
  kinds.forEach((kind, i) => { members[kind][filled[kind]++] = i; });
  const shown = new Array(counts.length).fill(true);
  let matching = null; // Uint8Array of the search, or null

  // A grid over the points, so that the pointer asks few of them.
  const CELLS = Math.max(1, Math.min(256, Math.ceil(Math.sqrt(n / 4))));
  let [left, bottom, right, top] = [Infinity, Infinity, -Infinity, -Infinity];
  for (let i = 0; i < n; i++) {
    left = Math.min(left, points[2 * i]); right = Math.max(right, points[2 * i]);
    bottom = Math.min(bottom, points[2 * i + 1]); top = Math.max(top, points[2 * i + 1]);
  }
  const cellX = (x) => Math.max(0, Math.min(CELLS - 1, Math.floor((x - left) / ((right - left) || 1) * CELLS)));
  const cellY = (y) => Math.max(0, Math.min(CELLS - 1, Math.floor((y - bottom) / ((top - bottom) || 1) * CELLS)));
  const cells = Array.from({ length: CELLS * CELLS }, () => []);
  for (let i = 0; i < n; i++) cells[cellY(points[2 * i + 1]) * CELLS + cellX(points[2 * i])].push(i);

  // The view: pixel = (x - centre) * scale + middle; y grows upwards.
  const view = { x: 0, y: 0, scale: 1 };
  let width = 1, height = 1, chosen = -1, hovered = -1, waiting = false, stale = true;
  const toPixel = (i) => [(points[2 * i] - view.x) * view.scale + width / 2, (view.y - points[2 * i + 1]) * view.scale + height / 2];
  function showAll() {
    const [x0, y0, x1, y1] = data.view;
    view.x = (x0 + x1) / 2; view.y = (y0 + y1) / 2;
    const narrow = width < 640, w = narrow ? width : Math.max(200, width - 320), h = narrow ? Math.max(200, height - 260) : height;
    view.scale = 0.92 * Math.min(w / ((x1 - x0) || 1), h / ((y1 - y0) || 1));
    if (!narrow) view.x -= 130 / view.scale; // clear of the cards on the left
    draw();
  }
  function zoom(factor, px = width / 2, py = height / 2) {
    const x = view.x + (px - width / 2) / view.scale, y = view.y - (py - height / 2) / view.scale;
    view.scale *= factor;
    view.x = x - (px - width / 2) / view.scale; view.y = y + (py - height / 2) / view.scale;
    draw();
  }
  function resize() {
    const ratio = devicePixelRatio || 1, first = width === 1;
    width = canvas.clientWidth; height = canvas.clientHeight;
    for (const [layer, pen] of [[canvas, context], [above, marks]]) {
      layer.width = width * ratio; layer.height = height * ratio;
      pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    }
    if (first) showAll(); else draw();
  }
  const draw = () => { stale = true; mark(); };
  const mark = () => { if (!waiting) { waiting = true; requestAnimationFrame(paint); } };
  function paint() {
    waiting = false;
    const span = Math.min(width, height) / view.scale / (Math.max(right - left, top - bottom) || 1);
    const size = Math.max(1.6, Math.min(10, 170 / Math.sqrt(n) / Math.sqrt(Math.max(span, 0.01)) + 1));
    if (stale) paintPoints(size);
    stale = false;
    paintMarks(size);
  }
  function paintPoints(size) {
    context.clearRect(0, 0, width, height);
    for (let kind = 0; kind < members.length; kind++) {
      if (!shown[kind]) continue;
      for (const faint of matching ? [true, false] : [false]) {
        context.fillStyle = colour(kind);
        context.globalAlpha = faint ? 0.08 : n > 5000 ? 0.7 : 0.85;
        context.beginPath();
        for (const i of members[kind]) {
          if (matching && (matching[i] === 1) === faint) continue;
          const x = (points[2 * i] - view.x) * view.scale + width / 2, y = (view.y - points[2 * i + 1]) * view.scale + height / 2;
          if (x < -9 || y < -9 || x > width + 9 || y > height + 9) continue;
          if (size < 4) context.rect(x - size / 2, y - size / 2, size, size);
          else { context.moveTo(x + size / 2, y); context.arc(x, y, size / 2, 0, 6.2832); }
        }
        context.fill();
      }
    }
  }
  function paintMarks(size) {
    const style = getComputedStyle(document.documentElement);
    const ink = style.getPropertyValue("--ink").trim(), paper = style.getPropertyValue("--paper").trim();
    marks.clearRect(0, 0, width, height);
    if (chosen >= 0) {
      const [x, y] = toPixel(chosen);
      for (let j = 0; j < k; j++) {
        const [u, v] = toPixel(neighbours[chosen * k + j]);
        marks.strokeStyle = ink; marks.lineWidth = 1.2; marks.globalAlpha = 0.45;
        marks.beginPath(); marks.moveTo(x, y); marks.lineTo(u, v); marks.stroke();
        ring(u, v, size / 2 + 2.5, ink, paper, neighbours[chosen * k + j]);
      }
      ring(x, y, size / 2 + 5, ink, paper, chosen);
    }
    if (hovered >= 0) ring(...toPixel(hovered), size / 2 + 3, ink, paper, hovered);
  }
  function ring(x, y, radius, ink, paper, i) {
    marks.globalAlpha = 1; marks.fillStyle = colour(kinds[i]);
    marks.beginPath(); marks.arc(x, y, radius, 0, 6.2832); marks.fill();
    marks.lineWidth = 3.5; marks.strokeStyle = paper; marks.stroke();
    marks.lineWidth = 1.8; marks.strokeStyle = ink; marks.stroke();
  }

  // The nearest shown point within `reach` pixels, or -1.
  function at(px, py, reach) {
    const x = view.x + (px - width / 2) / view.scale, y = view.y - (py - height / 2) / view.scale, r = reach / view.scale;
    let best = -1, least = r * r;
    for (let row = cellY(y - r); row <= cellY(y + r); row++) {
      for (let column = cellX(x - r); column <= cellX(x + r); column++) {
        for (const i of cells[row * CELLS + column]) {
          if (!shown[kinds[i]] || (matching && !matching[i])) continue;
          const d = (points[2 * i] - x) ** 2 + (points[2 * i + 1] - y) ** 2;
          if (d <= least) { least = d; best = i; }
        }
      }
    }
    return best;
  }

  // Thumbnails: a sheet is decoded when one of its pictures is first looked at.
  const sheets = new Map();
  const { side, across, count } = data.thumbnails;
  function sheet(number) {
    if (!sheets.has(number)) {
      const url = URL.createObjectURL(new Blob([bytes($("sheet" + number).textContent)], { type: "image/webp" }));
      const image = new Image();
      sheets.set(number, new Promise((done) => { image.onload = () => done(image); image.src = url; }));
    }
    return sheets.get(number);
  }
  function thumbnail(i) {
    if (i >= count) return null;
    const small = document.createElement("canvas");
    small.className = "thumb" + (side < 64 ? " pixels" : "");
    small.width = small.height = side;
    const place = i % (across * across), sx = (place % across) * side, sy = Math.floor(place / across) * side;
    sheet(Math.floor(i / (across * across))).then((image) => {
      small.getContext("2d").drawImage(image, sx, sy, side, side, 0, 0, side, side);
      small.dataset.drawn = "yes";
    });
    return small;
  }

  function line(className, text) {
    const element = document.createElement("div");
    element.className = className; element.textContent = text; element.title = text;
    return element;
  }
  const label = (i) => (data.labels.length ? data.labels[i] : data.by === "label" ? data.names[kinds[i]] : "");
  function describe(i) {
    const lines = [];
    if (label(i)) lines.push(line("label", label(i)));
    if (data.by === "cluster") lines.push(line("soft", data.names[kinds[i]]));
    lines.push(line("path", data.paths[i]));
    return [thumbnail(i), ...lines].filter(Boolean);
  }
  function hover(i, px, py) {
    if (i !== hovered) {
      hovered = i;
      $("tip").hidden = i < 0;
      if (i >= 0) $("tip").replaceChildren(...describe(i));
      canvas.classList.toggle("over", i >= 0);
      mark();
    }
    if (i >= 0) {
      const tip = $("tip"), w = tip.offsetWidth, h = tip.offsetHeight;
      tip.style.left = Math.max(4, px + 16 + w > width ? px - w - 12 : px + 16) + "px";
      tip.style.top = Math.max(4, Math.min(py + 16, height - h - 4)) + "px";
    }
  }
  function choose(i) {
    chosen = i;
    $("panel").hidden = i < 0;
    if (i >= 0) {
      $("chosen").replaceChildren(...describe(i), line("soft path", `row ${rows[i]}`));
      $("near-title").hidden = k === 0;
      $("near").replaceChildren(...Array.from({ length: k }, (_, j) => {
        const other = neighbours[i * k + j], button = document.createElement("button");
        const near = (similarity[i * k + j] / 100).toFixed(2);
        button.append(...[thumbnail(other), line("", [near, label(other)].filter(Boolean).join(" ")), line("soft", data.paths[other])].filter(Boolean));
        button.onclick = () => choose(other);
        return button;
      }));
      $("panel").scrollTop = 0;
      const [x, y] = toPixel(i), low = height - $("panel").offsetHeight - 30; // not behind the panel
      if (width < 640 && y > low) { view.y -= (y - low + 40) / view.scale; stale = true; }
      if (width >= 640 && x > width - 340) { view.x += (x - width + 400) / view.scale; stale = true; }
    }
    mark();
  }

  // Pointers: one drags, two pinch; a short tap chooses.
  const down = new Map();
  let moved = 0, spread = 0;
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    down.set(event.pointerId, [event.clientX, event.clientY]);
    if (down.size === 1) moved = 0;
    spread = 0;
  });
  canvas.addEventListener("pointermove", (event) => {
    const before = down.get(event.pointerId);
    if (!before) { hover(at(event.clientX, event.clientY, 10), event.clientX, event.clientY); return; }
    down.set(event.pointerId, [event.clientX, event.clientY]);
    if (down.size === 2) {
      const [[a, b], [c, d]] = down.values(), now = Math.hypot(a - c, b - d);
      if (spread) zoom(now / spread, (a + c) / 2, (b + d) / 2);
      spread = now; moved = 99;
      return;
    }
    const dx = event.clientX - before[0], dy = event.clientY - before[1];
    moved += Math.abs(dx) + Math.abs(dy);
    if (moved > 4) {
      canvas.classList.add("dragging"); hover(-1);
      view.x -= dx / view.scale; view.y += dy / view.scale;
      draw();
    }
  });
  for (const name of ["pointerup", "pointercancel"]) {
    canvas.addEventListener(name, (event) => {
      if (down.delete(event.pointerId) && moved <= 4 && name === "pointerup") {
        choose(at(event.clientX, event.clientY, event.pointerType === "mouse" ? 10 : 22));
        if (event.pointerType !== "mouse") hover(-1);
      }
      if (!down.size) canvas.classList.remove("dragging");
    });
  }
  canvas.addEventListener("pointerleave", () => hover(-1));
  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    zoom(Math.exp(-event.deltaY * (event.deltaMode ? 0.05 : 0.0018)), event.clientX, event.clientY);
  }, { passive: false });
  canvas.addEventListener("dblclick", (event) => zoom(2, event.clientX, event.clientY));
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") choose(-1);
    if (event.target !== canvas) return;
    const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] }[event.key];
    if (step) { view.x += step[0] * 60 / view.scale; view.y += step[1] * 60 / view.scale; draw(); }
    if (event.key === "+" || event.key === "=") zoom(1.4);
    if (event.key === "-") zoom(1 / 1.4);
  });
  $("in").onclick = () => zoom(1.5); $("out").onclick = () => zoom(1 / 1.5); $("all").onclick = showAll;
  $("close").onclick = () => choose(-1);
  $("search").addEventListener("input", () => {
    const wanted = $("search").value.trim().toLowerCase();
    let hits = 0;
    matching = wanted ? new Uint8Array(n) : null;
    if (wanted) for (let i = 0; i < n; i++) if (data.paths[i].toLowerCase().includes(wanted)) { matching[i] = 1; hits++; }
    $("matches").textContent = wanted ? `${hits.toLocaleString("en")} of ${n.toLocaleString("en")} points` : "";
    draw();
  });

  $("title").textContent = data.title;
  $("about").textContent = `${n.toLocaleString("en")} images of ${data.about}, by ${data.by}`;
  const dots = [];
  data.names.forEach((name, kind) => {
    if (!counts[kind]) return;
    const [button, dot, text, amount] = ["button", "i", "span", "b"].map((kind) => document.createElement(kind));
    text.textContent = text.title = name; amount.textContent = counts[kind].toLocaleString("en");
    dots.push(() => { dot.style.background = colour(kind); });
    button.append(dot, text, amount);
    button.setAttribute("aria-pressed", "true");
    button.onclick = () => {
      shown[kind] = !shown[kind];
      button.setAttribute("aria-pressed", String(shown[kind]));
      draw();
    };
    $("legend").append(button);
  });
  const recolour = () => { dots.forEach((dye) => dye()); draw(); };
  dark.addEventListener("change", recolour);
  recolour();
  addEventListener("resize", resize);
  resize();
  window.barlowtwinsMap = { toPixel, choose, at, zoom }; // for tests, and for the curious
})();
