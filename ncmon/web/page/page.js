"use strict";
// Before textual.js looks for it: where the websocket is, seen from here, also behind `ssh -L` or a proxy.
document.addEventListener("DOMContentLoaded", () => {
  document.getElementById("terminal").dataset.sessionWebsocketUrl =
    location.origin.replace(/^http/, "ws") + "/ws";
  document.getElementById("again").addEventListener("click", () => location.reload());
});
