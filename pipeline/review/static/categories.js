/** The categories of the job and of what is beside it, by the job's ids; an id that nobody named has a name, too. */
export class Categories {
  constructor(categories) {
    this.byId = new Map(categories.map((category) => [category.id, category]));
  }

  name(id) {
    return this.byId.get(id)?.name ?? `category ${id}`;
  }

  /** Pairs of places in an object's keypoints, from 1. */
  skeleton(id) {
    return this.byId.get(id)?.skeleton ?? [];
  }

  /** The ids here of categories from elsewhere, by theirs: the same name is the same category, others get new ids. */
  adopt(theirs) {
    const ids = new Map([...this.byId.values()].map(({ id, name }) => [name, id]));
    return new Map(theirs.map((category) => {
      const free = this.byId.has(category.id) ? Math.max(...this.byId.keys()) + 1 : category.id;
      const id = ids.get(category.name) ?? free;
      if (!this.byId.has(id)) this.byId.set(id, { ...category, id });
      return [category.id, id];
    }));
  }
}
