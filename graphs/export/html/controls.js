// Controls, search, keys, and the start.
const threshold = byId('threshold');
const least = byId('least');
const search = byId('search');
const found = byId('found');
let hits = [];
let at = 0;

/** After a change of what is shown: everything that depends on it. */
function refresh() {
  refreshVisible();
  paintNodes();
  showCount();
  showPanel();
  showTable();
  light();
  redraw();
}

function showCount() {
  const parts = [`${count(visible.length)} of ${count(edges.length)} edges`];
  if (nUnscored) parts.push(`${count(nUnscored)} without a score, always shown`);
  byId('count').textContent = parts.join('; ');
  threshold.setAttribute('aria-valuetext', `${parts[0]}, absolute score at least ${state.least}`);
}

function recolour() {
  readPalette();
  paintNodes();
  showLegend();
  showPanel();
  redraw();
}

/** The slider counts edges away from the weakest; equal scores go together. */
function listenToControls() {
  threshold.max = String(Math.max(0, sizes.length - 1));
  threshold.disabled = least.disabled = !sizes.length;
  const set = (value) => { state.least = value; refresh(); };
  threshold.addEventListener('input', () => {
    const rank = Number(threshold.value);
    set(rank ? sizes[rank] : 0);
    least.value = rank ? String(Number(state.least.toPrecision(4))) : '0';
  });
  least.addEventListener('input', () => {
    const value = Math.max(0, Number(least.value) || 0);
    const rank = sizes.findIndex((size) => size >= value);
    threshold.value = String(rank < 0 ? sizes.length - 1 : rank);
    set(value);
  });
  least.value = '0';
  radios('sign', (value) => { state.signed = value === 'signed'; showLegend(); refresh(); showTable(); });
  radios('edge-colour', (value) => { state.edgeColour = value; showLegend(); redraw(); });
  radios('node-colour', (value) => { state.nodeColour = value; showLegend(); paintNodes(); });
  [['only-a', 1], ['only-b', 2], ['both', 3]].forEach(([id, where]) => {
    byId(id).addEventListener('change', (event) => { state.show[where] = event.target.checked; refresh(); });
    byId(`n-${id.replace('only-', '')}`).textContent = count(edges.filter((edge) => edge.where === where).length);
  });
  byId('compare').hidden = byId('by-circuit').hidden = !comparing;
  byId('by-role').hidden = !data.roles.length;
  byId('by-score').hidden = !nodeSizes.length;
  if (nodeSizes.length) document.querySelector('[name="node-colour"][value="score"]').checked = true;
  if (comparing) document.querySelector('[name="edge-colour"][value="circuit"]').checked = true;
  if (data.roles.length) { state.nodeColour = 'role'; document.querySelector('[name="node-colour"][value="role"]').checked = true; }
  byId('closer').addEventListener('click', () => zoom(1.3));
  byId('farther').addEventListener('click', () => zoom(1 / 1.3));
  byId('fit').addEventListener('click', fit);
  byId('save').addEventListener('click', save);
  byId('help').addEventListener('click', () => byId('guide').showModal());
  byId('theme').addEventListener('click', () => { setTheme(!dark); });
  byId('table').addEventListener('toggle', showTable);
  document.querySelector('.skip').addEventListener('click', () => { byId('table').open = true; });
}

function radios(name, then) {
  document.querySelectorAll(`[name="${name}"]`).forEach((input) => input.addEventListener('change', () => then(input.value)));
}

function setTheme(toDark) {
  dark = toDark;
  root.classList.toggle('dark', dark);
  byId('theme').textContent = dark ? 'Light' : 'Dark';
  recolour();
}

// -------------------------------------------------------------------------------------------------------- search

function lookUp() {
  const words = search.value.trim().toLowerCase();
  hits = [];
  if (words) {
    const rate = (name) => (name === words ? 0 : name.startsWith(words) ? 1 : 2);
    const matching = (list) => list.filter((item) => `${item.name} ${item.called ?? ''}`.toLowerCase().includes(words));
    hits = matching(nodes).sort((one, two) => rate(one.name) - rate(two.name)).slice(0, 12);
    if (hits.length < 12) hits.push(...matching(ranked).slice(0, 12 - hits.length));
  }
  at = 0;
  found.replaceChildren(...hits.map((hit, place) => {
    const row = make('li', '', hit.name, make('small', '', hit.source ? format(hit.score) : hit.called ?? kindWord(hit)));
    row.id = `hit-${place}`;
    row.setAttribute('role', 'option');
    row.addEventListener('pointerdown', (event) => { event.preventDefault(); take(hit); });
    return row;
  }));
  if (words && !hits.length) found.append(make('li', 'muted', 'Nothing of that name.'));
  found.hidden = !words;
  search.setAttribute('aria-expanded', String(Boolean(words)));
  mark();
}

