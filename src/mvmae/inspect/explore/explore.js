// The page of mvmae explore. Text from the server is inserted as text, never as markup.
import { addPatchPicker, rowAndColumn } from "./patch_picker.js";
import { debounce, getJson, panelRequests, request, showError } from "./requests.js";

const PAGE_SIZE = 24; // images added to the gallery at a time
const MAX_UPLOAD_BYTES = 32 * 2 ** 20; // the server has the same limit
const POLL = 1000; // ms between two requests for the progress of the background

const $ = (id) => document.getElementById(id);
let about = null;
let current = null; // the image being explored: {image, name, label}
let patch = 0; // the patch that others are compared with
let visible = null; // patches chosen by hand; null if share and mask number decide
let shown = new Set(); // visible patches of the last reconstruction

const announce = (text) => { $("status").textContent = text; };
const setPicture = (id, uri, alt) => { $(id).src = uri; $(id).alt = alt; };
const currentName = () => current.name + (current.label ? `, ${current.label}` : "");

// the current image

function makeCard(entry, detail, withoutText) {
  const item = document.createElement("li");
  const button = document.createElement("button");
  const img = document.createElement("img");
  button.type = "button";
  button.dataset.image = entry.image;
  button.title = entry.name;
  button.setAttribute("aria-label", [entry.name, entry.label, detail].filter(Boolean).join(", "));
  if (current && entry.image === current.image) button.setAttribute("aria-current", "true");
  img.src = `/api/thumbnails/${entry.image.slice(1)}`;
  img.alt = "";
  img.width = img.height = 128;
  button.append(img);
  const lines = withoutText ? [] : [[entry.label || entry.name, "any"], [detail, "detail"]];
  for (const [text, kind] of lines) {
    const span = document.createElement("span");
    span.className = kind;
    span.textContent = text;
    button.append(span);
  }
  button.addEventListener("click", () => choose(entry));
  item.append(button);
  return item;
}

async function choose(entry, scroll = true) {
  let content;
  try {
    content = await (await request(`/api/images/${encodeURIComponent(entry.image)}`)).blob();
  } catch (error) {
    showMessage(error.message);
    return;
  }
  showMessage("");
  current = entry;
  visible = null;
  const img = $("current-picture");
  if (img.src.startsWith("blob:")) URL.revokeObjectURL(img.src);
  img.src = URL.createObjectURL(content);
  img.alt = `Current image: ${currentName()}`;
  img.hidden = false;
  $("current-name").textContent = entry.name;
  $("current-label").textContent = entry.label ? `(${entry.label})` : "";
  for (const button of document.querySelectorAll("button[data-image]")) {
    if (button.dataset.image === entry.image) button.setAttribute("aria-current", "true");
    else button.removeAttribute("aria-current");
  }
  history.replaceState(null, "", entry.image.startsWith("d") ? `#${entry.image}` : " ");
  announce(`Exploring ${currentName()}`);
  if (about.decoder) reconstruct();
  similar();
  features();
  neighbours();
  attention();
  if (scroll && $("panels").getBoundingClientRect().top > innerHeight * 0.6) {
    $("current").scrollIntoView({ block: "start" });
  }
}

function showMessage(message) {
  $("upload-message").textContent = message;
  $("upload-message").hidden = !message;
}

async function upload(file) {
  if (!file) return;
  if (file.size > MAX_UPLOAD_BYTES) {
    showMessage(`${file.name} is too large: at most ${MAX_UPLOAD_BYTES / 2 ** 20} MB.`);
    return;
  }
  announce("Reading the image");
  try {
    const { image } = await (await request("/api/images", { method: "POST", body: file })).json();
    await choose({ image, name: file.name || "pasted image", label: null });
  } catch (error) {
    announce("");
    showMessage(error.message);
  }
}

async function loadMoreImages() {
  const offset = $("gallery").children.length;
  try {
    const answer = await getJson(`/api/gallery?offset=${offset}&count=${PAGE_SIZE}`);
    $("gallery").append(...answer.images.map((entry) => makeCard(entry, "", true)));
    $("more").hidden = $("gallery").children.length >= answer.total;
    return answer.images;
  } catch (error) {
    showMessage(error.message);
    return [];
  }
}

// panels

const reconstruct = () => {
  const values = { image: current.image, seed: Number($("seed").value) || 0 };
  if (visible) values.visible = [...visible];
  else values.mask_ratio = Number($("ratio").value);
  requestReconstruction(values);
};

