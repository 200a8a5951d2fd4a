// Splitters between tree, content and tasks, by pointer and arrow keys; and the tree as a drawer on narrow windows.
const shell = document.getElementById("shell");

function splitter(id, variable, sign, axis, step) {
  const bar = document.getElementById(id);
  const [least, most] = [Number(bar.ariaValueMin), Number(bar.ariaValueMax)];
  const set = (size) => {
    const limit = axis === "X" ? most : Math.min(most, innerHeight * 0.6);
    const value = Math.round(Math.min(limit, Math.max(least, size)));
    document.documentElement.style.setProperty(variable, `${value}px`);
    bar.ariaValueNow = String(value);
    localStorage.setItem(`bartizan${variable}`, String(value));
  };
  const now = () => Number.parseInt(getComputedStyle(document.documentElement).getPropertyValue(variable), 10);
  const kept = Number(localStorage.getItem(`bartizan${variable}`));
  if (kept) set(kept); else bar.ariaValueNow = String(now());
  bar.addEventListener("pointerdown", (down) => {
    const [from, size] = [down[`client${axis}`], now()];
    bar.setPointerCapture(down.pointerId);
    bar.onpointermove = (move) => set(size + sign * (move[`client${axis}`] - from));
    bar.onpointerup = () => { bar.onpointermove = null; };
  });
  bar.addEventListener("keydown", (event) => {
    const direction = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (!direction || (axis === "X") !== /Left|Right/.test(event.key)) return;
    event.preventDefault();
    set(now() + sign * direction * step);
  });
}
splitter("sidebar-splitter", "--sidebar", 1, "X", 20);
splitter("tasks-splitter", "--tasks", -1, "Y", 20);

const drawer = document.getElementById("sidebar-toggle");
function setDrawer(open) {
  shell.classList.toggle("with-sidebar", open);
  drawer.setAttribute("aria-expanded", String(open));
  if (open) document.querySelector('#tree [tabindex="0"]')?.focus();
}
drawer.addEventListener("click", () => setDrawer(!shell.classList.contains("with-sidebar")));
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || !shell.classList.contains("with-sidebar") || !event.target.closest("#sidebar")) return;
  setDrawer(false);
  drawer.focus();
});
document.addEventListener("htmx:afterSettle", (event) => {
  if (event.detail.target?.id === "content" && shell.classList.contains("with-sidebar")) setDrawer(false);
});
