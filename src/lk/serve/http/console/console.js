// The console: chat, live figures, adapters. Everything that came from the server is put in with textContent, never as markup.
'use strict';

const $ = (id) => document.getElementById(id);

function element(tag, { text, ...properties } = {}, ...children) {
  const node = document.createElement(tag);
  if (text !== undefined) node.textContent = text;
  for (const [name, value] of Object.entries(properties)) {
    if (name in node) node[name] = value;
    else node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

// --- Requests ------------------------------------------------------------------------------------------------------------------

// Kept for this tab only: sessionStorage ends with it.
const keyField = $('key');
keyField.value = sessionStorage.getItem('lorikeet.key') ?? '';
$('key-form').addEventListener('submit', (event) => event.preventDefault());
keyField.addEventListener('change', () => {
  if (keyField.value.trim()) sessionStorage.setItem('lorikeet.key', keyField.value.trim());
  else sessionStorage.removeItem('lorikeet.key');
  denied.clear();
  refusedManagement = '';
  refreshAll();
});

class ApiFailure extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

async function request(method, path, body, signal) {
  const headers = {};
  const key = sessionStorage.getItem('lorikeet.key');
  if (key) headers.Authorization = `Bearer ${key}`;
  if (body !== undefined) headers['Content-Type'] = 'application/json';
  const response = await fetch(path, { method, headers, signal, cache: 'no-store', body: body === undefined ? undefined : JSON.stringify(body) });
  if (response.ok) return response;
  let message = `${response.status} ${response.statusText}`;
  try {
    const { error } = await response.json();
    if (typeof error?.message === 'string') message = error.message;
  } catch { /* not JSON: the status says enough */ }
  const wait = response.headers.get('Retry-After');
  if (wait) message += ` (try again in ${wait} s)`;
  throw new ApiFailure(response.status, message);
}

async function getJson(path) {
  return (await request('GET', path)).json();
}

// Calls `use` with the JSON of each server-sent event until [DONE].
async function readEvents(response, use) {
  const reader = response.body.getReader();
  const decoder = new TextDecoder();
  let buffer = '';
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      buffer += decoder.decode(value, { stream: true });
      const events = buffer.split(/\r?\n\r?\n/);
      buffer = events.pop();
      for (const event of events) {
        const data = event.split(/\r?\n/).filter((line) => line.startsWith('data:')).map((line) => line.slice(5).trimStart()).join('\n');
        if (data === '[DONE]') return;
        if (data) use(JSON.parse(data));
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

// --- Figures -------------------------------------------------------------------------------------------------------------------

const whole = new Intl.NumberFormat('en', { maximumFractionDigits: 0 });
const short = new Intl.NumberFormat('en', { notation: 'compact', maximumFractionDigits: 1 });

function amount(n) {
  if (!Number.isFinite(n)) return '–';
  return Math.abs(n) < 10000 ? (Math.abs(n) < 10 && n % 1 ? n.toFixed(1) : whole.format(n)) : short.format(n);
}
function bytes(n) {
  if (!Number.isFinite(n)) return '–';
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB'];
  let i = 0;
  while (n >= 1024 && i < units.length - 1) n /= 1024, ++i;
  return `${i && n < 100 ? n.toFixed(1) : whole.format(n)} ${units[i]}`;
}
function seconds(s) {
  if (!Number.isFinite(s)) return '–';
  if (s < 1) return `${whole.format(s * 1000)} ms`;
  if (s < 120) return `${s.toFixed(1)} s`;
  if (s < 7200) return `${whole.format(s / 60)} min`;
  return s < 172800 ? `${whole.format(s / 3600)} h` : `${whole.format(s / 86400)} days`;
}

// --- Live tiles ----------------------------------------------------------------------------------------------------------------

const HISTORY = 120;  // seconds

function color(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name);
}

class Tile {
  constructor(title, label) {
    this.title = element('h3', { text: title });
    this.value = element('p', { className: 'value', text: '–' });
    this.note = element('p', { className: 'note' });
    this.canvas = element('canvas', { role: 'img', 'aria-label': label });
    this.node = element('div', { className: 'tile' }, this.title, this.value, this.note, this.canvas);
    this.series = [];
    $('tiles').append(this.node);
  }

  show(value, note, points) {
    this.value.textContent = value;
    this.note.textContent = note;
    this.series.push(points);
    if (this.series.length > HISTORY) this.series.shift();
  }

  // What it shows of a fleet.
  rename(title) {
    if (this.title.textContent === title) return;
    this.title.textContent = title;
    this.canvas.setAttribute('aria-label', `${title} over the last two minutes`);
  }

  // A context in CSS pixels, cleared.
  context() {
    const { clientWidth: width, clientHeight: height } = this.canvas;
    const scale = window.devicePixelRatio || 1;
    this.canvas.width = Math.round(width * scale);
    this.canvas.height = Math.round(height * scale);
    const context = this.canvas.getContext('2d');
    context.scale(scale, scale);
    return { context, width, height };
  }

  // One line per number in the points of the series, from zero to the largest.
  lines(colors, ceiling = 0) {
    const { context, width, height } = this.context();
    const top = Math.max(ceiling, 1e-9, ...this.series.flat().filter(Number.isFinite));
    colors.forEach((name, line) => {
      context.beginPath();
      this.series.forEach((points, i) => {
        const x = width - (this.series.length - 1 - i) * (width / (HISTORY - 1));
        const y = height - 2 - (Number.isFinite(points[line]) ? points[line] / top : 0) * (height - 4);
        if (i === 0) context.moveTo(x, y);
        else context.lineTo(x, y);
      });
      context.strokeStyle = color(name);
      context.lineWidth = 1.6;
      context.lineJoin = 'round';
      context.stroke();
    });
  }

  // Shares of a whole, side by side.
  parts(colors) {
    const { context, width, height } = this.context();
    const points = this.series.at(-1) ?? [];
    const total = points.reduce((sum, n) => sum + n, 0) || 1;
    let x = 0;
    points.forEach((n, i) => {
      context.fillStyle = color(colors[i]);
      context.fillRect(x, height - 16, Math.max(0, n / total * width - (n ? 1 : 0)), 12);
      x += n / total * width;
    });
  }
}

const tiles = {
  tokens: new Tile('Output tokens per second', 'Output tokens per second over the last two minutes'),
  requests: new Tile('Requests running', 'Running and waiting requests over the last two minutes'),
  pool: new Tile('Page pool in use', 'Shares of the page pool'),
  adapters: new Tile('Adapters on the device', 'Adapters on the device over the last two minutes'),
  streams: new Tile('Open streams', 'Open streams over the last two minutes'),
  memory: new Tile('Memory of the process', 'Resident memory over the last two minutes'),
};

function drawTiles() {
  tiles.tokens.lines(['--accent']);
  tiles.requests.lines(['--accent', '--amber'], 4);
  tiles.pool.parts(['--accent', '--blue', '--amber', '--grey']);
  tiles.adapters.lines(['--blue'], 4);
  tiles.streams.lines(['--accent'], 4);
  tiles.memory.lines(['--muted']);
}

function showStatus(s) {
  if (s.object === 'fleet') return showFleet(s);
  const { requests, tokens, pool, adapters, http, process } = s;
  tiles.tokens.show(amount(tokens.output_per_second), `${amount(tokens.output)} in all, ${amount(tokens.prompt)} of prompts`, [tokens.output_per_second]);
  const wait = requests.waiting ? `, wait ${seconds(requests.predicted_wait_seconds ?? NaN)}` : '';
  tiles.requests.show(amount(requests.running), `${amount(requests.waiting)} waiting${wait}`, [requests.running, requests.waiting]);
  const percent = (n) => pool.pages ? `${whole.format(100 * n / pool.pages)} %` : '–';
  tiles.pool.show(percent(pool.pages - pool.free), `KV ${percent(pool.kv)} · prefixes ${percent(pool.cached)} · adapters ${percent(pool.adapter)}`,
                  [pool.kv, pool.cached, pool.adapter, pool.free]);
  tiles.adapters.show(amount(adapters.device), `of ${amount(adapters.total)}, ${amount(adapters.loading)} loading, ${amount(adapters.pinned)} pinned`, [adapters.device]);
  tiles.streams.show(amount(http.open_streams), `${amount(http.connections)} connections`, [http.open_streams]);
  tiles.memory.show(bytes(process.resident_bytes), `${amount(process.threads)} threads, ${amount(process.open_files)} files`, [process.resident_bytes]);
  drawTiles();
  setHealth(s.draining ? 'warn' : s.ready ? 'ok' : 'warn', `${s.draining ? 'draining' : s.ready ? 'ready' : 'not ready'}, up ${seconds(s.uptime_seconds)}`);
}

// --- A fleet: what a router says of its replicas ----------------------------------------------------------------------------------

const shortUrl = (url) => url.replace(/^https?:\/\//, '');
const sum = (list, key) => list.reduce((total, entry) => total + (entry[key] || 0), 0);
let computed = null;  // {at, tokens}: of the last status
let moves = '';       // that are shown, as JSON

function showFleet(s) {
  const up = s.replicas.filter((replica) => replica.state === 'ready');
  const seen = s.replicas.filter((replica) => ['ready', 'starting', 'draining'].includes(replica.state));
  const now = { at: s.uptime_seconds, tokens: sum(seen, 'computed_tokens') };
  const rate = computed && now.at > computed.at ? Math.max(0, (now.tokens - computed.tokens) / (now.at - computed.at)) : NaN;
  computed = now;
  tiles.tokens.rename('Tokens computed per second');
  tiles.tokens.show(amount(rate), 'prompts and outputs, all replicas', [rate]);
  tiles.requests.show(amount(sum(seen, 'running')), `${amount(sum(seen, 'waiting'))} waiting`, [sum(seen, 'running'), sum(seen, 'waiting')]);
  const pages = sum(seen, 'pages'), free = sum(seen, 'pages_free');
  tiles.pool.rename('Pages in use');
  tiles.pool.show(pages ? `${whole.format(100 * (pages - free) / pages)} %` : '–', `${amount(pages)} pages of ${amount(seen.length)} replicas`, [pages - free, 0, 0, free]);
  tiles.adapters.show(amount(sum(seen, 'adapters_on_device')), `copies; ${amount(sum(seen, 'adapters'))} in memory`, [sum(seen, 'adapters_on_device')]);
  tiles.streams.rename('Requests through this router');
  tiles.streams.show(amount(s.in_flight), `${amount(s.connections)} connections, ${amount(s.requests)} requests so far`, [s.in_flight]);
  tiles.memory.rename('Replicas ready');
  tiles.memory.show(`${up.length} of ${s.replicas.length}`, s.routers > 1 ? `${s.routers} routers` : '', [up.length]);
  drawTiles();
  $('fleet').hidden = false;
  $('fleet-summary').textContent = `policy ${s.policy} · continued ${amount(s.continued)} · hedged ${amount(s.hedged)} · moved ${amount(s.moved)} · retried ${amount(s.retried)}`
    + ` · inexact ${amount(s.inexact)} · broken ${amount(s.broken)} · mismatches ${amount(s.mismatches)}`;
  const figures = (r) => [amount(r.running), amount(r.waiting), r.pages ? `${whole.format(100 * (r.pages - r.pages_free) / r.pages)} %` : '–', amount(r.adapters),
                          amount(r.adapters_on_device), r.step_seconds > 0 ? seconds(r.step_seconds) : '–'];
  const unknown = figures({ running: NaN, waiting: NaN, adapters: NaN, adapters_on_device: NaN });  // of one that says nothing now
  $('replicas').replaceChildren(...s.replicas.map((r) => element('tr', {},
    element('td', { className: 'name', text: shortUrl(r.url), title: r.url }),
    element('td', {}, element('span', { className: `state ${r.state}`, text: r.state, title: r.reason || r.state })),
    ...(seen.includes(r) ? figures(r) : unknown).map((text) => element('td', { className: 'number', text })),
    element('td', { text: r.version || '–' }),
    element('td', { text: r.numerics.slice(0, 8) || '–', title: r.numerics }))));
  if (JSON.stringify(s.moves) !== moves) {
    moves = JSON.stringify(s.moves);
    $('moves').replaceChildren(...s.moves.slice(0, 20).map((m) => element('tr', {},
      element('td', { text: new Date(m.time * 1000).toLocaleTimeString() }),
      element('td', { text: m.why }),
      element('td', { className: 'name', text: m.adapter || 'base' }),
      element('td', { text: shortUrl(m.from) }),
      element('td', { text: shortUrl(m.to) }),
      element('td', { className: 'number', text: amount(m.tokens) }),
      element('td', { className: 'targets', text: m.request, title: m.request }))));
  }
  if (!s.moves.length) $('moves').replaceChildren(element('tr', {}, element('td', { className: 'empty', colSpan: 7, text: 'No answer has had to move.' })));
  const trouble = s.replicas.filter((r) => r.reason && r.state !== 'ready').map((r) => `${shortUrl(r.url)}: ${r.reason}`);
  notice('live-notice', 'replicas', trouble.join(' · '));
  setHealth(up.length === s.replicas.length ? 'ok' : up.length ? 'warn' : 'bad', `fleet: ${up.length} of ${s.replicas.length} ready, up ${seconds(s.uptime_seconds)}`);
}

function setHealth(kind, text) {
  const node = $('health');
  if (node.className !== `health ${kind}`) node.className = `health ${kind}`;
  if ($('health-text').textContent !== text) $('health-text').textContent = text;
}

// Several sources share a notice; each takes back only what it said.
const notices = new Map();
function notice(id, source, text) {
  const said = notices.get(id) ?? notices.set(id, new Map()).get(id);
  if (text) said.set(source, text);
  else said.delete(source);
  const all = [...new Set(said.values())].join(' ');
  $(id).hidden = !all;
  if ($(id).textContent !== all) $(id).textContent = all;
}

// --- Polling: only while the page is seen, and not again what was denied until the key changes --------------------------------------

const denied = new Set();

async function poll(path, noticeId, use) {
  if (denied.has(path)) return;
  try {
    use(await getJson(path));
    notice(noticeId, path, '');
  } catch (error) {
    if (error.status === 401 || error.status === 403) {
      denied.add(path);
      notice(noticeId, path, `${error.message} Enter an API key above that may see this.`);
      if (path === '/v1/status') setHealth('warn', 'needs a key');
    } else if (error.status) {
      if (error.status === 404) {  // it lives on another listener, as the message says
        denied.add(path);
        if (path === '/v1/status') setHealth('warn', 'figures are on the admin listener');
      }
      notice(noticeId, path, error.message);
    } else {
      setHealth('bad', 'no answer');
    }
  }
}

function every(milliseconds, task) {
  let busy = false;
  const run = async () => {
    if (busy || document.hidden) return;
    busy = true;
    try {
      await task();
    } finally {
      busy = false;
    }
  };
  setInterval(run, milliseconds);
  return run;
}

const refreshStatus = every(1000, () => poll('/v1/status', 'live-notice', showStatus));
const refreshAdapters = every(3000, () => poll('/v1/adapters', 'adapters-notice', (list) => {
  moreAdapters = list.has_more;
  showAdapters(list.data);
}));
const refreshModels = every(10000, () => poll('/v1/models', 'live-notice', (list) => showModels(list.data)));
function refreshAll() {
  refreshStatus();
  refreshModels();
  refreshAdapters();
}
document.addEventListener('visibilitychange', refreshAll);
window.addEventListener('resize', drawTiles);
matchMedia('(prefers-color-scheme: dark)').addEventListener('change', drawTiles);

// --- Choosing adapters -----------------------------------------------------------------------------------------------------------

let models = [];
let chosen = [];

function showModels(list) {
  models = list.map((model) => model.id);
  const base = list.find((model) => !model.parent);
  $('base-model').textContent = base ? base.id : '';
  $('model-count').textContent = `${amount(models.length)} to choose from`;
  // A browser slows down with thousands of options; any name may still be typed.
  $('model-list').replaceChildren(...models.slice(0, 500).map((id) => element('option', { value: id })));
  if (!chosen.length && base) setChosen([base.id]);
}

function setChosen(list) {
  chosen = list;
  $('chosen').replaceChildren(...chosen.map((id) => element('li', {}, element('span', { text: id }),
    element('button', { type: 'button', text: '×', 'aria-label': `Remove ${id}`, onclick: () => setChosen(chosen.filter((other) => other !== id)) }))));
  $('send').disabled = !chosen.length;
}

$('add-model').addEventListener('submit', (event) => {
  event.preventDefault();
  const id = $('model').value.trim();
  if (id && !chosen.includes(id) && chosen.length < 8) setChosen([...chosen, id]);
  $('model').value = '';
});
$('model').addEventListener('input', (event) => {
  // Picked from the list, not typed.
  if (event.inputType === 'insertReplacementText' || !(event instanceof InputEvent)) $('add-model').requestSubmit();
});

// --- Chat ----------------------------------------------------------------------------------------------------------------------

let turns = [];  // {prompt, answers: Map of model to text}: only answers that came to their end
let running = null;

const mode = () => document.querySelector('input[name=mode]:checked').value;

function messagesFor(model, prompt) {
  const messages = [];
  const system = $('system').value.trim();
  if (system) messages.push({ role: 'system', content: system });
  for (const turn of turns)
    if (turn.answers.has(model)) messages.push({ role: 'user', content: turn.prompt }, { role: 'assistant', content: turn.answers.get(model) });
  return [...messages, { role: 'user', content: prompt }];
}

function requestFor(model, prompt) {
  const common = { model, stream: true, stream_options: { include_usage: true }, temperature: Number($('temperature').value) || 0,
                   max_tokens: Math.max(1, Math.floor(Number($('max-tokens').value)) || 256) };
  return mode() === 'chat' ? ['/v1/chat/completions', { ...common, messages: messagesFor(model, prompt) }] : ['/v1/completions', { ...common, prompt }];
}

// Whoever reads further up is not moved.
function keepAtEnd(change) {
  const node = $('turns');
  const atEnd = node.scrollHeight - node.scrollTop - node.clientHeight < 60;
  change();
  if (atEnd) node.scrollTop = node.scrollHeight;
}

async function answer(model, turn, container, signal) {
  const text = element('p', { className: 'text waiting' });
  const figures = element('p', { className: 'figures' });
  const thoughts = element('p', { className: 'text thoughts' });
  const box = element('div', { className: 'answer' }, element('h3', { text: model }), thoughts, text, figures);
  container.append(box);
  const start = performance.now();
  let first = 0, tokens = 0, finish = '', content = '';
  try {
    const [path, body] = requestFor(model, turn.prompt);
    await readEvents(await request('POST', path, body, signal), (event) => {
      if (event.error) throw new ApiFailure(500, event.error.message ?? 'the server reported an error');
      const choice = event.choices?.[0];
      const thought = choice?.delta?.reasoning ?? '';
      if (thought) {
        first ||= performance.now();
        keepAtEnd(() => thoughts.append(thought));
      }
      const piece = choice?.delta?.content ?? choice?.text ?? '';
      if (piece) {
        first ||= performance.now();
        content += piece;
        keepAtEnd(() => text.append(piece));
      }
      finish = choice?.finish_reason ?? finish;
      tokens = event.usage?.completion_tokens ?? tokens;
    });
    turn.answers.set(model, content);
    if (!content) figures.textContent = 'an empty answer · ';
  } catch (error) {
    if (signal.aborted) finish = 'stopped';
    else keepAtEnd(() => box.append(element('p', { className: 'error', text: error.message })));
  } finally {
    text.classList.remove('waiting');
  }
  const parts = [];
  if (first) parts.push(`first token ${seconds((first - start) / 1000)}`);
  if (tokens) parts.push(`${amount(tokens)} tokens`);
  if (first && tokens > 1) parts.push(`${amount((tokens - 1) / ((performance.now() - first) / 1000))} tokens/s`);
  if (finish && finish !== 'stop') parts.push(finish === 'length' ? 'cut at max tokens' : finish);
  keepAtEnd(() => figures.append(parts.join(' · ')));
}

async function ask(prompt) {
  const controller = new AbortController();
  running = controller;
  $('send').disabled = true;
  $('stop').hidden = false;
  const turn = { prompt, answers: new Map() };
  const answers = element('div', { className: 'answers' });
  $('turns').append(element('div', { className: 'turn' }, element('p', { className: 'prompt', text: prompt }), answers));
  $('turns').scrollTop = $('turns').scrollHeight;
  $('announce').textContent = '';
  await Promise.all(chosen.map((model) => answer(model, turn, answers, controller.signal)));
  if (running !== controller) return;  // cleared meanwhile
  turns.push(turn);
  running = null;
  $('send').disabled = !chosen.length;
  $('stop').hidden = true;
  $('announce').textContent = controller.signal.aborted ? 'Stopped' : 'Answer complete';
}

$('ask').addEventListener('submit', (event) => {
  event.preventDefault();
  const prompt = $('prompt').value;
  if (!prompt.trim() || running || !chosen.length) return;
  $('prompt').value = '';
  ask(prompt);
});
$('prompt').addEventListener('keydown', (event) => {
  if (event.key !== 'Enter' || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  $('ask').requestSubmit();
});
$('stop').addEventListener('click', () => running?.abort());
$('clear').addEventListener('click', () => {
  running?.abort();
  running = null;
  turns = [];
  $('turns').replaceChildren();
  $('stop').hidden = true;
  $('send').disabled = !chosen.length;
  $('prompt').focus();
});

// --- Adapters ------------------------------------------------------------------------------------------------------------------

const MAX_ROWS = 200;
const COLUMNS = [
  { title: 'Name', key: (a) => a.name },
  { title: 'Version', key: (a) => a.version, number: true },
  { title: 'Tier', key: (a) => a.tier },
  { title: 'Rank', key: (a) => a.rank, number: true },
  { title: 'Targets', key: (a) => a.targets.join(', ') },
  { title: 'Host', key: (a) => a.host_bytes, number: true },
  { title: 'Device', key: (a) => a.device_bytes, number: true },
  { title: 'In flight', key: (a) => a.running + a.waiting, number: true },
  { title: 'Requests', key: (a) => a.requests, number: true },
  { title: 'Load time', key: (a) => a.load_seconds, number: true },
];
// Of a fleet: which replicas have it, those first that have it on the device.
const WHERE = { title: 'Where', key: (a) => -(a.replicas?.length ?? 0) };
let showsPlaces = false;
let adapters = [];
let sorted = { column: COLUMNS[0], descending: false };
let refusedManagement = '';  // why this key may not pin or unload
let asked = '';              // the adapter whose unloading waits for a second click

function columnHead(column) {
  const button = element('button', { type: 'button', text: column.title });
  button.addEventListener('click', () => {
    sorted = { column, descending: sorted.column === column ? !sorted.descending : Boolean(column.number) };
    showAdapters(adapters);
  });
  return column.node = element('th', { scope: 'col', className: column.number ? 'number' : '' }, button);
}
$('columns').append(...COLUMNS.map(columnHead), element('th', { scope: 'col' }, element('span', { className: 'visually-hidden', text: 'Actions' })));
$('filter').addEventListener('input', () => showAdapters(adapters));

async function manage(work) {
  try {
    await work();
    notice('adapters-notice', 'action', '');
  } catch (error) {
    if (error.status === 401 || error.status === 403) refusedManagement = error.message;
    else notice('adapters-notice', 'action', error.message);
  }
  asked = '';
  showAdapters(adapters);
  refreshAdapters();
}

function actions(adapter) {
  const path = `/v1/adapters/${encodeURIComponent(adapter.id)}`;
  const pin = element('button', { type: 'button', text: adapter.pinned ? 'Unpin' : 'Pin', 'aria-label': `${adapter.pinned ? 'Unpin' : 'Pin'} ${adapter.id}` });
  pin.dataset.action = `pin ${adapter.id}`;
  pin.addEventListener('click', () => manage(() => request('PATCH', path, { pinned: !adapter.pinned })));
  const sure = asked === adapter.id;
  const unload = element('button', { type: 'button', className: sure ? 'danger' : '', text: sure ? 'Really unload' : 'Unload', 'aria-label': `${sure ? 'Really unload' : 'Unload'} ${adapter.id}` });
  unload.dataset.action = `unload ${adapter.id}`;
  unload.addEventListener('click', () => {
    if (sure) return manage(() => request('DELETE', path));
    asked = adapter.id;
    showAdapters(adapters);
  });
  return element('div', { className: 'inline' }, pin, unload);
}

function row(adapter) {
  const cells = [
    element('td', { className: 'name', text: adapter.name, title: adapter.path || adapter.name }),
    element('td', { className: 'number', text: adapter.version }),
    element('td', {}, element('span', { className: `tier ${adapter.tier === 'device' ? 'device' : ''}`, text: adapter.tier + (adapter.pinned ? ', pinned' : '') })),
    element('td', { className: 'number', text: adapter.rank }),
    element('td', { className: 'targets', text: adapter.targets.join(', '), title: adapter.targets.join(', ') }),
    element('td', { className: 'number', text: bytes(adapter.host_bytes) }),
    element('td', { className: 'number', text: bytes(adapter.device_bytes) }),
    element('td', { className: 'number', text: adapter.waiting ? `${amount(adapter.running)} + ${amount(adapter.waiting)}` : amount(adapter.running) }),
    element('td', { className: 'number', text: amount(adapter.requests) }),
    element('td', { className: 'number', text: seconds(adapter.load_seconds ?? NaN) }),
  ];
  if (showsPlaces) {
    const places = [...adapter.replicas ?? []].sort((a, b) => (b.tier === 'device') - (a.tier === 'device'));
    cells.push(element('td', {}, element('div', { className: 'places' }, ...places.map((place) =>
      element('span', { className: `tier ${place.tier === 'device' ? 'device' : ''}`, text: shortUrl(place.url), title: `${place.url}: ${place.tier}` })))));
  }
  return element('tr', {}, ...cells, element('td', {}, ...(refusedManagement ? [] : [actions(adapter)])));
}

let moreAdapters = false;

function showAdapters(list) {
  adapters = list;
  if (!showsPlaces && list.some((adapter) => adapter.replicas)) {
    showsPlaces = true;
    COLUMNS.push(WHERE);
    $('columns').lastElementChild.before(columnHead(WHERE));
  }
  notice('adapters-notice', 'more', moreAdapters && `Only the first ${amount(list.length)} adapters are shown; /v1/adapters?after=NAME lists those behind.`);
  const wanted = $('filter').value.trim().toLowerCase();
  const found = adapters.filter((adapter) => adapter.name.toLowerCase().includes(wanted));
  const { key } = sorted.column;
  const compare = (a, b) => (key(a) < key(b) ? -1 : key(a) > key(b) ? 1 : 0);
  found.sort((a, b) => (sorted.descending ? compare(b, a) : compare(a, b)));
  for (const column of COLUMNS) {
    if (column === sorted.column) column.node.setAttribute('aria-sort', sorted.descending ? 'descending' : 'ascending');
    else column.node.removeAttribute('aria-sort');
  }
  // Rows are made anew: the button that had the focus gets it back.
  const focused = document.activeElement?.dataset?.action;
  $('rows').replaceChildren(...found.slice(0, MAX_ROWS).map(row));
  if (!found.length) $('rows').append(element('tr', {}, element('td', { className: 'empty', colSpan: COLUMNS.length + 1, text: adapters.length ? 'No adapter has such a name.' : 'No adapters are loaded.' })));
  if (focused) document.querySelector(`[data-action="${CSS.escape(focused)}"]`)?.focus();
  const all = found.length === adapters.length ? '' : ` of ${amount(adapters.length)}`;
  $('adapter-count').textContent = found.length > MAX_ROWS ? `first ${MAX_ROWS} of ${amount(found.length)}` : `${amount(found.length)}${all}`;
  notice('adapters-notice', 'refused', refusedManagement && `Pinning and unloading are not possible with this key: ${refusedManagement}`);
}

setChosen([]);
refreshAll();