function mark() {
  [...found.children].forEach((row, place) => row.setAttribute('aria-selected', String(place === at && hits.length > 0)));
  if (hits.length) { search.setAttribute('aria-activedescendant', `hit-${at}`); found.children[at].scrollIntoView({ block: 'nearest' }); } else search.removeAttribute('aria-activedescendant');
}

function take(hit) {
  closeSearch();
  if (hit.source) { choose(null, hit); return; }
  choose(hit);
  reveal(hit);
  hit.element.focus({ preventScroll: true });
}

function closeSearch() {
  search.value = '';
  lookUp();
}

function listenToSearch() {
  search.addEventListener('input', lookUp);
  search.addEventListener('blur', () => { found.hidden = true; search.setAttribute('aria-expanded', 'false'); });
  search.addEventListener('focus', () => { if (search.value) lookUp(); });
  search.addEventListener('keydown', (event) => {
    if (event.key === 'Enter' && hits.length) take(hits[at]);
    else if (event.key === 'Escape') { closeSearch(); search.blur(); state.hovered = null; choose(null); } else if (hits.length && (event.key === 'ArrowDown' || event.key === 'ArrowUp')) {
      at = (at + (event.key === 'ArrowDown' ? 1 : hits.length - 1)) % hits.length;
      mark();
    } else return;
    event.preventDefault();
    event.stopPropagation();
  });
}

// ---------------------------------------------------------------------------------------------------------- keys

/** The node to which an arrow key leads: along the strongest edge that is shown, or to the next box beside. */
function neighbour(node, key) {
  if (key === 'ArrowUp') return node.outgoing.find(isShown)?.target;
  if (key === 'ArrowDown') return node.incoming.find(isShown)?.source;
  const way = key === 'ArrowRight' ? 1 : -1;
  const beside = nodes.filter((other) => Math.abs(other.y - node.y) < node.h && way * (other.x - node.x) > 0);
  return beside.sort((one, two) => way * (one.x - two.x))[0];
}

function listenToKeys() {
  window.addEventListener('keydown', (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || byId('guide').open) return;
    if (event.target.closest('input')) return;
    const act = {
      '/': () => search.focus(), '?': () => byId('guide').showModal(), Escape: () => { state.hovered = state.hoveredEdge = null; choose(null); },
      '+': () => zoom(1.3), '=': () => zoom(1.3), '-': () => zoom(1 / 1.3), 0: fit,
    }[event.key];
    if (act) { event.preventDefault(); act(); return; }
    if (!event.key.startsWith('Arrow') || !(event.target.closest('.stage') || event.target === document.body)) return;
    const from = event.target.closest('.node') ? nodeNamed.get(event.target.closest('.node').dataset.name) : state.chosen;
    const to = from ? neighbour(from, event.key) : nodes[0];
    if (!nodes.length) return;
    event.preventDefault();
    if (to) { choose(to); reveal(to); to.element.focus({ preventScroll: true }); }
  });
}

// --------------------------------------------------------------------------------------------------------- start

function start() {
  byId('title').textContent = data.title;
  byId('summary').textContent = comparing ? `A: ${data.summaries[0]}\nB: ${data.summaries[1]}` : data.summaries[0];
  byId('nothing').hidden = edges.length + nodes.length > 0;
  placeNodes();
  showPrompt();
  showMade();
  listenToControls();
  listenToSearch();
  listenToPointer();
  listenToKeys();
  const preference = window.matchMedia('(prefers-color-scheme: dark)');
  dark = preference.matches;
  preference.addEventListener('change', (event) => setTheme(event.matches));
  refreshVisible();
  setTheme(dark);
  refresh();
  window.addEventListener('hashchange', followHash);
  followHash();
  setTimeout(() => edges.forEach((edge) => { if (!edge.box) measure(edge); }), 300); // so that pointing is quick
  new ResizeObserver(() => { resize(); fit(); render(); }).observe(stage);
}

/** An address that ends in a node's or an edge's name, such as #a9.h6, opens with it selected. */
function followHash() {
  let name = window.location.hash.slice(1);
  try { name = decodeURIComponent(name); } catch { return; }
  const edge = edges.find((each) => each.name === name);
  if (nodeNamed.has(name) || edge) choose(nodeNamed.get(name) ?? null, edge);
}

/** For tests and for other scripts of a notebook: what is shown, how long drawing took, and the picture. */
window.wiretrace = {
  picture,
  zoom,
  redraw,
  get shown() { return visible.map((edge) => edge.name); },
  get chosen() { return (state.chosen || state.chosenEdge || { name: null }).name; },
  get view() { return { ...view }; },
  timing,
};
start();
