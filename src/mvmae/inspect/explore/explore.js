// The page of mvmae explore. Text from the server is shown as text, never as markup.
import { asker, complain, fetched, get, soon } from "./asking.js";
import { picker, placeOf } from "./picking.js";

const PAGE = 24; // images of the gallery at a time
const MOST_BYTES = 32 * 2 ** 20; // of an upload; the server refuses more, too
const POLL = 1000; // ms between two looks at the background's progress

const $ = (id) => document.getElementById(id);
let about = null;
let current = null; // {image, name, label}: what is explored
let patch = 0; // the one that others are compared with
let visible = null; // patches shown by hand; null where share and mask number say which
let shown = new Set(); // patches that the last reconstruction saw

const say = (text) => { $("status").textContent = text; };
const picture = (id, uri, alt) => { $(id).src = uri; $(id).alt = alt; };
const called = () => current.name + (current.label ? `, ${current.label}` : "");

// choosing an image

function card(of, said, alone) {
  const item = document.createElement("li");
  const button = document.createElement("button");
  const img = document.createElement("img");
  button.type = "button";
  button.dataset.image = of.image;
  button.title = of.name;
  button.setAttribute("aria-label", [of.name, of.label, said].filter(Boolean).join(", "));
  if (current && of.image === current.image) button.setAttribute("aria-current", "true");
  img.src = `/api/thumbnails/${of.image.slice(1)}`;
  img.alt = "";
  img.width = img.height = 128;
  button.append(img);
  for (const [text, kind] of alone ? [] : [[of.label || of.name, "any"], [said, "said"]]) {
    const span = document.createElement("span");
    span.className = kind;
    span.textContent = text;
    button.append(span);
  }
  button.addEventListener("click", () => choose(of));
  item.append(button);
  return item;
}

async function choose(of, scroll = true) {
  let content;
  try {
    content = await (await fetched(`/api/images/${encodeURIComponent(of.image)}`)).blob();
  } catch (error) {
    trouble(error.message);
    return;
  }
  trouble("");
  current = of;
  visible = null;
  const img = $("current-picture");
  if (img.src.startsWith("blob:")) URL.revokeObjectURL(img.src);
  img.src = URL.createObjectURL(content);
  img.alt = `The image explored: ${called()}`;
  img.hidden = false;
  $("current-name").textContent = of.name;
  $("current-label").textContent = of.label ? `(${of.label})` : "";
  for (const one of document.querySelectorAll("button[data-image]")) {
    if (one.dataset.image === of.image) one.setAttribute("aria-current", "true");
    else one.removeAttribute("aria-current");
  }
  history.replaceState(null, "", of.image.startsWith("d") ? `#${of.image}` : " ");
  say(`Exploring ${called()}`);
  if (about.decoder) reconstruct();
  similar();
  features();
  neighbours();
  attention();
  if (scroll && $("panels").getBoundingClientRect().top > innerHeight * 0.6) {
    $("current").scrollIntoView({ block: "start" });
  }
}

function trouble(message) {
  $("upload-message").textContent = message;
  $("upload-message").hidden = !message;
}

async function upload(file) {
  if (!file) return;
  if (file.size > MOST_BYTES) {
    trouble(`${file.name} is too large: at most ${MOST_BYTES / 2 ** 20} MB.`);
    return;
  }
  say("Reading the image");
  try {
    const { image } = await (await fetched("/api/images", { method: "POST", body: file })).json();
    await choose({ image, name: file.name || "pasted image", label: null });
  } catch (error) {
    say("");
    trouble(error.message);
  }
}

async function moreImages() {
  const offset = $("gallery").children.length;
  try {
    const found = await get(`/api/gallery?offset=${offset}&count=${PAGE}`);
    $("gallery").append(...found.images.map((of) => card(of, "", true)));
    $("more").hidden = $("gallery").children.length >= found.total;
    return found.images;
  } catch (error) {
    trouble(error.message);
    return [];
  }
}

// panels

const reconstruct = () => {
  const question = { image: current.image, seed: Number($("seed").value) || 0 };
  if (visible) question.visible = [...visible];
  else question.mask_ratio = Number($("ratio").value);
  askReconstruction(question);
};

