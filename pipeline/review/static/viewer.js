import { fileUrl, get } from "./api.js";
import { byId, element, number, onceAFrame, showPath } from "./dom.js";
import { Look, objectsOf } from "./objects.js";
import { Pane } from "./pane.js";
import { Panel } from "./panel.js";
import { MARKS } from "./verdicts.js";
import { View } from "./view.js";

const KEPT = 8; // images whose labels are kept: the one on the screen and its neighbours

/** One image with its labels, what is said of them, and what stands beside it. */
export class Viewer {
  imageId = null;
  labels = null;
  beside = { truth: false, other: false };
  fetched = new Map(); // image_id -> promise of its labels
  files = new Map(); // image_id -> its file, on the way before it is looked at

  /** `rows()` is the list the image is one of, `open(imageId, index)` and `close()` go elsewhere. */
  constructor(job, categories, verdicts, { rows, open, close }) {
    Object.assign(this, { job, categories, verdicts, rows, open, close });
    this.look = new Look();
    this.look.layers.semantic = !job.tasks.some((task) => task.startsWith("detect") || task === "segment_instances");
    this.look.layers.panoptic = this.look.layers.semantic;
    this.look.layers.semantic &&= !job.tasks.includes("fuse_panoptic");
    this.view = new View(onceAFrame(() => this.labels && this.panes.forEach((pane) => pane.place())));
    this.main = new Pane("Labels", this.view, (object) => this.select(object));
    this.panes = [this.main];
    this.repaint = onceAFrame(() => this.paint());
    this.panel = new Panel(this.look, categories, {
      looked: () => this.repaint(),
      select: (object) => this.select(object),
    });
    new ResizeObserver(() => this.resized()).observe(byId("panes"));
    this.listen();
  }

  listen() {
    byId("back").addEventListener("click", () => this.close());
    byId("previous").addEventListener("click", () => this.go(-1));
    byId("next").addEventListener("click", () => this.go(1));
    byId("zoom-in").addEventListener("click", () => this.zoom(1.5));
    byId("zoom-out").addEventListener("click", () => this.zoom(1 / 1.5));
    byId("zoom-fit").addEventListener("click", () => this.fit());
    for (const name of ["truth", "other"]) {
      const button = byId(`beside-${name}`);
      button.hidden = !this.job[name];
      button.addEventListener("click", () => this.toggleBeside(name));
    }
    for (const button of byId("verdicts").children) {
      button.addEventListener("click", () => this.judge(button.dataset.verdict || null));
    }
    byId("note").addEventListener("keydown", (event) => {
      if (event.key === "Escape") event.target.value = this.mine(this.target).note ?? "";
      if (event.key === "Enter" || event.key === "Escape") event.target.blur();
    });
    byId("note").addEventListener("blur", () => this.saveNote());
  }

  /** Opens an image: the one at `index` of the list, if it is in the list. */
  async show(imageId, index) {
    this.saveNote();
    this.imageId = imageId;
    this.index = index;
    this.look.solo = this.look.selected = this.labels = null;
    byId("place").textContent = "";
    byId("title").textContent = "…";
    try {
      const labels = await this.fetch(imageId);
      if (this.imageId === imageId) this.display(labels);
    } catch (error) {
      if (this.imageId === imageId) this.complain(error);
    }
    await this.orient(imageId);
  }

  hide() {
    this.saveNote();
    this.imageId = this.labels = null;
  }

  complain(error) {
    this.labels = null;
    byId("panel").hidden = true;
    byId("title").textContent = `image ${this.imageId}`;
    byId("panes").replaceChildren(this.main.node);
    this.main.show(null, 1, 1, []);
    this.main.say(error.message);
  }

  display(labels) {
    this.labels = labels;
    byId("panel").hidden = false;
    document.title = labels.image.key;
    showPath(byId("title"), labels.image.key);
    this.objects = objectsOf(this.labels);
    this.fillPanes();
    this.fit();
    this.paint();
    this.showVerdicts();
  }

