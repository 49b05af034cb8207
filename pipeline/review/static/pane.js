import { css, ink, rgb } from "./colours.js";
import { element } from "./dom.js";
import { bottomUp } from "./objects.js";
import { contains, fill, middle } from "./rle.js";

const STRIP = 256; // rows of pixels that are painted at a time
const OUTLINE = 0.55; // how dark a mask's outermost pixels are
const PIXELS_SHOW = 2; // CSS pixels for each of the image's from which on they are squares

/**
 * An image with what was found in it.
 *
 * `canvas[data-layer="masks"]` is as large as the image: its pixel (x, y) is the image's. Alpha is 255 where a shown
 * object's mask is, else 0, whatever the opacity (which is CSS's), so with one object alone (select it, key s)
 * getImageData is that object's mask. Boxes, names, points and proposals go to `canvas[data-layer="marks"]`, which is
 * as large as the pane and drawn anew at each zoom, so that lines stay thin.
 */
export class Pane {
  constructor(name, view, clicked) {
    this.view = view;
    this.image = element("img");
    this.masks = element("canvas", { "data-layer": "masks" });
    this.marks = element("canvas", { "data-layer": "marks" });
    this.sheet = element("div", { class: "sheet" }, this.image, this.masks);
    this.words = element("p", { class: "words", role: "status" });
    this.caption = element("figcaption", {}, name);
    this.surface = element("div", { class: "surface" }, this.sheet, this.marks, this.words);
    this.node = element("figure", { class: "pane", "aria-label": name }, this.surface, this.caption);
    view.listen(this.surface, (x, y) => clicked?.(this.hit(x, y)));
  }

  say(text) {
    this.words.textContent = text;
  }

  /** Another image: `url` null where there is none to show. */
  show(url, width, height, objects) {
    this.say("");
    this.width = width;
    this.height = height;
    this.painted = "";
    this.objects = bottomUp(objects.map((object) => fitting(object, width, height)));
    this.owners = new (objects.length < 2 ** 16 ? Uint16Array : Uint32Array)(width * height);
    [this.masks.width, this.masks.height] = [width, height];
    this.load(url); // a new node: the old one would show the last image until the next one is here
    for (const node of [this.sheet, this.image, this.masks]) {
      node.style.width = `${width}px`;
      node.style.height = `${height}px`;
    }
  }

  load(url) {
    const error = () => this.say("the browser cannot show this image");
    const image = element("img", { alt: "", draggable: "false", src: url, error });
    this.image.replaceWith(image);
    this.image = image;
  }

  /** Draws all that is to be shown. */
  paint(look, categories) {
    this.look = look;
    this.categories = categories;
    const ranks = [...this.objects.keys()];
    const masks = ranks.filter((rank) => look.shows(this.objects[rank]) && look.showsMask(this.objects[rank]));
    if (masks.join() !== this.painted) this.paintMasks(masks); // half a second, for twelve million pixels
    this.painted = masks.join();
    this.place();
  }

  paintMasks(ranks) {
    this.owners.fill(0);
    for (const rank of ranks) fill(this.owners, this.objects[rank].runs, this.objects[rank].size, rank + 1);
    this.colour();
  }

  /** Turns the topmost object of each pixel into colours; a mask's outermost pixels are darker. */
  colour() {
    const context = this.masks.getContext("2d", { willReadFrequently: true });
    const { width, height, owners } = this;
    const inks = new Uint32Array([0, ...this.objects.map((object) => packed(rgb(object.category ?? 0), 1))]);
    const edges = new Uint32Array([0, ...this.objects.map((object) => packed(rgb(object.category ?? 0), OUTLINE))]);
    for (let top = 0; top < height; top += STRIP) {
      const strip = context.createImageData(width, Math.min(STRIP, height - top));
      const pixels = new Uint32Array(strip.data.buffer);
      for (let at = 0, from = top * width; at < pixels.length; at++, from++) {
        const owner = owners[from];
        if (owner === 0) continue;
        const inside = owners[from - 1] === owner && owners[from + 1] === owner
          && owners[from - width] === owner && owners[from + width] === owner;
        pixels[at] = inside ? inks[owner] : edges[owner];
      }
      context.putImageData(strip, 0, top);
    }
  }

