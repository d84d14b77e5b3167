// The review page: which frame is shown, keys and buttons, saving without waiting. In: the queue. Out: labels through the outbox.
import { addClass, fetchClasses, fetchFrame, fetchQueue, openFrame, Outbox } from "./review_server.js";
import { Canvas } from "./review_canvas.js";
import { FrameState } from "./review_state.js";

const PREFETCHED = 4;
const IDLE_MS = 30000; // longer without a key or a move of the mouse is not working time
const $ = (id) => document.getElementById(id);
const frames = []; // FrameStates in the order they are shown
const images = new Map();
let at = -1;
let key = null; // where the queue goes on
let length = 0;
let classes = [];
let drawClass = null;
let loading = false;
let lastActive = performance.now();

const state = () => frames[at] ?? null;
const HUES = [158, 48, 205, 330, 24, 268, 95, 186, 0];
const colour = (name) => {
  const index = Math.max(classes.indexOf(name), 0);
  return `hsl(${HUES[index % HUES.length]} 90% ${60 - 12 * (Math.floor(index / HUES.length) % 3)}%)`;
};

const canvas = new Canvas($("canvas"), {
  colour,
  drawClass: () => drawClass ?? classes[0],
  changed: render,
  noClass: () => problem("Add a class first, then draw."),
});
const outbox = new Outbox(showOutbox, (entry, message) => problem(`Frame ${entry.frameId.slice(0, 10)}: ${message}`, entry.frameId));

// ---- frames: fetch, prefetch, show

async function load() {
  if (loading) return;
  loading = true;
  try {
    const page = await fetchQueue(key);
    length = page.length;
    // Once the end is reached the queue is read from its start again, so that new batches and skipped frames are found.
    key = page.next;
    const known = new Set(frames.map((frame) => frame.frame.id));
    for (const item of page.items) if (!known.has(item.id)) frames.push(new FrameState(item));
    const wasEmpty = $("stage").hidden;
    if (at < 0) at = 0;
    if (wasEmpty && state()) show(at);
  } catch (error) {
    if (error.status === 401) problem("Your session is over: log in again in another tab.");
  } finally {
    loading = false;
    render();
    prefetch();
  }
}

function prefetch() {
  for (const next of frames.slice(Math.max(at, 0), Math.max(at, 0) + PREFETCHED + 1)) {
    if (images.has(next.frame.id)) continue;
    const image = new Image();
    image.src = next.frame.image_url;
    image.decode().catch(() => images.delete(next.frame.id));
    images.set(next.frame.id, image);
  }
  while (images.size > 4 * PREFETCHED) images.delete(images.keys().next().value);
}

function show(index) {
  if (!frames[index]) return render();
  at = index;
  const { frame } = state();
  const image = $("image");
  image.src = frame.image_url;
  image.width = frame.width;
  image.height = frame.height;
  // Small pictures are enlarged, up to four times.
  $("stage").style.setProperty("--ratio", frame.width / frame.height);
  $("stage").style.setProperty("--widest", `${frame.width * 4}px`);
  lastActive = performance.now();
  $("stage").hidden = false;
  canvas.show(state());
  render();
  $("canvas").focus({ preventScroll: true });
  prefetch();
  if (frame.state === "queued") openFrame(frame.id).catch(() => {});
  if (frames.length - at <= PREFETCHED) load();
}

function go(step) {
  // Going on looks for the next frame that is not done; going back shows whatever was there.
  let index = at + step;
  while (step > 0 && frames[index]?.saved) index += step;
  if (frames[index]) show(index);
  else if (step > 0) showEnd();
}

function showEnd() {
  const open = frames.findIndex((frame) => !frame.saved);
  if (open >= 0 && open !== at) return show(open);
  if (open < 0) at = frames.length;
  render();
  load();
}

function finish(verdict) {
  const current = state();
  if (!current) return;
  countTime();
  const unknown = verdict === "labelled" ? [...new Set(current.kept.map((box) => box.className))].filter((name) => !classes.includes(name)) : [];
  if (unknown.length) {
    return problem(`Not saved: ${unknown.join(", ")} ${unknown.length > 1 ? "are" : "is"} not in the class list. Give those boxes another class, or add:`,
      null, { [`Add ${unknown.join(", ")}`]: () => addClasses(unknown) });
  }
  outbox.put(current.frame.id, current.label(verdict, classes));
  current.saved = true;
  current.verdict = verdict;
  length = Math.max(0, length - 1);
  go(1);
}

// ---- what the page shows

