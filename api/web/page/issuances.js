// The audit as it grows: what was issued and refused, the latest first.

import {events, get, pause} from './api.js';
import {h, swap} from './dom.js';
import {accountOf, badge, certificateLink, coverage, identityLink, row} from './parts.js';
import {holderOf} from './certificates.js';
import {absolute, clock, length} from './time.js';

const mostRows = 300; // that are drawn; older ones leave at the end
const history = 100; // rows at the beginning
const overlap = 5; // seconds that are asked for twice, so that nothing falls between list and watch
const columns = ['Time', 'Outcome', 'Identity', 'Who asked', 'What'];
const outcomes = [['', 'all'], ['issued', 'issued'], ['refused', 'refused']];

// keyOf tells lines apart. Refusals of one kind are counted in one line, which comes again with a higher count.
function keyOf(line) {
  if (line.certificate) return line.certificate.sha256;
  const {replica, reason, code, identity, namespace, serviceAccount, address, first} = line.refusal ?? {};
  return JSON.stringify([replica, reason, code, identity, namespace, serviceAccount, address, first]);
}

export async function issuances(screen) {
  const outcome = outcomes.some(([name]) => name === screen.parameters.get('outcome')) ? screen.parameters.get('outcome') : '';
  screen.title('Issuances');
  const body = h('tbody', {role: 'rowgroup'});
  const line = h('p', {class: 'count', role: 'status'});
  const below = h('div');
  const rows = new Map(); // by key, the latest last

  const put = (item) => {
    const key = keyOf(item);
    const fresh = rowOf(item);
    const former = rows.get(key);
    rows.delete(key);
    rows.set(key, fresh);
    former?.remove();
    body.prepend(fresh);
    while (rows.size > mostRows) {
      const [oldest, element] = rows.entries().next().value;
      rows.delete(oldest);
      element.remove();
    }
  };

  const good = await screen.begin(async () => {
    const list = await get(['issuances'], {limit: history, outcome}, screen.signal);
    for (const item of [...list.items].reverse()) put(item);
    swap(below, coverage(list));
    screen.show(h('h1', {tabindex: -1}, 'Issuances'),
      h('nav', {class: 'choices', 'aria-label': 'Outcome'}, h('ul', null, outcomes.map(([name, text]) => h('li', null,
        h('a', {href: name ? `#/issuances?outcome=${name}` : '#/issuances', 'aria-current': name === outcome ? 'true' : null}, text))))),
      line,
      h('div', {class: 'list'}, h('table', {role: 'table', class: 'tail'},
        h('caption', {class: 'unseen'}, 'What was issued and refused, the latest first'),
        h('thead', {role: 'rowgroup'}, h('tr', {role: 'row'}, columns.map((name) => h('th', {role: 'columnheader', scope: 'col'}, name)))), body)),
      below);
  });
  if (good) await follow(screen, outcome, put, line);
}

// follow puts lines as they come, again after each break, until the view is left.
async function follow(screen, outcome, put, line) {
  const since = new Date(clock.now() - overlap * 1000).toISOString();
  let resume = '';
  let count = 0;
  for (let failures = 0; !screen.signal.aborted;) {
    const stop = new AbortController();
    const paused = () => { if (!screen.live.on) stop.abort(new DOMException('paused', 'AbortError')); };
    addEventListener('signet-live', paused);
    try {
      if (screen.live.on) {
        for await (const event of events(['issuances'], {outcome, since, resume}, AbortSignal.any([screen.signal, stop.signal]))) {
          failures = 0;
          if (event.resume) resume = event.resume;
          if (event.item) {
            put(event.item);
            count++;
          }
          if (event.type === 'end') {
            line.textContent = `The watch ended (${event.problem?.detail ?? 'no reason'}) and is begun again.`;
          } else {
            line.textContent = count ? `Following. ${count === 1 ? 'A line' : `${count} lines`} since this view was opened.` : 'Following. Nothing new yet.';
          }
        }
      } else {
        line.textContent = 'Paused. Press Live to go on.';
        await new Promise((resolve, reject) => {
          addEventListener('signet-live', resolve, {once: true, signal: screen.signal});
          screen.signal.addEventListener('abort', () => reject(screen.signal.reason), {once: true});
        });
        continue;
      }
    } catch (error) {
      if (screen.signal.aborted) return;
      if (stop.signal.aborted) continue;
      if (error.status === 401 || error.status === 403) {
        screen.fail(error);
        return;
      }
      if (error.status === 400) resume = ''; // it is known no more
      line.textContent = `Not following: ${error.message} Trying again.`;
    } finally {
      removeEventListener('signet-live', paused);
    }
    try {
      await pause(Math.min(30_000, 1000 * 2 ** failures++), screen.signal);
    } catch {
      return;
    }
  }
}

function rowOf(item) {
  const time = h('time', {datetime: item.time, title: absolute(item.time)}, absolute(item.time).slice(5, 19));
  const {certificate, refusal} = item;
  if (certificate) {
    return row(columns, [time, badge('fresh', 'Issued'), identityLink(certificate.identity), h('span', null, holderOf(certificate)),
      h('span', null, certificateLink(certificate), ` for ${length((Date.parse(certificate.notAfter) - Date.parse(certificate.notBefore)) / 1000)}`)]);
  }
  const {reason, code, identity, address, count, first, namespace, serviceAccount} = refusal;
  const who = serviceAccount ? `${namespace}/${serviceAccount}` : '';
  return row(columns, [time, badge('expired', 'Refused'), identity ? accountOf(identity) : h('span', {class: 'quiet'}, 'not known'),
    h('span', null, [who, address].filter(Boolean).join(' at ') || 'unknown'),
    h('span', null, h('b', null, reason), ` (${code})`, count > 1 ? `, ${count} times since ${absolute(first).slice(11, 19)}` : null)]);
}

