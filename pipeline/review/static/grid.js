import { byId, element, number, onceAFrame, showPath } from "./dom.js";
import { Thumbnails } from "./thumbnails.js";
import { MARKS } from "./verdicts.js";

const MAX_HEIGHT = 8_000_000; // browsers place nothing beyond 16 to 33 million pixels
const CELL = 176; // the least width
const CAPTION = 48;
const OVERSCAN = 1; // rows beyond the edges that are kept ready
const REST = 150; // milliseconds without scrolling

/**
 * A list box of images of which only those in sight are in the document.
 *
 * `top` is where one looks, in pixels of a list as high as it would have to be; the scrollbar's place follows it,
 * squeezed by `ratio` where that list is higher than a browser can lay out.
 */
export class Grid {
  rows = null;
  active = 0;
  top = 0;
  cells = new Map(); // index -> cell
  thumbnails = new Thumbnails();

  constructor({ open, hrefOf, thumbnailOf, verdictOf }) {
    Object.assign(this, { open, hrefOf, thumbnailOf, verdictOf });
    this.node = byId("grid");
    this.space = byId("space");
    this.update = onceAFrame(() => this.render());
    this.node.addEventListener("scroll", () => this.scrolled());
    this.node.addEventListener("wheel", (event) => this.wheel(event), { passive: false });
    this.node.addEventListener("keydown", (event) => this.key(event));
    this.node.addEventListener("click", (event) => this.click(event));
    new ResizeObserver(() => this.resized()).observe(this.node);
  }

  /** Another list, from its beginning. */
  show(rows) {
    this.rows = rows;
    this.active = 0;
    this.clear();
    this.scrollTo(0);
  }

  clear() {
    for (const cell of this.cells.values()) this.remove(cell);
    this.cells.clear();
  }

  remove(cell) {
    this.thumbnails.drop(cell.image);
    cell.node.remove();
  }

  measure() {
    const style = getComputedStyle(this.space);
    const width = this.node.clientWidth - parseFloat(style.marginLeft) - parseFloat(style.marginRight);
    this.columns = Math.max(2, Math.floor(width / CELL));
    this.cellWidth = width / this.columns;
    this.rowHeight = Math.round(this.cellWidth * 0.75) + CAPTION;
    this.sight = this.node.clientHeight;
    this.whole = Math.ceil((this.rows?.total ?? 0) / this.columns) * this.rowHeight;
    const height = Math.min(this.whole, MAX_HEIGHT);
    this.space.style.height = `${height}px`;
    this.ratio = height > this.sight ? (this.whole - this.sight) / (height - this.sight) : 1;
  }

  resized() {
    if (!this.rows || !this.node.clientHeight) return;
    const before = this.columns * this.top / this.rowHeight || 0; // images above
    this.measure();
    this.scrollTo((before / this.columns) * this.rowHeight);
  }

  /** Looks at a place, and puts the scrollbar where that is. */
  scrollTo(top) {
    this.measure();
    this.top = Math.max(0, Math.min(top, this.whole - this.sight));
    this.node.scrollTop = this.top / this.ratio;
    this.bar = this.node.scrollTop;
    this.update();
  }

  scrolled() {
    const moved = this.node.scrollTop - this.bar;
    this.bar = this.node.scrollTop;
    // Far: the scrollbar was dragged. Near: a finger scrolls, and the list goes as far as the finger does.
    const far = Math.abs(moved) > this.sight || this.ratio === 1;
    this.top = far ? this.bar * this.ratio : Math.max(0, Math.min(this.top + moved, this.whole - this.sight));
    this.update();
    clearTimeout(this.rest);
    if (this.ratio !== 1) this.rest = setTimeout(() => this.scrollTo(this.bar < 1 ? 0 : this.top), REST);
  }

  /** A squeezed scrollbar would jump over rows at each turn of the wheel. */
  wheel(event) {
    if (this.ratio === 1 || event.ctrlKey) return;
    event.preventDefault();
    const unit = [1, 40, this.sight][event.deltaMode];
    this.scrollTo(this.top + event.deltaY * unit);
  }

  key(event) {
    const page = this.columns * Math.max(1, Math.floor(this.sight / this.rowHeight));
    const moves = {
      ArrowLeft: -1, ArrowRight: 1, ArrowUp: -this.columns, ArrowDown: this.columns,
      PageUp: -page, PageDown: page, Home: -Infinity, End: Infinity,
    };
    if (event.ctrlKey || event.metaKey || event.altKey || !this.rows?.total) return;
    if (event.key === "Enter") this.openAt(this.active);
    else if (event.key in moves) this.activate(this.active + moves[event.key]);
    else return;
    event.preventDefault();
  }

