// The search box: results below it, arrows to walk them, Escape to leave; "/" goes to the box from anywhere.
const box = document.getElementById("search");
const results = document.getElementById("search-results");
const links = () => [...results.querySelectorAll("a")];

function close() {
  results.hidden = true;
}

document.addEventListener("htmx:afterSwap", (event) => {
  if (event.detail.target === results) results.hidden = !results.firstElementChild || !box.value.trim();
  if (event.detail.target?.id === "content") close();
});
box.addEventListener("focus", () => { results.hidden = !results.firstElementChild || !box.value.trim(); });
document.addEventListener("click", (event) => { if (!event.target.closest(".finder")) close(); });
document.addEventListener("keydown", (event) => {
  if (event.key === "/" && !event.target.closest("input, textarea, select, dialog")) {
    event.preventDefault();
    box.focus();
    return;
  }
  if (!event.target.closest?.(".finder")) return;
  const all = links();
  const at = all.indexOf(document.activeElement);
  if (event.key === "Escape") { close(); box.focus(); }
  else if (event.key === "ArrowDown" && !results.hidden) all[Math.min(at + 1, all.length - 1)]?.focus();
  else if (event.key === "ArrowUp" && at >= 0) (all[at - 1] ?? box).focus();
  else return;
  event.preventDefault();
});
