// The dashboard. Plain DOM calls: everything that came from the server goes through textContent, never through HTML.
// It polls with If-None-Match, so that an idle fleet costs 304s, and only while the tab is visible.
'use strict';

const POLL_MS = 2000;
const EVENTS_KEPT = 300;
const $ = (id) => document.getElementById(id);

// --- building elements -------------------------------------------------------------------------

// h('td', 'num', 'text' or [children])
function h(tag, cls, content) {
	const e = document.createElement(tag);
	if (cls) e.className = cls;
	if (Array.isArray(content)) e.append(...content.filter((c) => c !== null));
	else if (content instanceof Node) e.append(content);
	else if (content !== undefined && content !== null) e.textContent = String(content);
	return e;
}

function link(text, href) {
	const a = h('a', '', text);
	a.href = href;
	return a;
}

function pill(state) {
	return h('span', 'pill ' + state, state.toLowerCase());
}

function bar(fraction, state) {
	const outer = h('div', 'bar ' + (state || ''));
	const inner = h('i');
	const percent = Math.round(100 * Math.min(1, Math.max(0, fraction || 0)));
	inner.style.width = percent + '%';
	outer.setAttribute('role', 'progressbar');
	outer.setAttribute('aria-valuenow', percent);
	outer.setAttribute('aria-valuemin', '0');
	outer.setAttribute('aria-valuemax', '100');
	outer.append(inner);
	return outer;
}

function table(cls, heads, rows) {
	const head = h('tr', '', heads.map(([cls2, text]) => h('th', cls2, text)));
	return h('table', cls, [h('thead', '', [head]), h('tbody', '', rows)]);
}

// --- numbers and times -----------------------------------------------------------------------------

function bytesText(n) {
	if (typeof n !== 'number') return '–';
	const units = ['B', 'kB', 'MB', 'GB', 'TB'];
	let u = 0;
	while (n >= 1000 && u < units.length - 1) { n /= 1000; u++; }
	return (u === 0 || n >= 100 ? n.toFixed(0) : n.toPrecision(3)) + ' ' + units[u];
}

function spanText(seconds) {
	if (typeof seconds !== 'number' || !isFinite(seconds)) return '–';
	const s = Math.max(0, Math.round(seconds));
	if (s < 90) return s + ' s';
	if (s < 5400) return Math.round(s / 60) + ' min';
	if (s < 172800) return Math.floor(s / 3600) + ' h ' + Math.round((s % 3600) / 60) + ' min';
	return Math.round(s / 86400) + ' days';
}

const agoText = (ms) => (typeof ms === 'number' ? spanText((Date.now() - ms) / 1000) + ' ago' : '–');
const timeText = (ms) => (typeof ms === 'number' ? new Date(ms).toLocaleString() : '–');
const clockText = (ms) => new Date(ms).toLocaleTimeString([], { hour12: false });
const percentText = (x) => (100 * x).toFixed(x > 0 && x < 0.1 ? 1 : 0) + ' %';

function lossText(x) {
	if (typeof x !== 'number') return '';
	const p = 100 * x;
	return (p >= 10 ? p.toFixed(0) : p >= 0.01 ? p.toPrecision(2) : p.toExponential(0)) + '%';
}

// --- talking to the server ---------------------------------------------------------------------------

class Problem extends Error {
	constructor(status, detail) { super(detail); this.status = status; }
}

const cache = new Map(); // path -> { etag, body }

function headers(extra) {
	return Object.assign({ Authorization: 'Bearer ' + sessionStorage.getItem('token') }, extra);
}

async function problemOf(response) {
	let detail = 'the coordinator answered ' + response.status;
	try { detail = (await response.json()).detail || detail; } catch { /* not JSON: the status must do */ }
	return new Problem(response.status, detail);
}

// GET; { body, changed }.
async function read(path) {
	const old = cache.get(path);
	const response = await fetch(path, { headers: headers(old ? { 'If-None-Match': old.etag } : {}), cache: 'no-store' });
	if (response.status === 304 && old) return { body: old.body, changed: false };
	if (!response.ok) throw await problemOf(response);
	const entry = { etag: response.headers.get('ETag'), body: await response.json() };
	cache.set(path, entry);
	return { body: entry.body, changed: true };
}

