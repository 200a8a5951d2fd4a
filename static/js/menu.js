// Menus: <details data-menu> by keyboard, and the tree's context menu by right click or Shift+F10.
const context = document.getElementById("context-menu");
let opener = null;

const entries = (menu) => [...menu.querySelectorAll('[role="menuitem"]')];

function close(refocus) {
  for (const menu of document.querySelectorAll("details[data-menu][open]")) {
    menu.open = false;
    if (refocus) menu.querySelector("summary").focus();
  }
  if (!context.hidden) {
    context.hidden = true;
    context.replaceChildren();
    if (refocus) opener?.focus();
  }
}

function openContext(item, x, y) {
  close(false);
  opener = item;
  htmx.ajax("GET", item.dataset.menuUrl, { source: context, target: context, swap: "innerHTML" }).then(() => {
    context.hidden = false;
    context.style.left = `${Math.max(4, Math.min(x, innerWidth - context.offsetWidth - 4))}px`;
    context.style.top = `${Math.max(4, Math.min(y, innerHeight - context.offsetHeight - 4))}px`;
    entries(context)[0]?.focus();
  });
}

document.addEventListener("contextmenu", (event) => {
  const item = event.target.closest?.(".row")?.querySelector("[data-menu-url]");
  if (!item || event.shiftKey) return;
  event.preventDefault();
  const box = item.getBoundingClientRect();
  const byKey = event.clientX === 0 && event.clientY === 0;
  openContext(item, byKey ? box.left + 24 : event.clientX, byKey ? box.bottom : event.clientY);
});

document.addEventListener("click", (event) => {
  const menu = event.target.closest("details[data-menu], #context-menu");
  if (!menu) close(false);
  else if (event.target.closest('[role="menuitem"]:not([aria-disabled])')) setTimeout(() => close(false));
  for (const other of document.querySelectorAll("details[data-menu][open]")) if (other !== menu) other.open = false;
});

document.addEventListener("keydown", (event) => {
  const tree = event.target.closest?.("#tree [data-menu-url]");
  if (tree && (event.key === "ContextMenu" || (event.key === "F10" && event.shiftKey))) {
    event.preventDefault();
    const box = tree.getBoundingClientRect();
    openContext(tree, box.left + 24, box.bottom);
    return;
  }
  const menu = event.target.closest?.("details[data-menu], #context-menu");
  if (!menu) return;
  const all = entries(menu);
  const at = all.indexOf(document.activeElement);
  if (event.key === "Escape") close(true);
  else if (event.key === "Tab") { close(true); return; }
  else if (event.key === "ArrowDown") {
    if (menu.matches("details")) menu.open = true;
    all[(at + 1) % all.length]?.focus();
  } else if (event.key === "ArrowUp") all[(at <= 0 ? all.length : at) - 1]?.focus();
  else if (event.key === "Home") all[0]?.focus();
  else if (event.key === "End") all.at(-1)?.focus();
  else if ((event.key === " " || event.key === "Enter") && at >= 0 && all[at].matches("a, span")) all[at].click();
  else return;
  event.preventDefault();
});

// A menu that is open is in use: what would be put in its place waits for the next time.
document.addEventListener("htmx:oobBeforeSwap", (event) => {
  if (event.detail.target.querySelector("details[data-menu][open]")) event.detail.shouldSwap = false;
});
