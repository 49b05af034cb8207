import { get } from "./api.js";
import { Categories } from "./categories.js";
import { byId, element, number } from "./dom.js";
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
    this.verdicts = new Verdicts(job.reviewer, byId("notices"), (...about) => this.judged(...about));
    this.grid = new Grid({
      open: (imageId, index) => this.open(imageId, index),
      hrefOf: (imageId) => `${location.search}#image=${imageId}`,
      verdictOf: (row) => this.verdicts.ofRow(row),
    });
    this.filters = new Filters((query) => this.ask(query));
    this.filters.offer(job.categories);
    this.viewer = new Viewer(job, new Categories(job.categories), this.verdicts, {
      rows: () => this.rows,
      open: (imageId, index) => this.open(imageId, index),
      close: () => this.close(),
    });
    byId("job").textContent = byId("job").title = job.url;
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
    this.rows = new Rows(query, () => this.listed());
    byId("count").textContent = "";
    byId("message").textContent = "";
    this.grid.show(this.rows);
  }

  /** More of the list has come, or could not. */
  listed() {
    const { total, error } = this.rows;
    this.filters.complain(error);
    byId("count").textContent = total === null ? "" : `${number(total)} of ${number(this.job.images)} images`;
    byId("message").textContent = "";
    if (error) byId("message").append(`${error.message} `, this.retry());
    else if (total === 0) byId("message").textContent = "No image matches.";
    this.grid.update();
  }

  retry() {
    return element("button", { type: "button", click: () => this.list(this.rows.filter) }, "Try again");
  }

  judged(imageId, annotationId) {
    if (annotationId === null) this.rows.judged(imageId, (row) => this.verdicts.ofRow(row));
    if (this.viewer.imageId === imageId) this.viewer.showVerdicts();
    this.grid.update();
    clearTimeout(this.soon);
    this.soon = setTimeout(() => this.showProgress(), 300);
  }

  async showProgress() {
    const counts = await get("progress").catch(() => null);
    if (counts === null) return;
    const said = Object.keys(SAID).map((verdict) => `${number(counts[verdict])} ${SAID[verdict]}`);
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
