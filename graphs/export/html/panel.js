// What is said beside the drawing: the selection, the table of edges, the legend, the prompt.
const panel = byId('panel');
const MOST_ROWS = 500;

/** Select a node or an edge, or nothing; `panel` says what there is to know of it. */
function choose(node, edge = null) {
  state.chosen = node;
  state.chosenEdge = node ? null : edge;
  state.query = null;
  if (node) rove(node);
  showPanel();
  light();
}

function showPanel() {
  panel.replaceChildren();
  if (state.chosen) describeNode(state.chosen);
  else if (state.chosenEdge) describeEdge(state.chosenEdge);
  else describeAll();
  showPattern();
}

/** While nothing is selected: the nodes that matter most, if nodes have scores. */
function describeAll() {
  panel.append(make('p', 'muted', 'Select a node or an edge to see its scores and neighbours.'));
  if (!strongestNodes.length) return;
  panel.append(make('h3', '', strongestNodes.length > 12 ? 'The strongest nodes' : 'Nodes by their own effect'));
  const body = make('tbody');
  strongestNodes.slice(0, 12).forEach((node) => {
    const signed = state.signed && node.score ? ` ${node.score < 0 ? 'helps' : 'hurts'}` : '';
    body.append(make('tr', '', null, make('td', '', null, link(node)), make('td', `number${signed}`, format(node.score))));
  });
  panel.append(make('table', '', null, body));
}

function describeNode(node) {
  panel.append(make('h2', '', node.name, make('small', '', kindWord(node))));
  if (node.called) panel.append(make('p', 'called', node.called));
  if (node.score !== undefined) panel.append(make('p', '', `own effect ${nodeScoreText(node)}`));
  const facts = [
    node.layer === undefined ? null : `layer ${node.layer}`, node.position === undefined ? null : positionText(node.position),
    node.role === undefined ? null : data.roles[node.role],
  ];
  const said = facts.filter((fact) => fact !== null).join(', ');
  if (said) panel.append(make('p', 'muted', said));
  const own = data.attention[node.name];
  if (own) panel.append(attentionFigure(own));
  for (const [heading, list, end] of [['Outgoing', node.outgoing, 'target'], ['Incoming', node.incoming, 'source']]) {
    const shown = list.filter(isShown);
    const hidden = list.length - shown.length;
    const title = make('h3', '', `${heading} `, make('b', '', count(shown.length)));
    if (hidden) title.append(` (${count(hidden)} hidden)`);
    panel.append(title);
    if (shown.length) panel.append(edgeTable(shown.slice(0, MOST_ROWS), end));
    if (shown.length > MOST_ROWS) panel.append(make('p', 'muted', `The strongest ${count(MOST_ROWS)} are listed.`));
  }
}

function describeEdge(edge) {
  panel.append(make('h2', '', edge.name, make('small', '', 'edge')));
  const list = make('p', 'muted', 'from ');
  list.append(link(edge.source), ' to ', link(edge.target));
  panel.append(list);
  panel.append(make('p', '', scoreText(edge)));
  if (edge.port) panel.append(make('p', 'muted', `read as the ${PORTS[edge.port][2]}`));
  if (edge.position !== null) panel.append(make('p', 'muted', `at ${positionText(edge.position)}`));
}

function positionText(position) {
  const token = data.prompt && data.prompt.tokens[position];
  return token === undefined || token === null ? `position ${position}` : `position ${position}, "${token}"`;
}

function link(node) {
  const button = make('button', 'link', node.name);
  if (node.called) button.append(make('small', 'called', ` ${node.called}`));
  button.type = 'button';
  button.addEventListener('click', () => { choose(node); reveal(node); panel.focus({ preventScroll: true }); });
  button.addEventListener('pointerenter', () => { state.hovered = node; light(); });
  button.addEventListener('pointerleave', () => { state.hovered = null; light(); });
  return button;
}

