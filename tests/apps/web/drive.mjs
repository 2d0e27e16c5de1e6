// Uses the page as a reader does, in one browser, and prints as JSON what became of it; test_web_app.py says what should.
// argv[2] is JSON: {node_modules, browser, url, models, pixels, pictures, photo, other, folder}.

import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

const asked = JSON.parse(readFileSync(process.argv[2], "utf8"));
const { chromium } = createRequire(`${asked.node_modules}/`)("playwright-core");
const QUIET = ["--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"];
const WEBGPU = ["--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader"];
const CAMERA = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"];
const browser = await chromium.launch({
  executablePath: asked.browser,
  args: ["--no-sandbox", ...QUIET, ...WEBGPU, ...CAMERA],
});

/** A page that is ready or says what is wrong, and what it asks for and complains of. */
async function opened(url, settings = {}) {
  const context = await browser.newContext(settings);
  const page = await context.newPage();
  const heard = { requests: [], complaints: [] };
  context.on("request", (request) => heard.requests.push(request.url()));
  page.on("console", (message) => message.type() === "error" && heard.complaints.push(message.text()));
  page.on("pageerror", (error) => heard.complaints.push(String(error)));
  await page.goto(url);
  await settled(page);
  return { context, page, heard };
}

function settled(page) {
  return page.waitForFunction(() => {
    const [status, error] = ["status", "error"].map((id) => document.getElementById(id));
    return !error.hidden || /ready|classified|segmented|ms\.$/.test(status.textContent);
  });
}

/** What is shown, by the roles and names that a screen reader has. */
async function shown(page) {
  return {
    status: await page.getByRole("status").textContent(),
    alert: (await page.getByRole("alert").count()) ? await page.getByRole("alert").textContent() : null,
    results: await page.getByRole("list", { name: "Results" }).locator(":scope > li").evaluateAll((items) =>
      items.map((item) => ({
        name: item.querySelector("h2")?.textContent ?? item.textContent,
        classes: [...item.querySelectorAll("ol > li")].map((row) => [
          row.children[0].textContent,
          row.children[1].textContent,
          row.querySelector(".bar span").style.width,
        ]),
      })),
    ),
  };
}

/** Tabs to a control and presses a key there, without a mouse. */
async function press(page, control, key) {
  for (let tabs = 0; tabs < 12; tabs++) {
    if (await control.evaluate((element) => element === document.activeElement)) return page.keyboard.press(key);
    await page.keyboard.press("Tab");
  }
  throw new Error(`The keyboard does not reach ${control}`);
}

async function choose(page, control, files) {
  const chooser = page.waitForEvent("filechooser");
  await press(page, control, "Enter");
  await (await chooser).setFiles(files);
  await settled(page);
  return shown(page);
}

const found = {};
const { context, page, heard } = await opened(asked.url);
const [model, backend] = ["Model", "Computed on"].map((name) => page.getByRole("combobox", { name }));
const [photos, folder, camera] = ["Choose photos", "Choose a folder", "Use the camera"].map((name) =>
  page.getByRole("button", { name }),
);
found.webgpu = {
  backend: await backend.inputValue(),
  check: await page.locator("#check").textContent(),
  models: await model.locator("option").allTextContents(),
};

// Another backend and another model by the keyboard.
await press(page, backend, "ArrowDown");
await settled(page);
found.wasm = { backend: await backend.inputValue(), check: await page.locator("#check").textContent() };
await page.keyboard.press("Shift+Tab");
await press(page, model, "ArrowDown");
await settled(page);
found.second = { facts: await page.locator("#facts").textContent(), status: await page.getByRole("status").textContent() };
await press(page, model, "ArrowUp");
await settled(page);

// All scores and masks, on the pixels that Python has.
found.scores = await page.evaluate(async ({ models, pixels }) => {
  const { open } = await import("./network.js");
  const { models: facts } = await (await fetch("models.json")).json();
  const scores = {};
  for (const file of models) {
    const content = new Uint8Array(await (await fetch(file)).arrayBuffer());
    const network = await open(facts.find((entry) => entry.file === file), content, "wasm");
    scores[file] = Array.from((await network.run(Uint8ClampedArray.from(pixels))).values);
    network.delete();
  }
  return scores;
}, asked);
found.pixels = await page.evaluate(async (pictures) => {
  const { decode, resize, resizeAndCrop } = await import("./preprocessing.js");
  const results = { cropped: [], stretched: [] };
  for (const { content, type, size, crop } of pictures) {
    const bytes = Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0));
    const picture = await decode(new Blob([bytes], { type }));
    results.cropped.push(Array.from(resizeAndCrop(picture, size, crop)));
    results.stretched.push(Array.from(resize(picture, size)));
  }
  return results;
}, asked.pictures);

