// The list: which features are in it, in which order, and the few rows that are in sight.
const list = byId('list');
const ROW = 50;
const sheet = make('div');
let listed = [];

const KEEP = {
  all: () => true,
  live: (feature) => feature.active > 0,
  dead: (feature) => feature.active === 0,
  dense: (feature) => feature.frequency > DENSE,
  labelled: (feature) => feature.label !== '',
};
const ORDER = {
  index: () => 0,
  often: (one, two) => two.active - one.active,
  rare: (one, two) => one.active - two.active,
  maximum: (one, two) => two.maximum - one.maximum,
  mean: (one, two) => two.mean - one.mean,
  effect: (one, two) => effect(two) - effect(one),
};

function matches(feature, words) {
  if (!words) return true;
  if (/^\d+$/.test(words)) return String(feature.index).startsWith(words);
  return feature.name.toLowerCase().startsWith(words) || feature.label.toLowerCase().includes(words) || clues(feature).clues.includes(words);
}

/** After a change of what is asked for. */
function relist() {
  const words = state.words.trim().toLowerCase();
  const within = (feature) => feature.frequency >= state.least && feature.frequency <= state.most && feature.maximum >= state.strong;
  listed = features.filter((feature) => KEEP[state.which](feature) && within(feature) && matches(feature, words));
  listed.sort((one, two) => ORDER[state.sort](one, two) || one.index - two.index);
  const asked = words && features.find((feature) => String(feature.index) === words || feature.name.toLowerCase() === words);
  if (asked) listed = [asked, ...listed.filter((feature) => feature !== asked)]; // by its name, whatever else is asked for
  sheet.style.height = `${ROW * listed.length}px`;
  list.scrollTop = 0;
  byId('count').textContent = `${count(listed.length)} of ${count(features.length)} features`;
  byId('reset').hidden = state.which === 'all' && !words && state.least === 0 && state.most === 1 && state.strong === 0;
  markBars();
  showRows();
}

/** Rows in sight, and a few beyond. */
function showRows() {
  const first = Math.max(0, Math.floor(list.scrollTop / ROW) - 6);
  const rows = listed.slice(first, Math.ceil((list.scrollTop + list.clientHeight) / ROW) + 6);
  sheet.replaceChildren(...rows.map((feature, place) => item(feature, first + place)));
  if (!listed.length) sheet.replaceChildren(make('p', 'none', 'No feature is like that.'));
  const place = listed.indexOf(state.chosen);
  if (place >= 0 && byId(`item-${state.chosen.index}`)) list.setAttribute('aria-activedescendant', `item-${state.chosen.index}`);
  else list.removeAttribute('aria-activedescendant');
}

function item(feature, place) {
  const { peaks } = clues(feature);
  const title = make('p', '', null, make('b', '', feature.name), make('span', 'said', feature.label), make('span', 'number', feature.active ? percent(feature.frequency) : 'dead'));
  const hint = make('p', 'clues', null, make('span', '', feature.active ? peaks.slice(0, 6).join(' \u00b7 ') : 'never active'), make('span', 'number', feature.active ? `max ${short(feature.maximum)}` : ''));
  const row = make('div', 'item', null, title, hint);
  row.id = `item-${feature.index}`;
  row.setAttribute('role', 'option');
  row.setAttribute('aria-selected', String(feature === state.chosen));
  row.setAttribute('aria-posinset', String(place + 1));
  row.setAttribute('aria-setsize', String(listed.length));
  row.style.top = `${place * ROW}px`;
  row.addEventListener('click', () => choose(feature));
  return row;
}

/** Bring the chosen feature's row into sight. */
function reveal() {
  const place = listed.indexOf(state.chosen);
  if (place < 0) return;
  if (place * ROW < list.scrollTop) list.scrollTop = place * ROW;
  else if ((place + 1) * ROW > list.scrollTop + list.clientHeight) list.scrollTop = (place + 1) * ROW - list.clientHeight;
}

/** The feature so many rows further; the first if none of the list is chosen. */
function step(by) {
  if (!listed.length) return;
  const place = listed.indexOf(state.chosen);
  choose(listed[place < 0 ? 0 : Math.max(0, Math.min(listed.length - 1, place + by))]);
}

// ------------------------------------------------------------------------------------------------ bars of frequency

const bars = [];

/** Frequencies in half decades, from the rarest feature's to all tokens. */
function makeBars() {
  const rarest = features.reduce((least, feature) => (feature.active ? Math.min(least, feature.frequency) : least), 1);
  const low = Math.max(-8, Math.floor(2 * Math.log10(rarest) + 1e-9));
  for (let half = low; half < 0 || half === low; half += 1) bars.push({ from: 10 ** (half / 2), to: 10 ** ((half + 1) / 2), members: 0 });
  bars[0].from = 0;
  bars[bars.length - 1].to = 1;
  for (const feature of features) {
    if (feature.active) (bars.find((bar) => feature.frequency < bar.to) || bars[bars.length - 1]).members += 1;
  }
  const most = Math.max(1, ...bars.map((bar) => bar.members));
  bars.forEach((bar) => {
    bar.element = make('button', '', null, make('i'));
    bar.element.type = 'button';
    bar.element.disabled = !bar.members;
    bar.element.firstChild.style.height = bar.members ? `${Math.max(6, 100 * bar.members / most)}%` : '0';
    bar.element.title = `${count(bar.members)} features active at ${percent(bar.from)} to ${percent(bar.to)} of tokens`;
    bar.element.setAttribute('aria-label', bar.element.title);
    bar.element.addEventListener('click', () => {
      const same = state.least === bar.from && state.most === bar.to;
      setRange(same ? 0 : bar.from, same ? 1 : bar.to);
    });
    byId('bars').append(bar.element);
  });
  byId('axis').append(make('span', '', percent(bars.length > 1 ? bars[1].from / Math.sqrt(10) : 0)), make('span', '', 'of tokens'), make('span', '', percent(1)));
}

function markBars() {
  bars.forEach((bar) => bar.element.classList.toggle('within', bar.to > state.least && bar.from < state.most));
}

function setRange(least, most) {
  [state.least, state.most] = [least, most];
  byId('least').value = least ? String(Number((100 * least).toPrecision(3))) : '';
  byId('most').value = most < 1 ? String(Number((100 * most).toPrecision(3))) : '';
  relist();
}