/** Edges as rows, in the order given; `end` is the column of the neighbour, or null for both ends. */
function edgeTable(list, end) {
  const positions = list.some((edge) => edge.position !== null);
  const ports = list.some((edge) => !edge.source.site); // features are read at one place
  const columns = [...(end ? [end === 'target' ? 'to' : 'from'] : ['from', 'to']), ...(ports ? ['port'] : []), ...(positions ? ['at'] : [])];
  const head = make('tr');
  const scores = comparing ? ['A', 'B'] : [state.signed ? 'score' : '|score|'];
  columns.forEach((name) => head.append(heading(name)));
  scores.forEach((name) => head.append(heading(name, 'number')));
  const body = make('tbody');
  for (const edge of list) {
    const row = make('tr');
    (end ? [edge[end]] : [edge.source, edge.target]).forEach((node) => row.append(make('td', '', null, link(node))));
    if (ports) row.append(make('td', '', edge.port || '\u2013'));
    if (positions) row.append(make('td', '', edge.position === null ? 'all' : `@${edge.position}`));
    if (comparing) [[edge.a, 1], [edge.b, 2]].forEach(([score, bit]) => row.append(scoreCell(edge, score, Boolean(edge.where & bit))));
    else row.append(scoreCell(edge, edge.score, true));
    body.append(row);
  }
  const table = make('table', '', null, make('thead', '', null, head), body);
  return make('div', 'scroll', null, table);
}

function heading(name, className = '') {
  const cell = make('th', className, name);
  cell.scope = 'col';
  return cell;
}

function scoreCell(edge, score, present) {
  const cell = make('td', 'number', present ? format(score) : '\u2013');
  if (present && score !== null) {
    if (state.signed && score !== 0) cell.classList.add(score < 0 ? 'helps' : 'hurts');
    const meter = make('i', 'meter');
    meter.style.setProperty('--share', String(largest ? Math.min(1, Math.abs(score) / largest) : 0));
    cell.append(meter);
  }
  return cell;
}

function showTable() {
  const box = byId('rows');
  box.replaceChildren();
  if (!byId('table').open) return;
  const list = ranked.filter(isShown);
  const most = Math.min(list.length, MOST_ROWS);
  const said = most < list.length ? `The strongest ${count(most)} of the ${count(list.length)} edges that are shown.` : `${count(list.length)} edges, the strongest first.`;
  box.append(make('p', 'muted', said));
  if (list.length) box.append(edgeTable(list.slice(0, most), null));
}

function showMade() {
  const box = byId('provenance');
  data.provenance.forEach((rows, place) => {
    if (comparing) box.append(make('h3', '', `Circuit ${'AB'[place]}`));
    const list = make('dl');
    rows.forEach(([key, text]) => list.append(make('dt', '', key), make('dd', '', text.length > 2000 ? `${text.slice(0, 2000)}\u2026` : text)));
    box.append(rows.length ? list : make('p', 'muted', 'Nothing is recorded.'));
  });
}

// -------------------------------------------------------------------------------------------------------- legend

function showLegend() {
  const box = byId('legend');
  box.replaceChildren();
  const entry = (shape, colour, text) => {
    const mark = make('i', shape);
    mark.style.setProperty('--tone', colour);
    box.append(make('span', '', null, mark, text));
  };
  if (!edges.length && !nodes.length) { box.hidden = true; return; }
  if (state.edgeColour === 'circuit') {
    [['only-a', 'only in A'], ['only-b', 'only in B'], ['both', 'in both']].forEach(([name, text]) => entry('stroke', palette[name], text));
  } else if (state.edgeColour === 'port') {
    const used = new Set(edges.map((edge) => edge.port));
    Object.entries(PORTS).forEach(([port, look]) => { if (used.has(port)) entry('stroke', look[dark ? 1 : 0], look[2]); });
  } else {
    if (sizes.length && state.signed) { entry('stroke', palette.helps, 'helps'); entry('stroke', palette.hurts, 'hurts'); }
    if (sizes.length && !state.signed) entry('stroke', palette.plain, 'edge');
    if (nUnscored) entry('stroke', palette.unscored, 'no score');
  }
  if (sizes.length) { entry('stroke fine', palette.soft, 'small'); entry('stroke wide', palette.soft, `|score| ${largest.toPrecision(3)}`); }
  nodeLegend(entry);
  if (data.links.length) entry('dash', palette.soft, 'group of a head');
}

