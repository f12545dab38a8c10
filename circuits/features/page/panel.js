// One feature: label, numbers, histogram, logit effects, neighbours and examples.
const panel = byId('feature');

/** Show a feature, and say so in the address. */
function choose(feature) {
  state.chosen = feature;
  try { window.history.replaceState(null, '', `#${feature.index}`); } catch { /* a frame in a notebook has no address */ }
  showFeature();
  reveal();
  showRows();
}

function showFeature() {
  const feature = state.chosen;
  panel.scrollTop = 0;
  if (!feature) { panel.replaceChildren(make('p', 'none', 'Choose a feature.')); return; }
  panel.replaceChildren(heading(feature), make('div', 'panes', null, histogram(feature), effects(feature), alike(feature)), ...examples(feature));
}

function heading(feature) {
  const label = make('input');
  label.id = 'label';
  label.value = feature.label;
  label.maxLength = 200;
  label.placeholder = 'Label this feature';
  label.setAttribute('aria-label', `Label of ${feature.name}`);
  label.addEventListener('input', () => relabel(feature, label.value));
  label.addEventListener('keydown', (event) => { if (event.key === 'Enter' || event.key === 'Escape') { event.stopPropagation(); label.blur(); panel.focus({ preventScroll: true }); } });
  const place = listed.indexOf(feature);
  const previous = moving('\u2190', 'Feature before in the list (k)', -1, place > 0);
  const next = moving('\u2192', 'Next feature in the list (j)', 1, place < listed.length - 1);
  const facts = make('dl', 'facts');
  const fact = (name, value, rest) => facts.append(make('div', '', null, make('dt', '', name), make('dd', '', value, make('small', '', rest))));
  fact('Active at', percent(feature.frequency), `${count(feature.active)} of ${count(data.tokens)} tokens`);
  fact('Largest activation', short(feature.maximum), feature.active ? `at \u201c${spelled(peak(feature)).trim()}\u201d` : 'never active');
  fact('Mean where active', short(feature.mean), feature.maximum ? `${percent(feature.mean / feature.maximum)} of the largest` : '');
  const kind = feature.active === 0 ? 'dead' : feature.frequency > DENSE ? 'dense' : 'live';
  fact('Kind', kind, { dead: 'active nowhere', dense: 'active at more than a tenth', live: 'active now and then' }[kind]);
  const head = make('div', 'head', null, make('h2', '', feature.name), label, make('nav', '', null, previous, next));
  return make('section', 'card', null, head, facts);
}

function moving(sign, title, by, able) {
  const button = make('button', '', sign);
  button.type = 'button';
  button.title = title;
  button.setAttribute('aria-label', title);
  button.disabled = !able;
  button.addEventListener('click', () => { step(by); panel.querySelectorAll('nav button')[by < 0 ? 0 : 1].focus(); });
  return button;
}

function relabel(feature, text) {
  feature.label = text.trim();
  state.unsaved = true;
  byId('save').classList.add('unsaved');
  if (state.which === 'labelled') return;
  showRows();
}

const peak = (feature) => { const [prompt, position] = data.examples[feature.index][0]; return word(data.prompts[prompt][position]); };

// ----------------------------------------------------------------------------------------------------- histogram

const svgWide = 300;
const svgHigh = 212;

function histogram(feature) {
  const card = make('section', 'card', null, make('h3', '', 'Activations ', make('small', '', 'where it is active')));
  if (!feature.active) { card.append(make('p', 'note', 'None: the feature is active at no token.')); return card; }
  const counts = data.histogram[feature.index];
  const width = data.reach[feature.index] / data.bins;
  const used = Math.max(1, counts.length);
  const most = Math.max(...counts);
  const base = svgHigh - 18;
  const picture = drawn('svg', { class: 'figure', viewBox: `0 0 ${svgWide} ${svgHigh}`, role: 'img' });
  picture.setAttribute('aria-label', `Histogram of ${count(feature.active)} activations from 0 to ${short(feature.maximum)}; the fullest of ${used} bins holds ${count(most)}`);
  const step = svgWide / used;
  counts.forEach((size, place) => {
    if (!size) return;
    const high = Math.max(1.5, (base - 14) * size / most);
    const bar = drawn('rect', { x: (place * step + 0.75).toFixed(2), y: (base - high).toFixed(2), width: Math.max(1, step - 1.5).toFixed(2), height: high.toFixed(2), rx: 1.5 });
    bar.append(drawn('title', {}, `${count(size)} tokens from ${short(place * width)} to ${short((place + 1) * width)}`));
    picture.append(bar);
  });
  picture.append(drawn('line', { x1: 0, x2: svgWide, y1: base, y2: base }));
  picture.append(drawn('text', { x: 0, y: svgHigh - 4 }, '0'), drawn('text', { x: svgWide / 2, y: svgHigh - 4, 'text-anchor': 'middle' }, short(used * width / 2)), drawn('text', { x: svgWide, y: svgHigh - 4, 'text-anchor': 'end' }, short(used * width)));
  picture.append(drawn('text', { x: svgWide, y: 10, 'text-anchor': 'end' }, `up to ${count(most)} tokens`));
  card.append(picture);
  return card;
}

