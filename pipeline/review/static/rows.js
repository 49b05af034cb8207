import { get } from "./api.js";

export const PAGE = 100;
const MOST_PAGES = 300; // kept in memory
const PATIENCE = 40; // milliseconds that the place in the list must stay for before its rows are asked for

/**
 * The images that match a filter, fetched page by page as they are looked at.
 *
 * An image that is given a verdict may leave the filter, and the server's later pages then move up by one. The list
 * stays as it was first seen: such images are counted, and later pages asked for from that much earlier, so that
 * nobody who goes on to the next image misses one, or sees one twice.
 */
export class Rows {
  total = null;
  error = null;
  pages = new Map();
  pending = new Map();
  failed = new Set(); // page numbers
  left = new Set(); // indexes

  /** `changed` is called when more is known; `inOrder` does something between the verdicts that are being written. */
  constructor(filter, changed, inOrder) {
    Object.assign(this, { filter, changed, inOrder });
    this.load(0).catch(() => {});
  }

  /** The row at an index, if it is here. */
  at(index) {
    return this.pages.get(Math.floor(index / PAGE))?.[index % PAGE];
  }

  /** The row at an index, fetched if need be; undefined past the end. */
  async fetch(index) {
    if (index < 0) return undefined;
    if (this.at(index) === undefined) await this.load(Math.floor(index / PAGE));
    return this.at(index);
  }

  /** Asks for the rows from `first` to `last`, soon, and gives up those that were asked for elsewhere. */
  want(first, last) {
    clearTimeout(this.timer);
    if (last < first) return; // nothing is known of the list yet
    const numbers = [];
    for (let number = Math.floor(first / PAGE); number <= Math.floor(last / PAGE); number++) numbers.push(number);
    for (const [number, request] of this.pending) {
      if (numbers.includes(number)) continue;
      request.abort.abort();
      this.pending.delete(number);
    }
    const missing = numbers.filter((number) => !this.pages.has(number) && !this.failed.has(number));
    if (missing.length === 0) return;
    this.timer = setTimeout(() => missing.forEach((number) => this.load(number).catch(() => {})), PATIENCE);
  }

  /** Asks once more for what could not be had. */
  again() {
    this.error = null;
    this.failed.clear();
    if (this.total === null) this.load(0).catch(() => {});
    this.changed();
  }

  /** Fetches a page, once. */
  load(number) {
    if (this.pages.has(number)) return Promise.resolve();
    if (!this.pending.has(number)) {
      const abort = new AbortController();
      const done = this.request(number, abort.signal).finally(() => {
        if (this.pending.get(number)?.abort === abort) this.pending.delete(number);
      });
      this.pending.set(number, { abort, done });
    }
    return this.pending.get(number).done;
  }

  async request(number, signal) {
    const work = () => this.read(number, signal);
    try {
      await (this.filter.has("verdict") ? this.inOrder(work) : work());
      this.failed.delete(number);
    } catch (error) {
      if (error.name !== "AbortError") {
        this.error = error;
        this.failed.add(number);
      }
      throw error;
    } finally {
      if (!signal.aborted) this.changed();
    }
  }

  async read(number, signal) {
    const first = number * PAGE;
    const before = [...this.left].filter((index) => index < first).length;
    const query = new URLSearchParams(this.filter);
    query.set("offset", first - before);
    query.set("limit", PAGE);
    const page = await get(`images?${query}`, signal);
    this.total = page.total + this.left.size;
    this.keep(number, page.images);
  }

  keep(number, page) {
    this.pages.set(number, page);
    for (const old of this.pages.keys()) {
      if (this.pages.size <= MOST_PAGES) break;
      const changed = [...this.left].some((index) => Math.floor(index / PAGE) === old);
      if (old !== number && !changed) this.pages.delete(old); // asked for again, it is the same
    }
  }

  /** Another verdict on an image was written: the server may not count it to this filter any more. */
  judged(imageId, verdictOf) {
    const wanted = this.filter.get("verdict");
    if (!wanted) return;
    for (const [number, page] of this.pages) {
      const place = page.findIndex((row) => row.image_id === imageId);
      if (place < 0) continue;
      if ((verdictOf(page[place]) ?? "none") === wanted) this.left.delete(number * PAGE + place);
      else this.left.add(number * PAGE + place);
    }
  }

  close() {
    clearTimeout(this.timer);
    this.changed = () => {};
    for (const request of this.pending.values()) request.abort.abort();
  }
}