  /** Finds the image's place in the list, says it, and asks for its neighbours. */
  async orient(imageId) {
    const rows = this.rows();
    const guess = this.index ?? imageId; // which it is in the list of all images
    const found = (await rows.fetch(guess).catch(() => undefined))?.image_id === imageId;
    if (this.imageId !== imageId) return;
    this.index = found ? guess : null;
    byId("place").textContent = found ? `${number(guess + 1)} of ${number(rows.total)}` : "not in this list";
    if (!found) return;
    for (const beside of [guess + 1, guess - 1]) {
      const row = await rows.fetch(beside).catch(() => undefined);
      if (row && this.imageId === imageId) this.prefetch(row);
    }
  }

  fetch(imageId) {
    const labels = this.fetched.get(imageId) ?? get(`images/${imageId}`);
    this.fetched.delete(imageId);
    this.fetched.set(imageId, labels);
    labels.catch(() => this.fetched.delete(imageId));
    for (const old of [this.fetched, this.files]) {
      if (old.size > KEPT) old.delete(old.keys().next().value);
    }
    return labels;
  }

  prefetch(row) {
    this.fetch(row.image_id).catch(() => {});
    if (row.status !== "ok" || this.files.has(row.image_id)) return;
    this.files.set(row.image_id, element("img", { src: fileUrl(this.job, row.image_id) }));
  }

  async go(step) {
    const { imageId } = this;
    const index = this.index === null ? 0 : this.index + step;
    const row = await this.rows().fetch(index).catch(() => undefined);
    if (row && this.imageId === imageId) this.open(row.image_id, index);
  }

  fillPanes() {
    const { image, truth, other } = this.labels;
    const url = image.status === "ok" ? fileUrl(this.job, image.image_id) : null;
    const [width, height] = [image.width ?? 1, image.height ?? 1];
    const known = { truth: [truth, "Ground truth"], other: [other, `Other job: ${this.job.other}`] };
    this.main.show(url, width, height, this.objects);
    if (url === null) this.main.say(`${image.status}: ${image.error_code}`);
    this.panes = [this.main];
    const others = [];
    for (const [name, [labels, title]] of Object.entries(known)) {
      byId(`beside-${name}`).setAttribute("aria-pressed", this.beside[name]);
      if (!this.beside[name]) continue;
      const pane = new Pane(title, this.view);
      const objects = labels ? objectsOf(labels, this.categories.adopt(labels.categories)) : [];
      pane.show(url, width, height, objects);
      if (!labels) pane.say("nothing is known of this image");
      others.push(...objects);
      this.panes.push(pane);
    }
    const nodes = this.panes.map((pane) => pane.node);
    byId("panes").replaceChildren(...nodes);
    this.panel.show(this.labels, this.objects, others);
  }

  toggleBeside(name) {
    if (!this.job[name] || !this.labels) return;
    this.beside[name] = !this.beside[name];
    this.fillPanes();
    this.fit();
    this.paint();
  }

  fit() {
    const { image } = this.labels ?? {};
    if (image) this.view.fit(this.main.surface, image.width ?? 1, image.height ?? 1);
  }

  zoom(factor) {
    const { clientWidth, clientHeight } = this.main.surface;
    if (this.labels) this.view.zoom(factor, clientWidth / 2, clientHeight / 2);
  }

  resized() {
    if (!this.labels) return;
    if (this.view.fitted) this.fit();
    this.view.changed();
  }

  paint() {
    if (!this.labels) return;
    for (const pane of this.panes) {
      const look = pane === this.main ? this.look : this.look.withoutSolo();
      pane.paint(look, this.categories);
    }
    this.panel.update((annotationId) => this.mine(annotationId).verdict);
  }

  select(object) {
    this.look.selected = object;
    if (this.look.solo) this.look.solo = object;
    this.repaint();
    this.showVerdicts();
  }

  /** The next or previous object of the list, by score. */
  step(by) {
    const { selectable } = this.panel;
    const count = selectable.length;
    const at = selectable.indexOf(this.look.selected);
    if (count) this.select(selectable[at < 0 && by < 0 ? count - 1 : (at + by + count) % count]);
  }

