// Dialogs: what htmx puts into #dialog-slot is shown as a modal; alerts can be dismissed.
const slot = document.getElementById("dialog-slot");
let opener = null;
let isSending = false;
let isBehind = false;

function shut() {
  slot.querySelector("dialog")?.close();
}

document.addEventListener("htmx:beforeRequest", (event) => {
  if (event.detail.target === slot && !slot.firstElementChild) opener = document.activeElement;
});

// What a dialog sends may bring another session (one's own new password): whoever asks with the one before is sent to the
// login, and the page with it. So nothing behind the dialog begins to ask meanwhile; what would have is made up for.
document.addEventListener("htmx:beforeRequest", (event) => {
  const { elt } = event.detail;
  if (elt.matches("#dialog-slot form")) isSending = true;
  else if (isSending && !slot.contains(elt)) {
    event.preventDefault();
    isBehind = true;
  }
});
document.addEventListener("htmx:beforeOnLoad", (event) => {
  if (event.detail.elt.matches("#dialog-slot form")) isSending = false;
});
document.addEventListener("htmx:afterRequest", (event) => {
  if (!event.detail.elt.matches("form")) return;
  isSending = false;
  if (isBehind) htmx.trigger("body", "activity");
  isBehind = false;
});

// After the settling, not the swap: until then htmx does not know the form, and a quick Enter would leave the page.
document.addEventListener("htmx:afterSettle", (event) => {
  if (event.detail.target !== slot) return;
  const dialog = slot.querySelector("dialog");
  if (!dialog || dialog.open) return;
  dialog.addEventListener("close", () => {
    slot.replaceChildren();
    // The menu that held the opener may be closed by now; then its button gets the focus.
    const back = opener?.offsetParent ? opener : opener?.closest("details")?.querySelector("summary");
    (back ?? document.querySelector('#tree [tabindex="0"]'))?.focus();
  });
  dialog.showModal();
  const first = dialog.querySelector(".wrong :is(input, select, textarea)") ??
    dialog.querySelector(".dialog-body :is(input:not([type=hidden]), select, textarea)") ??
    dialog.querySelector(".dialog-foot button, .dialog-foot a");
  first?.focus();
});

document.addEventListener("click", (event) => {
  if (event.target.closest("dialog [data-close]")) {
    event.preventDefault();
    shut();
  }
  event.target.closest("[data-dismiss]")?.closest(".toast").remove();
});
document.addEventListener("dialog-done", shut);

// After a step inside the content its heading is where reading goes on; a step from the tree leaves the focus there.
document.addEventListener("htmx:afterSettle", (event) => {
  if (event.detail.target?.id !== "content" || document.activeElement !== document.body) return;
  document.getElementById("content").focus({ preventScroll: true });
});
