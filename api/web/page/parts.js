// What several views are made of.

import {h, svg} from './dom.js';
import {absolute, clock, isSet, ratioLeft, relative} from './time.js';

// States of certificates, and what they look like. Each has a shape of its own, for who doesn't tell the colours apart.
const states = {
  fresh: {text: 'Fresh', tone: 'good', shape: 'M3 8.5l3 3 7-7'},
  due: {text: 'Due', tone: 'note', shape: 'M8 3.5V8l3 2.5'},
  overdue: {text: 'Overdue', tone: 'warn', shape: 'M8 3v6M8 12v.6'},
  expired: {text: 'Expired', tone: 'bad', shape: 'M4 4l8 8M12 4l-8 8'},
  missing: {text: 'Missing', tone: 'bad', shape: 'M3.5 8h9'},
  unattributed: {text: 'Unattributed', tone: 'note', shape: 'M5.5 6a2.5 2.5 0 1 1 2.5 2.7v1M8 12v.6'},
  noMesh: {text: 'Not in the mesh', tone: 'none', shape: 'M8 8v.1'},
};

export const toneOf = (state) => states[state]?.tone ?? 'none';

// Problems, the worst first.
const problems = {
  expired: ['Expired', 'bad'],
  'missing-certificate': ['No certificate', 'bad'],
  'no-certificate': ['No certificate', 'bad'],
  'host-not-covered': ['Host not covered', 'bad'],
  'unexpected-sans': ['Unexpected names', 'bad'],
  probe: ['Probe', 'bad'],
  overdue: ['Overdue', 'warn'],
  'not-ready': ['Not ready', 'warn'],
  'reference-not-granted': ['Not granted', 'warn'],
  'no-workload': ['No workload', 'warn'],
  'several-chains': ['Several chains', 'warn'],
  'too-large': ['Too large', 'warn'],
};

const codes = Object.keys(problems);
const rank = (problem) => (codes.includes(problem.code) ? codes.indexOf(problem.code) : codes.length);

// worst is how bad the worst of some problems is, for putting them in order.
export const worst = (list) => Math.min(codes.length + 1, ...(list ?? []).map(rank));

export const problemText = (code) => problems[code]?.[0] ?? code;
export const problemTone = (code) => problems[code]?.[1] ?? 'warn';

// toneOfAll is that of the worst of some problems.
export const toneOfAll = (list) => (list.some((one) => problemTone(one.code) === 'bad') ? 'bad' : 'warn');

const mark = (shape) => svg('svg', {viewBox: '0 0 16 16', class: 'mark', 'aria-hidden': 'true'}, svg('path', {d: shape}));

// badge is a state, in words and colour.
export function badge(state, text = states[state]?.text ?? state) {
  const known = states[state] ?? {tone: 'none', shape: 'M8 8v.1'};
  return h('span', {class: `badge ${known.tone}`}, mark(known.shape), text);
}

// problemList says what is wrong.
export function problemList(list) {
  if (!list?.length) return null;
  return h('ul', {class: 'problems'}, [...list].sort((a, b) => rank(a) - rank(b)).map((one) => h('li', null,
    h('span', {class: `badge ${problemTone(one.code)}`}, mark(problemTone(one.code) === 'bad' ? states.expired.shape : states.overdue.shape), problemText(one.code)),
    ' ', h('span', {class: 'detail'}, one.detail))));
}

// when is a time, told from now.
export function when(text, unknown = 'unknown') {
  if (!isSet(text)) return h('span', {class: 'quiet'}, unknown);
  return h('time', {datetime: text, title: absolute(text)}, relative(text));
}

// bar is how much of a life is left. What is due begins at half.
export function bar(ratio, state) {
  const part = Math.round(ratio * 100);
  return h('span', {
    class: `life ${toneOf(state)}`, role: 'meter', 'aria-label': 'Part of its life that is left', 'aria-valuemin': 0, 'aria-valuemax': 100,
    'aria-valuenow': part, 'aria-valuetext': `${part} %`, vars: {'--left': ratio.toFixed(4)},
  });
}

// life is a certificate's state, its bar and its end.
export function life(certificate) {
  return h('div', {class: 'lifeline'},
    badge(certificate.state), bar(ratioLeft(certificate.notBefore, certificate.notAfter), certificate.state),
    h('span', {class: 'end'}, certificate.state === 'expired' ? 'ended ' : 'ends ', when(certificate.notAfter)));
}

export const serviceLink = (service) => h('a', {
  href: `#/services/${encodeURIComponent(service.namespace)}/${encodeURIComponent(service.name)}`, class: 'name',
}, h('span', {class: 'namespace'}, `${service.namespace}/`), service.name);

// accountOf is what a SPIFFE ID says of a service account, short.
export function accountOf(identity) {
  const found = /^spiffe:\/\/[^/]+\/ns\/([^/]+)\/sa\/([^/]+)$/.exec(identity);
  return found ? `${found[1]}/${found[2]}` : identity;
}

export const identityLink = (identity, text = accountOf(identity)) => h('a', {
  href: `#/identities/${encodeURIComponent(identity)}`, title: identity,
}, text);

