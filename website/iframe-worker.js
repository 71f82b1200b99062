// Opened from disk, browsers refuse to start workers, and the search runs in one: there it runs in a hidden frame instead.
if (location.protocol === "file:") {
  window.Worker = class {
    constructor(script) {
      this.waiting = [];
      this.frame = document.createElement("iframe");
      this.frame.hidden = true;
      this.frame.title = "search";
      this.frame.srcdoc = "<!doctype html><title>search</title>";
      this.frame.onload = () => this.start(new URL(script, document.baseURI).href);
      document.documentElement.append(this.frame);
    }

    start(script) {
      const inside = this.frame.contentWindow;
      inside.postMessage = (data) => this.tell(new MessageEvent("message", { data: structuredClone(data) }));
      const element = inside.document.createElement("script");
      element.src = script;
      element.onload = () => {
        const waiting = this.waiting;
        this.waiting = null;
        waiting.forEach((data) => this.postMessage(data));
      };
      element.onerror = () => this.tell(new Event("error"));
      inside.document.head.append(element);
    }

    // Later and as a copy, as a worker's messages come: answered at once, page and script would call each other for ever.
    tell(event) {
      setTimeout(() => this["on" + event.type]?.(event));
    }

    postMessage(data) {
      const copy = structuredClone(data);
      if (this.waiting) this.waiting.push(copy);
      else setTimeout(() => this.frame.contentWindow?.dispatchEvent(new MessageEvent("message", { data: copy })));
    }

    terminate() {
      this.frame.remove();
    }
  };
}
