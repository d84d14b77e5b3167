// What is on the frame while somebody labels it, without any page: boxes, selection, undo, counts of edits. All changes are made here.
export const PRELABEL_CONFIDENCE = 0.25;

const sameBox = (a, b) => a.every((value, i) => Math.abs(value - b[i]) < 0.05);

export class FrameState {
  constructor(frame) {
    this.frame = frame;
    this.nextKey = 1;
    this.selected = null;
    this.history = [];
    this.activeMs = 0;
    this.saved = false;
    // A frame that has a label starts from it; pre-labels are then of no interest.
    this.boxes = frame.label
      ? frame.label.boxes.map((box) => this.make(box.class_name, box.box_xyxy, "label"))
      : frame.detections.map((found) =>
          this.make(found.class_name, found.box_xyxy, found.score >= PRELABEL_CONFIDENCE ? "prelabel" : "hint", found.score));
    this.offered = this.boxes.filter((box) => box.kind === "prelabel" || box.kind === "label").length;
  }

  make(className, box, kind, score = null) {
    return { key: this.nextKey++, className, box: [...box], kind, score, from: kind, firstBox: [...box], firstClass: className };
  }

  get edited() { return this.history.length > 0; }
  get kept() { return this.boxes.filter((box) => box.kind !== "hint"); }
  find(key) { return this.boxes.find((box) => box.key === key) ?? null; }
  get selection() { return this.find(this.selected); }

  // One undo step; steps of one `run` (a drag, a held arrow) are a single one.
  remember(run = null) {
    const last = this.history.at(-1);
    if (run !== null && last?.run === run) return;
    this.history.push({ run, boxes: structuredClone(this.boxes), selected: this.selected });
    this.saved = false;
  }

  undo() {
    const step = this.history.pop();
    if (!step) return false;
    this.boxes = step.boxes;
    this.selected = step.selected;
    return true;
  }

  add(className, box) {
    this.remember();
    const made = this.make(className, this.inside(box), "drawn");
    this.boxes.push(made);
    this.selected = made.key;
    return made;
  }

  remove(key) {
    if (!this.find(key)) return;
    this.remember();
    const at = this.boxes.findIndex((box) => box.key === key);
    this.boxes.splice(at, 1);
    if (this.selected === key) this.selected = null;
  }

  place(key, box, run) {
    const found = this.find(key);
    if (!found) return;
    this.remember(run);
    this.find(key).box = this.inside(box);
    this.take(found);
  }

  setClass(key, className) {
    const found = this.find(key);
    if (!found || found.className === className) return;
    this.remember();
    found.className = className;
    this.take(found);
  }

  // A hint becomes a box as soon as somebody says so or touches it.
  take(found) {
    if (found.kind === "hint") found.kind = "drawn";
  }

  takeHint(key) {
    const found = this.find(key);
    if (found?.kind !== "hint") return;
    this.remember();
    this.take(found);
  }

  cycle(step, withHints) {
    const choices = this.boxes.filter((box) => withHints || box.kind !== "hint");
    if (!choices.length) return;
    const at = choices.findIndex((box) => box.key === this.selected);
    this.selected = choices[at < 0 ? (step > 0 ? 0 : choices.length - 1) : (at + step + choices.length) % choices.length].key;
  }

  inside([left, top, right, bottom]) {
    const { width, height } = this.frame;
    const within = (value, most) => Math.round(Math.min(Math.max(value, 0), most) * 100) / 100;
    return [within(Math.min(left, right), width), within(Math.min(top, bottom), height), within(Math.max(left, right), width), within(Math.max(top, bottom), height)];
  }

  edits() {
    const count = { kept: 0, moved: 0, added: 0, deleted: 0, reclassed: 0 };
    for (const box of this.kept) {
      if (box.from === "drawn" || box.from === "hint") count.added += 1;
      else if (box.className !== box.firstClass) count.reclassed += 1;
      else if (!sameBox(box.box, box.firstBox)) count.moved += 1;
      else count.kept += 1;
    }
    count.deleted = this.offered - count.kept - count.moved - count.reclassed;
    return count;
  }

  label(verdict, classesReviewed) {
    const rejected = verdict === "rejected";
    return {
      label_id: uuid7(),
      verdict,
      boxes: rejected ? [] : this.kept.map((box) => ({ class_name: box.className, box_xyxy: box.box })),
      classes_reviewed: classesReviewed,
      seconds: Math.round(this.activeMs) / 1000,
      edits: rejected ? {} : this.edits(),
    };
  }
}

// RFC 9562, section 5.7; made here so that the same save may be sent twice and is taken once.
export function uuid7() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  let time = Date.now();
  for (let i = 5; i >= 0; i -= 1) {
    bytes[i] = time % 256;
    time = Math.floor(time / 256);
  }
  bytes[6] = (bytes[6] & 0x0f) | 0x70;
  bytes[8] = (bytes[8] & 0x3f) | 0x80;
  const hex = [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
  return `${hex.slice(0, 8)}-${hex.slice(8, 12)}-${hex.slice(12, 16)}-${hex.slice(16, 20)}-${hex.slice(20)}`;
}
