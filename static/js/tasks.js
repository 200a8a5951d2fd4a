// The tasks pane: says how many tasks run, collapses, and tells when the console cannot be reached.
const pane = document.getElementById("tasks");
const toggle = document.getElementById("tasks-toggle");
const status = document.getElementById("tasks-status");
const KEY = "bartizan-tasks-closed";
let offline = null;

function setClosed(closed) {
  pane.classList.toggle("closed", closed);
  toggle.setAttribute("aria-expanded", String(!closed));
  localStorage.setItem(KEY, closed ? "1" : "");
}

toggle.addEventListener("click", () => setClosed(!pane.classList.contains("closed")));
setClosed(localStorage.getItem(KEY) === "1");

document.addEventListener("htmx:afterSettle", () => {
  const live = Number(document.getElementById("tasks-rows")?.dataset.live ?? 0);
  const text = live === 0 ? "" : live === 1 ? "1 task running" : `${live} tasks running`;
  if (status.textContent !== text) status.textContent = text;
});

function unreachable() {
  if (offline) return;
  offline = document.createElement("div");
  offline.className = "alert alert-warning toast";
  const text = document.createElement("span");
  text.className = "alert-text";
  text.textContent = "The console does not answer. This page goes on trying.";
  offline.append(text);
  document.getElementById("alerts").append(offline);
}
document.addEventListener("htmx:sendError", unreachable);
document.addEventListener("htmx:responseError", unreachable);
document.addEventListener("htmx:afterRequest", (event) => {
  if (!event.detail.successful || !offline) return;
  offline.remove();
  offline = null;
});
