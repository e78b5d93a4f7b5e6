// Makes pages live. Everything works without it, by links and forms.
//
// A part of a page is an element with an id. A newer version of it replaces it:
// 1. [data-live=URL]: server-sent events, each with the HTML of parts;
// 2. form[data-results=ID]: a change asks for the page with the form's values, and takes
//    the part ID of it; the address changes with it;
// 3. a[data-results=ID]: the same for links that turn the page.
"use strict";

function replace(part) {
  const old = document.getElementById(part.id);
  if (!old || old.outerHTML === part.outerHTML) return;
  const focus = old.contains(document.activeElement) ? document.activeElement.id : "";
  // A form that is being filled in is left alone until the focus leaves it.
  if (old.contains(document.activeElement) && document.activeElement.matches("input, select")) return;
  const open = new Set([...old.querySelectorAll("details[open][id]")].map((each) => each.id));
  old.replaceWith(part);
  for (const id of open) document.getElementById(id)?.setAttribute("open", "");
  if (focus) document.getElementById(focus)?.focus({ preventScroll: true });
}

function partsOf(html) {
  return [...new DOMParser().parseFromString(html, "text/html").body.children];
}

function follow(element) {
  const state = document.getElementById("live-state");
  const source = new EventSource(element.dataset.live);
  source.addEventListener("parts", (event) => {
    for (const part of partsOf(event.data)) if (part.id) replace(part);
    if (state) state.textContent = "live";
  });
  source.addEventListener("error", () => {
    if (state) state.textContent = "connection lost, trying again";
    // A reply other than 200 ends an EventSource for good; a restarted server is back soon.
    if (source.readyState === EventSource.CLOSED) setTimeout(() => follow(element), 2000);
  });
  window.addEventListener("pagehide", () => source.close(), { once: true });
}

let asked = 0;
async function load(address, id, remember) {
  const mine = (asked += 1);
  const results = document.getElementById(id);
  results?.setAttribute("aria-busy", "true");
  let part = null;
  try {
    const reply = await fetch(address, { headers: { Accept: "text/html" } });
    if (reply.ok) {
      const page = new DOMParser().parseFromString(await reply.text(), "text/html");
      part = page.getElementById(id);
    }
  } catch {
    part = null;
  }
  // A later change has been asked for meanwhile.
  if (mine !== asked) return;
  if (!part) {
    window.location.assign(address);
    return;
  }
  document.getElementById(id)?.replaceWith(part);
  if (remember) history.pushState({ results: id }, "", address);
}

function addressOf(form) {
  const values = new URLSearchParams();
  for (const [name, value] of new FormData(form)) if (value !== "") values.append(name, value);
  const query = values.toString();
  return form.action.split("?")[0] + (query ? `?${query}` : "");
}

let waiting = 0;
document.addEventListener("input", (event) => {
  const twin = event.target.dataset?.twin;
  if (twin) {
    // A slider and its number show one value; the number is what the form sends.
    const other = document.getElementById(twin);
    const isEnd = event.target.type === "range" && event.target.value === event.target.dataset.none;
    if (other) other.value = isEnd ? "" : event.target.value;
  }
  const form = event.target.closest?.("form[data-results]");
  if (!form) return;
  clearTimeout(waiting);
  waiting = setTimeout(() => load(addressOf(form), form.dataset.results, true), 250);
});

document.addEventListener("submit", (event) => {
  const form = event.target.closest("form[data-results]");
  if (!form) return;
  event.preventDefault();
  clearTimeout(waiting);
  load(addressOf(form), form.dataset.results, true);
});

document.addEventListener("click", (event) => {
  const link = event.target.closest("a[data-results]");
  if (!link || event.ctrlKey || event.metaKey || event.shiftKey || event.button) return;
  event.preventDefault();
  const id = link.dataset.results;
  load(link.href, id, true).then(() => {
    const results = document.getElementById(id);
    results?.scrollIntoView();
    results?.focus({ preventScroll: true });
  });
});

window.addEventListener("popstate", () => window.location.reload());

for (const element of document.querySelectorAll("[data-live]")) follow(element);