export const certificateLink = (certificate, text = certificate.serial) => h('a', {
  href: `#/certificates/${encodeURIComponent(certificate.sha256)}`, class: 'code', title: `Serial number ${certificate.serial}`,
}, text.length > 20 ? `${text.slice(0, 8)}…${text.slice(-8)}` : text);

// breaking lets a long name break behind its slashes. Not for what can be operated, whose names would get spaces.
const breaking = (text) => text.split(/(?<=\/)/).flatMap((part, at) => (at ? [h('wbr'), part] : [part]));

// count says how many there are of something.
export const count = (number, one, many = `${one}s`) => `${number} ${number === 1 ? one : many}`;

// sentence begins with a capital letter, as the API's texts don't.
export const sentence = (text) => text.slice(0, 1).toUpperCase() + text.slice(1);

// sans are a certificate's names. Those that its identity doesn't account for stand out.
export function sans(certificate) {
  const expected = `URI:${certificate.identity}`;
  if (!certificate.sans?.length) return h('span', {class: 'quiet'}, 'none');
  return h('ul', {class: 'names'}, certificate.sans.map((name) => h('li', {class: 'code'}, breaking(name),
    name === expected || !certificate.identity ? null : [' ', h('span', {class: 'badge bad'}, mark(states.expired.shape), 'unexpected')])));
}

// notice is a box of text. Tone is good, note, warn or bad. It isn't said aloud, because views are drawn again and again.
export function notice(tone, title, ...rest) {
  return h('div', {class: `notice ${tone}`, role: 'note'}, title && h('strong', null, title), rest);
}

const mostGaps = 3;

// coverage says what a list leaves out, and since when it is complete.
export function coverage(list) {
  const out = [];
  const {since} = list.coverage ?? {};
  const [sources, gaps, replicas] = ['sources', 'gaps', 'replicas'].map((name) => list.coverage?.[name] ?? []);
  if (list.restricted) {
    out.push(notice('note', 'Only the namespaces that you may see are shown.', ' Others are left out, and so are their problems.'));
  }
  const down = sources.filter((source) => !source.up);
  if (down.length) {
    out.push(notice('warn', 'What is shown may not be all there is.',
      h('ul', null, down.map((source) => h('li', null, h('b', null, source.name), source.reason ? `: ${source.reason}` : ' is not up')))));
  }
  if (gaps.length) {
    out.push(notice('warn', 'Some issuances may be missing.',
      h('ul', null, gaps.slice(0, mostGaps).map((gap) => h('li', null,
        `${absolute(gap.from)} to ${absolute(gap.to)}${gap.replica ? `, ${gap.replica}` : ''}: ${gap.reason}`))),
      gaps.length > mostGaps && `There are ${gaps.length - mostGaps} more such times.`));
  }
  if (isSet(since)) {
    out.push(h('p', {class: 'quiet'}, `Issuances are recorded since ${absolute(since)}`, replicas.length ? `, by ${replicas.join(', ')}.` : '.'));
  }
  return out;
}

// updated says how old what is shown is.
export const updated = () => h('span', {class: 'quiet'}, `As of ${new Date(clock.now()).toISOString().slice(11, 19)} UTC.`);

// copying is a text to take along.
export function copying(text, label) {
  const button = h('button', {type: 'button', class: 'small', 'aria-label': `Copy ${label}`, 'data-key': `copy ${label}`, on: {
    async click() {
      let said = 'Copied';
      try {
        await navigator.clipboard.writeText(text);
      } catch {
        said = 'Select it and copy it';
      }
      button.textContent = said;
      setTimeout(() => { button.textContent = 'Copy'; }, 2000);
    },
  }}, 'Copy');
  return button;
}

// code is a text of a machine, with a button to copy it.
export const code = (text, label) => h('span', {class: 'copied'}, h('code', null, text), ' ', copying(text, label));

// facts are names with values; those without a value are left out.
export const facts = (rows) => h('dl', {class: 'facts'}, rows.filter(([, value]) => value !== null && value !== undefined && value !== '')
  .map(([name, value]) => h('div', null, h('dt', null, name), h('dd', null, value))));

// table has its columns' heads said with each cell, for narrow screens, where rows are drawn as blocks. The roles are
// those that the elements have anyhow; drawn otherwise they would lose them. Kind is the class that sets the widths.
export function table(kind, caption, columns, rows) {
  return h('table', {role: 'table', class: kind},
    h('caption', {class: 'unseen'}, caption),
    h('thead', {role: 'rowgroup'}, h('tr', {role: 'row'}, columns.map((name) => h('th', {role: 'columnheader', scope: 'col'}, name)))),
    h('tbody', {role: 'rowgroup'}, rows.map((cells) => row(columns, cells))));
}

export function row(columns, cells, properties) {
  return h('tr', {role: 'row', ...properties}, cells.map((cell, at) => (at === 0
    ? h('th', {role: 'rowheader', scope: 'row', 'data-label': columns[0]}, cell)
    : h('td', {role: 'cell', 'data-label': columns[at]}, cell))));
}

// field is a labelled input.
export const field = (label, input) => h('label', {class: 'field'}, h('span', null, label), input);
