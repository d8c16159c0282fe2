// Answers as text and as lists.

export function percent(share) {
  if (share > 0 && share < 0.001) return "<0.1%";
  return `${(100 * share).toFixed(1)}%`;
}

/** One line that says what is in the picture, for those who hear the page, too. */
export function summary(answer, shown) {
  if (answer.labels) {
    const [best] = answer.labels;
    return best ? `${best.name} ${percent(best.score)}` : "No label reaches its threshold";
  }
  const counts = new Map();
  for (const { name } of shown) counts.set(name, (counts.get(name) ?? 0) + 1);
  const names = [...counts].map(([name, count]) => (count > 1 ? `${count} × ${name}` : name));
  return names.length ? names.join(", ") : "Nothing found";
}

/** JSON with a line per label, object or segment: boxes and masks take no room of their own. */
export function jsonText(answer) {
  const fields = Object.entries(answer).map(([key, value]) => {
    const listed = Array.isArray(value) && value.length;
    return `  ${JSON.stringify(key)}: ${listed ? lines(value) : JSON.stringify(value)}`;
  });
  return `{\n${fields.join(",\n")}\n}`;
}

function lines(values) {
  return `[\n${values.map((each) => `    ${JSON.stringify(each)}`).join(",\n")}\n  ]`;
}

/** Items of #labels; `explain(index)` is called for the one that is pressed, if there is such a function. */
export function labelItems(labels, explain) {
  return labels.map(({ name, index, score }) => {
    const row = element(explain ? "button" : "div", "row");
    row.append(element("span", "name", name), element("span", "number", percent(score)), bar(score));
    if (explain) {
      row.type = "button";
      row.title = `Show what speaks for ${name}`;
      row.addEventListener("click", () => explain(index));
    }
    return item(row, { name, index, score });
  });
}

/** Items of #found; `emphasise(object, press)` is called as one is looked at and pressed. */
export function foundItems(objects, pinned, colour, area, emphasise) {
  return objects.map((object) => {
    const row = element("button", "row");
    row.type = "button";
    row.setAttribute("aria-pressed", String(object === pinned));
    const swatch = element("span", "swatch");
    swatch.style.backgroundColor = colour(object);
    const number = percent(object.area === undefined ? object.score : object.area / area);
    row.append(swatch, element("span", "name", object.name), element("span", "number", number));
    row.addEventListener("click", () => emphasise(object, true));
    for (const event of ["pointerenter", "focus"]) row.addEventListener(event, () => emphasise(object, false));
    for (const event of ["pointerleave", "blur"]) row.addEventListener(event, () => emphasise(null, false));
    const { name, category_id: index, score, area: pixels } = object;
    return item(row, { name, index, score, area: pixels });
  });
}

/** Options of #target: the best label, those of the answer, then every other class. */
export function targetOptions(labels, classes) {
  const best = new Option(labels.length ? `the best label: ${labels[0].name}` : "the best label", "");
  const seen = new Set(labels.map(({ index }) => index));
  const others = classes.map((name, index) => [name, index]).filter(([, index]) => !seen.has(index));
  return [
    best,
    ...group("In the answer", labels.map(({ name, index }) => [name, index])),
    ...group("Other classes", others),
  ];
}

export function element(tag, className, text = "") {
  const made = document.createElement(tag);
  made.className = className;
  made.textContent = text;
  return made;
}

function group(label, entries) {
  if (!entries.length) return [];
  const made = element("optgroup", "");
  made.label = label;
  made.append(...entries.map(([name, index]) => new Option(name, index)));
  return [made];
}

function item(row, data) {
  const made = element("li", "");
  for (const [key, value] of Object.entries(data)) if (value !== undefined) made.dataset[key] = value;
  made.append(row);
  return made;
}

function bar(share) {
  const made = element("span", "bar");
  const filled = element("span", "");
  filled.style.inlineSize = `${100 * share}%`;
  made.append(filled);
  return made;
}
