// Names the segment under the pointer or finger: the hidden map has its number in red and green, 0 is none, and in the
// confidence view the pixel's confidence in blue.
(() => {
  const maps = new WeakMap();

  function pixelsOf(image) {
    if (maps.has(image)) return maps.get(image);
    if (!image.complete || !image.naturalWidth) return null;
    const canvas = document.createElement("canvas");
    canvas.width = image.naturalWidth;
    canvas.height = image.naturalHeight;
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.drawImage(image, 0, 0);
    maps.set(image, context);
    return context;
  }

  function show(event) {
    const view = event.target.closest?.(".eomt-view");
    document.querySelectorAll(".eomt-name").forEach((name) => {
      if (!view || !view.contains(name)) name.textContent = "";
    });
    if (!view || !event.target.classList.contains("eomt-overlay")) return;
    const box = event.target.getBoundingClientRect();
    const ids = view.querySelector(".eomt-ids");
    const map = pixelsOf(ids);
    if (!map) return;
    const x = Math.floor(((event.clientX - box.left) / box.width) * ids.naturalWidth);
    const y = Math.floor(((event.clientY - box.top) / box.height) * ids.naturalHeight);
    const [low, high, sure] = map.getImageData(x, y, 1, 1).data;
    const names = JSON.parse(view.dataset.names);
    const name = view.querySelector(".eomt-name");
    const text = names[low + 256 * high - 1] ?? "";
    name.textContent = text && view.dataset.view === "confidence" ? `${text} ${(sure / 255).toFixed(2)}` : text;
    const left = event.clientX - box.left;
    name.style.left = `${Math.min(left + 12, Math.max(0, box.width - name.offsetWidth))}px`;
    name.style.top = `${Math.max(0, event.clientY - box.top - 34)}px`;
  }

  document.addEventListener("pointermove", show);
  document.addEventListener("pointerdown", show);
})();
