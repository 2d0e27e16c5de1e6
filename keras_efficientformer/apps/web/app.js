// The page: what is chosen, shown and said. What is computed stands in network.js, masks.js and
// preprocessing.js.

import { bestClasses, drawMask, shares } from "./masks.js";
import { open, whyNoWebGPU } from "./network.js";
import { decode } from "./preprocessing.js";

const TOP = 5;
const LARGEST_DIFFERENCE = 0.05; // from LiteRT's values on the test picture, relative to the largest of them over 1
// What differs between the kinds of models: words, and pixels of the longer side of a picture that is shown.
const KINDS = {
  classifier: { title: "Image classifier", done: "classified", what: "scores", side: 160 },
  segmenter: { title: "Image segmenter", done: "segmented", what: "masks", side: 480 },
};

const byId = (id) => document.getElementById(id);
const [modelChoice, sizeChoice, backendChoice, photos, folder, camera, video, results, drop] = [
  "model", "size", "backend", "photos", "folder", "camera", "video", "results", "drop",
].map(byId);

let models = [];
let network = null;
let files = [];
let source = null; // the job that shows images, which is begun again where another model or size is chosen

// One thing is done at a time, because a network runs one image at a time; a newer job ends the older one.
let latest = 0;
let queue = Promise.resolve();

function begin(job) {
  const own = ++latest;
  queue = queue.then(() => (own === latest ? job(() => own === latest) : undefined)).catch(showError);
}

function say(text) {
  if (byId("status").textContent !== text) byId("status").textContent = text;
}

function showError(error) {
  byId("error").textContent = error?.message ?? String(error);
  byId("error").hidden = false;
  say("");
}

async function start() {
  models = (await (await loaded("models.json")).json()).models;
  modelChoice.replaceChildren(...models.map(({ file }) => new Option(file)));
  const why = await whyNoWebGPU();
  const webgpu = backendChoice.querySelector("[value=webgpu]");
  webgpu.disabled = why !== null;
  if (why) webgpu.textContent += `: ${why}`;
  backendChoice.value = why ? "wasm" : "webgpu";
  byId("folder-label").hidden = !("webkitdirectory" in folder);
  for (const control of [modelChoice, sizeChoice, backendChoice]) control.disabled = false;
  offerSizes();
  await openChosen();
}

async function loaded(path) {
  const answer = await fetch(path);
  if (!answer.ok) throw new Error(`${path} cannot be loaded: ${answer.status} ${answer.statusText}`);
  return answer;
}

function offerSizes() {
  const { sizes } = models[modelChoice.selectedIndex];
  sizeChoice.replaceChildren(...sizes.map(({ size }) => new Option(inPixels(size))));
  byId("size-label").hidden = sizes.length === 1;
}

function inPixels([height, width]) {
  return `${height}x${width} pixels`;
}

/** Opens the model that is chosen; where the GPU cannot run it, the CPU does. */
async function openChosen() {
  const facts = models[modelChoice.selectedIndex];
  byId("error").hidden = true;
  for (const control of [photos, folder, camera]) control.disabled = true;
  network?.delete();
  network = null;
  document.title = byId("title").textContent = KINDS[facts.kind].title;
  say(`Loading ${facts.file}.`);
  byId("facts").textContent = described();
  byId("check").textContent = "";
  const content = new Uint8Array(await (await loaded(facts.file)).arrayBuffer());
  if (content.length !== facts.bytes) {
    throw new Error(`${facts.file} has ${content.length} bytes, and had ${facts.bytes} when this page was made. Make it again.`);
  }
  let note = "";
  if (backendChoice.value === "webgpu") {
    try {
      note = await use(facts, content, "webgpu");
    } catch (error) {
      note = `${error.message}. The CPU computes instead. `;
      backendChoice.value = "wasm";
    }
  }
  if (network === null) note += await use(facts, content, "wasm");
  byId("check").textContent = note;
  for (const control of [photos, folder, camera]) control.disabled = false;
  say(`${facts.file} is ready.`);
}

/** Takes a file into use on one backend, at the size that is chosen, checked; what the check found, in words. */
async function use(facts, content, backend) {
  const opened = await open(facts, content, backend);
  try {
    const note = await checked(opened, backend);
    network = opened;
    return note;
  } catch (error) {
    opened.delete();
    throw error;
  }
}

