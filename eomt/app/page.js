// Names the segment under the pointer or finger, and veils everything else. The hidden map has a segment's number in
// red and green, 0 is none, and in the confidence view the pixel's confidence in blue.
(() => {
  const maps = new WeakMap();
  let veiled = null; // the view whose veil is drawn

  function mapOf(view) {
    const image = view.querySelector(".eomt-ids");
    if (maps.has(image)) return maps.get(image);
    if (!image.complete || !image.naturalWidth) return null;
    const canvas = document.createElement("canvas");
    canvas.width = image.naturalWidth;
    canvas.height = image.naturalHeight;
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.drawImage(image, 0, 0);
    const map = context.getImageData(0, 0, canvas.width, canvas.height);
    maps.set(image, map);
    return map;
  }

  // Darkens what is not in `numbers`, a text such as "3" or "1 4"; nothing for "".
  function veil(view, numbers) {
    if (veiled && veiled !== view) veil(veiled, "");
    const canvas = view.querySelector(".eomt-veil");
    if (!canvas || canvas.dataset.numbers === numbers) return;
    canvas.dataset.numbers = numbers;
    const map = mapOf(view);
    if (!map) return;
    canvas.width = map.width; // this clears it
    canvas.height = map.height;
    veiled = numbers ? view : null;
    if (!numbers) return;
    const kept = new Set(numbers.split(" ").map(Number));
    const context = canvas.getContext("2d");
    const shade = context.createImageData(map.width, map.height);
    for (let i = 0; i < map.data.length; i += 4) {
      if (!kept.has(map.data[i] + 256 * map.data[i + 1])) shade.data[i + 3] = 110;
    }
    context.putImageData(shade, 0, 0);
  }

  function clear(except) {
    document.querySelectorAll(".eomt-name").forEach((name) => {
      if (!except || !except.contains(name)) name.textContent = "";
    });
    if (veiled && veiled !== except) veil(veiled, "");
  }

  function showAt(view, picture, event) {
    const map = mapOf(view);
    if (!map) return;
    const box = picture.getBoundingClientRect();
    const x = Math.min(map.width - 1, Math.floor(((event.clientX - box.left) / box.width) * map.width));
    const y = Math.min(map.height - 1, Math.floor(((event.clientY - box.top) / box.height) * map.height));
    const [low, high, sure] = map.data.subarray(4 * (y * map.width + x));
    const number = low + 256 * high;
    const text = JSON.parse(view.dataset.names)[number] ?? "";
    const isConfidence = view.dataset.view === "confidence";
    const name = view.querySelector(".eomt-name");
    name.textContent = text && isConfidence ? `${text} ${(sure / 255).toFixed(2)}` : text;
    const left = event.clientX - box.left + 12;
    name.style.left = `${Math.max(0, Math.min(left, box.width - name.offsetWidth - 4))}px`;
    const above = event.clientY - box.top - 38;
    name.style.top = `${above < 0 ? event.clientY - box.top + 18 : above}px`;
    veil(view, text && !isConfidence ? String(number) : "");
  }

  function point(event) {
    const view = event.target.closest?.(".eomt-view[data-names]");
    clear(view);
    if (!view) return;
    const chip = event.target.closest("[data-numbers]");
    if (event.target.classList.contains("eomt-overlay")) showAt(view, event.target, event);
    else {
      view.querySelector(".eomt-name").textContent = "";
      veil(view, chip?.tagName === "LI" ? chip.dataset.numbers : "");
    }
  }

  document.addEventListener("pointermove", point);
  document.addEventListener("pointerdown", point);
  document.addEventListener("focusin", (event) => event.target.matches?.(".eomt-legend li") && point(event));
})();
