import { area, runLengths } from "./rle.js";

const ORDER = ["semantic", "panoptic", "annotation", "proposal"];

/**
 * All that was found in an image, as one list: annotations, segments and proposals as
 * {kind, id, category, score, bbox, size, runs, area, keypoints, iscrowd}, of which `kind` is annotation, panoptic,
 * semantic or proposal, and `runs` are the mask's run lengths, null without a mask.
 * `ids` are the categories' ids here, where they have others there.
 */
export function objectsOf(labels, ids = new Map()) {
  return [
    ...(labels.annotations ?? []).map((row) => objectOf(row, "annotation", row.annotation_id, ids)),
    ...(labels.segments ?? []).map((row) => objectOf(row, row.kind, row.segment_id, ids)),
    ...(labels.proposals ?? []).map((row, rank) => objectOf(row, "proposal", rank, ids)),
  ];
}

function objectOf(row, kind, id, ids) {
  const category = ids.get(row.category_id) ?? row.category_id ?? null;
  const { score = null, bbox, size = null, keypoints = null, iscrowd = false } = row;
  const object = { kind, id, category, score, bbox, size, keypoints, iscrowd, runs: null, error: null };
  try {
    if (row.counts) object.runs = runLengths(row.counts, size);
  } catch (error) {
    object.error = error.message;
  }
  object.area = object.runs ? area(object.runs) : bbox[2] * bbox[3];
  return object;
}

/** The order to paint in: segments below objects, and the best on top; without scores the smallest. */
export const bottomUp = (objects) =>
  objects.toSorted((a, b) => ORDER.indexOf(a.kind) - ORDER.indexOf(b.kind) || a.score - b.score || b.area - a.area);

/** How things are looked at; the same for every pane and kept from image to image. */
export class Look {
  layers = {
    masks: true, boxes: true, names: true, keypoints: true, panoptic: false, semantic: false, proposals: false,
  };
  hidden = new Set(); // category ids
  threshold = 0;
  opacity = 0.5;
  solo = null;
  selected = null;

  /** Whether anything of an object may be drawn. */
  shows(object) {
    return this.solo ? object === this.solo : this.admits(object);
  }

  /** Whether it is drawn when no object stands alone. */
  admits(object) {
    return this.counts(object) && !this.hidden.has(object.category);
  }

  /** Whether it would be drawn if its category were. */
  counts(object) {
    return this.showsKind(object) && (object.score === null || object.score >= this.threshold);
  }

  showsKind({ kind, runs, keypoints }) {
    const { layers } = this;
    if (kind === "annotation") return layers.boxes || (layers.masks && runs) || (layers.keypoints && keypoints);
    return kind === "proposal" ? layers.proposals : layers[kind];
  }

  showsMask(object) {
    return object.runs !== null && (object.kind !== "annotation" || this.layers.masks);
  }

  /** For labels from elsewhere, of which none can be the selected one. */
  withoutSolo() {
    return Object.assign(Object.create(Look.prototype), this, { solo: null, selected: null });
  }
}
