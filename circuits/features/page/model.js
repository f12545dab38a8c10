// The data, what is chosen, and small things that every part uses.
const data = JSON.parse(document.getElementById('data').textContent);
const root = document.documentElement;
const byId = (id) => document.getElementById(id);
const DENSE = 0.1;

/** A feature: columns of the data as one object. Examples stay as they are until they are shown. */
const features = data.active.map((active, index) => ({
  index,
  name: data.prefix + index,
  active,
  frequency: active / data.tokens,
  maximum: data.maximum[index],
  mean: data.mean[index],
  label: data.labels[index] || '',
}));
const state = { chosen: null, which: 'live', sort: 'index', least: 0, most: 1, strong: 0, words: '', unsaved: false };
let dark = false;

function make(tag, className = '', text = null, ...children) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== null) element.textContent = text;
  element.append(...children);
  return element;
}

function drawn(tag, attributes, text = null) {
  const element = document.createElementNS('http://www.w3.org/2000/svg', tag);
  Object.entries(attributes).forEach(([name, value]) => element.setAttribute(name, String(value)));
  if (text !== null) element.textContent = text;
  return element;
}

const count = (number) => number.toLocaleString('en');
const signed = (number) => `${number < 0 ? '\u2212' : '+'}${short(Math.abs(number))}`;

/** Three digits that count. */
function short(number) {
  if (number === 0) return '0';
  const size = Math.abs(number);
  return size >= 1e5 || size < 1e-3 ? number.toExponential(1) : String(Number(number.toPrecision(3)));
}

function percent(share) {
  if (share === 0) return '0\u202f%';
  return `${share < 1e-5 ? (100 * share).toExponential(0) : Number((100 * share).toPrecision(2))}\u202f%`;
}

/** A token as it is shown: one without a visible character as a sign for what it is. */
const spelled = (word) => (word.trim() ? word : word.replaceAll(' ', '\u2423') || '\u2205');

/** The largest absolute logit effect of a feature. */
const effect = (feature) => Math.max(0, ...data.raised[feature.index].slice(0, 1).map((pair) => Math.abs(pair[1])), ...data.lowered[feature.index].slice(0, 1).map((pair) => Math.abs(pair[1])));

const word = (number) => data.words[number];

/** Words by which a feature can be found: those its examples peak at, and those it raises. */
function clues(feature) {
  if (!feature.clues) {
    const peaks = data.examples[feature.index].map(([prompt, position]) => word(data.prompts[prompt][position]).trim());
    const raised = data.raised[feature.index].map((pair) => word(pair[0]).trim());
    feature.peaks = [...new Set(peaks)].filter(Boolean);
    feature.clues = [...new Set([...peaks, ...raised])].join('\n').toLowerCase();
  }
  return feature;
}