async function act(path) {
	const response = await fetch(path, { method: 'POST', headers: headers({}) });
	if (!response.ok) throw await problemOf(response);
}

function notice(text) {
	$('notice').hidden = !text;
	$('notice').textContent = text || '';
}

function pulse(text, off) {
	$('pulse').textContent = text;
	$('pulse').className = off ? 'pulse off' : 'pulse';
}

// --- overview ------------------------------------------------------------------------------------------

const workerNames = new Map();

function renderStats(s) {
	const jobs = s.jobs || {}, tasks = s.tasks || {}, workers = s.workers || {};
	const entries = [
		[(jobs.RUNNING || 0) + (jobs.ASSEMBLING || 0), 'jobs running'],
		[jobs.DONE || 0, 'jobs done'],
		[jobs.FAILED || 0, 'jobs failed'],
		[(tasks.LEASED || 0) + ' / ' + (tasks.READY || 0), 'tasks leased / ready'],
		[(workers.idle || 0) + (workers.busy || 0), 'workers here'],
		[bytesText(s.disk_free_bytes), 'disk free'],
	];
	$('stats').replaceChildren(...entries.map(([n, label]) => h('div', 'stat', [h('b', '', n), h('span', '', label)])));
}

const isLive = (state) => state === 'RUNNING' || state === 'ASSEMBLING' || state === 'PLANNING';

function jobTimes(row, eta) {
	if (isLive(row.state)) return typeof eta === 'number' ? spanText(eta) + ' left' : 'running';
	return row.finished_ms && row.started_ms ? 'took ' + spanText((row.finished_ms - row.started_ms) / 1000) : '';
}

function jobRow(row, eta) {
	return h('tr', '', [
		h('td', 'wide', [link(row.name || row.id, '#/jobs/' + encodeURIComponent(row.id))]),
		h('td', '', [pill(row.state)]),
		h('td', 'wide soft full', row.model_name + (row.kind === 'evaluate' ? ' · evaluation' : '')),
		h('td', 'full', [bar(row.progress, row.state)]),
		h('td', 'num', percentText(row.progress || 0)),
		h('td', 'num', jobTimes(row, eta)),
		h('td', 'num soft full', agoText(row.created_ms)),
	]);
}

function renderJobs(items, etas) {
	if (items.length === 0) {
		$('jobs').replaceChildren(h('p', 'soft', 'No jobs. Submit one with: quarry submit MODEL_DIR'));
		return;
	}
	$('jobs').replaceChildren(table('stack', [['', 'Name'], ['', 'State'], ['', 'Model'], ['', 'Progress'], ['num', ''],
		['num', 'Time'], ['num', 'Submitted']], items.map((row) => jobRow(row, etas.get(row.id)))));
}

function workerTask(w) {
	const t = (w.tasks || [])[0];
	if (!t) return [h('td', 'soft full', 'no task'), h('td', '', '')];
	const layer = typeof t.layer === 'number' && t.layer >= 0 ? 'layer ' + t.layer : '';
	const note = t.note && t.note.startsWith(layer) ? t.note : [layer, t.note].filter(Boolean).join(' · ');
	const what = t.kind + (note ? ' · ' + note : '');
	return [
		h('td', 'wide full', [link(what, '#/jobs/' + encodeURIComponent(t.job))]),
		h('td', 'full', [bar(t.progress, 'RUNNING')]),
	];
}

function workerBackend(w) {
	const d = w.device;
	const threads = w.threads ? w.threads + (w.threads === 1 ? ' thread' : ' threads') : '';
	const cell = h('td', 'wide soft full', [w.backend, d ? d.name + ' (' + d.number + ')' : '', threads].filter(Boolean).join(' · '));
	if (d) cell.title = [d.driver, d.clock_mhz ? d.clock_mhz + ' MHz' : '', bytesText(d.memory_bytes)].filter(Boolean).join(' · ');
	return cell;
}