function render() {
  const current = state();
  $("stage").hidden = !current;
  $("nothing").hidden = Boolean(current) || loading;
  for (const id of ["accept", "reject", "next", "delete", "undo", "draw"]) $(id).disabled = !current;
  $("previous").disabled = at <= 0;
  if (!current) {
    $("where").textContent = loading ? "Loading…" : "All done";
    $("boxes").replaceChildren();
    $("about").replaceChildren();
    $("count").textContent = "";
    showClasses();
    return;
  }
  canvas.render();
  const waiting = length ? `, ${length} waiting` : "";
  const done = current.saved ? ` · ${current.verdict === "rejected" ? "rejected" : "saved"}` : "";
  $("where").textContent = `${current.frame.camera ?? "import"}, frame ${current.frame.sequence}${waiting}${done}`;
  $("undo").disabled = !current.edited;
  $("delete").disabled = current.selected === null;
  $("count").textContent = String(current.kept.length);
  showClasses();
  showBoxes(current);
  showAbout(current.frame);
}

function node(name, attributes = {}, ...content) {
  const made = document.createElement(name);
  for (const [attribute, value] of Object.entries(attributes)) {
    if (attribute === "onclick") made.addEventListener("click", value);
    else made.setAttribute(attribute, value);
  }
  made.append(...content);
  return made;
}

function swatch(name) {
  const made = node("span", { class: "swatch", "aria-hidden": "true" });
  made.style.background = colour(name);
  return made;
}

function showClasses() {
  const chosen = state()?.selection?.className ?? drawClass ?? classes[0];
  const list = classes.map((name, i) => node("li", {}, node("button",
    { "aria-pressed": name === chosen, "data-class": name, onclick: () => pickClass(name) },
    swatch(name), name, ...(i < 9 ? [node("kbd", {}, String(i + 1))] : []))));
  swap($("classes"), list);
}

function showBoxes(current) {
  swap($("boxes"), current.boxes.filter((box) => box.kind !== "hint" || canvas.showHints).map((box) => node("li", {}, node("button",
    { "aria-pressed": box.key === current.selected, "data-key": box.key, onclick: () => select(box.key) },
    swatch(box.className), box.className,
    node("span", { class: "dim" }, box.kind === "hint" ? `hint ${box.score.toFixed(2)}` : box.score === null ? "" : box.score.toFixed(2))))));
}

// New content, with the focus where it was.
function swap(parent, children) {
  const focused = parent.contains(document.activeElement) ? document.activeElement.dataset : null;
  parent.replaceChildren(...children);
  if (!focused) return;
  const again = focused.class ? `[data-class="${CSS.escape(focused.class)}"]` : `[data-key="${focused.key}"]`;
  parent.querySelector(again)?.focus();
}

function showAbout(frame) {
  const facts = [["Why", frame.why ?? frame.queued?.at(-1)?.why ?? frame.reasons.join(", ")], ["Score", frame.score.toFixed(2)], ["Scene", frame.scene],
    ["Size", `${frame.width}×${frame.height}`]];
  $("about").replaceChildren(node("dl", {}, ...facts.flatMap(([name, value]) => [node("dt", {}, name), node("dd", {}, value || "–")])),
    node("p", {}, node("a", { href: `/frames/${frame.id}` }, "All about this frame")));
}

function showOutbox(box) {
  const shown = $("save-state");
  shown.classList.toggle("wrong", box.failures > 0);
  if (!box.waiting.length) shown.textContent = frames.some((frame) => frame.saved) ? "All saved" : "";
  else if (box.failures) shown.textContent = `${box.waiting.length} not saved yet: ${box.trouble}. Kept here, trying again…`;
  else shown.textContent = `Saving ${box.waiting.length}…`;
}

async function addClasses(names) {
  try {
    for (const name of names) classes = await addClass(name);
    render();
    return true;
  } catch (error) {
    problem(error.status ? error.message : "The class was not added: the server does not answer. Try again.");
    return false;
  }
}

function problem(message, frameId = null, more = {}) {
  if ([...$("problems").children].some((old) => old.firstChild.textContent === message)) return;
  const shown = node("div", {}, message);
  const close = node("button", { onclick: () => shown.remove() }, "Dismiss");
  const back = frameId ? [node("button", { onclick: () => { shown.remove(); reopen(frameId); } }, "Go to the frame")] : [];
  const others = Object.entries(more).map(([words, act]) => node("button", { class: "primary", onclick: () => { shown.remove(); act(); } }, words));
  shown.append(node("div", { class: "inline" }, ...others, ...back, close));
  $("problems").append(shown);
}

// ---- what people do

async function reopen(frameId) {
  let index = frames.findIndex((frame) => frame.frame.id === frameId);
  if (index < 0) {
    try {
      frames.splice(at + 1, 0, new FrameState(await fetchFrame(frameId)));
      index = at + 1;
    } catch (error) {
      return problem(error.message);
    }
  }
  frames[index].saved = false;
  show(index);
}

function select(boxKey) {
  state().selected = boxKey;
  render();
  canvas.groupOf(boxKey)?.focus({ preventScroll: true });
}

function pickClass(name) {
  const current = state();
  drawClass = name;
  if (current?.selection) current.setClass(current.selected, name);
  render();
}

function newBox() {
  const { width, height } = state().frame;
  const className = drawClass ?? classes[0];
  if (!className) return problem("Add a class first, then draw.");
  state().add(className, [width * 0.4, height * 0.4, width * 0.6, height * 0.6]);
  select(state().selected);
}

