// Prepares a picture as the package's `imagenet.resize_and_crop` does: upright, scaled by Pillow's antialiased bicubic
// filter, the centre cut out, or all of it. A canvas scales otherwise from browser to browser, which would change the scores.

// Colour profiles are left alone and a photograph's orientation is applied, as `imagenet.load_image` does.
const DECODING = { imageOrientation: "from-image", colorSpaceConversion: "none", premultiplyAlpha: "none" };
// Larger canvases stay empty on iPhones: a larger picture is first scaled by the browser.
const LARGEST_CANVAS = 4096 * 4096; // pixels
const CUBIC = -0.5; // the coefficient of the filter, Pillow's
const REACH = 2; // of the filter, in pixels of the smaller of the two pictures
const PRECISION = 22; // bits of the filter's weights behind the point, Pillow's
const HALF = 2 ** (PRECISION - 1);

/** The pixels of a file or a video's frame: `ImageData`, RGBA. It throws where the browser cannot read it. */
export async function decode(source) {
  const bitmap = await createImageBitmap(source, DECODING);
  const scale = Math.min(1, Math.sqrt(LARGEST_CANVAS / (bitmap.width * bitmap.height)));
  const width = Math.max(1, Math.floor(bitmap.width * scale));
  const height = Math.max(1, Math.floor(bitmap.height * scale));
  const canvas = document.createElement("canvas");
  canvas.width = width;
  canvas.height = height;
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, width, height);
  bitmap.close();
  return context.getImageData(0, 0, width, height);
}

/** The centre of a scaled picture.
 *
 * @param image `ImageData`, or any {data, width, height} of RGBA.
 * @param size [height, width] of the result.
 * @param crop the share of the scaled picture's side that is kept.
 * @returns Uint8ClampedArray of height * width * 3 values, RGB.
 */
export function resizeAndCrop(image, [height, width], crop) {
  const [scaledHeight, scaledWidth] = scaledSize([image.height, image.width], [height, width], crop);
  const left = roundToEven((scaledWidth - width) / 2);
  const top = roundToEven((scaledHeight - height) / 2);
  return part(image, [scaledHeight, scaledWidth], [top, left], [height, width]);
}

/** A whole picture, stretched to a size, [height, width], as the package's `images.scaled` does; image and result as of
 * `resizeAndCrop`. */
export function resize(image, size) {
  return part(image, size, [0, 0], size);
}

/** What lies in a rectangle of a picture that is scaled. */
function part(image, [scaledHeight, scaledWidth], [top, left], [height, width]) {
  const columns = filters(image.width, scaledWidth, left, width);
  const rows = filters(image.height, scaledHeight, top, height);
  const [picture, shifted] = usedRows({ data: image.data, width: image.width, step: 4 }, rows);
  // In this order Pillow scales from release 13 on; what is between the two passes is rounded.
  const downFirst = scaledHeight < image.height && image.height - scaledHeight > 2 * (image.width - scaledWidth);
  if (downFirst) return scaleAcross(scaleDown(picture, shifted), columns).data;
  return scaleDown(scaleAcross(picture, columns), shifted).data;
}

/** The rows of a picture that the result's rows are made of, and those counted from there. */
function usedRows({ data, width, step }, rows) {
  const first = rows[0].start;
  const last = Math.max(...rows.map(({ start, weights }) => start + weights.length));
  const used = data.subarray(first * width * step, last * width * step);
  return [{ data: used, width, step }, rows.map(({ start, weights }) => ({ start: start - first, weights }))];
}

/** The size, [height, width], to which timm scales before the crop; it rounds otherwise for squares. */
function scaledSize(imageSize, size, crop) {
  const cover = size.map((side) => Math.floor(side / crop));
  if (cover[0] === cover[1]) {
    return imageSize.map((side) => Math.floor((cover[0] * side) / Math.min(...imageSize)));
  }
  const ratio = Math.min(imageSize[0] / cover[0], imageSize[1] / cover[1]);
  return imageSize.map((side) => roundToEven(side / ratio));
}

/** For each of `count` pixels of a scaled side from `from` on: where its pixels begin, and their weights. */
function filters(side, scaledSide, from, count) {
  const scale = side / scaledSide;
  const stretch = Math.max(scale, 1);
  return Array.from({ length: count }, (_, number) => {
    const center = (from + number + 0.5) * scale;
    const start = Math.max(0, Math.trunc(center - REACH * stretch + 0.5));
    const end = Math.min(side, Math.trunc(center + REACH * stretch + 0.5));
    const exact = Array.from({ length: end - start }, (_, x) => cubic((x + start - center + 0.5) / stretch));
    const sum = exact.reduce((total, weight) => total + weight, 0);
    return { start, weights: Int32Array.from(exact, (weight) => roundAway((weight / sum) * 2 ** PRECISION)) };
  });
}

function cubic(place) {
  const x = Math.abs(place);
  if (x < 1) return ((CUBIC + 2) * x - (CUBIC + 3)) * x * x + 1;
  return x < 2 ? (((x - 5) * x + 8) * x - 4) * CUBIC : 0;
}

// A picture is {data, width, step}: values of 0..255, `step` of them for each pixel, red, green and blue first.

function scaleAcross({ data, width, step }, columns) {
  const height = data.length / (width * step);
  const scaled = new Uint8ClampedArray(height * columns.length * 3);
  let place = 0;
  for (let y = 0; y < height; y++) {
    for (const { start, weights } of columns) {
      let [red, green, blue] = [HALF, HALF, HALF];
      let from = (y * width + start) * step;
      for (let tap = 0; tap < weights.length; tap++) {
        red += data[from] * weights[tap];
        green += data[from + 1] * weights[tap];
        blue += data[from + 2] * weights[tap];
        from += step;
      }
      scaled[place++] = red >> PRECISION; // what is beyond 0..255 is clamped
      scaled[place++] = green >> PRECISION;
      scaled[place++] = blue >> PRECISION;
    }
  }
  return { data: scaled, width: columns.length, step: 3 };
}

function scaleDown({ data, width, step }, rows) {
  const values = width * step;
  const scaled = new Uint8ClampedArray(rows.length * values);
  const sums = new Int32Array(values);
  rows.forEach(({ start, weights }, y) => {
    sums.fill(HALF);
    weights.forEach((weight, tap) => {
      const from = (start + tap) * values;
      for (let x = 0; x < values; x++) sums[x] += data[from + x] * weight;
    });
    for (let x = 0; x < values; x++) scaled[y * values + x] = sums[x] >> PRECISION;
  });
  return { data: scaled, width, step };
}

function roundAway(value) {
  return Math.trunc(value + (value < 0 ? -0.5 : 0.5));
}

/** As Python and NumPy round: a half to the even neighbour. */
export function roundToEven(value) {
  const rounded = Math.round(value);
  return rounded - value === 0.5 && rounded % 2 !== 0 ? rounded - 1 : rounded;
}
