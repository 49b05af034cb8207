/** Run-length masks in COCO's compressed form (`rleFrString` of cocoapi's common/maskApi.c). */

/**
 * The run lengths of a mask, outside and inside in turn, beginning outside; pixels go column by column.
 * Each is 5-bit groups, the lowest first, and from the fourth on the difference to the last but one.
 * Throws a RangeError where they do not fill the size [height, width].
 */
export function runLengths(counts, [height, width]) {
  const lengths = [];
  for (let at = 0; at < counts.length; ) {
    let length = 0;
    let bits = 0;
    let group;
    do {
      group = counts.charCodeAt(at++) - 48;
      length += (group & 31) * 2 ** bits;
      bits += 5;
    } while (group & 32 && at < counts.length);
    if (group & 16) length -= 2 ** bits;
    if (lengths.length > 2) length += lengths[lengths.length - 2];
    lengths.push(length);
  }
  const total = lengths.reduce((sum, length) => sum + length, 0);
  if (total !== height * width || lengths.some((length) => !(length >= 0))) {
    throw new RangeError(`the runs of a mask add up to ${total}, not to ${height} x ${width}`);
  }
  return lengths;
}

/** How many pixels are inside. */
export const area = (lengths) => lengths.reduce((sum, length, k) => (k % 2 ? sum + length : sum), 0);

/** Whether a pixel is inside. */
export function contains(lengths, [height], x, y) {
  let rest = x * height + y;
  let k = 0;
  while (k < lengths.length && rest >= lengths[k]) rest -= lengths[k++];
  return k % 2 === 1;
}

/** A pixel [x, y] inside: the middle of the longest run. */
export function middle(lengths, [height]) {
  let [start, longest, place] = [0, 0, 0];
  lengths.forEach((length, k) => {
    if (k % 2 && length > longest) [longest, place] = [length, start + Math.floor(length / 2)];
    start += length;
  });
  return [Math.floor(place / height), place % height];
}

/** Sets the pixels inside to `value` in `pixels`, which holds rows of `width` from top to bottom. */
export function fill(pixels, lengths, [height, width], value) {
  let start = 0;
  lengths.forEach((length, k) => {
    if (k % 2) fillRun(pixels, start, length, height, width, value);
    start += length;
  });
}

function fillRun(pixels, start, length, height, width, value) {
  let y = start % height;
  let at = y * width + Math.floor(start / height);
  for (let n = 0; n < length; n++) {
    pixels[at] = value;
    at += width;
    if (++y === height) {
      y = 0;
      at -= height * width - 1;
    }
  }
}
