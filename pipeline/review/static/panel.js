import { css } from "./colours.js";
import { byId, decimals, element, number } from "./dom.js";
import { MARKS } from "./verdicts.js";

const LAYERS = { masks: "Masks", boxes: "Boxes", names: "Names", keypoints: "Keypoints", panoptic: "Panoptic",
  semantic: "Semantic", proposals: "Proposals" };
const KINDS = { annotation: "", panoptic: "panoptic", semantic: "semantic", proposal: "proposal" };

function swatched(categoryId, ...children) {
  const swatch = element("i", { class: "swatch" });
  if (categoryId !== null) swatch.style.background = css(categoryId);
  return element("button", { type: "button" }, swatch, ...children);
}

/** The lists beside an image. They are built once for it and then changed in place, which keeps the focus. */
export class Panel {
  constructor(look, categories, { looked, select }) {
    Object.assign(this, { look, categories, looked, select });
    for (const name of ["threshold", "opacity"]) {
      byId(name).value = look[name];
      byId(name).addEventListener("input", (event) => {
        look[name] = Number(event.target.value);
        looked();
      });
    }
  }

  /** Another image: `objects` are its own, `others` those in the panes beside it. */
  show(labels, objects, others) {
    this.objects = objects.toSorted((a, b) => (b.score ?? 2) - (a.score ?? 2));
    this.layers = present(objects.concat(others)).map((layer) => {
      const button = element("button", { type: "button" }, LAYERS[layer]);
      button.addEventListener("click", () => this.toggle(layer));
      return [layer, button];
    });
    byId("layers").replaceChildren(...this.layers.map(([, button]) => button));
    this.shown = [...new Set([...this.objects, ...others].map((object) => object.category))]
      .filter((id) => id !== null)
      .map((id) => [id, this.categoryButton(id)]);
    this.all = this.objects.concat(others);
    byId("shown").replaceChildren(...this.shown.map(([, button]) => button));
    this.items = this.objects.map((object) => [object, this.objectButton(object)]);
    byId("objects").replaceChildren(...this.items.map(([, button]) => button));
    byId("facts").replaceChildren(...factsOf(labels, objects));
  }

  toggle(layer) {
    this.look.layers[layer] = !this.look.layers[layer];
    this.looked();
  }

  categoryButton(id) {
    const button = swatched(id, element("span", {}, this.categories.name(id)), element("output"));
    button.addEventListener("click", (event) => {
      if (event.altKey || event.shiftKey) this.only(id);
      else if (!this.look.hidden.delete(id)) this.look.hidden.add(id);
      this.looked();
    });
    return button;
  }

  /** One category alone; all of them when it already is. */
  only(id) {
    const others = this.shown.map(([other]) => other).filter((other) => other !== id);
    const alone = others.every((other) => this.look.hidden.has(other)) && !this.look.hidden.has(id);
    for (const other of others) alone ? this.look.hidden.delete(other) : this.look.hidden.add(other);
    this.look.hidden.delete(id);
  }

  objectButton(object) {
    const name = object.category === null ? "" : this.categories.name(object.category);
    const kind = [KINDS[object.kind], object.iscrowd ? "crowd" : "", object.error ?? ""].filter(Boolean).join(", ");
    const button = swatched(object.category, element("span", {}, name, element("small", {}, ` ${kind}`)),
      element("span", { class: "mark" }), element("output", {}, decimals(object.score)));
    button.addEventListener("click", () => this.select(object === this.look.selected ? null : object));
    return button;
  }

  /** The objects that can be selected, in the list's order. */
  get selectable() {
    return this.objects.filter((object) => this.look.admits(object));
  }

  /** What is looked at differently. */
  update(verdictOf) {
    const { look } = this;
    byId("threshold-value").textContent = decimals(look.threshold);
    byId("opacity-value").textContent = `${Math.round(look.opacity * 100)} %`;
    for (const [layer, button] of this.layers) button.setAttribute("aria-pressed", look.layers[layer]);
    for (const [id, button] of this.shown) {
      const counted = (objects) => objects.filter((object) => object.category === id && look.counts(object)).length;
      button.setAttribute("aria-pressed", !look.hidden.has(id));
      button.hidden = counted(this.all) === 0 && !look.hidden.has(id);
      button.querySelector("output").textContent = number(counted(this.objects));
    }
    for (const [object, button] of this.items) {
      const verdict = object.kind === "annotation" ? verdictOf(object.id) : null;
      const mark = button.querySelector(".mark");
      button.hidden = !look.admits(object) && object !== look.selected;
      button.setAttribute("aria-pressed", object === look.selected);
      mark.dataset.verdict = verdict ?? "";
      mark.textContent = verdict ? MARKS[verdict] : "";
      mark.title = verdict ?? "";
    }
  }
}

/** The layers that there is something for. */
function present(objects) {
  const has = (test) => objects.some(test);
  const kinds = { panoptic: "panoptic", semantic: "semantic", proposals: "proposal" };
  return Object.keys(LAYERS).filter((layer) => {
    if (layer === "masks") return has((object) => object.kind === "annotation" && object.runs);
    if (layer === "boxes") return has((object) => object.kind === "annotation");
    if (layer === "names") return has((object) => object.category !== null);
    if (layer === "keypoints") return has((object) => object.keypoints);
    return has((object) => object.kind === kinds[layer]);
  });
}

function factsOf({ image, labels }, objects) {
  const facts = [["File", image.key], ["Image", image.image_id]];
  if (image.width) facts.push(["Size", `${image.width} x ${image.height}`]);
  for (const { category, score } of labels ?? []) facts.push(["Label", `${category} ${decimals(score)}`]);
  const broken = objects.filter((object) => object.error).length;
  if (broken) facts.push(["Damaged masks", number(broken)]);
  const nodes = facts.flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, String(value))]);
  return [element("h3", {}, "Facts"), element("dl", {}, ...nodes)];
}