function workerRow(w) {
	return h('tr', '', [
		h('td', 'wide', w.name),
		h('td', '', [pill(w.state)]),
		workerBackend(w),
		...workerTask(w),
		h('td', 'num soft', (w.done || 0) + ' done' + (w.failed ? ', ' + w.failed + ' failed' : '')),
		h('td', 'num soft', agoText(w.last_seen_ms)),
	]);
}

function renderWorkers(items) {
	if (items.length === 0) {
		$('workers').replaceChildren(h('p', 'soft', 'No workers. Start one with: quarry-worker --server ' + location.origin));
		return;
	}
	$('workers').replaceChildren(table('stack', [['', 'Name'], ['', 'State'], ['', 'Backend'], ['', 'Task'], ['', ''],
		['num', 'Tasks'], ['num', 'Seen']], items.map(workerRow)));
}

// Only the job itself knows its ETA; ask for the few that run.
async function readEtas(items) {
	const etas = new Map();
	for (const row of items.filter((r) => isLive(r.state)).slice(0, 6)) {
		try {
			etas.set(row.id, (await read('/v1/jobs/' + encodeURIComponent(row.id))).body.eta_seconds);
		} catch (problem) {
			if (problem.status !== 404) throw problem;
		}
	}
	return etas;
}

async function pollOverview() {
	const state = $('filter').value;
	const stats = await read('/v1/stats');
	const jobs = await read('/v1/jobs?limit=100' + (state ? '&state=' + state : ''));
	const workers = await read('/v1/workers?limit=200');
	const etas = await readEtas(jobs.body.items);
	if (view.name !== 'overview') return;
	for (const w of workers.body.items) workerNames.set(w.worker, w.name);
	renderStats(stats.body);
	renderJobs(jobs.body.items, etas);
	renderWorkers(workers.body.items);
}

// --- the grid of layers and modules -----------------------------------------------------------------------

// cividis: readable with any colour vision, and in grey.
const SCALE = [[0, 34, 78], [18, 53, 112], [59, 73, 108], [87, 93, 109], [112, 113, 115], [138, 134, 120],
	[165, 156, 116], [195, 179, 105], [225, 204, 85], [254, 232, 56]];

function colour(t) {
	const x = Math.min(1, Math.max(0, t)) * (SCALE.length - 1);
	const i = Math.min(SCALE.length - 2, Math.floor(x)), f = x - i;
	return SCALE[i].map((c, k) => Math.round(c + f * (SCALE[i + 1][k] - c)));
}

const css = (rgb) => 'rgb(' + rgb.join(',') + ')';
const inkOn = (rgb) => (0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2] > 128 ? '#111' : '#fff');

// Logarithmic between the least and the largest loss of this job, at least a factor of ten.
function lossScale(layers) {
	const values = layers.flatMap((l) => l.modules.map((m) => m.relative_loss)).filter((v) => v > 0);
	if (values.length === 0) return null;
	let low = Math.log10(Math.min(...values)), high = Math.log10(Math.max(...values));
	if (high - low < 1) { const middle = (high + low) / 2; low = middle - 0.5; high = middle + 0.5; }
	return { low, high, at: (v) => (v > 0 ? (Math.log10(v) - low) / (high - low) : 0) };
}

const shortName = (name) => name.split('.').pop().replace(/_proj$/, '');
const chosen = { layer: -1, module: '' };

function cellState(layer, module) {
	if (module.skip) return 'kept as it is (skipped by the recipe)';
	const settings = (module.bits ? module.bits + ' bits' : '') +
		(module.group_size ? (module.group_size < 0 ? ', one group per channel' : ', groups of ' + module.group_size) : '');
	if (typeof module.relative_loss === 'number')
		return settings + ' · relative loss ' + module.relative_loss.toPrecision(3) + ' (' + lossText(module.relative_loss) +
			' of the output energy), loss ' + module.loss.toPrecision(4);
	const who = layer.worker ? ' by ' + (workerNames.get(layer.worker) || layer.worker) : '';
	const words = { BLOCKED: 'waits for its inputs', READY: 'ready', LEASED: 'being quantized' + who + ', ' +
		percentText(layer.progress || 0), DONE: 'done', FAILED: 'failed', CANCELLED: 'cancelled' };
	return settings + ' · ' + (words[layer.state] || layer.state);
}

