// Runs a .tflite file in LiteRT.js. All that is known of the file stands in models.json, which the command
// `efficientformer app web` took from the file's own metadata.

import { loadAndCompile, loadLiteRt, Tensor } from "@litertjs/core";
import { resize, resizeAndCrop, roundToEven } from "./preprocessing.js";

const RUNTIME = "litert/core/wasm/";
const ARRAYS = { float32: Float32Array, int32: Int32Array, uint8: Uint8Array };
const LIMITS = { int32: [-(2 ** 31), 2 ** 31 - 1], uint8: [0, 255] };
const POINTS = 8; // in each direction, at which masks are compared, as the command takes them
const LUMINANCE = [0.299, 0.587, 0.114]; // ITU-R 601, as Pillow's mode "L" has it

/** Whether WebAssembly can wait (JSPI), without which LiteRT.js leaves a file to the CPU that the GPU cannot run whole. */
const canSuspend = "Suspending" in WebAssembly;

/** Why there is no WebGPU, in words; null where there is. */
export async function whyNoWebGPU() {
  if (!navigator.gpu) return isSecureContext ? "not in this browser" : "only on https:// and localhost";
  return (await navigator.gpu.requestAdapter()) ? null : "no GPU for it";
}

let runtime = null; // its promise: it is loaded once

function load() {
  // What LiteRT logs, most of it no error, it would write as errors; what goes wrong is thrown besides.
  self.Module = { printErr: (line) => console.debug(line) };
  return loadLiteRt(RUNTIME, { jspi: canSuspend });
}

/** A compiled file, at the first of its sizes.
 *
 * @param facts the file's entry in models.json.
 * @param content its bytes, Uint8Array.
 * @param backend "webgpu" or "wasm".
 */
export async function open(facts, content, backend) {
  runtime ??= load();
  await runtime;
  try {
    return new Network(facts, await loadAndCompile(content, { accelerator: backend }));
  } catch (error) {
    throw new Error(`${facts.file} cannot be used here: ${reason(error)}`, { cause: error });
  }
}

class Network {
  constructor(file, compiled) {
    this.file = file;
    this.compiled = compiled;
    this.choose(0);
  }

  /** Takes images of one of the file's sizes from now on, by its number. */
  choose(number) {
    this.facts = { ...this.file, ...this.file.sizes[number] };
  }

  /** {values, milliseconds} of a decoded picture: scores of the classes, or of all classes for each pixel in its turn,
   * Float32Array, and what the network took. A segmenter sees the whole picture, stretched to its shape. */
  async answer(image) {
    const { kind, size, crop } = this.facts;
    return this.run(kind === "segmenter" ? resize(image, size) : resizeAndCrop(image, size, crop));
  }

  /** The same of pixels, RGB, that have the network's size already. */
  async run(pixels) {
    const { signature, input, output } = this.facts;
    const tensor = new Tensor(stored(pixels, this.facts), input.shape);
    const start = performance.now();
    try {
      const results = await (signature ? this.compiled.run(signature, [tensor]) : this.compiled.run([tensor]));
      const values = await results[output.index].data();
      const milliseconds = performance.now() - start;
      results.forEach((result) => result.delete());
      return { values: realValues(values, output), milliseconds };
    } catch (error) {
      throw new Error(`${this.facts.file} cannot be run here: ${reason(error)}`, { cause: error });
    } finally {
      tensor.delete();
    }
  }

  /** The largest difference from the values that LiteRT gave for the test picture where the page was made. */
  async check() {
    const { kind, size, output, check } = this.facts;
    const { values } = await this.run(testPicture(size));
    const compared = kind === "segmenter" ? atPoints(values, output.shape) : values;
    return Math.max(...check.map((value, index) => Math.abs(compared[index] - value)));
  }

  /** Whether the CPU computes all or a part of a file that was opened for the GPU. */
  get needsCPU() {
    return this.compiled.options.accelerator !== "webgpu" || !this.compiled.isFullyAccelerated;
  }

  delete() {
    this.compiled.delete();
  }
}

/** The picture on which the command asked LiteRT: red grows across, green down, blue along the diagonal. */
export function testPicture([height, width]) {
  const pixels = new Uint8ClampedArray(height * width * 3);
  let place = 0;
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      pixels[place++] = Math.floor((255 * x) / (width - 1));
      pixels[place++] = Math.floor((255 * y) / (height - 1));
      pixels[place++] = Math.floor((255 * (x + y)) / (width + height - 2));
    }
  }
  return pixels;
}

/** The values of masks at points that are spread evenly over them, row by row. */
function atPoints(values, [, height, width, classes]) {
  const places = (side) => Array.from({ length: POINTS }, (_, point) => Math.floor(((2 * point + 1) * side) / (2 * POINTS)));
  return places(height).flatMap((y) =>
    places(width).flatMap((x) => Array.from(values.subarray((y * width + x) * classes, (y * width + x + 1) * classes))),
  );
}

/** Raw pixels, RGB, as the file's input takes and stores them. */
function stored(pixels, { channels, mean, std, input }) {
  const raw = channels === 1 ? grey(pixels) : pixels;
  const real = (value, place) => (value - mean[place % mean.length]) / std[place % std.length];
  if (input.scale === null) return ARRAYS[input.dtype].from(raw, real);
  const [smallest, largest] = LIMITS[input.dtype];
  return ARRAYS[input.dtype].from(raw, (value, place) => {
    const step = roundToEven(real(value, place) / input.scale) + input.zero_point;
    return Math.min(Math.max(step, smallest), largest);
  });
}

function grey(pixels) {
  return Array.from({ length: pixels.length / 3 }, (_, number) =>
    roundToEven(LUMINANCE.reduce((sum, share, channel) => sum + share * pixels[number * 3 + channel], 0)),
  );
}

function realValues(values, { scale, zero_point: zero }) {
  return scale === null ? values : Float32Array.from(values, (value) => (value - zero) * scale);
}

/** What LiteRT.js said went wrong, in one line. */
function reason(error) {
  return (error?.message ?? String(error)).split("\n")[0];
}