const requestReconstruction = panelRequests("reconstruction", "/api/reconstruct", (answer) => {
  const total = about.decoder.grid[0] * about.decoder.grid[1];
  const hidden = total - answer.visible.length;
  shown = new Set(answer.visible);
  setPicture("original", answer.pictures.original, `${currentName()}, as the encoder sees it`);
  setPicture("masked", answer.pictures.masked, `${currentName()} with ${hidden} of ${total} patches hidden`);
  setPicture("prediction", answer.pictures.prediction, `Prediction of the decoder for ${currentName()}`);
  setPicture("pasted", answer.pictures.pasted,
    `Prediction for ${currentName()} with the visible patches pasted over it`);
  $("ratio").value = hidden / total;
  showRatio(hidden, total);
  const levels = answer.error === null ? "not a number" : (255 * Math.sqrt(answer.error)).toFixed(0);
  $("error").textContent = `Root mean square error of the hidden pixels: ${levels} of 255 brightness `
    + `levels. ${about.decoder.normalized ? NORMALIZED : ""}`;
  announce(`${hidden} of ${total} patches hidden`);
});

const NORMALIZED = "This run learned the pattern of each patch but not its brightness and contrast, "
  + "which are estimated here from the visible patches nearby.";

function showRatio(hidden, total) {
  const text = `${Math.round((100 * hidden) / total)} %, ${hidden} of ${total}`;
  $("ratio-text").textContent = text;
  $("ratio").setAttribute("aria-valuetext", `${text} patches`);
}

const attention = () => {
  const kind = document.querySelector("input[name=kind]:checked").value;
  const block = Number($("block").value);
  $("block-control").hidden = kind === "rollout";
  $("block-text").textContent = `${block} of ${about.blocks}`;
  $("block").setAttribute("aria-valuetext", `${block} of ${about.blocks}`);
  requestAttention({
    image: current.image, heads: kind === "heads", block: kind === "rollout" ? null : block - 1,
  });
};

const requestAttention = panelRequests("attention", "/api/attention", (answer, values) => {
  const where = values.block === null ? "all blocks" : `block ${values.block + 1}`;
  const several = answer.maps.length > 1;
  const columns = several ? (answer.maps.length > 4 ? "three" : "two") : "one";
  $("attention-maps").className = `pictures ${columns}`;
  $("attention-maps").replaceChildren(...answer.maps.map((uri, index) => {
    const figure = document.createElement("figure");
    const img = document.createElement("img");
    img.src = uri;
    img.alt = `Attention of ${several ? `head ${index + 1} of ` : ""}${where} on ${currentName()}`;
    figure.append(img);
    if (several) {
      const caption = document.createElement("figcaption");
      caption.textContent = `Head ${index + 1}`;
      figure.append(caption);
    }
    return figure;
  }));
  const reader = about.has_class_token ? "the class token pays" : "the patches pay on average";
  $("attention-hint").textContent = values.block === null
    ? "How much each patch contributes through all blocks together (attention rollout)."
    : `How much attention ${reader} to each patch in ${where}.`;
});

const similar = () => requestSimilar({ image: current.image, patch });

const requestSimilar = panelRequests("similarity", "/api/similar", (answer, values) => {
  const [row, column] = rowAndColumn(values.patch, about.grid);
  setPicture("similar", answer.map,
    `Similarity of all patches of ${currentName()} to the patch in row ${row}, column ${column}`);
  const others = answer.values.filter((_, index) => index !== values.patch);
  const text = `Row ${row}, column ${column}.`
    + (others.length ? ` Similarity of the others: ${Math.min(...others).toFixed(2)} to `
      + `${Math.max(...others).toFixed(2)}, where 1 means identical.` : "");
  $("patch-text").textContent = text;
  announce(text);
});

const features = () => requestFeatures({
  image: current.image,
  alone: document.querySelector("input[name=basis]:checked").value === "alone",
});

const requestFeatures = panelRequests("features", "/api/features", (answer, values) => {
  setPicture("painted", answer.map, `Patches of ${currentName()}, coloured by their features`);
  $("features-hint").textContent = answer.common
    ? "A colour means the same in every image."
    : values.alone
      ? "Colours are fitted to this image and cannot be compared with those of other images."
      : "Colours are fitted to this image until enough images of the data are embedded.";
});

const neighbours = () => requestNeighbours({ image: current.image, count: 16 });

const requestNeighbours = panelRequests("neighbours", "/api/neighbours", (answer) => {
  const cards = answer.images.map((entry) => makeCard(entry, entry.similarity.toFixed(3)));
  $("nearest").replaceChildren(...cards);
  $("among").textContent = answer.among
    ? `Searched ${answer.among.toLocaleString("en")} images of the data.`
    : "No images of the data are embedded yet; this takes a moment.";
});

// hiding and showing patches by hand

function togglePatch(number) {
  const next = new Set(visible || shown);
  if (!next.delete(number)) next.add(number);
  const total = about.decoder.grid[0] * about.decoder.grid[1];
  if (next.size === 0 || next.size === total) {
    announce("At least one patch must stay visible and one hidden");
    return;
  }
  visible = next;
  reconstruct();
}

// the background

