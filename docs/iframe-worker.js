// Browsers start no Worker from file://. The search runs in a hidden frame there, so that it works without a server.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super()
      const frame = document.createElement("iframe")
      frame.hidden = true
      frame.srcdoc = "<body></body>"
      this.ready = new Promise((resolve, reject) => {
        frame.addEventListener("load", () => {
          const inside = frame.contentWindow
          const load = address => new Promise((done, failed) => {
            const script = inside.document.createElement("script")
            script.src = new URL(address, url)
            script.onload = done
            script.onerror = failed
            inside.document.body.append(script)
          })
          inside.importScripts = (...addresses) => addresses.reduce((before, one) => before.then(() => load(one)), Promise.resolve())
          inside.postMessage = data => this.dispatchEvent(new MessageEvent("message", { data }))
          load(url).then(() => resolve(inside), reject)
        }, { once: true })
      })
      document.body.append(frame)
    }

    postMessage(data) {
      this.ready.then(inside => inside.dispatchEvent(new inside.MessageEvent("message", { data })))
    }
  }
}
