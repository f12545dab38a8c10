// What is shown: the data, the state, and colours. Text from the data only ever becomes textContent.
const data = JSON.parse(document.getElementById('data').textContent);
const byId = (id) => document.getElementById(id);
const root = document.documentElement;

/** An element with a class, a text and children. */
function make(tag, className = '', text = null, ...children) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== null) element.textContent = text;
  element.append(...children);
  return element;
}

const nodes = data.nodes.map((row, number) => ({ ...row, number, incoming: [], outgoing: [], element: null }));
const nodeNamed = new Map(nodes.map((node) => [node.name, node]));
const comparing = data.summaries.length === 2;
const edges = data.edges.map(([source, target, port, position, a, b, where, curve], number) => {
  const edge = {
    number, source: nodes[source], target: nodes[target], port, position, a, b, where, curve,
    score: a !== null ? a : b, path: null, box: null,
  };
  const known = [a, b].filter((score) => score !== null).map(Math.abs);
  edge.size = known.length ? Math.max(...known) : null; // of two circuits, where it matters more
  edge.name = `${edge.source.name}->${edge.target.name}${port ? `<${port}>` : ''}${position === null ? '' : `@${position}`}`;
  edge.source.outgoing.push(edge);
  edge.target.incoming.push(edge);
  return edge;
});
const stronger = (one, two) => (two.size ?? Infinity) - (one.size ?? Infinity) || one.number - two.number;
nodes.forEach((node) => { node.incoming.sort(stronger); node.outgoing.sort(stronger); });
const ranked = [...edges].sort(stronger);
const sizes = edges.filter((edge) => edge.size !== null).map((edge) => edge.size).sort((one, two) => one - two);
const largest = sizes.length ? sizes[sizes.length - 1] : 0;
const nUnscored = edges.length - sizes.length;
const nodeSizes = nodes.filter((node) => node.score !== undefined).map((node) => Math.abs(node.score));
const largestNode = Math.max(0, ...nodeSizes);
const strongestNodes = nodes.filter((node) => node.score !== undefined).sort((one, two) => Math.abs(two.score) - Math.abs(one.score));
const isError = (node) => node.kind.endsWith('_error');
const isBar = (node) => node.kind === 'input' || node.kind === 'logits';

const state = {
  least: 0, signed: true, edgeColour: comparing ? 'circuit' : 'sign', nodeColour: nodeSizes.length ? 'score' : 'kind',
  show: { 1: true, 2: true, 3: true }, chosen: null, chosenEdge: null, hovered: null, hoveredEdge: null, query: null,
};
let crowd = 1; // where many edges lie over one another, each is fainter
let visible = []; // the edges that are shown, weakest first, so that the strongest lie on top

function refreshVisible() {
  visible = [];
  for (let place = ranked.length - 1; place >= 0; place -= 1) {
    const edge = ranked[place];
    if (isShown(edge)) visible.push(edge);
  }
  crowd = visible.length > 1500 ? 0.45 : visible.length > 400 ? 0.7 : 1;
}

function isShown(edge) {
  return state.show[edge.where] && (edge.size === null || edge.size >= state.least);
}

/** Importance relative to the largest, 0 to 1; edges without a score are drawn as if a third as important. */
const share = (edge) => (edge.size === null || !largest ? 0.3 : edge.size / largest);
const lineWidth = (edge) => 1 + 5 * share(edge) ** 0.7;
const lineOpacity = (edge) => (0.4 + 0.55 * Math.sqrt(share(edge))) * crowd;

function format(number) {
  if (number === null) return 'no score';
  const shown = state.signed ? number : Math.abs(number);
  const text = shown === 0 ? '0' : Math.abs(shown) >= 0.001 && Math.abs(shown) < 1e5
    ? shown.toPrecision(3).replace(/e.*/, (power) => power) : shown.toExponential(2);
  const plain = text.includes('e+') && Math.abs(shown) < 1e5 ? String(Math.round(shown)) : text;
  return plain.replace('-', '\u2212').replace(/^(?=\d)/, state.signed && shown > 0 ? '+' : '');
}

const count = (number) => number.toLocaleString('en-US');
const signWord = (score) => (score === null ? 'no score' : score < 0 ? 'helps' : score > 0 ? 'hurts' : 'no effect');

