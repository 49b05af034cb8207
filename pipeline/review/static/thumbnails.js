const AT_ONCE = 4; // of the six connections that a browser opens to a server: the others are for what is pressed

/** Loads images a few at a time, in the order they were asked for. */
export class Thumbnails {
  waiting = new Map(); // image -> URL
  loading = new Set();

  load(image, url) {
    this.waiting.set(image, url);
    this.next();
  }

  /** An image that is not needed any more. */
  drop(image) {
    image.removeAttribute("src");
    this.waiting.delete(image);
    this.done(image);
  }

  /** An image has come, or will not come. */
  done(image) {
    if (this.loading.delete(image)) this.next();
  }

  next() {
    for (const [image, url] of this.waiting) {
      if (this.loading.size >= AT_ONCE) return;
      this.waiting.delete(image);
      this.loading.add(image);
      image.src = url;
    }
  }
}
