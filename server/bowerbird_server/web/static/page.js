// Times as people read them: how long ago, in full on hover. In: <time datetime>. Out: its text.
const UNITS = [["day", 86400], ["hour", 3600], ["minute", 60], ["second", 1]];
const relative = new Intl.RelativeTimeFormat("en", { numeric: "always", style: "short" });

export function showTimes(root = document) {
  for (const element of root.querySelectorAll("time[datetime]")) {
    const seconds = (Date.parse(element.dateTime) - Date.now()) / 1000;
    if (Number.isNaN(seconds)) continue;
    const [unit, length] = UNITS.find(([, size]) => Math.abs(seconds) >= size) ?? UNITS.at(-1);
    element.title = new Date(element.dateTime).toLocaleString();
    element.textContent = Math.abs(seconds) < 2 ? "now" : relative.format(Math.round(seconds / length), unit);
  }
}

showTimes();