/** Chooses a model by its name. */
async function take(file) {
  await model.selectOption(file);
  await page.waitForFunction((name) => document.getElementById("status").textContent === `${name} is ready.`, file);
}

await take("segmenter.tflite");
found.segmenter = {
  heading: await page.getByRole("heading", { level: 1 }).textContent(),
  facts: await page.locator("#facts").textContent(),
  check: await page.locator("#check").textContent(),
};
found.segmented = await choose(page, photos, [asked.photo]);
found.drawn = await page.locator("#results canvas").evaluate((canvas) => {
  const { width, height, data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  return { width, height, data: Array.from(data) };
});
found.swatches = await page.locator("#results .swatch").evaluateAll((items) => items.map((item) => item.style.backgroundColor));
// The photograph that is shown is answered for again.
await model.selectOption("none.tflite");
await page.waitForFunction(() => document.querySelector("#results h2") && !document.querySelector("#results .swatch"));
await settled(page);

found.sizes = { otherwise: await page.getByRole("combobox", { name: "Image size" }).count() };
await model.selectOption("sizes.tflite");
await page.waitForFunction(() => !document.getElementById("size-label").hidden);
await settled(page);

// From here on there is no network.
await context.setOffline(true);
const size = page.getByRole("combobox", { name: "Image size" });
found.sizes.offered = await size.locator("option").allTextContents();
found.sizes.first = await choose(page, photos, [asked.photo]);
await size.selectOption({ index: 1 });
await page.waitForFunction(() => document.getElementById("facts").textContent.startsWith("96x64"));
await settled(page);
found.sizes.second = await shown(page);
found.sizes.facts = await page.locator("#facts").textContent();
found.sizes.check = await page.locator("#check").textContent();
await context.setOffline(false);
await model.selectOption("none.tflite");
await page.waitForFunction(() => document.getElementById("size-label").hidden);
await settled(page);
await context.setOffline(true);
found.photo = await choose(page, photos, [asked.photo]);
found.several = await choose(page, photos, [asked.photo, asked.other]);
const chooser = page.waitForEvent("filechooser");
await press(page, folder, "Enter");
await (await chooser).setFiles(asked.folder);
await settled(page);
found.folder = await shown(page);
await press(page, camera, "Enter");
await page.waitForFunction(() => document.getElementById("status").textContent.startsWith("Camera: "));
found.camera = { ...(await shown(page)), pressed: await camera.getAttribute("aria-pressed") };
await press(page, camera, "Space");
await page.waitForFunction(() => document.getElementById("status").textContent === "The camera is off.");
found.cameraOff = { pressed: await camera.getAttribute("aria-pressed"), video: await page.locator("video").isVisible() };
await context.setOffline(false);
found.heard = heard;

found.widths = [];
for (const width of [1280, 400, 320]) {
  await page.setViewportSize({ width, height: 800 });
  found.widths.push([width, await page.evaluate(() => document.documentElement.scrollWidth)]);
}
found.colours = [];
for (const colorScheme of ["light", "dark"]) {
  await page.emulateMedia({ colorScheme });
  found.colours.push(await page.evaluate(() => getComputedStyle(document.body).backgroundColor));
}
await context.close();

// Files that were changed after the page was made.
found.damaged = {};
const { page: other } = await opened(`${asked.url}damaged/`);
for (const [index, file] of (await other.getByRole("combobox", { name: "Model" }).locator("option").allTextContents()).entries()) {
  await other.getByRole("combobox", { name: "Model" }).selectOption({ index });
  await other.waitForFunction(
    (name) => !document.getElementById("error").hidden && document.getElementById("error").textContent.startsWith(name),
    file,
  );
  found.damaged[file] = await shown(other);
}
await browser.close();
console.log(JSON.stringify(found));
