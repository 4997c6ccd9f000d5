// Questions to the server.

const PAUSE = 70; // ms after the last move of a slider

export async function fetched(path, options) {
  let response;
  try {
    response = await fetch(path, options);
  } catch {
    throw new Error("The server does not answer. Is mvmae explore still running?");
  }
  if (response.ok) return response;
  const said = await response.json().catch(() => ({}));
  throw new Error(said.message || `The server answered ${response.status}.`);
}
export const get = async (path) => (await fetched(path)).json();
const post = async (path, question) =>
  (await fetched(path, { method: "POST", body: JSON.stringify(question) })).json();

// One question of a panel is under way at a time. Of those that come meanwhile the last is asked
// next, and an answer that is out of date by then is dropped.
export function asker(name, path, show) {
  const panel = document.getElementById(name);
  let running = false;
  let next = null;
  return async function ask(question) {
    if (running) { next = question; return; }
    running = true;
    panel.setAttribute("aria-busy", "true");
    try {
      const answer = await post(path, question);
      if (!next) { complain(panel, ""); show(answer, question); }
    } catch (error) {
      if (!next) complain(panel, error.message);
    }
    running = false;
    const later = next;
    next = null;
    if (later) ask(later);
    else panel.removeAttribute("aria-busy");
  };
}

export function complain(panel, message) {
  const place = panel.querySelector(".message");
  place.textContent = message;
  place.hidden = !message;
  panel.toggleAttribute("data-failed", Boolean(message));
}

export function soon(work) {
  let timer = 0;
  return () => { clearTimeout(timer); timer = setTimeout(work, PAUSE); };
}
