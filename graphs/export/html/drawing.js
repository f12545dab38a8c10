// The pointer on the stage, and the picture that can be saved.
const tip = byId('tip');
const pointers = new Map();
let dragged = false;
let origin = null;
let asked = false;

const onStage = (event) => {
  const box = stage.getBoundingClientRect();
  return [event.clientX - box.left, event.clientY - box.top];
};

function listenToPointer() {
  stage.addEventListener('pointerdown', (event) => {
    if (event.target.closest('.zoom')) return;
    pointers.set(event.pointerId, onStage(event));
    origin = onStage(event);
    dragged = false;
    hideTip();
  });
  window.addEventListener('pointermove', move);
  for (const name of ['pointerup', 'pointercancel']) {
    window.addEventListener(name, (event) => {
      const held = pointers.delete(event.pointerId);
      stage.classList.remove('dragging');
      if (held && name === 'pointerup' && !dragged && !event.target.closest('.node, .zoom')) choose(null, edgeAt(...onStage(event)));
    });
  }
  stage.addEventListener('wheel', (event) => {
    event.preventDefault();
    const pixels = event.deltaY * (event.deltaMode === 1 ? 16 : event.deltaMode === 2 ? 400 : 1);
    zoom(Math.exp(-Math.max(-200, Math.min(200, pixels)) * (event.ctrlKey ? 0.01 : 0.0022)), ...onStage(event));
  }, { passive: false });
  stage.addEventListener('dblclick', (event) => {
    if (!event.target.closest('.node, .zoom')) zoom(1.6, ...onStage(event));
  });
  stage.addEventListener('pointerleave', () => { if (state.hoveredEdge) { state.hoveredEdge = null; light(); } hideTip(); });
}

function move(event) {
  const now = onStage(event);
  if (!pointers.has(event.pointerId)) { ask(event, now); return; }
  const before = pointers.get(event.pointerId);
  if (!dragged && Math.hypot(now[0] - origin[0], now[1] - origin[1]) < 4 && pointers.size === 1) return;
  if (!dragged) before.splice(0, 2, ...origin);
  dragged = true;
  stage.classList.add('dragging');
  const others = [...pointers].filter(([id]) => id !== event.pointerId);
  if (others.length) {
    const [, still] = others[0];
    const apart = (point) => Math.max(1, Math.hypot(point[0] - still[0], point[1] - still[1]));
    pointers.set(event.pointerId, now);
    zoom(apart(now) / apart(before), (now[0] + still[0]) / 2, (now[1] + still[1]) / 2);
    return;
  }
  view.x += now[0] - before[0];
  view.y += now[1] - before[1];
  pointers.set(event.pointerId, now);
  moved();
}

/** Find what is under the pointer, at most once in a frame. */
function ask(event, place) {
  if (asked || pointers.size || !stage.contains(event.target)) return;
  const element = event.target;
  asked = true;
  requestAnimationFrame(() => {
    asked = false;
    const onNode = element.closest('.node');
    const start = performance.now();
    const edge = onNode || element.closest('.zoom') ? null : edgeAt(...place);
    timing.find = performance.now() - start;
    stage.classList.toggle('over-edge', Boolean(edge));
    if (edge !== state.hoveredEdge) { state.hoveredEdge = edge; light(); }
    if (edge) showTip(`${edge.name}\n${scoreText(edge)}`, place);
    else if (onNode && (view.k < 0.75 || onNode.textContent !== onNode.dataset.name)) showTip(nodeText(nodeNamed.get(onNode.dataset.name)), place);
    else hideTip();
  });
}

function scoreText(edge) {
  if (!comparing) return edge.score === null ? 'no score' : `${format(edge.score)} (${signWord(edge.score)})`;
  const parts = [['A', edge.a, 1], ['B', edge.b, 2]].map(([name, score, bit]) => `${name}: ${edge.where & bit ? format(score) : 'not in it'}`);
  return parts.join('   ');
}

/** What the box of a node has no room for. */
function nodeText(node) {
  const said = [node.called ? `${node.name}  ${node.called}` : node.name];
  if (node.site) said.push(kindWord(node));
  if (node.score !== undefined) said.push(nodeScoreText(node));
  return said.join('\n');
}