  click(event) {
    const node = event.target.closest(".cell");
    if (!node || event.ctrlKey || event.metaKey || event.shiftKey) return; // a link: it opens elsewhere
    event.preventDefault();
    this.openAt(Number(node.dataset.index));
  }

  openAt(index) {
    const row = this.rows.at(index);
    if (!row) return;
    this.activate(index);
    this.open(row.image_id, index);
  }

  /** Moves the mark to an image, and into sight. */
  activate(index) {
    this.active = Math.max(0, Math.min(index, (this.rows.total ?? 1) - 1));
    const top = Math.floor(this.active / this.columns) * this.rowHeight;
    if (top < this.top) this.scrollTo(top);
    else if (top + this.rowHeight > this.top + this.sight) this.scrollTo(top + this.rowHeight - this.sight);
    this.update();
  }

  render() {
    if (!this.rows || !this.node.clientHeight) return;
    this.measure();
    const { first, last } = this.range();
    this.rows.want(first, last);
    const spare = [...this.cells].filter(([index]) => index < first || index > last);
    for (const [index] of spare) this.cells.delete(index);
    for (let index = first; index <= last; index++) {
      if (!this.cells.has(index)) this.cells.set(index, spare.pop()?.[1] ?? new Cell(this));
      this.cells.get(index).place(this, index);
    }
    for (const [, cell] of spare) this.remove(cell);
    this.node.setAttribute("aria-activedescendant", this.cells.has(this.active) ? `cell-${this.active}` : "");
  }

  range() {
    const top = Math.floor(this.top / this.rowHeight) - OVERSCAN;
    const bottom = Math.floor((this.top + this.sight) / this.rowHeight) + OVERSCAN;
    const first = Math.max(0, top) * this.columns;
    return { first, last: Math.min((bottom + 1) * this.columns, this.rows.total ?? 0) - 1 };
  }
}

/** One image of the grid; it is given another when it is scrolled out of sight. */
class Cell {
  constructor({ space, thumbnails }) {
    const error = () => {
      this.lack();
      thumbnails.done(this.image);
    };
    const load = () => thumbnails.done(this.image);
    this.image = element("img", { alt: "", decoding: "async", draggable: "false", load, error });
    this.code = element("span", { class: "code" });
    this.name = element("span", { class: "name" });
    this.facts = element("span", { class: "facts" });
    this.mark = element("span", { class: "mark" });
    this.node = element("a", { class: "cell", role: "option", tabindex: "-1" },
      element("span", { class: "picture" }, this.image, this.code, this.mark), this.name, this.facts);
    space.append(this.node);
  }

  place(grid, index) {
    const row = grid.rows.at(index);
    const left = (index % grid.columns) * grid.cellWidth;
    const top = Math.floor(index / grid.columns) * grid.rowHeight - grid.top + grid.bar;
    this.node.style.transform = `translate(${left}px, ${top}px)`;
    this.node.style.width = `${grid.cellWidth}px`;
    this.node.style.height = `${grid.rowHeight}px`;
    this.node.classList.toggle("active", index === grid.active);
    this.node.setAttribute("aria-selected", index === grid.active);
    const verdict = row ? grid.verdictOf(row) : null;
    if (this.index !== index || this.row !== row) this.fill(grid, index, row);
    if (this.verdict !== verdict || this.row !== row) this.judge(verdict);
    [this.index, this.row, this.verdict] = [index, row, verdict];
  }

  fill(grid, index, row) {
    this.node.id = `cell-${index}`;
    this.node.dataset.index = index;
    this.node.setAttribute("aria-posinset", index + 1);
    this.node.setAttribute("aria-setsize", grid.rows.total);
    this.node.classList.toggle("waits", !row);
    showPath(this.name, row?.key ?? "");
    this.code.textContent = row?.error_code ?? "";
    this.facts.textContent = row ? factsOf(row) : "";
    if (row) this.node.href = grid.hrefOf(row.image_id);
    grid.thumbnails.drop(this.image);
    if (row?.status === "ok") grid.thumbnails.load(this.image, grid.thumbnailOf(row.image_id, grid.rows.filter));
    this.image.hidden = row?.status !== "ok";
  }

  /** The thumbnail can't be had. */
  lack() {
    this.image.hidden = true;
    this.code.textContent = "no picture";
  }

  judge(verdict) {
    this.mark.dataset.verdict = verdict ?? "";
    this.mark.textContent = verdict ? `${MARKS[verdict]} ${verdict}` : "";
  }
}

function factsOf(row) {
  if (row.status !== "ok") return "failed";
  const best = row.highest === null ? "" : ` · ${row.highest.toFixed(2)}`;
  return `${number(row.num_annotations)} object${row.num_annotations === 1 ? "" : "s"}${best}`;
}