function nudge(event) {
  const step = event.ctrlKey || event.metaKey ? 10 : 1;
  const dx = { ArrowLeft: -step, ArrowRight: step }[event.key] ?? 0;
  const dy = { ArrowUp: -step, ArrowDown: step }[event.key] ?? 0;
  const current = state();
  const { width, height } = current.frame;
  const [left, top, right, bottom] = current.selection.box;
  const run = `keys ${current.selected} ${event.shiftKey}`;
  if (event.shiftKey) {
    current.place(current.selected, [left, top, Math.max(right + dx, left + 1), Math.max(bottom + dy, top + 1)], run);
  } else {
    const sx = Math.min(Math.max(dx, -left), width - right);
    const sy = Math.min(Math.max(dy, -top), height - bottom);
    current.place(current.selected, [left + sx, top + sy, right + sx, bottom + sy], run);
  }
}

function toggle(id, on) {
  $(id).setAttribute("aria-pressed", String(on));
  render();
}

const actions = {
  accept: () => finish("labelled"),
  reject: () => finish("rejected"),
  next: () => go(1),
  previous: () => go(-1),
  undo: () => { state().undo(); render(); },
  delete: () => { if (state().selected !== null) state().remove(state().selected); render(); $("canvas").focus({ preventScroll: true }); },
  draw: () => toggle("draw", (canvas.forceDraw = !canvas.forceDraw)),
  hints: () => toggle("hints", (canvas.showHints = !canvas.showHints)),
  "show-help": () => $("help").showModal(),
};
for (const [id, act] of Object.entries(actions)) $(id).addEventListener("click", act);

const keys = {
  a: actions.accept, enter: actions.accept, r: actions.reject, u: actions.undo, x: actions.delete, delete: actions.delete,
  backspace: actions.delete, d: actions.draw, h: actions.hints, n: newBox, pagedown: actions.next, pageup: actions.previous,
  c: () => $("classes").querySelector("button")?.focus(),
  escape: () => { state().selected = null; render(); $("canvas").focus({ preventScroll: true }); },
};

addEventListener("keydown", (event) => {
  countTime();
  const typing = event.target.closest("input, select, textarea, dialog");
  if (typing || event.altKey) return;
  if (event.key === "?") return actions["show-help"]();
  // On a button Enter and Space press that button, as everywhere.
  const onButton = event.target.closest("button, a");
  if (onButton && ["Enter", " ", "Tab"].includes(event.key)) return;
  const current = state();
  if (!current) {
    if (event.key === "PageUp" && at > 0) show(at - 1);
    return;
  }
  const letter = event.key.toLowerCase();
  if (event.ctrlKey || event.metaKey) {
    if (letter === "z") actions.undo();
    else if (event.key.startsWith("Arrow") && current.selection) nudge(event);
    else return;
  } else if (/^[1-9]$/.test(letter)) {
    if (!classes[Number(letter) - 1]) return;
    pickClass(classes[Number(letter) - 1]);
  } else if (event.key.startsWith("Arrow")) {
    if (current.selection) nudge(event);
    else if (event.key === "ArrowRight") go(1);
    else if (event.key === "ArrowLeft") go(-1);
    else return;
  } else if (letter === " " && current.selection) {
    current.takeHint(current.selected);
  } else if (event.key === "Tab" && $("stage").contains(event.target)) {
    // Through the boxes in their own order, and out at the ends.
    const shown = current.boxes.filter((box) => canvas.showHints || box.kind !== "hint");
    const index = shown.findIndex((box) => box.key === current.selected);
    const next = shown[event.shiftKey ? index - 1 : index + 1];
    if (!next) return;
    event.preventDefault();
    return select(next.key);
  } else if (keys[letter] && !event.repeat) {
    event.preventDefault();
    return keys[letter]();
  } else return;
  event.preventDefault();
  render();
});

$("add-class").addEventListener("submit", async (event) => {
  event.preventDefault();
  const name = $("class-name").value.trim();
  if (!name) return;
  if (!(await addClasses([name]))) return;
  $("class-name").value = "";
  pickClass(name);
});

function countTime() {
  const now = performance.now();
  const current = state();
  if (current && !current.saved && now - lastActive < IDLE_MS) current.activeMs += now - lastActive;
  lastActive = now;
}
addEventListener("pointermove", countTime);
addEventListener("resize", () => state() && canvas.render());
addEventListener("beforeunload", (event) => {
  if (outbox.waiting.length || frames.some((frame) => frame.edited && !frame.saved)) event.preventDefault();
});
$("image").addEventListener("error", () => state() && problem("This image did not load; the frame can be skipped or rejected.", null));

async function start() {
  try {
    classes = await fetchClasses();
  } catch {
    return setTimeout(start, 2000);
  }
  const asked = new URLSearchParams(location.search).get("frame");
  if (asked) await reopen(asked);
  await load();
  // A queue that was empty fills by itself.
  setInterval(() => { if (!state()) load(); }, 3000);
}
start();
