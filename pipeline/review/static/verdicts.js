import { post } from "./api.js";
import { element } from "./dom.js";

export const MARKS = { accept: "✓", reject: "✗", flag: "⚑" };

const keyOf = (imageId, annotationId) => `${imageId}/${annotationId ?? ""}`;

/**
 * What this reviewer says, shown at once and written in the order it was said. A word that could not be written is
 * taken off the screen again, and a notice offers to try once more.
 */
export class Verdicts {
  said = new Map(); // on the screen: key -> {verdict, note}
  stored = new Map(); // of those, what the server has confirmed
  waiting = 0;
  queue = Promise.resolve();

  /** `changed` and `written` are called with the ids of what looks different, and of what the server has. */
  constructor(reviewer, notices, { changed, written }) {
    Object.assign(this, { reviewer, notices, changed, written });
    window.addEventListener("beforeunload", (event) => {
      if (this.waiting || notices.childElementCount) event.preventDefault();
    });
  }

  /** This reviewer's {verdict, note} on an image (`annotationId` null) or object; `reviews` came with the image. */
  mine(imageId, annotationId, reviews) {
    const written = reviews.find((one) => one.annotation_id === annotationId && one.reviewer === this.reviewer);
    return this.said.get(keyOf(imageId, annotationId)) ?? written ?? { verdict: null, note: null };
  }

  /** What to mark an image with in a list. */
  ofRow(row) {
    const said = this.said.get(keyOf(row.image_id, null));
    return said ? said.verdict : row.verdict;
  }

  /** What the server has of it. */
  storedOf(row) {
    const stored = this.stored.get(keyOf(row.image_id, null));
    return stored ? stored.verdict : row.verdict;
  }

  /** Says {verdict, note} of an image or object. */
  say(imageId, annotationId, words) {
    const key = keyOf(imageId, annotationId);
    this.said.set(key, words);
    this.waiting += 1;
    this.inOrder(() => this.write(key, imageId, annotationId, words));
    this.changed(imageId);
  }

  /** Does something after what was said before is written, and before what will be said. */
  inOrder(work) {
    const done = this.queue.then(work);
    this.queue = done.catch(() => {});
    return done;
  }

  async write(key, imageId, annotationId, words) {
    const review = { image_id: imageId, annotation_id: annotationId, verdict: words.verdict, note: words.note };
    try {
      await post("verdicts", { reviews: [review] });
      this.stored.set(key, words);
      this.written(imageId, annotationId);
    } catch (error) {
      if (this.said.get(key) === words) this.takeOff(key, error, () => this.say(imageId, annotationId, words));
    } finally {
      this.waiting -= 1;
      this.changed(imageId);
    }
  }

  takeOff(key, error, again) {
    if (this.stored.has(key)) this.said.set(key, this.stored.get(key));
    else this.said.delete(key);
    const notice = element("div", { class: "notice" }, element("span", {}, `Not saved: ${error.message}`));
    const close = (work) => () => {
      notice.remove();
      work();
    };
    notice.append(
      element("button", { type: "button", click: close(again) }, "Try again"),
      element("button", { type: "button", click: close(() => {}) }, "Dismiss"),
    );
    this.notices.append(notice);
  }
}
