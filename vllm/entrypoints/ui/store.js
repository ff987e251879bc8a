// What outlives a reload: the conversation, the settings and the key with the tab, the theme with
// the browser.

export class Stored {
  constructor(storage, name, initial) {
    this.storage = storage;
    this.name = `vllm.${name}`;
    this.initial = initial;
  }

  get() {
    try {
      const text = this.storage.getItem(this.name);
      return text === null ? this.initial : JSON.parse(text);
    } catch {
      return this.initial;
    }
  }

  // False where there is no room or no permission; the page goes on without.
  set(value) {
    try {
      this.storage.setItem(this.name, JSON.stringify(value));
      return true;
    } catch {
      return false;
    }
  }
}

const storageOf = (name) => {
  try {
    return window[name];
  } catch {
    return null; // a browser that forbids storage makes every access throw
  }
};

export const stored = {
  key: new Stored(storageOf("sessionStorage"), "key", ""),
  turns: new Stored(storageOf("sessionStorage"), "turns", []),
  settings: new Stored(storageOf("sessionStorage"), "settings", {}),
  theme: new Stored(storageOf("localStorage"), "theme", ""),
};
