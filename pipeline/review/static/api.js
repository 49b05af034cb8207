/** What the server refused, in its own words. */
export class ApiError extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

async function ask(path, options) {
  let response;
  try {
    response = await fetch(`api/${path}`, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("the server does not answer: is `prelabel review` still running?", 0);
  }
  const body = await response.json().catch(() => ({}));
  if (!response.ok) throw new ApiError(body.error ?? `the server answered ${response.status}`, response.status);
  return body;
}

export const get = (path, signal) => ask(path, { signal });

export const post = (path, body) =>
  ask(path, {
    method: "POST",
    headers: { "Content-Type": "application/json", "X-Prelabel": "1" },
    body: JSON.stringify(body),
    keepalive: true, // a verdict given just before the page is left still arrives
  });

export const fileUrl = (job, imageId) => `api/images/${imageId}/file?key=${job.key}`;

/** The thumbnail of an image, with the boxes that a filter asks for. */
export function thumbnailUrl(job, imageId, filter) {
  const query = new URLSearchParams({ key: job.key, size: 256 });
  filter.getAll("category").forEach((category) => query.append("category", category));
  if (filter.has("min_score")) query.set("min_score", filter.get("min_score"));
  return `api/images/${imageId}/thumbnail?${query}`;
}