function describe(layer, module) {
	$('grid-info').replaceChildren(h('b', '', 'Layer ' + layer.layer + ', ' + module.name), document.createTextNode(' — ' +
		cellState(layer, module)));
}

function paint(cell, layer, module, scale) {
	if (module.skip) { cell.className = 'skip'; return; }
	cell.className = layer.state;
	if (typeof module.relative_loss === 'number' && scale) {
		const rgb = colour(scale.at(module.relative_loss));
		cell.style.background = css(rgb);
		cell.style.color = inkOn(rgb);
		cell.textContent = lossText(module.relative_loss);
	} else if (layer.state === 'LEASED') {
		const fill = h('i');
		fill.style.width = Math.round(100 * (layer.progress || 0)) + '%';
		cell.append(fill);
	} else if (layer.state === 'FAILED') {
		cell.textContent = '✕';
	} else if (layer.state === 'CANCELLED') {
		cell.textContent = '–';
	}
}

function gridCell(layer, module, scale) {
	if (!module) return h('td');
	const cell = h('button');
	cell.type = 'button';
	paint(cell, layer, module, scale);
	cell.setAttribute('aria-label', 'layer ' + layer.layer + ' ' + module.name + ': ' + cellState(layer, module));
	if (chosen.layer === layer.layer && chosen.module === module.name) cell.classList.add('chosen');
	cell.addEventListener('mouseenter', () => describe(layer, module));
	cell.addEventListener('focus', () => describe(layer, module));
	cell.addEventListener('click', () => {
		for (const other of document.querySelectorAll('.grid .chosen')) other.classList.remove('chosen');
		cell.classList.add('chosen');
		chosen.layer = layer.layer;
		chosen.module = module.name;
		describe(layer, module);
	});
	return h('td', '', cell);
}

function keyOf(state, text, sign) {
	const sample = h('button', state, sign);
	sample.tabIndex = -1;
	sample.type = 'button';
	return h('span', 'key', [h('span', 'grid', sample), h('span', '', text)]);
}

function legend(scale) {
	const parts = [];
	if (scale) {
		const canvas = h('canvas');
		canvas.width = 150;
		canvas.height = 1;
		const pen = canvas.getContext('2d');
		for (let i = 0; i < 150; i++) { pen.fillStyle = css(colour(i / 149)); pen.fillRect(i, 0, 1, 1); }
		parts.push(h('span', 'scale', [h('span', '', 'relative loss ' + lossText(10 ** scale.low)), canvas,
			h('span', '', lossText(10 ** scale.high))]));
	}
	parts.push(keyOf('BLOCKED', 'waiting'), keyOf('READY', 'ready'), keyOf('LEASED', 'running'),
		keyOf('FAILED', 'failed', '✕'), keyOf('CANCELLED', 'cancelled', '–'), keyOf('skip', 'skipped'));
	return h('div', 'legend', parts);
}

function renderGrid(job) {
	const layers = job.layers || [];
	$('job-grid').hidden = layers.length === 0;
	if (layers.length === 0) return;
	const scale = lossScale(layers);
	const names = [...new Set(layers.flatMap((l) => l.modules.map((m) => m.name)))];
	const head = h('tr', '', [h('th', '', ''), ...names.map((n) => {
		const th = h('th', '', shortName(n));
		th.title = n;
		return th;
	})]);
	const rows = layers.map((layer) => {
		const label = h('th', '', [h('span', 'word', 'layer '), document.createTextNode(layer.layer)]);
		label.scope = 'row';
		return h('tr', '', [label, ...names.map((n) => gridCell(layer, layer.modules.find((m) => m.name === n), scale))]);
	});
	const info = h('p', 'grid-info soft', 'Point at a module, or tap it, for its numbers.');
	const grid = h('table', 'grid', [h('thead', '', head), h('tbody', '')]);
	info.id = 'grid-info';
	info.setAttribute('aria-live', 'polite');
	$('job-grid').replaceChildren(h('h2', '', 'Layers and modules'), legend(scale), h('div', 'grid-scroll', grid), info);
	grid.tBodies[0].append(...rows);
	for (const layer of layers)
		for (const module of layer.modules)
			if (chosen.layer === layer.layer && chosen.module === module.name) describe(layer, module);
}

