// Boxes on the picture: an SVG over the <img>, in pixels of the stored image. Drawing, moving and resizing by mouse, pen or finger.
// In: a FrameState. Out: changes made through it, then `changed()`. Keys are review.js's business.
const SVG = "http://www.w3.org/2000/svg";
const HANDLES = { nw: [0, 0], n: [0.5, 0], ne: [1, 0], e: [1, 0.5], se: [1, 1], s: [0.5, 1], sw: [0, 1], w: [0, 0.5] };
const SMALLEST_DRAG_PX = 4; // of the screen: less is a click

function element(name, attributes, parent) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  parent?.append(made);
  return made;
}

export class Canvas {
  constructor(svg, { colour, drawClass, changed, noClass }) {
    this.svg = svg;
    this.colour = colour;
    this.drawClass = drawClass;
    this.changed = changed;
    this.noClass = noClass;
    this.state = null;
    this.forceDraw = false;
    this.showHints = true;
    this.drag = null;
    this.runs = 0;
    svg.addEventListener("pointerdown", (event) => this.down(event));
    svg.addEventListener("pointermove", (event) => this.move(event));
    svg.addEventListener("pointerup", (event) => this.up(event));
    svg.addEventListener("pointercancel", () => this.cancel());
    svg.addEventListener("dblclick", (event) => {
      const key = this.keyOf(event.target);
      if (key) this.state.takeHint(key);
      this.changed();
    });
    svg.addEventListener("focusin", (event) => {
      const key = this.keyOf(event.target);
      if (key && this.state.selected !== key) {
        this.state.selected = key;
        this.changed();
      }
    });
  }

  show(state) {
    this.state = state;
    this.drag = null;
    this.svg.setAttribute("viewBox", `0 0 ${state.frame.width} ${state.frame.height}`);
    this.render();
  }

  // Pixels of the image per pixel of the screen.
  get scale() { return this.state.frame.width / (this.svg.clientWidth || this.state.frame.width); }

  keyOf(target) {
    const group = target.closest?.("g.box");
    return group ? Number(group.dataset.key) : null;
  }

  point(event) {
    const area = this.svg.getBoundingClientRect();
    const { width, height } = this.state.frame;
    return [((event.clientX - area.left) / area.width) * width, ((event.clientY - area.top) / area.height) * height];
  }

  down(event) {
    if (event.button !== 0 || !this.state || this.drag) return;
    const start = this.point(event);
    const key = this.keyOf(event.target);
    const handle = event.target.dataset?.handle;
    this.svg.setPointerCapture(event.pointerId);
    this.runs += 1;
    if (key && !(this.forceDraw || event.shiftKey)) {
      this.state.selected = key;
      this.drag = { kind: handle ? "resize" : "move", handle, key, start, box: [...this.state.find(key).box], run: `drag ${this.runs}` };
    } else {
      this.drag = { kind: "draw", start, screen: [event.clientX, event.clientY], box: null };
      this.state.selected = null;
    }
    event.preventDefault();
    this.changed();
    (this.groupOf(this.state.selected) ?? this.svg).focus({ preventScroll: true });
  }

  move(event) {
    const drag = this.drag;
    if (!drag) return;
    const [x, y] = this.point(event);
    const [dx, dy] = [x - drag.start[0], y - drag.start[1]];
    if (drag.kind === "draw") {
      drag.box = this.state.inside([...drag.start, x, y]);
      this.render();
      return;
    }
    if (!drag.moved && Math.hypot(dx, dy) < SMALLEST_DRAG_PX * this.scale) return;
    drag.moved = true;
    const box = [...drag.box];
    if (drag.kind === "move") {
      const { width, height } = this.state.frame;
      const sx = Math.min(Math.max(dx, -box[0]), width - box[2]);
      const sy = Math.min(Math.max(dy, -box[1]), height - box[3]);
      this.state.place(drag.key, [box[0] + sx, box[1] + sy, box[2] + sx, box[3] + sy], drag.run);
    } else {
      if (drag.handle.includes("w")) box[0] = Math.min(box[0] + dx, box[2] - 1);
      if (drag.handle.includes("e")) box[2] = Math.max(box[2] + dx, box[0] + 1);
      if (drag.handle.includes("n")) box[1] = Math.min(box[1] + dy, box[3] - 1);
      if (drag.handle.includes("s")) box[3] = Math.max(box[3] + dy, box[1] + 1);
      this.state.place(drag.key, box, drag.run);
    }
    this.changed();
  }

