"use strict";
// Optional: brings the page up to date in place, and says when nobody writes it any more.
(() => {
  const page = document.documentElement.dataset;
  const pause = document.getElementById("pause");
  const stale = document.getElementById("stale");
  const age = () => (Date.now() - Date.parse(document.getElementById("written").dateTime)) / 1000;
  let skew = null; // of this machine's clock to the server's, from the first answer's date
  const tell = () => {
    const seconds = age() - (skew ?? 0);
    stale.hidden = seconds < Number(page.stale);
    if (!stale.hidden) {
      const pill = document.getElementById("pill");
      pill.textContent = "No news";
      pill.className = "pill bad";
      stale.textContent = `Nobody has written this page for ${Math.floor(seconds / 60)} min: is watcherd running?`;
    }
  };
  const renew = async () => {
    if (pause.getAttribute("aria-pressed") === "true" || document.hidden) return;
    try {
      const answer = await fetch(location.href, { cache: "no-store" });
      if (!answer.ok) return;
      const date = Date.parse(answer.headers.get("date"));
      if (date) skew = (Date.now() - date) / 1000;
      const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
      for (const id of ["pill", "written", "content"]) {
        document.getElementById(id).replaceWith(fresh.getElementById(id));
      }
      document.title = fresh.title;
    } catch {
      // The server is away: the page says how old it is.
    } finally {
      tell();
    }
  };
  pause.hidden = false;
  pause.addEventListener("click", () => {
    const paused = pause.getAttribute("aria-pressed") !== "true";
    pause.setAttribute("aria-pressed", String(paused));
    pause.textContent = paused ? "Paused" : "Pause";
  });
  setInterval(renew, Number(page.refresh) * 1000);
  tell();
})();