// --- loss curves --------------------------------------------------------------------------------------------

const fixed = (x, digits) => (typeof x === 'number' ? x.toFixed(digits) : '–');

function shape(tag, attributes) {
	const e = document.createElementNS('http://www.w3.org/2000/svg', tag);
	for (const [name, value] of Object.entries(attributes)) e.setAttribute(name, value);
	return e;
}

// points [[step, value], …] as a line in a unit square that its box stretches; the bottom is 0.
function plot(points, label) {
	const svg = shape('svg', { viewBox: '0 0 100 100', preserveAspectRatio: 'none', class: 'plot', role: 'img', 'aria-label': label });
	const first = points[0][0], span = Math.max(1, points[points.length - 1][0] - first);
	const top = Math.max(...points.map((p) => p[1])) || 1;
	const at = (p) => [100 * (p[0] - first) / span, 98 - 96 * Math.max(0, p[1]) / top];
	svg.append(shape('line', { x1: 0, x2: 100, y1: 98, y2: 98, class: 'zero' }),
		shape('polyline', { points: points.map((p) => at(p).map((v) => v.toFixed(2)).join(',')).join(' ') }));
	return { svg, at };
}

// A curve with a caption that tells the point under the pointer.
function bigPlot(title, points) {
	const from = points[0], to = points[points.length - 1];
	const whole = title + ', training steps ' + from[0] + ' to ' + to[0] + ': ' + fixed(from[1], 4) + ' → ' + fixed(to[1], 4);
	const { svg, at } = plot(points, whole);
	const mark = shape('line', { y1: 0, y2: 100, x1: -9, x2: -9, class: 'mark' });
	const caption = h('figcaption', 'soft', whole);
	svg.append(mark);
	svg.addEventListener('pointermove', (event) => {
		const box = svg.getBoundingClientRect(), x = 100 * (event.clientX - box.left) / box.width;
		const near = points.reduce((a, b) => (Math.abs(at(b)[0] - x) < Math.abs(at(a)[0] - x) ? b : a));
		mark.setAttribute('x1', at(near)[0]);
		mark.setAttribute('x2', at(near)[0]);
		caption.textContent = title + ' around step ' + near[0] + ': ' + fixed(near[1], 4);
	});
	svg.addEventListener('pointerleave', () => { mark.setAttribute('x1', -9); mark.setAttribute('x2', -9); caption.textContent = whole; });
	return h('figure', 'big-plot', [svg, caption]);
}

const fell = (d, digits) => fixed(d.before, digits) + ' → ' + fixed(d.after, digits);

function endPart(job, curve) {
	const end = job.distillation;
	if (!end || !curve || curve.length === 0) return [];
	const kl = { before: (end.before || {}).kl, after: (end.after || {}).kl };
	return [
		h('p', '', 'The whole model: KL divergence on calibration text ' + fell(kl, 4) + (end.kept === false ?
			'; the start was best and stays' : '')),
		h('div', 'pair', [bigPlot('KL divergence', curve.map((p) => [p[0], p[1]])),
			bigPlot('Hidden states', curve.map((p) => [p[0], p[2]]))]),
	];
}

function blockPlot(layer, curve) {
	const text = 'layer ' + layer.layer + ': relative loss ' + fell(layer.distill, 4) +
		(layer.distill.kept === false ? ', the start was best and stays' : '');
	const figure = h('figure', 'small-plot', [curve.length ? plot(curve, text).svg : null,
		h('figcaption', '', [h('span', 'soft', 'layer ' + layer.layer), h('span', 'num', fell(layer.distill, 3))])]);
	figure.title = text;
	return figure;
}

