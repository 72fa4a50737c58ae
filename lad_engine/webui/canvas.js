// The view of one refinement: the canvas at a step, a slider through all steps, a plot of confidence and changes, and the numbers.

const LEGEND = { masked: "masked", new: "new", changed: "changed", settled: "settled", fixed: "given" };
const LOOK = { masked: "\u2591", new: "new", changed: "changed", settled: "settled", fixed: "given" };
const SVG = "http://www.w3.org/2000/svg";

export class CanvasView {
  constructor(place) {
    place.innerHTML = `
      <p id="error" role="alert"></p>
      <h2 id="canvas-title">Canvas</h2>
      <ul class="legend"></ul>
      <div id="canvas" role="img" aria-labelledby="canvas-title" tabindex="0"></div>
      <div class="scrub">
        <button id="back" type="button" aria-label="Step back" disabled>&#8592;</button>
        <input id="slider" type="range" min="0" max="0" value="0" aria-label="Step" disabled>
        <button id="forward" type="button" aria-label="Step forward" disabled>&#8594;</button>
        <output id="where">no steps yet</output>
      </div>
      <p class="note" id="numbers" role="status"></p>
      <h2 id="plot-title">Mean confidence (line, 0 to 1) and changed tokens (bars) per step</h2>
      <svg id="plot" viewBox="0 0 100 40" preserveAspectRatio="none" role="img" aria-labelledby="plot-title"></svg>
      <p class="note" id="plot-note"></p>
      <h2>Answer</h2><p id="answer" aria-live="polite"></p>`;
    const find = (id) => place.querySelector(`#${id}`);
    for (const name of ["error", "canvas", "slider", "back", "forward", "where", "numbers", "plot", "answer"]) this[name] = find(name);
    this.plotNote = find("plot-note");
    for (const [state, text] of Object.entries(LEGEND)) {
      const item = document.createElement("li");
      const sample = document.createElement("span");
      sample.className = `key ${state}`;
      sample.textContent = LOOK[state];
      item.append(sample, state === "masked" ? ` ${text}` : "");
      place.querySelector(".legend").append(item);
    }
    const hint = document.createElement("li");
    hint.textContent = "\u25a1 end of text \u00b7 darker shade: surer";
    place.querySelector(".legend").append(hint);
    this.slider.addEventListener("input", () => this.show(Number(this.slider.value)));
    this.back.addEventListener("click", () => this.show(this.shown - 1));
    this.forward.addEventListener("click", () => this.show(this.shown + 1));
    this.clear();
  }

  clear() {
    this.frames = [];
    this.shown = -1;
    this.tail = "";
    for (const place of [this.error, this.canvas, this.numbers, this.plot, this.answer, this.plotNote]) place.replaceChildren();
    this.slider.max = 0;
    this.where.textContent = "no steps yet";
    this._enable();
  }

  fail(message) {
    this.error.textContent = message;
  }

  // Takes the changed cells of one step; the view moves along unless it was scrubbed back.
  add(step) {
    const follows = this.shown === this.frames.length - 1;
    const cells = this.frames.length ? this.frames.at(-1).cells.slice(0, step.length) : [];
    for (const cell of step.cells) cells[cell[0]] = cell;
    this.frames.push({ ...step, cells });
    this.slider.max = this.frames.length - 1;
    this._draw_plot();
    if (follows) this.show(this.frames.length - 1);
    else this._enable();
  }

  show(index) {
    if (index < 0 || index >= this.frames.length) return;
    this.shown = index;
    const frame = this.frames[index];
    this.canvas.replaceChildren(...frame.cells.map(token));
    this.canvas.setAttribute("aria-label", `Step ${frame.step + 1}: ${plain(frame.cells)}`);
    this.slider.value = index;
    this.where.textContent = `step ${frame.step + 1} of ${frame.steps}`;
    this.numbers.textContent = `confidence ${frame.mean_confidence.toFixed(2)} \u00b7 ${frame.changed} changed \u00b7 ${frame.masked} masked \u00b7 ${(frame.elapsed_ms / 1000).toFixed(2)} s${this.tail}`;
    const line = this.plot.querySelector(".now");
    if (line) for (const end of ["x1", "x2"]) line.setAttribute(end, this._x(index));
    this._enable();
  }

  finish(text, facts) {
    this.answer.textContent = text || "(the answer is empty)";
    const seconds = (facts.run_ms / 1000).toFixed(2);
    const early = facts.stopped_early ? ", settled early" : "";
    this.tail = ` \u00b7 total: ${seconds} s, NFE ${facts.nfe}, ${facts.tpf.toFixed(2)} tokens per pass${early}, seed ${facts.seed}, profile ${facts.profile}`;
    this.numbers.textContent += this.tail;
  }

  stopped() {
    this.tail = " \u00b7 stopped";
    this.numbers.textContent += this.tail;
  }

  _x(index) {
    return this.frames.length > 1 ? 1 + (98 * index) / (this.frames.length - 1) : 50;
  }

  _draw_plot() {
    const most = Math.max(1, ...this.frames.map((frame) => frame.changed));
    const width = Math.min(4, 60 / this.frames.length);
    const bars = element("g", { class: "bars" });
    this.frames.forEach((frame, index) => {
      const height = (36 * frame.changed) / most;
      bars.append(element("rect", { x: this._x(index) - width / 2, y: 38 - height, width, height }));
    });
    const points = this.frames.map((frame, index) => `${this._x(index)},${38 - 36 * frame.mean_confidence}`).join(" ");
    const now = element("line", { class: "now", y1: 0, y2: 40, x1: this._x(this.shown), x2: this._x(this.shown) });
    this.plot.replaceChildren(bars, element("polyline", { class: "confidence", points }), now);
    this.plotNote.textContent = `last: confidence ${this.frames.at(-1).mean_confidence.toFixed(2)}, ${this.frames.at(-1).changed} changed (tallest bar ${most})`;
  }

  _enable() {
    this.slider.disabled = this.frames.length === 0;
    this.back.disabled = this.shown <= 0;
    this.forward.disabled = this.shown >= this.frames.length - 1;
  }
}

function token([position, , text, confidence, status]) {
  const span = document.createElement("span");
  span.className = `token ${status}`;
  span.textContent = status === "masked" ? "\u2591" : text || "\u25a1";
  span.title = `position ${position}, ${LEGEND[status]}, confidence ${confidence.toFixed(2)}`;
  if (status !== "masked" && status !== "fixed") span.style.background = `rgba(var(--sure), ${(0.45 * confidence).toFixed(2)})`;
  return span;
}

function plain(cells) {
  return cells.map(([, , text, , status]) => (status === "masked" ? "\u2591" : text)).join("");
}

function element(name, attributes) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}
