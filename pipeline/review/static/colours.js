const GOLDEN_ANGLE = 0.381966; // of a turn: neighbours in the list of categories are far apart

/** A category's red, green and blue (0 to 255): HSV of hue `id * golden angle`, saturation 0.9, value 1. */
export function rgb(categoryId) {
  const hue = (((categoryId * GOLDEN_ANGLE) % 1) + 1) % 1;
  return [5, 3, 1].map((n) => {
    const k = (n + hue * 6) % 6;
    return Math.round(255 * (1 - 0.9 * Math.max(0, Math.min(k, 4 - k, 1))));
  });
}

export const css = (categoryId) => `rgb(${rgb(categoryId).join(" ")})`;

/** Black or white, whichever is easier to read on a category's colour (relative luminance of WCAG 2). */
export function ink(categoryId) {
  const [red, green, blue] = rgb(categoryId).map((value) => (value / 255) ** 2.2);
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.18 ? "#000" : "#fff";
}
