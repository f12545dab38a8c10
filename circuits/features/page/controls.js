// Search, filters, keys, labels in files, and the start.

function listenToControls() {
  const search = byId('search');
  search.addEventListener('input', () => { state.words = search.value; relist(); });
  search.addEventListener('keydown', (event) => {
    if (event.key === 'Enter' && listed.length) { choose(listed[0]); panel.focus({ preventScroll: true }); }
    else if (event.key === 'ArrowDown' && listed.length) { choose(listed[0]); list.focus(); }
    else if (event.key === 'Escape') { search.value = state.words = ''; relist(); search.blur(); }
    else return;
    event.preventDefault();
    event.stopPropagation();
  });
  document.querySelectorAll('[name="which"]').forEach((input) => input.addEventListener('change', () => { state.which = input.value; relist(); }));
  byId('sort').addEventListener('change', () => { state.sort = byId('sort').value; relist(); });
  const share = (id, otherwise) => (byId(id).value === '' ? otherwise : Math.max(0, Number(byId(id).value) || 0) / 100);
  ['least', 'most'].forEach((id) => byId(id).addEventListener('input', () => { [state.least, state.most] = [share('least', 0), share('most', 1)]; relist(); }));
  byId('strong').addEventListener('input', () => { state.strong = Math.max(0, Number(byId('strong').value) || 0); relist(); });
  byId('reset').addEventListener('click', reset);
  byId('help').addEventListener('click', () => byId('guide').showModal());
  byId('theme').addEventListener('click', () => setTheme(!dark));
  byId('save').addEventListener('click', save);
  byId('load').addEventListener('click', () => byId('file').click());
  byId('file').addEventListener('change', load);
  list.addEventListener('scroll', showRows);
  list.addEventListener('keydown', moveInList);
  document.querySelector('.skip').addEventListener('click', (event) => { event.preventDefault(); panel.focus(); });
  window.addEventListener('beforeunload', (event) => { if (state.unsaved) event.preventDefault(); });
}

function reset() {
  byId('search').value = state.words = '';
  byId('strong').value = '';
  state.strong = 0;
  state.which = 'all';
  document.querySelector('[name="which"][value="all"]').checked = true;
  setRange(0, 1);
}

function moveInList(event) {
  const page = Math.max(1, Math.floor(list.clientHeight / ROW) - 1);
  const by = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -Infinity, End: Infinity }[event.key];
  if (event.key === 'Enter') panel.focus({ preventScroll: true });
  else if (by) step(by === Infinity ? listed.length : by === -Infinity ? -listed.length : by);
  else return;
  event.preventDefault();
  event.stopPropagation();
}

function listenToKeys() {
  window.addEventListener('keydown', (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || byId('guide').open) return;
    if (event.target.closest('input, select')) return;
    const act = {
      '/': () => byId('search').focus(), '?': () => byId('guide').showModal(), j: () => step(1), k: () => step(-1),
      l: () => byId('label') && byId('label').select(),
    }[event.key];
    if (act) { event.preventDefault(); act(); }
  });
}

function setTheme(toDark) {
  dark = toDark;
  root.classList.toggle('dark', dark);
  byId('theme').textContent = dark ? 'Light' : 'Dark';
}

// -------------------------------------------------------------------------------------------------------- labels

/** What a file of labels holds; `circuits.features.page.read_labels` reads it. */
function labels() {
  const named = features.filter((feature) => feature.label).map((feature) => [feature.index, feature.label]);
  return { model: data.model, site: data.site, features: features.length, labels: Object.fromEntries(named) };
}

function save() {
  const link = make('a');
  link.href = URL.createObjectURL(new Blob([`${JSON.stringify(labels(), null, 1)}\n`], { type: 'application/json' }));
  link.download = 'labels.json';
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  state.unsaved = false;
  byId('save').classList.remove('unsaved');
}

async function load() {
  const [file] = byId('file').files;
  if (!file) return;
  let found = null;
  try { found = JSON.parse(await file.text()); } catch { /* said below */ }
  byId('file').value = '';
  byId('count').textContent = takeLabels(found);
  showRows();
  showFeature();
}

/** Take labels from what a file holds; says what came of it. */
function takeLabels(found) {
  const table = found && typeof found === 'object' ? found.labels : null;
  if (!table || typeof table !== 'object') return 'That file holds no labels.';
  const fitting = Object.entries(table).filter(([index, text]) => features[index] && typeof text === 'string');
  fitting.forEach(([index, text]) => { features[index].label = text.trim().slice(0, 200); });
  const other = found.site !== undefined && (found.site !== data.site || found.model !== data.model);
  return `${count(fitting.length)} labels were read${other ? `; they were made for ${found.site} of ${found.model}` : ''}.`;
}

// --------------------------------------------------------------------------------------------------------- start

/** An address that ends in a feature's number or name, such as #12 or #m1.f12, opens with it. */
function followHash() {
  let asked = window.location.hash.slice(1);
  try { asked = decodeURIComponent(asked); } catch { return false; }
  const feature = features.find((each) => asked === String(each.index) || asked === each.name);
  if (!feature) return false;
  choose(feature);
  return true;
}

function start() {
  byId('title').textContent = data.title;
  byId('summary').textContent = data.summary;
  byId('effects-note').textContent = data.note;
  list.append(sheet);
  makeBars();
  listenToControls();
  listenToKeys();
  const preference = window.matchMedia('(prefers-color-scheme: dark)');
  preference.addEventListener('change', (event) => setTheme(event.matches));
  setTheme(preference.matches);
  if (!features.some(KEEP.live)) { state.which = 'all'; document.querySelector('[name="which"][value="all"]').checked = true; }
  relist();
  window.addEventListener('hashchange', followHash);
  if (!followHash()) { if (listed.length) choose(listed[0]); else showFeature(); }
  new ResizeObserver(showRows).observe(list);
}

/** For tests and for other scripts of a notebook. */
window.wiretrace = {
  labels,
  takeLabels,
  get chosen() { return state.chosen && state.chosen.index; },
  get listed() { return listed.map((feature) => feature.index); },
};
start();