async function watchProgress() {
  let before = { done: -1, has_basis: true };
  for (;;) {
    let now;
    try {
      now = await getJson("/api/progress");
    } catch (error) {
      $("embedding-label").textContent = error.message;
      await new Promise((wake) => setTimeout(wake, 3 * POLL));
      continue;
    }
    $("embedding").hidden = now.finished && !now.error;
    $("embedded").max = now.total;
    $("embedded").value = now.done;
    $("embedding-label").textContent = now.error
      ? `Embedding stopped: ${now.error}`
      : `Embedding ${now.done.toLocaleString("en")} of ${now.total.toLocaleString("en")} images`;
    if (current && now.has_basis && !before.has_basis) features();
    if (current && before.done >= 0 && (now.finished || now.done >= 2 * before.done)) {
      neighbours();
      before = now;
    }
    if (before.done < 0) before = now;
    before.has_basis = now.has_basis;
    if (now.finished) break;
    await new Promise((wake) => setTimeout(wake, POLL));
  }
  const answer = await getJson("/api/typical").catch(() => ({ most: [], least: [] }));
  for (const kind of ["least", "most"]) {
    const cards = answer[kind].map((entry) => makeCard(entry, entry.similarity.toFixed(3)));
    $(kind).replaceChildren(...cards);
  }
  $("typical").hidden = !answer.most.length;
}

// start

function setUpTheme() {
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const root = document.documentElement;
  const show = () => {
    const now = root.dataset.theme || (dark.matches ? "dark" : "light");
    $("theme").textContent = now === "dark" ? "Light" : "Dark";
    $("theme").setAttribute("aria-label", `${$("theme").textContent} colours`);
    return now;
  };
  $("theme").addEventListener("click", () => {
    root.dataset.theme = show() === "dark" ? "light" : "dark";
    show();
  });
  dark.addEventListener("change", show);
  show();
}

function addListeners() {
  $("upload").addEventListener("click", () => $("file").click());
  $("file").addEventListener("change", () => { upload($("file").files[0]); $("file").value = ""; });
  $("more").addEventListener("click", loadMoreImages);
  const reconstructLater = debounce(() => { visible = null; reconstruct(); });
  $("ratio").addEventListener("input", () => {
    const [rows, columns] = about.decoder.grid;
    showRatio(Math.round(Number($("ratio").value) * rows * columns), rows * columns);
    reconstructLater();
  });
  $("seed").addEventListener("input", reconstructLater);
  $("another").addEventListener("click", () => {
    $("seed").value = ((Number($("seed").value) || 0) + 1) % 2 ** 31;
    visible = null;
    reconstruct();
  });
  $("block").addEventListener("input", debounce(attention));
  for (const one of document.querySelectorAll("input[name=kind]")) {
    one.addEventListener("change", attention);
  }
  for (const one of document.querySelectorAll("input[name=basis]")) {
    one.addEventListener("change", features);
  }
  addEventListener("paste", (event) => {
    const file = event.clipboardData && event.clipboardData.files[0];
    if (file) { event.preventDefault(); upload(file); }
  });
  addEventListener("dragover", (event) => { event.preventDefault(); $("drop").hidden = false; });
  addEventListener("dragleave", (event) => { if (!event.relatedTarget) $("drop").hidden = true; });
  addEventListener("drop", (event) => {
    event.preventDefault();
    $("drop").hidden = true;
    if (event.dataTransfer.files.length) upload(event.dataTransfer.files[0]);
    else showMessage("That is not a file: drop an image file.");
  });
}

function buildPage() {
  document.title = `${about.name} – mvmae explore`;
  $("name").textContent = about.name;
  $("encoder").textContent = about.encoder;
  $("data").textContent = about.data;
  $("block").max = $("block").value = about.blocks;
  patch = Math.floor(about.grid[0] / 2) * about.grid[1] + Math.floor(about.grid[1] / 2);
  const pick = (number) => { patch = number; similar(); };
  addPatchPicker($("patches"), about.grid, patch, pick, pick);
  $("patches").classList.add("shown");
  if (!about.decoder) {
    const panel = $("reconstruction");
    panel.querySelector(".body").hidden = true;
    showError(panel, about.no_decoder);
    panel.querySelector(".message").classList.add("calm");
    return;
  }
  const { grid, hidden } = about.decoder;
  const total = grid[0] * grid[1];
  Object.assign($("ratio"), { min: 1 / total, max: 1 - 1 / total, step: 1 / total });
  $("ratio").value = hidden / total;  // as in training, rounded to whole patches
  addPatchPicker($("mask"), grid, 0, (number) => {
    const [row, column] = rowAndColumn(number, grid);
    announce(`Row ${row}, column ${column}: ${shown.has(number) ? "visible" : "hidden"}`);
  }, togglePatch);
}

async function start() {
  setUpTheme();
  try {
    about = await getJson("/api/about");
  } catch (error) {
    showMessage(error.message);
    return;
  }
  buildPage();
  addListeners();
  const first = await loadMoreImages();
  const [, wanted] = /^#d(\d{1,18})$/.exec(location.hash) || [];
  if (wanted) await getJson(`/api/cards/${wanted}`).then((entry) => choose(entry, false), () => {});
  for (const entry of first) {  // the first may be unreadable
    if (current) break;
    await choose(entry, false);
  }
  watchProgress();
}

start();
