// Talks to the server: pages of the queue, and an outbox of labels that survives a broken link, a restart and a closed tab.
const OUTBOX = "bowerbird.outbox";
const token = document.querySelector('meta[name="csrf-token"]');

class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

async function ask(method, path, body) {
  const answer = await fetch(path, {
    method,
    headers: body === undefined ? {} : { "Content-Type": "application/json", "X-CSRF-Token": token.content },
    body: body === undefined ? undefined : JSON.stringify(body),
    signal: AbortSignal.timeout(20000),
  });
  const found = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Refused(answer.status, found.error?.message ?? `the server answered ${answer.status}`);
  return found;
}

export const fetchQueue = (after) => ask("GET", `/api/v1/queue?limit=20${after ? `&after=${encodeURIComponent(after)}` : ""}`);
export const fetchFrame = (id) => ask("GET", `/api/v1/frames/${encodeURIComponent(id)}`);
export const openFrame = (id) => ask("POST", `/api/v1/frames/${encodeURIComponent(id)}/open`, {});
export const fetchClasses = async () => (await ask("GET", "/api/v1/classes")).items.map((item) => item.name);
export const addClass = async (name) => (await ask("POST", "/api/v1/classes", { names: [name] })).items.map((item) => item.name);

// After a new login in another tab the page goes on with that session.
async function renewSession() {
  token.content = (await ask("GET", "/session")).csrf_token;
}

export class Outbox {
  // `onChange(outbox)` after every change; `onRefused(entry, message)` when the server will never take a label.
  constructor(onChange, onRefused) {
    this.onChange = onChange;
    this.onRefused = onRefused;
    this.waiting = JSON.parse(localStorage.getItem(OUTBOX) ?? "[]");
    this.trouble = "";
    this.failures = 0;
    this.busy = false;
    addEventListener("online", () => this.send());
    this.send();
  }

  put(frameId, label) {
    this.waiting.push({ frameId, label });
    this.keep();
    this.send();
  }

  keep() {
    try {
      localStorage.setItem(OUTBOX, JSON.stringify(this.waiting));
    } catch {
      // Full or forbidden: the labels are still in memory, and leaving the page warns.
    }
    this.onChange(this);
  }

  async send() {
    if (this.busy || !this.waiting.length) return;
    this.busy = true;
    clearTimeout(this.timer);
    while (this.waiting.length) {
      const entry = this.waiting[0];
      try {
        await ask("POST", `/api/v1/frames/${encodeURIComponent(entry.frameId)}/label`, entry.label);
        this.waiting.shift();
        this.failures = 0;
        this.trouble = "";
        this.keep();
      } catch (error) {
        const final = error instanceof Refused && [400, 404, 409, 413, 422].includes(error.status);
        if (final) {
          this.waiting.shift();
          this.keep();
          this.onRefused(entry, error.message);
          continue;
        }
        const shutOut = error instanceof Refused && [401, 403].includes(error.status);
        if (shutOut) await renewSession().catch(() => {});
        this.failures += 1;
        this.trouble = shutOut ? "log in again in another tab" : "the server does not answer";
        this.onChange(this);
        this.timer = setTimeout(() => this.send(), Math.min(500 * 2 ** this.failures, 10000));
        break;
      }
    }
    this.busy = false;
    this.onChange(this);
  }
}
