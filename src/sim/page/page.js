// Shows what the simulator tells, and tells it what somebody does. No library, no build step.
'use strict';

const MOST_LINES = 500;
const STEPS = {
  pending: ['an alarm is pending', 'A short press, or “Call it off”, calls it off.'],
  raised: ['help is called', 'The care side acknowledges, or contact after contact is called.'],
  escalated: ['the next contact is called', 'Nobody has acknowledged yet.'],
  acknowledged: ['somebody sees to it', 'The care side resolves it when it is over.'],
};
const STRONG = new Set(['alarm', 'heard', 'fault', 'switch']);

const at = (id) => document.getElementById(id);
const all = (selector) => [...document.querySelectorAll(selector)];
const set = (id, text) => {
  if (at(id).textContent !== text) at(id).textContent = text;
};

let alarm = '';
let pendingUntil = null;

function showAlarm(state) {
  const now = state.alarm ? `${state.alarm.id} ${state.alarm.step}` : '';
  if (now !== alarm) {
    alarm = now;
    const pending = state.alarm && state.alarm.step === 'pending';
    pendingUntil = pending ? Date.now() + state.cancel_window_s * 1000 : null;
  }
  const [step, hint] = state.alarm ? STEPS[state.alarm.step] || [state.alarm.step, ''] :
    ['no alarm', 'Press the button, or let somebody cry for help.'];
  const test = state.alarm && state.alarm.test ? 'test: ' : '';
  at('alarm').dataset.step = state.alarm ? state.alarm.step : 'none';
  set('step', test + step);
  at('hint').dataset.text = hint;
  tick();
}

function tick() {
  const hint = at('hint').dataset.text || '';
  const left = pendingUntil === null ? 0 : Math.max(0, Math.ceil((pendingUntil - Date.now()) / 1000));
  set('hint', left > 0 ? `${hint} ${left} s left.` : hint);
}

function list(parent, entries, make) {
  const text = JSON.stringify(entries);
  if (parent.dataset.shown === text) return;
  parent.dataset.shown = text;
  parent.replaceChildren(...entries.flatMap(make));
}

function element(name, className, text) {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function show(state) {
  set('device', state.device);
  set('broker', state.broker);
  set('uplink', `${state.connected ? 'connected' : 'not connected'}: ${state.uplink || '…'}`);
  set('arrived', String(state.arrived));
  set('speed', String(state.speed));
  for (const lane of ['alert', 'status', 'telemetry']) set(`wait-${lane}`, String(state.waiting[lane]));
  if (state.level_dbfs !== null) {
    at('level').value = Math.max(-60, state.level_dbfs);
    set('dbfs', `${state.level_dbfs.toFixed(1)} dBFS`);
  } else {
    set('dbfs', 'the device does not listen');
  }
  showAlarm(state);
  const faults = Object.entries(state.faults).map(([part, problem]) => ['is', `${part}: ${problem}`]);
  list(at('faults'), faults.length ? faults : [['', 'none']], ([kind, text]) => element('li', kind, text));
  list(at('readings'), Object.entries(state.readings),
    ([name, value]) => [element('dt', '', name), element('dd', '', spoken(value))]);
  for (const box of all('[data-fault]')) {
    const known = state.switches[box.dataset.fault];
    box.closest('li').hidden = known === undefined;
    box.checked = known === true;
  }
  at('cry').hidden = !state.cries;
  at('care').hidden = !state.cares;
}

// UCUM codes, as people write them.
function spoken(value) {
  return value.replace('[ppm]', 'ppm').replace(' Cel', ' °C');
}

function isShown(lane) {
  const box = document.querySelector(`[data-show="${lane || 'other'}"]`);
  return !box || box.checked;
}

function tell(line) {
  const row = element('li');
  row.dataset.lane = line.lane || 'other';
  row.hidden = !isShown(line.lane);
  row.append(
    element('time', '', `${line.at.toFixed(1)} s`),
    element('span', STRONG.has(line.kind) ? 'strong' : '', line.kind),
    element('span', line.lane ? `lane ${line.lane}` : '', line.lane || ''),
    element('span', 'text', line.text),
  );
  at('story').append(row);
  while (at('story').children.length > MOST_LINES) at('story').firstChild.remove();
  if (line.kind === 'home') set('home', line.text);
  if (!at('hold').checked) at('scroll').scrollTop = at('scroll').scrollHeight;
}

function listen() {
  const stream = new EventSource('/events');
  stream.onopen = () => {
    set('link', 'live');
    at('story').replaceChildren();
  };
  stream.onerror = () => set('link', 'the simulator does not answer; trying again');
  stream.onmessage = (message) => {
    const news = JSON.parse(message.data);
    if (news.missed) tell({ at: 0, kind: 'note', lane: null, text: `${news.missed} messages came too fast` });
    for (const line of news.story || []) tell(line);
    if (news.line) tell(news.line);
    if (news.state) show(news.state);
  };
}

async function act(deed) {
  set('refusal', '');
  try {
    const answer = await fetch('/do', {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify(deed),
    });
    if (!answer.ok) set('refusal', (await answer.json()).detail);
  } catch (error) {
    set('refusal', `not done: ${error.message}`);
  }
}

for (const button of all('button[data-do]')) {
  button.addEventListener('click', () => act({ ...button.dataset }));
}
for (const box of all('[data-fault]')) {
  box.addEventListener('change', () => act({ do: 'fault', fault: box.dataset.fault, on: box.checked }));
}
for (const box of all('[data-show]')) {
  box.addEventListener('change', () => {
    for (const row of at('story').children) row.hidden = !isShown(row.dataset.lane === 'other' ? '' : row.dataset.lane);
  });
}
setInterval(tick, 250);
listen();