function nodeLegend(entry) {
  if (state.nodeColour === 'role') {
    data.roles.forEach((role, number) => { if (nodes.some((node) => node.role === number)) entry('box', roleColour(number), role); });
  } else if (state.nodeColour === 'layer') {
    if (layers.length) { entry('box', layerColour(layers[0]), `layer ${layers[0]}`); entry('box', layerColour(layers[layers.length - 1]), `layer ${layers[layers.length - 1]}`); }
  } else if (state.nodeColour === 'score') {
    if (!state.signed) { entry('box deep', palette.plain, 'node with an effect'); return; }
    if (strongestNodes.some((node) => node.score < 0)) entry('box deep', palette.helps, 'node helps');
    if (strongestNodes.some((node) => node.score > 0)) entry('box deep', palette.hurts, 'node hurts');
    if (nodes.some(isError)) entry('box dashed', palette.soft, 'error term');
  } else {
    const used = new Set(nodes.map((node) => node.kind));
    Object.entries(KINDS).forEach(([kind, look]) => { if (used.has(kind)) entry(kind.endsWith('_error') ? 'box dashed' : 'box', look[dark ? 1 : 0], look[2]); });
  }
}

// -------------------------------------------------------------------------------------------------------- prompt

const chips = [];

function showPrompt() {
  if (!data.prompt) return;
  byId('prompt').hidden = false;
  document.body.classList.add('has-prompt');
  data.prompt.tokens.forEach((token, position) => {
    const chip = make('button', 'token', token || ' ');
    chip.type = 'button';
    chip.title = `position ${position}`;
    chip.addEventListener('click', () => { state.query = state.query === position ? null : position; showPattern(); });
    chips.push(chip);
    byId('tokens').append(make('li', '', null, chip));
  });
  if (data.prompt.answer) byId('answer').append('\u2192 ', make('b', '', data.prompt.answer.trim() || data.prompt.answer));
  if (data.prompt.wrong) byId('answer').append(' rather than ', make('s', '', data.prompt.wrong.trim() || data.prompt.wrong));
}

function markPositions(positions) {
  chips.forEach((chip, position) => chip.classList.toggle('at', positions.has(position)));
}

/** Shade the tokens by what the selected head attends to from one query, the last unless another was clicked. */
function showPattern() {
  const pattern = state.chosen && data.attention[state.chosen.name];
  const query = pattern ? state.query ?? pattern.length - 1 : null;
  chips.forEach((chip, position) => {
    const heat = pattern ? pattern[query][position] : 0;
    chip.style.setProperty('--heat', String(heat));
    chip.classList.toggle('hot', heat > 0.55);
    if (pattern) chip.setAttribute('aria-pressed', String(position === query)); else chip.removeAttribute('aria-pressed');
    chip.title = pattern ? `position ${position}: ${Math.round(100 * heat)}% of the attention from ${query}` : `position ${position}`;
  });
}

function attentionFigure(pattern) {
  const side = pattern.length;
  const canvas = make('canvas');
  canvas.id = 'pattern';
  canvas.width = canvas.height = side;
  canvas.setAttribute('role', 'img');
  canvas.setAttribute('aria-label', `Attention pattern, ${side} queries by ${side} keys`);
  const pen = canvas.getContext('2d');
  pattern.forEach((row, query) => row.forEach((weight, key) => {
    pen.fillStyle = mixed(palette.accent, palette.surface, Math.sqrt(weight));
    pen.fillRect(key, query, 1, 1);
  }));
  const said = make('p', 'muted', 'Attention: queries down, keys across. A click on a token picks the query.');
  const name = (position) => (data.prompt ? `"${data.prompt.tokens[position]}"` : String(position));
  canvas.addEventListener('pointermove', (event) => {
    const box = canvas.getBoundingClientRect();
    const at = (offset, length) => Math.max(0, Math.min(side - 1, Math.floor((offset / length) * side)));
    const [key, query] = [at(event.clientX - box.left, box.width), at(event.clientY - box.top, box.height)];
    said.textContent = `from ${name(query)} to ${name(key)}: ${pattern[query][key].toFixed(3)}`;
  });
  return make('div', '', null, canvas, said);
}