/** Has an opened file take images of the size that is chosen; what the check found, in words. */
async function checked(opened, backend) {
  opened.choose(sizeChoice.selectedIndex);
  const { file, kind, check } = opened.facts;
  const { what } = KINDS[kind];
  const difference = await opened.check();
  const largest = Math.max(1, ...check.map(Math.abs));
  const shown = difference < 0.001 ? difference.toExponential(1) : difference.toFixed(3);
  // A comparison with NaN is false.
  if (!(difference <= LARGEST_DIFFERENCE * largest)) {
    throw new Error(`${file} gives other ${what} here than in LiteRT: they differ by ${shown}`);
  }
  const shared = backend === "webgpu" && opened.needsCPU ? " The CPU computes what the GPU cannot." : "";
  return `Checked on a test picture: the ${what} differ from LiteRT's by ${difference === 0 ? 0 : shown}.${shared}`;
}

/** Takes the size that is chosen into use, without loading the file again where it need not be. */
async function useChosenSize() {
  let note = null;
  try {
    note = network && (await checked(network, backendChoice.value));
  } catch {
    // The GPU cannot run this size: the file is opened for the CPU.
  }
  if (note === null) return openChosen();
  byId("facts").textContent = described();
  byId("check").textContent = note;
  say(`${network.facts.file} is ready.`);
}

function described() {
  const { labels, bytes, scores, sizes } = models[modelChoice.selectedIndex];
  const kind = {
    probabilities: "probabilities",
    scores: "a score for each class by itself",
    logits: "logits",
    masks: "one for each pixel",
  }[scores];
  return `${inPixels(sizes[sizeChoice.selectedIndex].size)}, ${labels.length} classes, ${kind}, ${(bytes / 1e6).toFixed(1)} MB`;
}

async function answerFiles(isLatest) {
  results.replaceChildren();
  say("Computing.");
  let [done, milliseconds] = [0, 0];
  for (const file of files) {
    if (!isLatest()) return;
    const name = file.webkitRelativePath || file.name;
    try {
      const image = await decoded(file);
      const answer = understood(await network.answer(image));
      if (!isLatest()) return;
      results.append(resultItem(name, image, answer));
      done += 1;
      milliseconds += answer.milliseconds;
      say(files.length === 1 ? spoken(answer) : `${done} of ${files.length} images so far.`);
    } catch (error) {
      results.append(badItem(`${name}: ${error.message}`));
    }
  }
  if (files.length === 1 && done === 1) return;
  const mean = done ? `, ${(milliseconds / done).toFixed(1)} ms each` : "";
  say(`${done} of ${files.length} images ${KINDS[network.facts.kind].done}${mean}.`);
}

async function decoded(file) {
  try {
    return await decode(file);
  } catch (error) {
    throw new Error("it is no image that this browser can read.", { cause: error });
  }
}

async function watchCamera(isLatest) {
  const stream = await cameraStream();
  try {
    video.srcObject = stream;
    video.hidden = false;
    camera.setAttribute("aria-pressed", "true");
    await video.play();
    let seen = "";
    while (isLatest()) {
      const image = await decode(video);
      const answer = understood(await network.answer(image));
      results.replaceChildren(resultItem("Camera", image, answer));
      // A screen reader is told when something else is seen, not thirty times a second.
      const [{ label }] = answer.rows;
      if (label !== seen) say(`Camera: ${label}.`);
      seen = label;
      await new Promise(requestAnimationFrame);
    }
  } finally {
    stream.getTracks().forEach((track) => track.stop());
    video.srcObject = null;
    video.hidden = true;
    camera.setAttribute("aria-pressed", "false");
  }
}

async function cameraStream() {
  if (!navigator.mediaDevices) throw new Error("Browsers give the camera to pages from https:// and localhost alone.");
  try {
    return await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
  } catch (error) {
    throw new Error(`The camera cannot be used: ${error.message}.`, { cause: error });
  }
}

/** What is shown of an answer: {rows, milliseconds, mask}.
 *
 * A row is of a class, the best first: {label, words, share, color}, the share being how long its bar is, 0..1. A mask
 * is the class of each pixel. Classifiers have neither mask nor colours.
 */
function understood({ values, milliseconds }) {
  const { kind, labels, colors } = network.facts;
  if (kind === "classifier") return { rows: best(values), milliseconds, mask: null };
  const mask = bestClasses(values, labels.length);
  const rows = shares(mask, labels.length).map(({ number, share }) => ({
    label: labels[number], words: percent(share), share, color: colors[number],
  }));
  return { rows, milliseconds, mask };
}

