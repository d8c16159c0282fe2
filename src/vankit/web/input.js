// The ways by which a picture comes in: chosen, photographed, dropped, pasted.

/** Calls `take(file)`, or `refuse(why)` for what is dropped and not a file. */
export function watchInputs({ inputs, zone, take, refuse }) {
  for (const input of inputs) {
    input.addEventListener("change", () => {
      const [file] = input.files;
      input.value = ""; // or the same file could not be chosen again
      if (file) take(file);
    });
  }
  document.addEventListener("paste", (event) => {
    const [file] = event.clipboardData?.files ?? [];
    if (!file) return;
    event.preventDefault();
    take(file);
  });
  watchDrops(zone, take, refuse);
}

/** Of the whole window, for a file that misses the zone would replace the page. */
function watchDrops(zone, take, refuse) {
  window.addEventListener("dragover", (event) => {
    event.preventDefault();
    event.dataTransfer.dropEffect = "copy";
    zone.classList.add("over");
  });
  window.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) zone.classList.remove("over");
  });
  window.addEventListener("drop", (event) => {
    event.preventDefault();
    zone.classList.remove("over");
    const [file] = event.dataTransfer?.files ?? [];
    if (file) take(file);
    else refuse("That is not a file. Save the picture first, then drop it here.");
  });
}
