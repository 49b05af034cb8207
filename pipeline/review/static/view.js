const MAX_SCALE = 64;
const CLICK = 4; // pixels that a hand may tremble in a click
const WHEEL = 0.0015; // of a doubling, for a pixel of the wheel

/**
 * Where an image lies in its pane: screen = image * scale + (x, y), in CSS pixels. All panes share one, which is what
 * keeps them side by side.
 */
export class View {
  scale = 1;
  x = 0;
  y = 0;
  fitted = true;

  constructor(changed) {
    this.changed = changed;
    this.smallest = 1;
  }

  /** The whole image, in the middle. */
  fit(pane, width, height) {
    this.smallest = Math.min(pane.clientWidth / width, pane.clientHeight / height, MAX_SCALE) || 1;
    this.scale = this.smallest;
    this.x = (pane.clientWidth - width * this.scale) / 2;
    this.y = (pane.clientHeight - height * this.scale) / 2;
    this.fitted = true;
    this.changed();
  }

  /** Larger or smaller, with the point (x, y) of the pane staying where it is. */
  zoom(factor, x, y) {
    const scale = Math.min(MAX_SCALE, Math.max(this.smallest / 4, this.scale * factor));
    this.move(x - (x - this.x) * (scale / this.scale) - this.x, y - (y - this.y) * (scale / this.scale) - this.y);
    this.scale = scale;
  }

  move(dx, dy) {
    this.x += dx;
    this.y += dy;
    this.fitted = false;
    this.changed();
  }

  /** Wheel and drag and pinch on a pane move the view; a click calls `clicked(x, y)` in pixels of the image. */
  listen(pane, clicked) {
    const pointers = new Map();
    let moved = 0;
    const place = (event) => {
      const box = pane.getBoundingClientRect();
      return [event.clientX - box.left, event.clientY - box.top];
    };
    pane.addEventListener("wheel", (event) => {
      event.preventDefault();
      const unit = event.deltaMode === WheelEvent.DOM_DELTA_LINE ? 40 : event.ctrlKey ? 8 : 1; // ctrl: two fingers
      const pixels = event.deltaY * unit;
      this.zoom(2 ** (-pixels * WHEEL), ...place(event));
    }, { passive: false });
    pane.addEventListener("pointerdown", (event) => {
      pane.setPointerCapture(event.pointerId);
      if (pointers.size === 0) moved = 0;
      pointers.set(event.pointerId, place(event));
    });
    pane.addEventListener("pointermove", (event) => {
      if (!pointers.has(event.pointerId)) return;
      const before = [...pointers.values()];
      pointers.set(event.pointerId, place(event));
      const after = [...pointers.values()];
      moved += Math.hypot(...difference(centre(after), centre(before)));
      if (moved > CLICK || pointers.size > 1) this.follow(before, after);
    });
    const lift = (event) => {
      const point = pointers.get(event.pointerId);
      pointers.delete(event.pointerId);
      if (event.type === "pointerup" && point && moved <= CLICK && pointers.size === 0) {
        clicked((point[0] - this.x) / this.scale, (point[1] - this.y) / this.scale);
      }
    };
    pane.addEventListener("pointerup", lift);
    pane.addEventListener("pointercancel", lift);
  }

  follow(before, after) {
    this.move(...difference(centre(after), centre(before)));
    if (after.length > 1) this.zoom(spread(after) / spread(before) || 1, ...centre(after));
  }
}

const difference = (a, b) => [a[0] - b[0], a[1] - b[1]];
const centre = (points) => [0, 1].map((axis) => points.reduce((sum, point) => sum + point[axis], 0) / points.length);
const spread = ([a, b]) => Math.hypot(...difference(a, b));