  up(event) {
    const drag = this.drag;
    this.drag = null;
    if (!drag) return;
    if (drag.kind === "draw") {
      const far = Math.abs(event.clientX - drag.screen[0]) >= SMALLEST_DRAG_PX && Math.abs(event.clientY - drag.screen[1]) >= SMALLEST_DRAG_PX;
      const className = this.drawClass();
      if (far && drag.box && className) this.state.add(className, drag.box);
      else if (far && !className) this.noClass();
    }
    this.changed();
    (this.groupOf(this.state.selected) ?? this.svg).focus({ preventScroll: true });
  }

  cancel() {
    this.drag = null;
    this.changed();
  }

  groupOf(key) { return key === null ? null : this.svg.querySelector(`g[data-key="${key}"]`); }

  render() {
    const focused = this.keyOf(document.activeElement ?? this.svg);
    const hadFocus = this.svg.contains(document.activeElement) && document.activeElement !== this.svg;
    this.svg.replaceChildren();
    const area = (box) => (box.box[2] - box.box[0]) * (box.box[3] - box.box[1]);
    // Hints below, then large to small, the selected one on top: everything can be reached.
    const order = [...this.state.boxes].sort((a, b) =>
      (a.key === this.state.selected) - (b.key === this.state.selected) || (a.kind !== "hint") - (b.kind !== "hint") || area(b) - area(a));
    for (const box of order) if (box.kind !== "hint" || this.showHints) this.renderBox(box);
    if (this.drag?.kind === "draw" && this.drag.box) {
      const group = element("g", { class: "box" }, this.svg);
      group.style.setProperty("--box", this.colour(this.drawClass()));
      const [left, top, right, bottom] = this.drag.box;
      element("rect", { class: "shape", x: left, y: top, width: right - left, height: bottom - top }, group);
    }
    if (hadFocus) (this.groupOf(focused) ?? this.groupOf(this.state.selected) ?? this.svg).focus({ preventScroll: true });
  }

  renderBox(box) {
    const selected = box.key === this.state.selected;
    const touched = box.kind === "prelabel" && (box.className !== box.firstClass || box.box.some((value, i) => value !== box.firstBox[i]));
    const [left, top, right, bottom] = box.box;
    const said = `${box.className}${box.score === null ? "" : ` ${box.score.toFixed(2)}`}`;
    const group = element("g", {
      class: `box ${touched ? "drawn" : box.kind}${selected ? " selected" : ""}`,
      "data-key": box.key,
      tabindex: 0,
      role: "button",
      "aria-pressed": selected,
      "aria-label": `${box.kind === "hint" ? "Hint: " : ""}${said}, ${Math.round(right - left)} by ${Math.round(bottom - top)} pixels`,
    }, this.svg);
    group.style.setProperty("--box", this.colour(box.className));
    element("rect", { class: "shape", x: left, y: top, width: right - left, height: bottom - top }, group);
    const size = 13 * this.scale;
    const text = element("text", { x: left + 2 * this.scale, y: top > size * 1.4 ? top - 4 * this.scale : bottom + size, "font-size": size }, group);
    text.style.strokeWidth = `${3 * this.scale}px`;
    text.textContent = said;
    if (!selected) return;
    const half = 5 * this.scale;
    for (const [name, [fx, fy]] of Object.entries(HANDLES)) {
      const [x, y] = [left + fx * (right - left), top + fy * (bottom - top)];
      element("rect", { class: `handle ${name}`, "data-handle": name, x: x - half, y: y - half, width: 2 * half, height: 2 * half }, group);
    }
  }
}
