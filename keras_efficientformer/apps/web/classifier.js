// Runs a .tflite file in LiteRT.js. All that is known of the file stands in models.json, which the command
// `efficientformer app web` took from the file's own metadata.

import { loadAndCompile, loadLiteRt, Tensor } from "@litertjs/core";
import { resizeAndCrop, roundToEven } from "./preprocessing.js";

const RUNTIME = "litert/core/wasm/";
const ARRAYS = { float32: Float32Array, int32: Int32Array, uint8: Uint8Array };
const LIMITS = { int32: [-(2 ** 31), 2 ** 31 - 1], uint8: [0, 255] };
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

/** A compiled file.
 *
 * @param facts the file's entry in models.json.
 * @param content its bytes, Uint8Array.
 * @param backend "webgpu" or "wasm".
 */
export async function open(facts, content, backend) {
  runtime ??= load();
  await runtime;
  try {
    return new Classifier(facts, await loadAndCompile(content, { accelerator: backend }));
  } catch (error) {
    throw new Error(`${facts.file} cannot be used here: ${reason(error)}`, { cause: error });
  }
}

class Classifier {
  constructor(facts, network) {
    this.facts = facts;
    this.network = network;
  }

  /** {scores, milliseconds}: a Float32Array, and what the network took, of a decoded picture. */
  async classify(image) {
    return this.run(resizeAndCrop(image, this.facts.size, this.facts.crop));
  }

  /** The same of pixels, RGB, that are cropped already. */
  async run(pixels) {
    const { input, output } = this.facts;
    const tensor = new Tensor(stored(pixels, this.facts), input.shape);
    const start = performance.now();
    try {
      const results = await this.network.run([tensor]);
      const values = await results[output.index].data();
      const milliseconds = performance.now() - start;
      results.forEach((result) => result.delete());
      return { scores: realValues(values, output), milliseconds };
    } catch (error) {
      throw new Error(`${this.facts.file} cannot be run here: ${reason(error)}`, { cause: error });
    } finally {
      tensor.delete();
    }
  }

  /** The largest difference from the scores that LiteRT gave for the test picture where the page was made. */
  async check() {
    const { scores } = await this.run(testPicture(this.facts.size));
    const expected = this.facts.check;
    return Math.max(...expected.map((score, index) => Math.abs(scores[index] - score)));
  }

  /** Whether the CPU computes all or a part of a file that was opened for the GPU. */
  get needsCPU() {
    return this.network.options.accelerator !== "webgpu" || !this.network.isFullyAccelerated;
  }

  delete() {
    this.network.delete();
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
