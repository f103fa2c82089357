// The editor of campaigns: line numbers, a dry run while one types, and a text that is never lost.
const form = document.querySelector("form[data-editor]");
const field = document.getElementById("text");
const numbers = form.querySelector(".line-numbers");
const begun = field.value;
// Of the page that it was begun on: its answers have the same address.
const KEPT = `tinyfleet-campaign ${form.getAttribute("action")}`;

function count() {
  const lines = field.value.split("\n").length;
  let text = "";
  for (let line = 1; line <= lines; line += 1) text += `${line}\n`;
  if (numbers.textContent !== text) numbers.textContent = text;
  numbers.scrollTop = field.scrollTop;
}

// ---- what was typed stays in this tab until it was started ---------------------------------

function keep(isStarted = false) {
  const kept = { text: field.value, why: form.why.value, isStarted };
  sessionStorage.setItem(KEPT, JSON.stringify(kept));
}

function restore() {
  const kept = JSON.parse(sessionStorage.getItem(KEPT) ?? "null");
  // What an answer to this form shows is what was typed.
  if (!kept || kept.text === field.value || "answer" in form.dataset) return;
  field.value = kept.text;
  form.why.value = kept.why;
  document.getElementById("kept").hidden = false;
  keep();
  count();
  look();
}

document.getElementById("begin-anew").addEventListener("click", () => {
  sessionStorage.removeItem(KEPT);
  field.value = begun;
  document.getElementById("kept").hidden = true;
  count();
  look();
  field.focus();
});

// ---- the dry run ---------------------------------------------------------------------------

let typing = 0;
let isAsking = false;

async function look() {
  // One at a time: of very many devices it takes seconds.
  if (isAsking) return;
  isAsking = true;
  const asked = field.value;
  const content = new URLSearchParams(new FormData(form));
  content.set("do", "check");
  let text = "";
  let status = 0;
  try {
    const answer = await fetch(form.action, { method: "POST", body: content });
    status = new URL(answer.url).pathname === "/ui/login" ? 401 : answer.status;
    text = await answer.text();
  } catch {
    status = 0;
  }
  isAsking = false;
  const fresh = new DOMParser().parseFromString(text, "text/html");
  if (asked !== field.value) look();
  const found = fresh.getElementById("checked");
  const place = document.getElementById("checked");
  if (found) {
    place.replaceChildren(...found.childNodes);
    field.toggleAttribute("aria-invalid", Boolean(place.querySelector(".mistakes")));
    return;
  }
  const said = document.createElement("p");
  said.className = "notice warning";
  said.textContent =
    status === 401
      ? "Your session has ended. Your text is kept in this tab: "
      : "The service doesn't answer; your text is kept in this tab.";
  if (status === 401) {
    const link = document.createElement("a");
    link.href = `/ui/login?next=${encodeURIComponent(location.pathname + location.search)}`;
    link.textContent = "log in again";
    said.append(link);
  }
  place.replaceChildren(said);
}

form.addEventListener("input", (event) => {
  keep();
  count();
  if (event.target !== field) return;
  clearTimeout(typing);
  typing = setTimeout(look, 600);
});
field.addEventListener("scroll", () => (numbers.scrollTop = field.scrollTop));
form.addEventListener("submit", (event) => keep(event.submitter?.value === "start"));

form.addEventListener("click", (event) => {
  const place = event.target.closest("[data-line]");
  if (!place) return;
  const lines = field.value.split("\n");
  const line = Math.min(Number(place.dataset.line), lines.length);
  const start = lines.slice(0, line - 1).reduce((sum, one) => sum + one.length + 1, 0);
  field.focus();
  field.setSelectionRange(start, start + lines[line - 1].length);
  const height = parseFloat(getComputedStyle(field).lineHeight);
  field.scrollTop = Math.max(0, (line - 6) * height);
});

count();
restore();
if (!("answer" in form.dataset)) look();