// ------------------------------------------------------------------------------------------------------- colours

const PORTS = { q: ['#0072b2', '#56b4e9', 'query'], k: ['#d55e00', '#f5873d', 'key'], v: ['#009e73', '#35c79b', 'value'], '': ['#666b73', '#a0a7b3', 'MLP or logits'] };
const KINDS = { head: ['#4f7cb0', '#7fb0ea', 'head'], kv: ['#9a6fa0', '#cf9fd6', 'key/value group'], mlp: ['#b58a2c', '#e0b750', 'MLP'], neuron: ['#b58a2c', '#e0b750', 'neuron'] };
[['input', '#7a808c', '#a4acba', 'embeddings'], ['attn', '#4f7cb0', '#7fb0ea', 'attention output'], ['mlp', '#b58a2c', '#e0b750', 'MLP output'], ['resid', '#4f8f78', '#6fc0a2', 'residual stream']].forEach(([site, light, night, name]) => {
  KINDS[`${site}_feature`] = [light, night, `feature of the ${name}`];
  KINDS[`${site}_error`] = [light, night, `error term of the ${name}`];
});
const ROLES = ['#0072b2', '#d55e00', '#009e73', '#cc79a7', '#e69f00', '#56b4e9', '#7a5195', '#8a6d3b', '#5f7f3a', '#b0413e'];
const LAYERS = ['#440154', '#46307e', '#365c8d', '#277f8e', '#1fa187', '#4ac16d', '#a0da39', '#e0c71f'];
let dark = false;
let palette = {};

function readPalette() {
  const style = getComputedStyle(root);
  const named = ['surface', 'ink', 'soft', 'line', 'helps', 'hurts', 'unscored', 'plain', 'only-a', 'only-b', 'both', 'band', 'bar', 'bar-ink', 'accent'];
  palette = Object.fromEntries(named.map((name) => [name, style.getPropertyValue(`--${name}`).trim()]));
}

function edgeColour(edge) {
  if (state.edgeColour === 'circuit') return palette[['', 'only-a', 'only-b', 'both'][edge.where]];
  if (state.edgeColour === 'port') return PORTS[edge.port][dark ? 1 : 0];
  if (edge.score === null) return palette.unscored;
  if (!state.signed) return palette.plain;
  return edge.score < 0 ? palette.helps : edge.score > 0 ? palette.hurts : palette.unscored;
}

const layers = data.bands.map(([layer]) => layer);
const deepest = Math.max(1, ...layers);

function layerColour(layer) {
  const at = (layer / deepest) * (LAYERS.length - 1);
  const low = Math.min(Math.floor(at), LAYERS.length - 2);
  const colour = mixed(LAYERS[low + 1], LAYERS[low], at - low);
  return dark ? mixed('#ffffff', colour, 0.3) : colour;
}

function nodeTone(node) {
  if (isBar(node)) return palette.bar;
  if (state.nodeColour === 'layer') return node.layer === undefined ? palette.unscored : layerColour(node.layer);
  if (state.nodeColour === 'score') return !node.score ? palette.unscored : !state.signed ? palette.plain : node.score < 0 ? palette.helps : palette.hurts;
  if (state.nodeColour === 'role') return node.role === undefined ? palette.unscored : roleColour(node.role);
  return KINDS[node.kind][dark ? 1 : 0];
}

/** How much of a node's colour its box is filled with: by its own effect, if nodes are coloured so. */
function nodeDepth(node) {
  if (state.nodeColour !== 'score') return 0.17;
  return node.score ? 0.14 + 0.44 * Math.sqrt(Math.abs(node.score) / largestNode) : 0;
}

function roleColour(role) {
  const colour = ROLES[role % ROLES.length];
  return dark ? mixed('#ffffff', colour, 0.3) : colour;
}

/** `amount` of one colour in another, as CSS's color-mix in srgb. */
function mixed(colour, other, amount) {
  const channels = (hex) => [1, 3, 5].map((start) => parseInt(hex.slice(start, start + 2), 16));
  const [one, two] = [channels(colour), channels(other)];
  return `#${one.map((value, place) => Math.round(value * amount + two[place] * (1 - amount)).toString(16).padStart(2, '0')).join('')}`;
}
