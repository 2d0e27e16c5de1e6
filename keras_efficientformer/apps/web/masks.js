// What a segmenter's masks say of a picture: the class of each pixel, how much is of each class, and the drawing.

const OPACITY = 0.6; // of the mask over the picture

/** The number of each pixel's best class, the first of equal ones: Uint16Array, row by row.
 *
 * @param values of the masks: for each pixel in its turn, those of all classes.
 */
export function bestClasses(values, classes) {
  const best = new Uint16Array(values.length / classes);
  let at = 0;
  for (let pixel = 0; pixel < best.length; pixel++) {
    let found = 0;
    for (let number = 1; number < classes; number++) {
      if (values[at + number] > values[at + found]) found = number;
    }
    best[pixel] = found;
    at += classes;
  }
  return best;
}

/** Of what share of the pixels each class is that was found, {number, share}, the largest first. */
export function shares(best, classes) {
  const counts = new Uint32Array(classes);
  for (const number of best) counts[number]++;
  const found = Array.from(counts.keys()).filter((number) => counts[number] > 0);
  found.sort((a, b) => counts[b] - counts[a] || a - b);
  return found.map((number) => ({ number, share: counts[number] / best.length }));
}

/** Draws a mask over a canvas that shows the whole picture.
 *
 * @param best the classes of the pixels.
 * @param height, width of the mask.
 * @param colors "#rrggbb" of each class.
 */
export function drawMask(canvas, best, [height, width], colors) {
  const mask = new ImageData(width, height);
  const pixels = new DataView(mask.data.buffer);
  const values = colors.map((color) => ((Number.parseInt(color.slice(1), 16) << 8) | 0xff) >>> 0);
  best.forEach((number, pixel) => pixels.setUint32(4 * pixel, values[number]));
  const stencil = document.createElement("canvas");
  [stencil.width, stencil.height] = [width, height];
  stencil.getContext("2d").putImageData(mask, 0, 0);
  const context = canvas.getContext("2d");
  context.globalAlpha = OPACITY;
  context.imageSmoothingEnabled = false; // there is no class between two classes
  context.drawImage(stencil, 0, 0, canvas.width, canvas.height);
}
