// The drawing: where the view is, edges on a canvas, nodes as buttons, and what the pointer is over.
const stage = byId('stage');
const base = byId('edges');
const over = byId('lit');
const layer = byId('nodes');
const view = { x: 0, y: 0, k: 1 };
const drawn = { x: 0, y: 0, k: 1 }; // the view at which the canvas was last drawn
const timing = { draw: 0, frame: 0, find: 0, draws: 0 };
const QUICK = 800; // so many edges can be redrawn in every frame
const MARGIN = 24;
const shelves = data.shelves || [];
const columns = data.columns || [];
const LEFT = shelves.length ? 132 : 84; // room for the names of the layers, and of the places of dictionaries
let ratio = 1;
let settle = 0;
let wanted = false;
let redrawWanted = false;

for (const edge of edges) edge.path = new Path2D(edge.curve);

function placeNodes() {
  nodes.forEach((node) => {
    const element = make('button', `node ${node.kind}${isBar(node) ? ' bar' : ''}${isError(node) ? ' error' : ''}`, node.text ?? node.name);
    element.type = 'button';
    element.dataset.name = node.name;
    element.tabIndex = node.number === 0 ? 0 : -1;
    Object.assign(element.style, {
      left: `${node.x - node.w / 2}px`, top: `${node.y - node.h / 2}px`, width: `${node.w}px`, height: `${node.h}px`,
      fontSize: `${data.font}px`,
    });
    const called = node.called ? ` (${node.called})` : '';
    element.setAttribute('aria-label', `${node.name}${called}: ${kindWord(node)}, ${count(node.incoming.length)} edges in, ${count(node.outgoing.length)} out`);
    element.addEventListener('click', (event) => { if (!dragged || event.detail === 0) choose(node); });
    element.addEventListener('pointerenter', () => { state.hovered = node; light(); });
    element.addEventListener('pointerleave', () => { state.hovered = null; light(); });
    element.addEventListener('focus', () => { rove(node); if (element.matches(':focus-visible')) { state.hovered = node; light(); reveal(node); } });
    element.addEventListener('blur', () => { if (state.hovered === node) { state.hovered = null; light(); } });
    node.element = element;
    layer.append(element);
  });
}

function kindWord(node) {
  if (node.site) return `${isError(node) ? 'error term' : 'feature'} of the ${node.site}`;
  return { input: 'input', logits: 'logits', head: 'attention head', kv: 'key/value group', mlp: 'MLP', neuron: 'neuron' }[node.kind];
}

/** One node at a time is a stop of the Tab key. */
function rove(node) {
  nodes.forEach((other) => { other.element.tabIndex = other === node ? 0 : -1; });
}

function paintNodes() {
  const touched = new Set();
  visible.forEach((edge) => { touched.add(edge.source); touched.add(edge.target); });
  for (const node of nodes) {
    node.element.style.setProperty('--tone', nodeTone(node));
    node.element.style.setProperty('--depth', `${(100 * nodeDepth(node)).toFixed(1)}%`);
    node.element.classList.toggle('faint', !touched.has(node) && node.incoming.length + node.outgoing.length > 0);
  }
}

// ---------------------------------------------------------------------------------------------------------- view

function fit() {
  const { clientWidth: wide, clientHeight: high } = stage;
  const room = byId('legend').offsetHeight + 2 * MARGIN;
  view.k = Math.max(0.05, Math.min((wide - 2 * MARGIN) / (data.width + LEFT), (high - MARGIN - room) / data.height, 1.7));
  view.x = (wide - (data.width - LEFT) * view.k) / 2;
  view.y = MARGIN + Math.max(0, (high - MARGIN - room - data.height * view.k) / 2);
  redraw();
}

function zoom(factor, x = stage.clientWidth / 2, y = stage.clientHeight / 2) {
  const k = Math.min(12, Math.max(0.05, view.k * factor));
  view.x = x - (x - view.x) * (k / view.k);
  view.y = y - (y - view.y) * (k / view.k);
  view.k = k;
  moved();
}

function reveal(node) {
  const x = node.x * view.k + view.x;
  const y = node.y * view.k + view.y;
  const dx = isBar(node) ? 0 : x < 60 ? 60 - x : x > stage.clientWidth - 60 ? stage.clientWidth - 60 - x : 0;
  const dy = y < 40 ? 40 - y : y > stage.clientHeight - 90 ? stage.clientHeight - 90 - y : 0;
  if (dx || dy) { view.x += dx; view.y += dy; redraw(); }
}

