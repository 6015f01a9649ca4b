// Replaces each chart's SVG by the same chart with values on hover, and opens everything for printing.
// Bundled with Vega by charts.py. Nothing is set as HTML: labels and captions come from anywhere.

const element = document.getElementById("charts");
const specs = element === null ? [] : JSON.parse(element.textContent);
const tip = document.createElement("div");
tip.className = "tip";
tip.hidden = true;
document.body.append(tip);

function showTip(_, event, item, value) {
  tip.hidden = value === null || value === undefined || value === "";
  if (tip.hidden) return;
  const rows = typeof value === "object" ? Object.entries(value) : [["", String(value)]];
  tip.replaceChildren(...rows.filter(([, text]) => text !== "" && text !== "undefined").map(([name, text]) => {
    const row = document.createElement("div");
    const heading = document.createElement("span");
    heading.textContent = name;
    const content = document.createElement("b");
    content.textContent = text;
    row.append(heading, content);
    return row;
  }));
  const x = Math.min(event.clientX + 14, document.documentElement.clientWidth - tip.offsetWidth - 4);
  const y = Math.min(event.clientY + 14, window.innerHeight - tip.offsetHeight - 4);
  tip.style.left = `${Math.max(4, x)}px`;
  tip.style.top = `${Math.max(4, y)}px`;
}

for (const [number, spec] of specs.entries()) {
  const place = document.getElementById(`chart-${number}`);
  const still = place.firstElementChild;
  const live = document.createElement("div");
  place.append(live);
  new View(parse(spec), { renderer: "svg", container: live, hover: true, tooltip: showTip })
    .runAsync()
    .then(() => { still.remove(); place.dataset.live = ""; })
    .catch(() => live.remove());
}

let opened = [];
window.addEventListener("beforeprint", () => {
  opened = [...document.querySelectorAll("details:not([open])")];
  for (const details of opened) details.open = true;
});
window.addEventListener("afterprint", () => {
  for (const details of opened) details.open = false;
});