function blocksPart(job, curves) {
	const byLayer = new Map(curves.map((l) => [l.layer, l.curve || []]));
	const plots = (job.layers || []).filter((l) => l.distill).map((l) => blockPlot(l, byLayer.get(l.layer) || []));
	return plots.length === 0 ? [] : [h('p', '', 'Block by block: relative loss of the output'), h('div', 'small-plots', plots)];
}

async function renderCurves(job) {
	const distills = job.recipe && job.recipe.distill && job.recipe.distill !== 'none' && job.kind === 'quantize';
	const curves = distills ? await readOptional('/v1/jobs/' + encodeURIComponent(job.id) + '/curves') : null;
	const told = (job.layers || []).filter((l) => l.distill).length + (job.distillation ? 1 : 0); // by the job, read earlier
	if (view.id !== job.id || (curves && curves === view.curves && told === view.told)) return;
	Object.assign(view, { curves, told });
	const parts = curves ? [...endPart(job, curves.distillation), ...blocksPart(job, curves.layers || [])] : [];
	$('job-curves').hidden = parts.length === 0;
	$('job-curves').replaceChildren(h('h2', '', 'Distillation'), ...parts);
}

// --- one job ----------------------------------------------------------------------------------------------

function actionButton(text, sure, path, cls) {
	const button = h('button', cls, text);
	button.type = 'button';
	button.addEventListener('click', async () => {
		if (button.textContent === text) { button.textContent = sure; return; }
		button.disabled = true;
		try { await act(path); notice(''); } catch (problem) { notice(problem.message); }
		poll();
	});
	button.addEventListener('blur', () => { button.textContent = text; });
	return button;
}

function renderHead(job) {
	const base = '/v1/jobs/' + encodeURIComponent(job.id);
	const actions = h('div', 'actions');
	if (isLive(job.state)) actions.append(actionButton('Cancel', 'Really cancel?', base + '/cancel', 'danger'));
	if (job.state === 'FAILED') actions.append(actionButton('Retry', 'Really retry?', base + '/retry', ''));
	const model = job.model || {};
	const facts = [
		h('span', '', 'model ' + (model.name || '–')),
		job.reference ? h('span', '', 'against ' + job.reference.name) : null,
		h('span', 'mono', job.id),
		h('span', '', 'by ' + job.subject),
		h('span', '', 'submitted ' + timeText(job.created_ms)),
	];
	$('job-head').replaceChildren(
		h('div', 'title', [h('h1', '', job.name || job.id), pill(job.state), actions]),
		h('div', 'job-bar', [bar(job.progress, job.state), h('span', 'num', percentText(job.progress || 0)),
			h('span', 'num soft', jobTimes(job, job.eta_seconds))]),
		h('div', 'facts', facts));
}

function renderFailure(job) {
	const failure = job.failure;
	$('job-failure').hidden = !failure;
	if (!failure) return;
	const attempts = (failure.attempts || []).map((a) => {
		const more = h('details', '', [h('summary', '', (workerNames.get(a.worker) || a.worker || 'no worker') + ': ' + a.error +
			' — ' + a.detail)]);
		more.append(h('pre', '', a.log || 'no log'));
		return more;
	});
	$('job-failure').replaceChildren(h('h2', '', 'Why it failed'), h('p', '', failure.detail), ...attempts);
}

// [before, after]: the original and the quantized model, or the reference and the job's model.
function perplexityRows(p, before, after) {
	const both = typeof before === 'number' && typeof after === 'number';
	const rows = [h('tr', '', [h('td', 'wide', p.text), h('td', 'num', fixed(before, 3)), h('td', 'num', fixed(after, 3)),
		h('td', 'num', both ? (after >= before ? '+' : '') + (100 * (after / before - 1)).toFixed(1) + ' %' : '–')])];
	if (typeof p.kl === 'number' && typeof p.top1 === 'number') {
		const more = h('td', 'soft compared', 'KL divergence ' + fixed(p.kl, 4) + ' · top-1 agreement ' + fixed(100 * p.top1, 1) + ' %');
		more.colSpan = 4;
		rows.push(h('tr', '', more));
	}
	return rows;
}

