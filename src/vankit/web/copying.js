// Buttons that copy the text of an element.

const SHOWN = 2000; // milliseconds for which a button says so

/** For every button with `data-copy`, the id of an element; `say(text)` tells what came of it. */
export function watchCopyButtons(say) {
  for (const button of document.querySelectorAll("button[data-copy]")) {
    const word = button.firstChild;
    const before = word.data;
    button.addEventListener("click", async () => {
      const done = await copy(document.getElementById(button.dataset.copy));
      word.data = done ? "Copied" : "Selected";
      say(done ? "Copied." : "The browser does not let pages copy. The text is selected.");
      setTimeout(() => (word.data = before), SHOWN);
    });
  }
}

async function copy(element) {
  try {
    await navigator.clipboard.writeText(element.textContent);
    return true;
  } catch {
    // Without https there is no clipboard: as on a phone that asks a computer in the same network.
    getSelection().selectAllChildren(element);
    return document.execCommand("copy");
  }
}
