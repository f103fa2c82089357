// What the pages do beside being shown: they stay up to date, and are used by keyboard.
// Everything works without it, only slower.
"use strict";

const EVERY = 2000;
const PATIENCE = 10000;
const root = document.documentElement;
const build = root.dataset.build;

// ---- times ---------------------------------------------------------------------------------
// Pages have points in time, so that one that nothing has happened to stays the same.

let clockAhead = Date.now() - 1000 * Number(document.body?.dataset.now ?? Date.now() / 1000);

function long(seconds) {
  if (seconds < 90) return `${Math.round(seconds)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  if (seconds < 129600) return `${Math.round(seconds / 3600)} h`;
  return `${Math.round(seconds / 86400)} d`;
}

function ago(seconds) {
  if (Math.abs(seconds) < 2) return "now";
  return seconds > 0 ? `${long(seconds)} ago` : `in ${long(-seconds)}`;
}

function left(seconds) {
  if (seconds <= 0) return "its time is over";
  return `at most ${ago(seconds).replace(" ago", "").replace("now", "1 s")} left`;
}

function tellTimes(within = document) {
  const now = Date.now() - clockAhead;
  for (const one of within.querySelectorAll("time[datetime]")) {
    const past = (now - Date.parse(one.dateTime)) / 1000;
    const text = "left" in one.dataset ? left(-past) : ago(past);
    if (one.textContent !== text) one.textContent = text;
  }
}

// ---- swapping what changed -----------------------------------------------------------------

const keyOf = (node) => node.id || node.dataset?.key || "";

// What the person who looks has changed stays.
function isTheirs(node, name) {
  if (name === "open") return node.matches("details, dialog");
  return (name === "value" || name === "checked") && node.matches("input, textarea, option");
}

function swap(old, fresh) {
  if (old.nodeType !== fresh.nodeType || old.nodeName !== fresh.nodeName) {
    old.replaceWith(document.importNode(fresh, true));
    return;
  }
  if (old.nodeType !== Node.ELEMENT_NODE) {
    if (old.data !== fresh.data) old.data = fresh.data;
    return;
  }
  const isSameTime = old.nodeName === "TIME" && old.dateTime === fresh.dateTime;
  if (isSameTime) return;
  for (const { name, value } of fresh.attributes) {
    if (!isTheirs(old, name) && old.getAttribute(name) !== value) old.setAttribute(name, value);
  }
  for (const { name } of [...old.attributes]) {
    if (!isTheirs(old, name) && !fresh.hasAttribute(name)) old.removeAttribute(name);
  }
  if (old.nodeName === "TEXTAREA") return;
  swapChildren(old, fresh);
}

function swapChildren(old, fresh) {
  const known = new Map();
  for (const child of old.children) if (keyOf(child)) known.set(keyOf(child), child);
  let at = old.firstChild;
  for (const wanted of [...fresh.childNodes]) {
    const key = keyOf(wanted);
    const kept = key ? known.get(key) : undefined;
    if (kept) {
      if (kept === at) at = at.nextSibling;
      else old.insertBefore(kept, at);
      swap(kept, wanted);
    } else if (!key && at && !keyOf(at) && at.nodeName === wanted.nodeName) {
      const next = at.nextSibling;
      swap(at, wanted);
      at = next;
    } else {
      old.insertBefore(document.importNode(wanted, true), at);
    }
  }
  while (at) {
    const next = at.nextSibling;
    at.remove();
    at = next;
  }
}

function show(html) {
  const fresh = new DOMParser().parseFromString(html, "text/html");
  const focused = document.activeElement;
  for (const part of fresh.querySelectorAll("[data-live]")) {
    const old = document.getElementById(part.id);
    if (old) swap(old, part);
  }
  // Filters stay as they are typed; whether there is a mistake in one is told beside it.
  for (const field of document.querySelectorAll("form[data-live-form] [aria-describedby]")) {
    const told = document.getElementById(field.getAttribute("aria-describedby"));
    if (told.querySelector(".mistake")) field.setAttribute("aria-invalid", "true");
    else field.removeAttribute("aria-invalid");
  }
  if (focused && focused !== document.activeElement && focused.isConnected) {
    focused.focus({ preventScroll: true });
  }
  tellTimes();
}

// ---- asking for news -----------------------------------------------------------------------

let tag = "";
let lastAnswer = Date.now();
let timer = 0;
let asking = null;
let isOver = false;

function banner(kind, text, link) {
  const place = document.getElementById("banner");
  if (!text) {
    place.hidden = true;
    return;
  }
  place.className = `banner ${kind}`;
  if (place.textContent !== text + (link?.text ?? "")) {
    place.textContent = text;
    if (link) {
      const anchor = document.createElement("a");
      anchor.href = link.href;
      anchor.textContent = link.text;
      place.append(anchor);
    }
  }
  place.hidden = false;
}

function away(why) {
  const age = Math.round((Date.now() - lastAnswer) / 1000);
  banner("warning", `${why} What is shown is ${age} s old. Trying again…`);
}

async function ask() {
  clearTimeout(timer);
  if (isOver || document.hidden || !document.querySelector("[data-live]")) return;
  asking?.abort();
  const mine = new AbortController();
  asking = mine;
  const limit = setTimeout(() => mine.abort("slow"), PATIENCE);
  try {
    const headers = { "X-Tinyfleet-Live": "1" };
    if (tag) headers["If-None-Match"] = tag;
    const address = location.pathname + location.search;
    const answer = await fetch(address, { headers, signal: mine.signal, cache: "no-store" });
    const text = await answer.text();
    if (asking !== mine) return;
    const version = answer.headers.get("X-Tinyfleet-Version");
    if (version && version !== build) {
      isOver = true;
      banner("running", "The service was upgraded; this page is of before. ", {
        href: address,
        text: "Load it anew",
      });
    } else if (answer.status === 401) {
      isOver = true;
      const login = `/ui/login?next=${encodeURIComponent(address)}`;
      banner("bad", `Your session has ended: ${text}. `, { href: login, text: "Log in again" });
    } else if (answer.ok || answer.status === 304) {
      lastAnswer = Date.now();
      banner("", "");
      if (answer.ok) {
        tag = answer.headers.get("ETag") ?? "";
        show(text);
      }
    } else if (answer.status === 429 || answer.status >= 500) {
      away(answer.status === 429 ? "This token asks too often." : `${text || "The service is away"}.`);
    } else {
      banner("bad", `${text}.`);
    }
  } catch (error) {
    if (asking !== mine) return;
    away("The service doesn't answer.");
  } finally {
    clearTimeout(limit);
    if (asking === mine) timer = setTimeout(ask, EVERY);
  }
}

document.addEventListener("visibilitychange", () => {
  if (!document.hidden) ask();
});

// ---- filters tell what they mean while they are typed --------------------------------------

let typing = 0;

function preview(form) {
  const query = new URLSearchParams();
  for (const [name, value] of new FormData(form)) if (value) query.append(name, value);
  const text = query.toString();
  history.replaceState(null, "", form.getAttribute("action") + (text ? `?${text}` : ""));
  tag = "";
  ask();
}

document.addEventListener("input", (event) => {
  const form = event.target.closest?.("form[data-live-form]");
  if (!form) return;
  clearTimeout(typing);
  typing = setTimeout(() => preview(form), 350);
});

// ---- keys ----------------------------------------------------------------------------------

let wantsSection = false;

function isWriting(target) {
  return target.matches?.("input, textarea, select, [contenteditable]");
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || isWriting(event.target)) return;
  if (wantsSection) {
    wantsSection = false;
    const link = document.querySelector(`nav.sections a[data-key="${CSS.escape(event.key)}"]`);
    if (link) {
      event.preventDefault();
      link.click();
    }
    return;
  }
  if (event.key === "g") {
    wantsSection = true;
    setTimeout(() => (wantsSection = false), 1500);
  } else if (event.key === "?") {
    event.preventDefault();
    document.getElementById("help").showModal();
  } else if (event.key === "/") {
    const field = document.querySelector("[data-filter]");
    if (field) {
      event.preventDefault();
      field.focus();
      field.select();
    }
  }
});

document.addEventListener("click", (event) => {
  const opener = event.target.closest?.("[data-opens]");
  if (opener) document.getElementById(opener.dataset.opens).showModal();
  const copied = event.target.closest?.("[data-copies]");
  if (copied) {
    const text = document.getElementById(copied.dataset.copies).textContent;
    navigator.clipboard.writeText(text).then(
      () => (copied.textContent = "Copied"),
      () => (copied.textContent = "Select it and copy it by hand"),
    );
  }
  const filler = event.target.closest?.("[data-fills]");
  if (filler) {
    const field = document.getElementById(filler.dataset.fills);
    field.value = filler.dataset.text;
    field.dispatchEvent(new Event("input", { bubbles: true }));
    field.focus();
  }
});

// ---- a campaign's text that was started needn't be kept any more ----------------------------
// A start leads to the campaign's page. Any other page that comes instead means that there was none.

for (const key of Object.keys(sessionStorage)) {
  if (!key.startsWith("tinyfleet-campaign ")) continue;
  const kept = JSON.parse(sessionStorage[key]);
  if (!kept.isStarted) continue;
  if (document.getElementById("standing")) sessionStorage.removeItem(key);
  else sessionStorage.setItem(key, JSON.stringify({ ...kept, isStarted: false }));
}

// ---- theme ---------------------------------------------------------------------------------

document.addEventListener("submit", (event) => {
  if (!event.target.matches("[data-theme-switch]")) return;
  event.preventDefault();
  const themes = ["system", "light", "dark"];
  const button = event.target.querySelector("button");
  const theme = button.value;
  const secure = location.protocol === "https:" ? "; Secure" : "";
  document.cookie = `tinyfleet_theme=${theme}; Path=/ui; Max-Age=31536000; SameSite=Strict${secure}`;
  root.dataset.theme = theme;
  button.value = themes[(themes.indexOf(theme) + 1) % 3];
  button.title = `Theme: ${theme}`;
  button.querySelector(".sr-only").textContent = `Theme: ${theme}; change`;
});

tellTimes();
setInterval(tellTimes, 1000);
timer = setTimeout(ask, EVERY);