/** The classes with the highest scores, equal ones in the order of the classes. */
function best(scores) {
  const order = Array.from(scores.keys()).sort((a, b) => scores[b] - scores[a] || a - b);
  return order.slice(0, TOP).map((index) => ({
    label: network.facts.labels[index], words: inWords(scores[index]), share: barShare(scores[index], scores), color: null,
  }));
}

function inWords(score) {
  return network.facts.scores === "logits" ? score.toFixed(3) : percent(score);
}

function percent(share) {
  return `${(100 * share).toFixed(1)}%`;
}

function spoken({ rows: [{ label, words }], milliseconds }) {
  return `${label}, ${words}, ${milliseconds.toFixed(1)} ms.`;
}

function element(name, text = "", className = "") {
  const made = document.createElement(name);
  made.textContent = text;
  made.className = className;
  return made;
}

function resultItem(name, image, { rows, milliseconds, mask }) {
  const item = element("li", "", mask ? "masked" : "");
  const text = element("div");
  const list = element("ol");
  list.setAttribute("aria-label", mask ? "Classes by their share of the picture" : "Most probable classes");
  list.append(...rows.map(rowItem));
  text.append(element("h2", name), list, element("p", `${milliseconds.toFixed(1)} ms`, "quiet"));
  const { kind, output, colors } = network.facts;
  const picture = thumbnail(image, KINDS[kind].side);
  if (mask) drawMask(picture, mask, output.shape.slice(1, 3), colors);
  item.append(picture, text);
  return item;
}

function rowItem({ label, words, share, color }) {
  const row = element("li");
  const name = element("span", label);
  if (color) {
    const swatch = element("span", "", "swatch");
    swatch.style.backgroundColor = color;
    name.prepend(swatch);
  }
  const bar = element("span");
  bar.style.width = `${100 * share}%`;
  const frame = element("div", "", "bar");
  frame.append(bar);
  row.append(name, element("span", words, "score"), frame);
  return row;
}

/** How long a score's bar is, 0..1; logits begin at the smallest. */
function barShare(score, scores) {
  if (network.facts.scores !== "logits") return score;
  const [smallest, largest] = [Math.min(...scores), Math.max(...scores)];
  return largest > smallest ? (score - smallest) / (largest - smallest) : 1;
}

function badItem(message) {
  return element("li", message, "bad");
}

function thumbnail(image, side) {
  const whole = document.createElement("canvas");
  [whole.width, whole.height] = [image.width, image.height];
  whole.getContext("2d").putImageData(image, 0, 0);
  const scale = Math.min(1, side / Math.max(image.width, image.height));
  const small = document.createElement("canvas");
  small.width = Math.max(1, Math.round(image.width * scale));
  small.height = Math.max(1, Math.round(image.height * scale));
  small.getContext("2d").drawImage(whole, 0, 0, small.width, small.height);
  small.setAttribute("aria-hidden", "true"); // the name beside it says which image it is
  return small;
}

function answerAll(chosen) {
  files = [...chosen].filter((file) => file.type.startsWith("image/") || chosen.length === 1);
  byId("error").hidden = true;
  source = files.length ? answerFiles : null;
  if (source) begin(source);
  else showError(new Error("There are no images in it."));
}

/** Takes what is chosen into use, and shows again what is shown. */
function repeatAfter(choose) {
  begin(async (isLatest) => {
    await choose();
    await source?.(isLatest);
  });
}

modelChoice.addEventListener("change", () => {
  offerSizes();
  repeatAfter(openChosen);
});
sizeChoice.addEventListener("change", () => repeatAfter(useChosenSize));
backendChoice.addEventListener("change", () => repeatAfter(openChosen));
for (const control of [photos, folder]) {
  control.addEventListener("change", () => {
    answerAll(control.files);
    control.value = ""; // so that the same file can be chosen again
  });
}
camera.addEventListener("click", () => {
  byId("error").hidden = true;
  source = camera.getAttribute("aria-pressed") === "true" ? null : watchCamera;
  begin(source ?? (() => say("The camera is off.")));
});
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  drop.classList.add("over");
});
document.addEventListener("dragleave", () => drop.classList.remove("over"));
document.addEventListener("drop", (event) => {
  event.preventDefault();
  drop.classList.remove("over");
  if (network && event.dataTransfer.files.length) answerAll(event.dataTransfer.files);
});
begin(start);