function nodeScoreText(node) {
  if (!comparing) return `${format(node.score)} (${signWord(node.score)})`;
  return node.scores.map((score, place) => `${'AB'[place]}: ${score === null ? 'no score' : format(score)}`).join('   ');
}

function showTip(text, [x, y]) {
  tip.textContent = text;
  tip.hidden = false;
  tip.style.left = `${Math.max(4, Math.min(x + 14, stage.clientWidth - tip.offsetWidth - 8))}px`;
  tip.style.top = `${y + 18 + tip.offsetHeight > stage.clientHeight ? y - tip.offsetHeight - 10 : y + 18}px`;
}

function hideTip() { tip.hidden = true; }

// ------------------------------------------------------------------------------------------------------- picture

const SVG = 'http://www.w3.org/2000/svg';

function part(tag, attributes, text = null) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, String(value));
  if (text !== null) element.textContent = text;
  return element;
}

/** What the stage shows now, as the text of an SVG file. */
function picture() {
  const [wide, high] = [stage.clientWidth, stage.clientHeight];
  const svg = part('svg', { xmlns: SVG, viewBox: `0 0 ${wide} ${high}`, width: wide, height: high, 'font-family': 'Helvetica, Arial, sans-serif' });
  svg.append(part('title', {}, data.title), part('rect', { width: wide, height: high, fill: palette.surface }));
  const world = part('g', { transform: `translate(${view.x} ${view.y}) scale(${view.k})` });
  data.bands.forEach(([number, top, bottom]) => world.append(
    part('rect', { x: -LEFT, y: top, width: data.width + LEFT, height: bottom - top, rx: 6, fill: palette.band }),
    part('text', { x: -LEFT + 10, y: (top + bottom) / 2 + 4, 'font-size': 12, fill: palette.soft }, `layer ${number}`),
  ));
  shelves.forEach(([name, y]) => world.append(part('text', { x: -LEFT + 72, y: y + 4, 'font-size': 12, fill: palette.soft }, name)));
  columns.forEach(([heading, [x, y]]) => world.append(part('text', { x, y: y + 4, 'font-size': 12, 'text-anchor': 'middle', fill: palette.soft }, heading)));
  (data.walls || []).forEach((x) => world.append(part('path', { d: `M${x} 40V${data.height - 30}`, stroke: palette.soft, opacity: 0.5, 'stroke-dasharray': '2 4' })));
  data.links.forEach(([start, end]) => world.append(part('path', { d: `M${start}L${end}`, stroke: palette.soft, 'stroke-dasharray': '3 3', fill: 'none' })));
  const focus = new Set(standingOut());
  const wires = part('g', { transform: 'scale(0.1)', fill: 'none' });
  visible.forEach((edge) => wires.append(pictured(edge, !focus.size || focus.has(edge))));
  world.append(wires, ...nodes.map(boxed));
  svg.append(world);
  return `${new XMLSerializer().serializeToString(svg)}\n`;
}

function pictured(edge, clear) {
  const look = { stroke: edgeColour(edge), 'stroke-width': Math.max(7 / view.k, 10 * lineWidth(edge)).toFixed(1), opacity: (lineOpacity(edge) * (clear ? 1 : 0.27)).toFixed(3) };
  const wire = part('path', { d: edge.curve, ...look });
  wire.append(part('title', {}, `${edge.name} ${scoreText(edge)}`));
  return wire;
}

function boxed(node) {
  const group = part('g', { opacity: node.element.classList.contains('faint') ? 0.3 : 1 });
  const bar = isBar(node);
  const tone = nodeTone(node);
  const fill = bar ? palette.bar : mixed(tone, palette.surface, nodeDepth(node));
  const dashes = isError(node) ? { 'stroke-dasharray': '4 3' } : {};
  group.append(
    part('rect', { x: node.x - node.w / 2, y: node.y - node.h / 2, width: node.w, height: node.h, rx: node.kind === 'mlp' ? 3 : 8, fill, stroke: tone, 'stroke-width': 1.5, ...dashes }),
    part('text', { x: node.x, y: node.y + 0.35 * data.font, 'font-size': data.font, 'text-anchor': 'middle', fill: bar ? palette['bar-ink'] : palette.ink }, node.text ?? node.name),
  );
  return group;
}

function save() {
  const link = make('a');
  link.href = URL.createObjectURL(new Blob([picture()], { type: 'image/svg+xml' }));
  link.download = 'circuit.svg';
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}
