// The inventory tree: a W3C navigation tree view. Which nodes are open is kept per tab in sessionStorage.
const KEY = "bartizan-tree";
const box = () => document.getElementById("tree-box");
const items = () => [...document.querySelectorAll('#tree [role="treeitem"]')].filter((item) => !item.closest("[hidden]"));
const view = () => box()?.dataset.view;
const groupOf = (item) => item.closest("li").querySelector(':scope > [role="group"]');
const parentOf = (item) => item.closest('[role="group"]')?.closest("li").querySelector('[role="treeitem"]');
let typed = "";
let typedAt = 0;

function stored() {
  try { return JSON.parse(sessionStorage.getItem(KEY)) ?? {}; } catch { return {}; }
}

function save() {
  const open = [...document.querySelectorAll('#tree [aria-expanded="true"]')].map((item) => item.dataset.node);
  sessionStorage.setItem(KEY, JSON.stringify({ ...stored(), [view()]: open }));
}

function setOpen(item, open) {
  const group = groupOf(item);
  if (!group) return;
  item.setAttribute("aria-expanded", String(open));
  group.hidden = !open;
  if (open && !("loaded" in group.dataset)) {
    group.dataset.loaded = "";
    htmx.ajax("GET", group.dataset.url, { source: group, target: group, swap: "innerHTML show:none" });
  }
  save();
}

function current(item, focus) {
  for (const other of document.querySelectorAll('#tree [tabindex="0"]')) other.tabIndex = -1;
  item.tabIndex = 0;
  if (focus) item.focus();
}

// Marks the object whose page is shown, and makes exactly one line reachable by Tab.
function mark() {
  for (const item of document.querySelectorAll('#tree [role="treeitem"]:not([tabindex])')) item.tabIndex = -1;
  const node = document.querySelector("#content .page")?.dataset.node;
  for (const item of document.querySelectorAll("#tree [aria-selected]")) item.removeAttribute("aria-selected");
  const chosen = node && document.getElementById(`t-${node}`);
  if (chosen) chosen.setAttribute("aria-selected", "true");
  const focused = document.activeElement?.closest('#tree [role="treeitem"]');
  const first = focused ?? (chosen && !chosen.closest("[hidden]") ? chosen : items()[0]);
  if (first) current(first, false);
}

function reveal() {
  const page = document.querySelector("#content .page");
  for (const node of (page?.dataset.path ?? "").trim().split(" ").slice(0, -1)) {
    const item = node && document.getElementById(`t-${node}`);
    if (item && item.getAttribute("aria-expanded") === "false") setOpen(item, true);
  }
  mark();
}

document.addEventListener("click", (event) => {
  const caret = event.target.closest(".caret");
  if (!caret) return;
  const item = caret.parentElement.querySelector('[role="treeitem"]');
  setOpen(item, item.getAttribute("aria-expanded") !== "true");
});

document.addEventListener("keydown", (event) => {
  const item = event.target.closest('#tree [role="treeitem"]');
  if (!item || event.ctrlKey || event.altKey || event.metaKey) return;
  if (event.key.length > 1 && event.key !== "Shift") typedAt = -Infinity;
  const all = items();
  const at = all.indexOf(item);
  const expanded = item.getAttribute("aria-expanded");
  let next = null;
  if (event.key === "ArrowDown") next = all[at + 1];
  else if (event.key === "ArrowUp") next = all[at - 1];
  else if (event.key === "Home") next = all[0];
  else if (event.key === "End") next = all.at(-1);
  else if (event.key === "ArrowRight" && expanded === "false") setOpen(item, true);
  else if (event.key === "ArrowRight" && expanded) next = groupOf(item).querySelector('[role="treeitem"]');
  else if (event.key === "ArrowLeft" && expanded === "true") setOpen(item, false);
  else if (event.key === "ArrowLeft") next = parentOf(item);
  else if (event.key.length === 1 && /\S/.test(event.key) && !event.shiftKey) {
    typed = event.timeStamp - typedAt < 700 ? typed + event.key.toLowerCase() : event.key.toLowerCase();
    typedAt = event.timeStamp;
    const order = [...all.slice(at + (typed.length === 1 ? 1 : 0)), ...all.slice(0, at + 1)];
    next = order.find((other) => other.querySelector(".name")?.textContent.toLowerCase().startsWith(typed));
  } else return;
  event.preventDefault();
  if (next) current(next, true);
});

document.addEventListener("focusin", (event) => {
  const item = event.target.closest('#tree [role="treeitem"]');
  if (item) current(item, false);
});

// The whole tree is asked for with the nodes that are open; the server answers 204 where nothing changed.
document.addEventListener("htmx:configRequest", (event) => {
  const { path, parameters } = event.detail;
  if (!/\/inventory\/tree\/(\?|$)/.test(path)) return;
  const wanted = new URLSearchParams(path.split("?")[1]).get("view") ?? view();
  parameters.set("open", (stored()[wanted] ?? []).join(","));
  if (wanted === view()) parameters.set("v", box().dataset.version);
});

let scrolled = 0;
document.addEventListener("htmx:beforeSwap", (event) => {
  if (event.detail.target?.id === "tree-box") scrolled = box().querySelector(".tree-scroll").scrollTop;
});
document.addEventListener("htmx:afterSettle", (event) => {
  const target = event.detail.target;
  if (!target) return;
  if (target.id === "tree-box") box().querySelector(".tree-scroll").scrollTop = scrolled;
  if (target.id === "content") reveal();
  else if (target.closest("#sidebar") || target.id === "tree-box") { mark(); save(); }
});

document.addEventListener("htmx:historyRestore", reveal);

const before = stored()[view()] ?? [];
const missing = before.some((node) => document.getElementById(`t-${node}`)?.getAttribute("aria-expanded") !== "true");
reveal();
save();
if (missing) {
  sessionStorage.setItem(KEY, JSON.stringify({ ...stored(), [view()]: [...new Set([...before, ...stored()[view()]])] }));
  document.addEventListener("DOMContentLoaded", () => htmx.trigger("#tree-refresh", "tree-restore"));
}
