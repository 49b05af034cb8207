import { get, thumbnailUrl } from "./api.js";
import { Categories } from "./categories.js";
import { byId, element, number, showPath } from "./dom.js";
import { Filters } from "./filters.js";
import { Grid } from "./grid.js";
import { Rows } from "./rows.js";
import { Verdicts } from "./verdicts.js";
import { Viewer } from "./viewer.js";

const POLL = 1000; // milliseconds between looks at whether the index is built
const SAID = { accept: "accepted", reject: "rejected", flag: "flagged" };

/** The address says all: the filter is its query, the open image its fragment. */
class App {
  constructor(job) {
    this.job = job;
    this.verdicts = new Verdicts(job.reviewer, byId("notices"), {
      changed: (imageId) => this.judged(imageId),
      written: (imageId, annotationId) => this.written(imageId, annotationId),
    });
    this.grid = new Grid({
      open: (imageId, index) => this.open(imageId, index),
      hrefOf: (imageId) => `${location.search}#image=${imageId}`,
      thumbnailOf: (imageId, filter) => thumbnailUrl(job, imageId, filter),
      verdictOf: (row) => this.verdicts.ofRow(row),
    });
    this.filters = new Filters((query) => this.ask(query));
    this.filters.offer(job.categories);
    this.viewer = new Viewer(job, new Categories(job.categories), this.verdicts, {
      rows: () => this.rows,
      open: (imageId, index) => this.open(imageId, index),
      close: () => this.close(),
    });
    showPath(byId("job"), job.url);
    this.listen();
    this.route();
    this.showProgress();
    this.wait();
  }

  listen() {
    addEventListener("popstate", () => this.route());
    addEventListener("keydown", (event) => this.key(event));
    byId("help").addEventListener("click", () => byId("keys").showModal());
    byId("keys-close").addEventListener("click", () => byId("keys").close());
    byId("fold").addEventListener("click", () => {
      const open = byId("browse").classList.toggle("unfolded");
      byId("fold").setAttribute("aria-expanded", open);
    });
  }

  /** Goes to an address; `state` is kept with it over a reload. */
  go(address, state = null, replace = false) {
    history[replace ? "replaceState" : "pushState"](state, "", address);
    this.route();
  }

  /** Another filter, or the same one anew. */
  ask(query) {
    const address = `?${query}`;
    this.rows.close();
    this.rows = null;
    this.go(`${location.pathname}${address}`, null, address === (location.search || "?"));
  }

  /** From image to image the place in the history stays, so that back leads to the grid. */
  open(imageId, index) {
    this.go(`${location.pathname}${location.search}#image=${imageId}`, { index }, this.viewer.imageId !== null);
  }

  close() {
    this.go(`${location.pathname}${location.search}`);
  }

  /** Shows what the address says. */
  route() {
    this.filters.write(new URLSearchParams(location.search));
    const query = this.filters.read();
    if (query.toString() !== this.rows?.filter.toString()) this.list(query);
    const image = /^#image=(\d+)$/.exec(location.hash);
    const imageId = image ? Number(image[1]) : null;
    byId("browse").hidden = imageId !== null;
    byId("viewer").hidden = imageId === null;
    if (imageId !== null && this.viewer.imageId === null) byId("panes").focus(); // not in what is hidden now
    if (imageId !== null && imageId !== this.viewer.imageId) this.viewer.show(imageId, history.state?.index);
    if (imageId === null) this.leaveViewer();
    document.title = imageId === null ? "prelabel review" : document.title;
  }

  leaveViewer() {
    const { index } = this.viewer;
    const open = this.viewer.imageId !== null;
    this.viewer.hide();
    if (open && Number.isInteger(index)) this.grid.activate(index);
    this.grid.update();
    byId("grid").focus({ preventScroll: true });
  }

  list(query) {
    this.rows?.close();
    this.rows = new Rows(query, () => this.listed(), (work) => this.verdicts.inOrder(work));
    byId("count").textContent = "";
    const waits = !this.job.ready && query.size > 0;
    byId("message").textContent = waits ? "The index is still being built: filters wait for it…" : "Loading…";
    this.grid.show(this.rows);
  }

  /** More of the list has come, or could not. */
  listed() {
    const { total, error } = this.rows;
    this.filters.complain(error);
    byId("count").textContent = total === null ? "" : `${number(total)} of ${number(this.job.images)} images`;
    byId("message").textContent = "";
    if (error) byId("message").append(`${error.message} `, ...(error.status === 400 ? [] : [this.retry()]));
    else if (total === 0) byId("message").textContent = "No image matches.";
    this.grid.update();
  }

  retry() {
    return element("button", { type: "button", click: () => this.rows.again() }, "Try again");
  }

  judged(imageId) {
    if (this.viewer.imageId === imageId) this.viewer.showVerdicts();
    this.grid.update();
  }

  written(imageId, annotationId) {
    if (annotationId === null) this.rows.judged(imageId, (row) => this.verdicts.storedOf(row));
    clearTimeout(this.soon);
    this.soon = setTimeout(() => this.showProgress(), 300);
  }

  async showProgress() {
    const counts = await get("progress").catch(() => null);
    if (counts === null) return;
    const said = Object.keys(SAID).map((verdict) => `${number(counts[verdict])} ${SAID[verdict]}`);
    said.push(`${number(counts.none)} to go`);
    byId("progress").textContent = `${this.job.ready ? "" : "Building the index… "}${said.join(" · ")}`;
  }

  /** Until the index is built, filters wait for it. */
  async wait() {
    while (!this.job.ready) {
      await new Promise((done) => setTimeout(done, POLL));
      const job = await get("job").catch(() => this.job);
      if (job.ready) this.job.ready = true;
    }
    this.showProgress();
  }

  key(event) {
    const field = event.target.closest?.("input, textarea, select");
    const slides = field && ["range", "checkbox"].includes(field.type);
    if (event.ctrlKey || event.metaKey || event.altKey || byId("keys").open) return;
    if (event.repeat && "arfu".includes(event.key)) return; // a key held down is one verdict, not one on each image
    if ((field && !slides) || (slides && event.key.startsWith("Arrow"))) return;
    if (event.key === "?") byId("keys").showModal();
    else if (this.viewer.imageId === null || !this.viewer.key(event.key)) return;
    event.preventDefault();
  }
}

try {
  new App(await get("job"));
} catch (error) {
  byId("message").textContent = error.message;
}