  /** Moves the image to where the view has it and draws the marks there. */
  place() {
    const { scale, x, y } = this.view;
    this.sheet.style.transform = `translate(${x}px, ${y}px) scale(${scale})`;
    this.sheet.classList.toggle("pixelated", scale >= PIXELS_SHOW);
    this.masks.style.opacity = this.look.opacity;
    const ratio = window.devicePixelRatio;
    this.marks.width = this.surface.clientWidth * ratio;
    this.marks.height = this.surface.clientHeight * ratio;
    const pen = this.marks.getContext("2d");
    pen.scale(ratio, ratio);
    pen.font = "12px system-ui, sans-serif";
    pen.textBaseline = "top";
    const shown = this.objects.filter((object) => this.look.shows(object));
    shown.forEach((object) => this.drawBox(pen, object));
    if (this.look.layers.keypoints) shown.forEach((object) => this.drawKeypoints(pen, object));
    if (this.look.layers.names) shown.forEach((object) => this.drawName(pen, object));
  }

  drawBox(pen, object) {
    const selected = object === this.look.selected;
    if (!selected && !(object.kind === "proposal" || (object.kind === "annotation" && this.look.layers.boxes))) return;
    const corner = this.screen(object.bbox[0], object.bbox[1]);
    const size = [object.bbox[2] * this.view.scale, object.bbox[3] * this.view.scale];
    pen.setLineDash(object.kind === "proposal" || object.iscrowd ? [4, 3] : []);
    pen.lineWidth = selected ? 6 : 3.5;
    pen.strokeStyle = selected ? "#fff" : "rgb(0 0 0 / 0.5)";
    pen.strokeRect(...corner, ...size);
    pen.lineWidth = selected ? 3 : 1.75;
    pen.strokeStyle = object.category === null ? "#fff" : css(object.category);
    pen.strokeRect(...corner, ...size);
    pen.setLineDash([]);
  }

  drawName(pen, object) {
    if (object.category === null) return;
    const score = object.score === null ? "" : ` ${object.score.toFixed(2)}`;
    const text = this.categories.name(object.category) + score;
    const width = pen.measureText(text).width + 6;
    const within = object.kind !== "annotation" && object.runs; // a segment's box says little of where it is
    let [x, y] = this.screen(...(within ? middle(object.runs, object.size) : object.bbox));
    if (within) [x, y] = [x - width / 2, y - 8];
    else y -= y >= 16 ? 16 : 0;
    x = Math.max(1, Math.min(x, this.surface.clientWidth - width));
    pen.fillStyle = css(object.category);
    pen.fillRect(x - 1, y, width, 16);
    pen.fillStyle = ink(object.category);
    pen.fillText(text, x + 2, y + 2);
  }

  drawKeypoints(pen, object) {
    if (!object.keypoints) return;
    const points = [];
    for (let k = 0; k + 2 < object.keypoints.length; k += 3) {
      const [x, y, visibility] = object.keypoints.slice(k, k + 3);
      points.push(visibility > 0 ? this.screen(x, y) : null);
    }
    pen.lineWidth = 2;
    pen.strokeStyle = css(object.category);
    for (const [from, to] of this.categories.skeleton(object.category)) {
      if (!points[from - 1] || !points[to - 1]) continue;
      pen.beginPath();
      pen.moveTo(...points[from - 1]);
      pen.lineTo(...points[to - 1]);
      pen.stroke();
    }
    for (const point of points.filter(Boolean)) {
      pen.beginPath();
      pen.arc(...point, 3, 0, 2 * Math.PI);
      pen.fillStyle = "#fff";
      pen.fill();
      pen.stroke();
    }
  }

  screen(x, y) {
    return [x * this.view.scale + this.view.x, y * this.view.scale + this.view.y];
  }

  /** The smallest shown object at a point of the image: by its mask where that is drawn, else by its box. */
  hit(x, y) {
    const found = this.objects.filter((object) => {
      const [left, top, width, height] = object.bbox;
      const within = x >= left && y >= top && x < left + width && y < top + height;
      if (!within || !this.look.shows(object)) return false;
      return !this.look.showsMask(object) || contains(object.runs, object.size, Math.floor(x), Math.floor(y));
    });
    return found.reduce((best, object) => (best === null || object.area < best.area ? object : best), null);
  }
}

/** A mask of another size than the image has no place in it; its box may still have. */
function fitting(object, width, height) {
  if (!object.runs || (object.size[0] === height && object.size[1] === width)) return object;
  object.error = `its mask is of ${object.size[1]} x ${object.size[0]} pixels, the image of ${width} x ${height}`;
  object.runs = null;
  return object;
}

/** An opaque colour as a pixel of ImageData, whose bytes are red, green, blue, alpha. */
function packed(colour, brightness) {
  const bytes = new Uint8Array([...colour.map((value) => value * brightness), 255]);
  return new Uint32Array(bytes.buffer)[0];
}