function perplexityCard(job) {
	const list = job.perplexity || [], compares = list.some((p) => 'reference' in p);
	const rows = list.flatMap((p) => (compares ? perplexityRows(p, p.reference, p.original) : perplexityRows(p, p.original, p.quantized)));
	const heads = compares ? ['reference', 'this model'] : ['original', 'quantized'];
	return h('div', 'card', [h('h2', '', 'Perplexity'), rows.length ? table('', [['', 'Text'], ['num', heads[0]],
		['num', heads[1]], ['num', 'change']], rows) : h('p', 'soft', 'Nothing is evaluated in this job.')]);
}

function sizeCard(model, files) {
	const sums = new Map();
	for (const f of files) {
		const top = f.path.includes('/') ? f.path.split('/')[0] : f.path;
		sums.set(top, (sums.get(top) || 0) + f.bytes);
	}
	const row = (name, n) => h('tr', '', [h('td', 'wide', name), h('td', 'num', bytesText(n)),
		h('td', 'num soft', model && model.bytes ? percentText(n / model.bytes) : '')]);
	const rows = [...(model ? [row('original model', model.bytes)] : []), ...[...sums].map(([name, n]) => row(name, n))];
	return h('div', 'card', [h('h2', '', 'Sizes'), rows.length ? table('', [['', ''], ['num', 'size'],
		['num', 'of original']], rows) : h('p', 'soft', 'Not known yet.')]);
}

// The model may be gone, the files not there yet: both are fine.
async function readOptional(path) {
	try {
		return (await read(path)).body;
	} catch (problem) {
		if (problem.status === 404 || problem.status === 409) return null;
		throw problem;
	}
}

async function renderResults(job) {
	const model = job.model && job.model.model ? await readOptional('/v1/models/' + encodeURIComponent(job.model.model)) : null;
	const files = job.state === 'DONE' ? await readOptional('/v1/jobs/' + encodeURIComponent(job.id) + '/files') : null;
	if (view.id !== job.id) return;
	$('job-results').replaceChildren(perplexityCard(job), sizeCard(model, files ? files.items : []));
}

function renderTasks(job) {
	const rows = Object.entries(job.kinds || {}).map(([kind, c]) => h('tr', '', [h('td', '', kind), h('td', '',
		[bar((c.DONE || 0) / Math.max(1, c.total), c.FAILED ? 'FAILED' : c.DONE === c.total ? 'DONE' : 'RUNNING')]),
		h('td', 'num', (c.DONE || 0) + ' / ' + c.total), h('td', 'num soft', c.LEASED ? c.LEASED + ' running' : '')]));
	$('job-tasks').replaceChildren(h('h2', '', 'Tasks'), table('', [['', 'Kind'], ['', ''], ['num', 'done'], ['num', '']],
		rows));
}

function renderRecipe(job) {
	const list = h('dl');
	for (const [key, value] of Object.entries(job.recipe || {}))
		list.append(h('dt', '', key), h('dd', 'mono', typeof value === 'object' ? JSON.stringify(value) : value));
	const warnings = (job.warnings || []).map((w) => h('p', 'soft warning', w));
	$('job-recipe').replaceChildren(h('h2', '', 'Recipe'), list, ...warnings);
}

async function pollJob() {
	const id = view.id;
	const job = await read('/v1/jobs/' + encodeURIComponent(id));
	if (view.id !== id || (!job.changed && view.shown)) return;
	const workers = await read('/v1/workers?limit=200');
	if (view.id !== id) return;
	for (const w of workers.body.items) workerNames.set(w.worker, w.name);
	document.title = (job.body.name || id) + ' · Quarry';
	renderHead(job.body);
	renderFailure(job.body);
	renderGrid(job.body);
	renderTasks(job.body);
	renderRecipe(job.body);
	await renderCurves(job.body);
	await renderResults(job.body);
	view.shown = true;
}

// --- events: server-sent, read by fetch because EventSource cannot send a token ------------------------------

function addEvent(event) {
	const at = h('time', '', clockText(event.at_ms));
	at.dateTime = new Date(event.at_ms).toISOString();
	$('job-events').prepend(h('li', '', [at, h('span', 'kind', event.kind), h('span', '', event.text)]));
	while ($('job-events').childElementCount > EVENTS_KEPT) $('job-events').lastElementChild.remove();
}

