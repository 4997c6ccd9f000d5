// Send requests to the server.

const DEBOUNCE = 70; // ms after the last move of a slider

export async function request(path, options) {
  let response;
  try {
    response = await fetch(path, options);
  } catch {
    throw new Error("The server does not answer. Is mvmae explore still running?");
  }
  if (response.ok) return response;
  const answer = await response.json().catch(() => ({}));
  throw new Error(answer.message || `The server answered with status ${response.status}.`);
}
export const getJson = async (path) => (await request(path)).json();
const postJson = async (path, values) =>
  (await request(path, { method: "POST", body: JSON.stringify(values) })).json();

// A function that sends the requests of a panel, one at a time. Of the requests that arrive while
// one is running, only the last is sent next, and the outdated answer is dropped.
export function panelRequests(name, path, show) {
  const panel = document.getElementById(name);
  let running = false;
  let next = null;
  return async function send(values) {
    if (running) { next = values; return; }
    running = true;
    panel.setAttribute("aria-busy", "true");
    try {
      const answer = await postJson(path, values);
      if (!next) { showError(panel, ""); show(answer, values); }
    } catch (error) {
      if (!next) showError(panel, error.message);
    }
    running = false;
    const later = next;
    next = null;
    if (later) send(later);
    else panel.removeAttribute("aria-busy");
  };
}

export function showError(panel, message) {
  const place = panel.querySelector(".message");
  place.textContent = message;
  place.hidden = !message;
  panel.toggleAttribute("data-failed", Boolean(message));
}

export function debounce(work) {
  let timer = 0;
  return () => { clearTimeout(timer); timer = setTimeout(work, DEBOUNCE); };
}