/** After a change of the view: redraw in every frame if that is quick, else move the picture and redraw at rest. */
function moved() {
  clearTimeout(settle);
  if (visible.length <= QUICK) { redraw(); return; }
  frame();
  settle = setTimeout(redraw, 120);
}

function redraw() {
  redrawWanted = true;
  frame();
}

function frame() {
  if (wanted) return;
  wanted = true;
  requestAnimationFrame(() => {
    wanted = false;
    render();
  });
}

function render() {
  const start = performance.now();
  if (redrawWanted) drawAll();
  const k = view.k / drawn.k;
  const still = redrawWanted || (k === 1 && view.x === drawn.x && view.y === drawn.y);
  base.style.transform = over.style.transform = still
    ? '' : `translate(${view.x - drawn.x * k}px, ${view.y - drawn.y * k}px) scale(${k})`;
  redrawWanted = false;
  layer.style.transform = `translate(${view.x}px, ${view.y}px) scale(${view.k})`;
  timing.frame = performance.now() - start;
}

// ------------------------------------------------------------------------------------------------------- drawing

function resize() {
  ratio = Math.min(2, window.devicePixelRatio || 1);
  for (const canvas of [base, over]) {
    canvas.width = Math.max(1, Math.round(stage.clientWidth * ratio));
    canvas.height = Math.max(1, Math.round(stage.clientHeight * ratio));
  }
}

function drawAll() {
  const start = performance.now();
  Object.assign(drawn, view);
  const pen = base.getContext('2d');
  pen.setTransform(1, 0, 0, 1, 0, 0);
  pen.clearRect(0, 0, base.width, base.height);
  drawBands(pen);
  drawLinks(pen);
  drawEdges(pen, visible);
  drawLit();
  timing.draw = performance.now() - start;
  timing.draws += 1;
}

function toView(pen, unit = 1) {
  const k = view.k * ratio * unit;
  pen.setTransform(k, 0, 0, k, view.x * ratio, view.y * ratio);
}

function drawBands(pen) {
  toView(pen);
  pen.textBaseline = 'middle';
  const far = view.k < 0.6; // then the number alone, of a size that can be read
  const named = shelves.length ? Math.max(12, 11 / view.k) : 12;
  pen.font = `${far ? 10 / view.k : named}px system-ui, sans-serif`;
  data.bands.forEach(([number, top, bottom]) => {
    pen.globalAlpha = 1;
    pen.fillStyle = palette.band;
    pen.beginPath();
    pen.roundRect(-LEFT, top, data.width + LEFT, bottom - top, 6);
    pen.fill();
    pen.fillStyle = palette.soft;
    pen.fillText(far ? String(number) : `layer ${number}`, -LEFT + 10, (top + bottom) / 2);
  });
  if (view.k < 0.3) return; // there is no room for more words
  pen.font = `${Math.max(12, 11 / view.k)}px system-ui, sans-serif`;
  shelves.forEach(([name, y]) => pen.fillText(name, -LEFT + (far ? 44 : 78), y));
  drawColumns(pen);
}

/** The positions of features: their names at the foot, and lines between them. */
function drawColumns(pen) {
  pen.fillStyle = pen.strokeStyle = palette.soft;
  pen.textAlign = 'center';
  columns.forEach(([heading, [x, y]]) => pen.fillText(heading, x, y));
  pen.textAlign = 'left';
  pen.globalAlpha = 0.5;
  pen.setLineDash([2, 4]);
  (data.walls || []).forEach((x) => {
    pen.beginPath();
    pen.moveTo(x, 40);
    pen.lineTo(x, data.height - 30);
    pen.stroke();
  });
  pen.setLineDash([]);
  pen.globalAlpha = 1;
}

function drawLinks(pen) {
  toView(pen);
  pen.globalAlpha = 1;
  pen.strokeStyle = palette.soft;
  pen.lineWidth = 1.2;
  pen.setLineDash([3, 3]);
  for (const [start, end] of data.links) {
    pen.beginPath();
    pen.moveTo(...start);
    pen.lineTo(...end);
    pen.stroke();
  }
  pen.setLineDash([]);
}