function takeBlock(block, from) {
	let ended = false;
	for (const line of block.split('\n')) {
		if (line.startsWith('event: end')) ended = true;
		else if (line.startsWith('id: ')) from.seq = line.slice(4);
		else if (line.startsWith('data: ') && !ended) addEvent(JSON.parse(line.slice(6)));
	}
	return ended;
}

// true when the job is over.
async function readStream(id, from, signal) {
	const response = await fetch('/v1/jobs/' + encodeURIComponent(id) + '/events',
		{ headers: headers(from.seq ? { 'Last-Event-ID': from.seq } : {}), signal });
	if (response.status === 204) return true;
	if (!response.ok) throw await problemOf(response);
	const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
	let text = '';
	for (;;) {
		const { value, done } = await reader.read();
		if (done) return false;
		text += value;
		for (let end = text.indexOf('\n\n'); end >= 0; end = text.indexOf('\n\n')) {
			if (takeBlock(text.slice(0, end), from)) return true;
			text = text.slice(end + 2);
		}
	}
}

async function followEvents(id, signal) {
	const from = { seq: '' };
	while (!signal.aborted) {
		try {
			if (await readStream(id, from, signal)) return;
		} catch (problem) {
			if (signal.aborted || problem.status === 404) return;
		}
		await new Promise((resolve) => setTimeout(resolve, POLL_MS));
	}
}

// --- views and polling -----------------------------------------------------------------------------------------

const view = { name: '', id: '', shown: false, stop: null, curves: null, told: 0 };
let timer = 0;
let polling = false;
let pollAgain = false; // the view changed while a poll was under way

function show(name) {
	for (const part of ['sign-in', 'overview', 'job']) $(part).hidden = part !== name;
	$('forget').hidden = name === 'sign-in';
}

function openView() {
	if (view.stop) view.stop.abort();
	view.stop = null;
	notice('');
	if (!sessionStorage.getItem('token')) {
		view.name = 'sign-in';
		view.id = '';
		pulse('');
		show('sign-in');
		$('token').focus();
		return;
	}
	const match = location.hash.match(/^#\/jobs\/([^/]+)$/);
	view.name = match ? 'job' : 'overview';
	view.id = match ? decodeURIComponent(match[1]) : '';
	view.shown = false;
	view.curves = null;
	document.title = 'Quarry';
	if (match) {
		for (const part of ['job-head', 'job-results', 'job-grid', 'job-curves', 'job-tasks', 'job-recipe', 'job-events'])
			$(part).replaceChildren();
		$('job-failure').hidden = true;
		$('job-curves').hidden = true;
		chosen.layer = -1;
		view.stop = new AbortController();
		followEvents(view.id, view.stop.signal);
	}
	show(view.name);
	poll();
}

function signOut(why) {
	sessionStorage.removeItem('token');
	cache.clear();
	openView();
	notice(why);
}

async function pollOnce() {
	try {
		await (view.name === 'job' ? pollJob() : pollOverview());
		pulse('live');
	} catch (problem) {
		if (problem.status === 401) signOut(problem.message);
		else if (problem.status) notice(problem.message);
		else pulse('coordinator not reachable', true);
	}
}

async function poll() {
	clearTimeout(timer);
	if (view.name === 'sign-in' || document.visibilityState !== 'visible') return;
	if (polling) { pollAgain = true; return; }
	polling = true;
	do {
		pollAgain = false;
		await pollOnce();
	} while (pollAgain && view.name !== 'sign-in');
	polling = false;
	timer = setTimeout(poll, POLL_MS);
}

$('sign-in').addEventListener('submit', (event) => {
	event.preventDefault();
	sessionStorage.setItem('token', $('token').value.trim());
	$('token').value = '';
	openView();
});
$('forget').addEventListener('click', () => signOut(''));
$('filter').addEventListener('change', poll);
window.addEventListener('hashchange', openView);
document.addEventListener('visibilitychange', poll);
openView();