// --------------------------------------------------------------------------------------------- logits, neighbours

function effects(feature) {
  const card = make('section', 'card', null, make('h3', '', 'Logit effects ', make('small', '', 'per unit of activation')));
  const raised = data.raised[feature.index];
  const lowered = data.lowered[feature.index];
  if (!raised.length) { card.append(make('p', 'note', 'The feature does not write to the residual stream.')); return card; }
  const largest = Math.max(...[...raised, ...lowered].map((pair) => Math.abs(pair[1]))) || 1;
  const column = (title, pairs, tone) => {
    const rows = pairs.map(([number, value]) => {
      const bar = make('i');
      bar.style.setProperty('--share', String(Math.abs(value) / largest));
      bar.style.setProperty('--tone', `var(--${tone})`);
      return make('li', '', null, bar, make('code', '', spelled(word(number))), make('span', 'number', signed(value)));
    });
    return make('div', '', null, make('h4', '', title), make('ol', 'pairs', null, ...rows));
  };
  card.append(make('div', 'columns', null, column('raises', raised, 'up'), column('lowers', lowered, 'down')));
  return card;
}

function alike(feature) {
  const card = make('section', 'card', null, make('h3', '', 'Similar directions ', make('small', '', 'by cosine')));
  const rows = data.alike[feature.index].map(([index, cosine]) => {
    const other = features[index];
    const bar = make('i');
    bar.style.setProperty('--share', String(Math.min(1, Math.abs(cosine))));
    bar.style.setProperty('--tone', `var(--${cosine < 0 ? 'down' : 'up'})`);
    const hint = other.label || (other.active ? clues(other).peaks.slice(0, 3).join(' \u00b7 ') : 'dead');
    const link = make('button', 'link', `${other.name}${hint ? ` \u2014 ${hint}` : ''}`);
    link.type = 'button';
    link.addEventListener('click', () => { choose(other); panel.focus({ preventScroll: true }); });
    return make('li', '', null, bar, link, make('span', 'number', cosine.toFixed(2).replace('-', '\u2212')));
  });
  card.append(rows.length ? make('ol', 'pairs', null, ...rows) : make('p', 'note', 'There is no other feature.'));
  return card;
}

// ------------------------------------------------------------------------------------------------------ examples

function examples(feature) {
  const all = data.examples[feature.index];
  if (!all.length) return [make('section', 'card', null, make('h3', '', 'Examples'), make('p', 'note', `Active at none of the ${count(data.tokens)} tokens.`))];
  const strongest = all.filter((each) => each[4] === null);
  const along = all.filter((each) => each[4] !== null);
  const legend = make('span', 'legend', null, '0', make('i'), short(feature.maximum));
  const cards = [make('section', 'card long', null, make('div', 'between', null, make('h3', '', 'Strongest examples'), legend), make('ol', '', null, ...strongest.map((each) => line(feature, each))))];
  if (along.length) cards.push(make('section', 'card long', null, make('h3', '', 'Along the range ', make('small', '', 'share of its active tokens that are weaker')), make('ol', '', null, ...along.map((each) => line(feature, each)))));
  return cards;
}

/** One example: its activation, and its tokens shaded by theirs. */
function line(feature, [prompt, position, start, activations, quantile]) {
  const own = activations[position - start];
  const strength = make('div', 'strength', short(own));
  if (quantile !== null) strength.append(make('small', '', percent(quantile)));
  const tokens = make('div', 'tokens');
  activations.forEach((activation, place) => {
    const text = word(data.prompts[prompt][start + place]);
    const token = make('span', 'token', spelled(/^ \S/.test(text) ? text.slice(1) : text));
    token.title = `${spelled(text)}: ${short(activation)}`;
    if (activation > 0) {
      const share = Math.min(1, activation / feature.maximum);
      token.classList.add('lit');
      token.classList.toggle('hot', share > 0.45);
      token.style.setProperty('--share', String(share));
    } else if (activation < 0) token.classList.add('idle');
    token.classList.toggle('peak', start + place === position);
    if (/^ \S/.test(text)) tokens.append(' ');
    tokens.append(token);
  });
  if (start > 0) tokens.prepend('\u2026');
  if (start + activations.length < data.prompts[prompt].length) tokens.append('\u2026');
  const row = make('li', 'example', null, strength, tokens);
  row.title = `prompt ${prompt}, position ${position}`;
  return row;
}