function drawEdges(pen, some, strong = false) {
  toView(pen, 0.1); // curves are in tenths
  const least = 7 / view.k; // no line thinner than 0.7 pixels
  const heads = some.length <= 1500;
  for (const edge of some) {
    pen.strokeStyle = pen.fillStyle = edgeColour(edge);
    pen.globalAlpha = strong ? 0.95 : lineOpacity(edge);
    pen.lineWidth = Math.max(least, 10 * lineWidth(edge) * (strong ? 1.15 : 1));
    pen.stroke(edge.path);
    if (heads) pen.fill(arrow(edge));
  }
}

/** The arrow head of an edge, drawn upward: every edge arrives vertically. */
function arrow(edge) {
  if (!edge.arrow) {
    const [x, y] = endOf(edge);
    const half = 28 + 8 * lineWidth(edge);
    edge.arrow = new Path2D(`M${x} ${y}L${x - half} ${y + 1.7 * half}L${x + half} ${y + 1.7 * half}Z`);
  }
  return edge.arrow;
}

function endOf(edge) {
  if (!edge.end) measure(edge);
  return edge.end;
}

/** Follow the curve's control points once: where it ends and the rectangle that holds it. */
function measure(edge) {
  const numbers = edge.curve.match(/-?\d+/g).map(Number);
  let [x, y] = numbers;
  const box = [x, y, x, y];
  for (let place = 2; place < numbers.length; place += 6) {
    for (let point = 0; point < 6; point += 2) {
      const [px, py] = [x + numbers[place + point], y + numbers[place + point + 1]];
      box[0] = Math.min(box[0], px); box[1] = Math.min(box[1], py);
      box[2] = Math.max(box[2], px); box[3] = Math.max(box[3], py);
    }
    x += numbers[place + 4];
    y += numbers[place + 5];
  }
  edge.end = [x, y];
  edge.box = box;
}

// -------------------------------------------------------------------------------------------------- highlighting

/** The edges that stand out: of the node or edge under the pointer, else of the selection. */
function standingOut() {
  if (state.hoveredEdge) return [state.hoveredEdge];
  const node = state.hovered || state.chosen;
  if (node) return visible.filter((edge) => edge.source === node || edge.target === node);
  return state.chosenEdge && isShown(state.chosenEdge) ? [state.chosenEdge] : [];
}

function drawLit() {
  const pen = over.getContext('2d');
  pen.setTransform(1, 0, 0, 1, 0, 0);
  pen.clearRect(0, 0, over.width, over.height);
  Object.assign(pen, { lineCap: 'butt' });
  drawEdges(pen, standingOut(), true);
}

function light() {
  const some = standingOut();
  const focus = state.hovered || state.chosen;
  const near = new Set(focus ? [focus] : []);
  some.forEach((edge) => { near.add(edge.source); near.add(edge.target); });
  stage.classList.toggle('focused', near.size > 0);
  nodes.forEach((node) => {
    node.element.classList.toggle('near', near.has(node));
    node.element.classList.toggle('chosen', node === state.chosen);
  });
  const positions = [...some.map((edge) => edge.position), ...[...near].map((node) => node.position ?? null)];
  markPositions(new Set(positions.filter((position) => position !== null)));
  if (timing.draws) {
    if (view.k === drawn.k && view.x === drawn.x && view.y === drawn.y) drawLit(); else redraw();
  }
}

/** The shown edge within four pixels of a place on the stage, the strongest first. */
function edgeAt(x, y) {
  const pen = over.getContext('2d');
  const [wx, wy] = [(10 * (x - view.x)) / view.k, (10 * (y - view.y)) / view.k];
  const reach = 40 / view.k;
  pen.save();
  pen.setTransform(1, 0, 0, 1, 0, 0);
  let found = null;
  for (let place = visible.length - 1; place >= 0 && !found; place -= 1) {
    const edge = visible[place];
    if (!edge.box) measure(edge);
    const [left, top, right, bottom] = edge.box;
    if (wx < left - reach || wx > right + reach || wy < top - reach || wy > bottom + reach) continue;
    pen.lineWidth = Math.max(10 * lineWidth(edge), 2 * reach);
    if (pen.isPointInStroke(edge.path, wx, wy)) found = edge;
  }
  pen.restore();
  return found;
}
