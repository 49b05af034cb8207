import { css } from "./colours.js";
import { byId, element } from "./dom.js";

/** The side bar. What it asks for is the query of the page's address, in the words of the server's API. */
export class Filters {
  constructor(changed) {
    this.form = byId("filters");
    this.changed = changed;
    this.form.addEventListener("change", (event) => event.target.id !== "category-search" && this.apply());
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.asked = null; // the same filter anew, too
      this.apply();
    });
    this.form.addEventListener("reset", () => setTimeout(() => {
      this.search("");
      this.apply();
    }));
    byId("category-search").addEventListener("input", (event) => this.search(event.target.value));
    this.form.elements.sql.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) this.apply();
    });
  }

  /** The categories to choose from. */
  offer(categories) {
    byId("categories").replaceChildren(...categories.map(({ id, name, supercategory }) => {
      const swatch = element("i", { class: "swatch" });
      swatch.style.background = css(id);
      const box = element("input", { type: "checkbox", name: "category", value: id });
      return element("label", { class: "check", title: supercategory || name }, box, swatch, element("span", {}, name));
    }));
  }

  search(text) {
    for (const label of byId("categories").children) {
      label.hidden = !label.textContent.toLowerCase().includes(text.trim().toLowerCase());
    }
  }

  apply() {
    if (!this.form.reportValidity()) return;
    const asked = this.read();
    if (asked.toString() !== this.asked) this.changed(asked);
    this.asked = asked.toString();
  }

  /** What the form asks for; nothing for what is left empty. */
  read() {
    const entries = [...new FormData(this.form)].filter(([, value]) => value.trim() !== "");
    return new URLSearchParams(entries);
  }

  /** Shows what a query asks for. */
  write(query) {
    for (const field of this.form.elements) {
      if (!field.name) continue;
      if (field.type === "checkbox") field.checked = query.getAll(field.name).includes(field.value);
      else field.value = query.get(field.name) ?? "";
    }
    this.asked = this.read().toString();
  }

  /** What the server said of it, null when all is well. */
  complain(error) {
    byId("sql-error").textContent = error && this.form.elements.sql.value ? error.message : "";
  }
}