  /** The selected object alone, or all again. */
  toggleSolo() {
    this.look.solo = this.look.solo ? null : this.look.selected;
    this.repaint();
  }

  /** What verdicts are on: the selected object where it can have one, else the image. */
  get target() {
    const { selected } = this.look;
    return selected?.kind === "annotation" ? selected.id : null;
  }

  mine(annotationId) {
    return this.verdicts.mine(this.imageId, annotationId, this.labels.reviews);
  }

  judge(verdict) {
    if (!this.labels) return;
    const { target } = this;
    this.verdicts.say(this.imageId, target, { verdict, note: this.mine(target).note });
    if (target === null && verdict !== null && byId("advance").checked) this.go(1);
  }

  saveNote() {
    if (!this.labels) return;
    const { verdict, note } = this.mine(this.target);
    const written = byId("note").value.trim() || null;
    if (written !== (note?.trim() || null)) this.verdicts.say(this.imageId, this.target, { verdict, note: written });
  }

  /** Everybody's verdicts on the image and its objects, and whose turn it is. */
  showVerdicts() {
    if (!this.labels) return;
    const mine = this.mine(this.target);
    const { selected } = this.look;
    const name = this.target === null ? "the image" : this.nameOf(selected.id);
    byId("target").replaceChildren("On ", element("b", {}, name));
    if (selected && this.target === null) byId("target").append(` (a ${selected.kind} has no verdict of its own)`);
    for (const button of byId("verdicts").children) {
      if (button.dataset.verdict) button.setAttribute("aria-pressed", button.dataset.verdict === mine.verdict);
    }
    if (document.activeElement !== byId("note")) byId("note").value = mine.note ?? "";
    byId("reviews").replaceChildren(...this.everybody().map((review) => this.reviewNode(review)));
    this.repaint();
  }

  everybody() {
    const others = this.labels.reviews.filter((review) => review.reviewer !== this.verdicts.reviewer);
    const said = [null, ...this.labels.annotations.map((row) => row.annotation_id)].map((annotationId) => ({
      ...this.mine(annotationId), annotation_id: annotationId, reviewer: this.verdicts.reviewer,
    }));
    return [...said, ...others].filter((review) => review.verdict || review.note);
  }

  reviewNode({ annotation_id: annotationId, verdict, note, reviewer }) {
    const mark = element("span", { class: "mark", "data-verdict": verdict ?? "" });
    if (verdict) mark.textContent = `${MARKS[verdict]} ${verdict}`;
    const about = annotationId === null ? "the image" : this.nameOf(annotationId);
    return element("li", {}, mark, ` ${about}, by `, element("b", {}, reviewer), note ? `: ${note}` : "");
  }

  nameOf(annotationId) {
    const row = this.labels.annotations.find((one) => one.annotation_id === annotationId);
    return row ? `${this.categories.name(row.category_id)} (object ${annotationId})` : `object ${annotationId}`;
  }

  /** A key pressed while the image is open; whether it meant something. */
  key(key) {
    const verdicts = { a: "accept", r: "reject", f: "flag", u: null };
    const actions = {
      n: () => byId("note").focus(), s: () => this.toggleSolo(), g: () => this.close(),
      j: () => this.go(1), ArrowRight: () => this.go(1), k: () => this.go(-1), ArrowLeft: () => this.go(-1),
      "]": () => this.step(1), "[": () => this.step(-1),
      m: () => this.panel.toggle("masks"), b: () => this.panel.toggle("boxes"),
      t: () => this.toggleBeside("truth"), o: () => this.toggleBeside("other"),
      "+": () => this.zoom(1.5), "=": () => this.zoom(1.5), "-": () => this.zoom(1 / 1.5), 0: () => this.fit(),
      Escape: () => (this.look.selected ? this.select(null) : this.close()),
    };
    if (key in verdicts) this.judge(verdicts[key]);
    else if (Object.hasOwn(actions, key)) actions[key]();
    else return false;
    return true;
  }
}
