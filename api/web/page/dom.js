// Making elements. Texts become text nodes: nothing here, or anywhere in the page, parses markup.

const svgSpace = 'http://www.w3.org/2000/svg';

// h makes an element. Of the properties, on is a set of listeners, vars are custom properties of CSS, and the others are
// attributes: true is an empty one; false, null and undefined are none. Children may be nested lists.
export function h(tag, properties, ...children) {
  return fill(document.createElement(tag), properties, children);
}

// svg is h for drawings.
export function svg(tag, properties, ...children) {
  return fill(document.createElementNS(svgSpace, tag), properties, children);
}

function fill(element, properties, children) {
  for (const [name, value] of Object.entries(properties ?? {})) {
    if (name === 'on') {
      for (const [event, listener] of Object.entries(value)) element.addEventListener(event, listener);
    } else if (name === 'vars') {
      for (const [variable, setting] of Object.entries(value)) element.style.setProperty(variable, setting);
    } else if (value !== false && value !== null && value !== undefined) {
      element.setAttribute(name, value === true ? '' : String(value));
    }
  }
  add(element, children);
  return element;
}

function add(element, children) {
  for (const child of children) {
    if (Array.isArray(child)) add(element, child);
    else if (child instanceof Node) element.append(child);
    else if (child !== false && child !== null && child !== undefined) element.append(document.createTextNode(String(child)));
  }
}

// swap replaces what is in an element. Whoever has the focus in there keeps it, and what was opened stays open, if what
// has the same key comes again.
export function swap(element, ...children) {
  const former = element.contains(document.activeElement) ? keyOf(document.activeElement) : null;
  const open = new Set([...element.querySelectorAll('details[open] > summary')].map(keyOf));
  const fresh = document.createDocumentFragment();
  add(fresh, children);
  element.replaceChildren(fresh);
  for (const summary of element.querySelectorAll('summary')) {
    if (open.has(keyOf(summary))) summary.parentElement.open = true;
  }
  if (!former) return;
  for (const candidate of element.querySelectorAll('a[href], button, input, select, summary, [tabindex]')) {
    if (keyOf(candidate) === former) {
      candidate.focus({preventScroll: true});
      return;
    }
  }
}

const keyOf = (element) => element.dataset.key ?? element.getAttribute('href') ?? (element.id || element.tagName);

// reading says that text of an element is selected, which replacing it would undo.
export function reading(element) {
  const selection = getSelection();
  return selection !== null && !selection.isCollapsed && element.contains(selection.anchorNode);
}

const status = document.getElementById('status');

// say tells those who listen.
export function say(text) {
  if (status.textContent !== text) status.textContent = text;
}