const askReconstruction = asker("reconstruction", "/api/reconstruct", (answer) => {
  const total = about.decoder.grid[0] * about.decoder.grid[1];
  const hidden = total - answer.visible.length;
  shown = new Set(answer.visible);
  picture("original", answer.pictures.original, `${called()}, as the encoder takes it`);
  picture("masked", answer.pictures.masked, `${called()} with ${hidden} of ${total} patches hidden`);
  picture("prediction", answer.pictures.prediction, `What the decoder makes of ${called()}`);
  picture("pasted", answer.pictures.pasted,
    `What the decoder makes of ${called()}, with the visible patches over it`);
  $("ratio").value = hidden / total;
  ratioSaid(hidden, total);
  const steps = answer.error === null ? "not a number" : (255 * Math.sqrt(answer.error)).toFixed(0);
  $("error").textContent = `Hidden pixels are off by ${steps} of 255 steps of brightness, as a root `
    + `mean square. ${about.decoder.normalized ? NORMALIZED : ""}`;
  say(`${hidden} of ${total} patches hidden`);
});

const NORMALIZED = "This run learnt each patch's pattern, not its brightness and contrast: these "
  + "are estimated from the visible patches nearby.";

function ratioSaid(hidden, total) {
  const text = `${Math.round((100 * hidden) / total)} %, ${hidden} of ${total}`;
  $("ratio-said").textContent = text;
  $("ratio").setAttribute("aria-valuetext", `${text} patches`);
}

const attention = () => {
  const kind = document.querySelector("input[name=kind]:checked").value;
  const block = Number($("block").value);
  $("block-control").hidden = kind === "rollout";
  $("block-said").textContent = `${block} of ${about.blocks}`;
  $("block").setAttribute("aria-valuetext", `${block} of ${about.blocks}`);
  askAttention({
    image: current.image, heads: kind === "heads", block: kind === "rollout" ? null : block - 1,
  });
};

const askAttention = asker("attention", "/api/attention", (answer, question) => {
  const where = question.block === null ? "all blocks" : `block ${question.block + 1}`;
  const several = answer.maps.length > 1;
  const across = several ? (answer.maps.length > 4 ? "three" : "two") : "one";
  $("attention-maps").className = `pictures ${across}`;
  $("attention-maps").replaceChildren(...answer.maps.map((uri, at) => {
    const figure = document.createElement("figure");
    const img = document.createElement("img");
    img.src = uri;
    img.alt = `Attention of ${several ? `head ${at + 1} of ` : ""}${where} on ${called()}`;
    figure.append(img);
    if (several) {
      const caption = document.createElement("figcaption");
      caption.textContent = `Head ${at + 1}`;
      figure.append(caption);
    }
    return figure;
  }));
  const whose = about.has_class_token ? "the class token" : "the patches, on average";
  $("attention-hint").textContent = question.block === null
    ? "What reaches the end through all blocks together (attention rollout)."
    : `What ${whose} ${about.has_class_token ? "takes" : "take"} from each patch in ${where}.`;
});

const similar = () => askSimilar({ image: current.image, patch });

const askSimilar = asker("similarity", "/api/similar", (answer, question) => {
  const [row, column] = placeOf(question.patch, about.grid);
  picture("similar", answer.map,
    `How like the patch in row ${row}, column ${column} the patches of ${called()} are`);
  const others = answer.values.filter((_, at) => at !== question.patch);
  const text = `Row ${row}, column ${column}.`
    + (others.length ? ` Others are like it from ${Math.min(...others).toFixed(2)} to `
      + `${Math.max(...others).toFixed(2)}; 1 would be the same.` : "");
  $("patch-said").textContent = text;
  say(text);
});

const features = () => askFeatures({
  image: current.image,
  alone: document.querySelector("input[name=basis]:checked").value === "alone",
});

const askFeatures = asker("features", "/api/features", (answer, question) => {
  picture("painted", answer.map, `Patches of ${called()}, coloured by their features`);
  $("features-hint").textContent = answer.common
    ? "A colour means the same on every image."
    : question.alone
      ? "Colours are spread over this image: they do not compare with those of others."
      : "For this image alone until some images of the data are embedded.";
});

const neighbours = () => askNeighbours({ image: current.image, count: 16 });

