/** A DOM node. Children that are strings become text: nothing that comes from data is ever parsed as HTML. */
export function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") node.addEventListener(name, value);
    else if (value !== null && value !== undefined) node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

export const byId = (id) => document.getElementById(id);

/** Shows a path of which, where there is no room, the folder is cut and not the file's name. */
export function showPath(node, path) {
  const cut = path.lastIndexOf("/") + 1;
  node.title = path;
  node.replaceChildren(element("span", {}, path.slice(0, cut)), element("span", {}, path.slice(cut)));
}

const numbers = new Intl.NumberFormat("en");
export const number = (value) => numbers.format(value);
export const decimals = (value) => (value === null || value === undefined ? "" : value.toFixed(2));

/** A function that calls `work` once before the next frame, however often it is called until then. */
export function onceAFrame(work) {
  let waits = false;
  return () => {
    if (waits) return;
    waits = true;
    requestAnimationFrame(() => {
      waits = false;
      work();
    });
  };
}
