// Keeps the dashboard fresh: fetches it every two seconds and swaps only the sections that changed, so that focus and scroll stay.
import { showTimes } from "./page.js";

const root = document.getElementById("dashboard");
const stale = document.getElementById("stale");
const seen = new Map();
let failures = 0;

async function refresh() {
  try {
    if (!document.hidden) {
      const answer = await fetch("/fragments/dashboard", { cache: "no-store" });
      if (answer.status === 401) return location.assign("/login");
      if (!answer.ok) throw new Error(`status ${answer.status}`);
      const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
      for (const section of fresh.querySelectorAll("section[id]")) {
        const old = document.getElementById(section.id);
        if (!old || seen.get(section.id) === section.innerHTML || old.contains(document.activeElement)) continue;
        seen.set(section.id, section.innerHTML);
        const scrolled = old.querySelector(".scroll")?.scrollLeft ?? 0;
        old.replaceWith(document.adoptNode(section));
        const table = section.querySelector(".scroll");
        if (table) table.scrollLeft = scrolled;
      }
      showTimes(root);
      failures = 0;
      stale.hidden = true;
    }
  } catch {
    failures += 1;
    stale.hidden = failures < 2;
  }
  setTimeout(refresh, Math.min(2000 * 2 ** failures, 15000));
}

setTimeout(refresh, 2000);