const askNeighbours = asker("neighbours", "/api/neighbours", (answer) => {
  const list = answer.images.map((of) => card(of, of.similarity.toFixed(3)));
  $("nearest").replaceChildren(...list);
  $("among").textContent = answer.among
    ? `Among ${answer.among.toLocaleString("en")} images of the data.`
    : "No image of the data is embedded yet; this takes a moment.";
});

// patches by hand

function toggle(number) {
  const next = new Set(visible || shown);
  if (!next.delete(number)) next.add(number);
  const total = about.decoder.grid[0] * about.decoder.grid[1];
  if (next.size === 0 || next.size === total) {
    say("At least one patch must stay visible, and one hidden");
    return;
  }
  visible = next;
  reconstruct();
}

// the background

async function watch() {
  let before = { done: -1, has_basis: true };
  for (;;) {
    let now;
    try {
      now = await get("/api/progress");
    } catch (error) {
      $("embedding-label").textContent = error.message;
      await new Promise((wake) => setTimeout(wake, 3 * POLL));
      continue;
    }
    $("embedding").hidden = now.finished && !now.trouble;
    $("embedded").max = now.total;
    $("embedded").value = now.done;
    $("embedding-label").textContent = now.trouble
      ? `The images are not embedded: ${now.trouble}`
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
  const found = await get("/api/typical").catch(() => ({ most: [], least: [] }));
  for (const kind of ["least", "most"]) {
    $(kind).replaceChildren(...found[kind].map((of) => card(of, of.similarity.toFixed(3))));
  }
  $("typical").hidden = !found.most.length;
}

// beginning

function theme() {
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

function listen() {
  $("upload").addEventListener("click", () => $("file").click());
  $("file").addEventListener("change", () => { upload($("file").files[0]); $("file").value = ""; });
  $("more").addEventListener("click", moreImages);
  const slower = soon(() => { visible = null; reconstruct(); });
  $("ratio").addEventListener("input", () => {
    const [rows, columns] = about.decoder.grid;
    ratioSaid(Math.round(Number($("ratio").value) * rows * columns), rows * columns);
    slower();
  });
  $("seed").addEventListener("input", slower);
  $("another").addEventListener("click", () => {
    $("seed").value = ((Number($("seed").value) || 0) + 1) % 2 ** 31;
    visible = null;
    reconstruct();
  });
  $("block").addEventListener("input", soon(attention));
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
    else trouble("That was no file: drop an image file.");
  });
}

function prepare() {
  document.title = `${about.name} – mvmae explore`;
  $("name").textContent = about.name;
  $("encoder").textContent = about.encoder;
  $("data").textContent = about.data;
  $("block").max = $("block").value = about.blocks;
  patch = Math.floor(about.grid[0] / 2) * about.grid[1] + Math.floor(about.grid[1] / 2);
  const pick = (number) => { patch = number; similar(); };
  picker($("patches"), about.grid, patch, pick, pick);
  $("patches").classList.add("shown");
  if (!about.decoder) {
    const panel = $("reconstruction");
    panel.querySelector(".body").hidden = true;
    complain(panel, about.no_decoder);
    panel.querySelector(".message").classList.add("calm");
    return;
  }
  const { grid, hidden } = about.decoder;
  const total = grid[0] * grid[1];
  Object.assign($("ratio"), { min: 1 / total, max: 1 - 1 / total, step: 1 / total });
  $("ratio").value = hidden / total;  // as in training, where the share need not be so whole
  picker($("mask"), grid, 0, (number) => {
    const [row, column] = placeOf(number, grid);
    say(`Row ${row}, column ${column}: ${shown.has(number) ? "visible" : "hidden"}`);
  }, toggle);
}

async function begin() {
  theme();
  try {
    about = await get("/api/about");
  } catch (error) {
    trouble(error.message);
    return;
  }
  prepare();
  listen();
  const first = await moreImages();
  const [, asked] = /^#d(\d{1,18})$/.exec(location.hash) || [];
  if (asked) await get(`/api/cards/${asked}`).then((of) => choose(of, false), () => {});
  for (const one of first) {  // some may be unreadable
    if (current) break;
    await choose(one, false);
  }
  watch();
}

begin();
