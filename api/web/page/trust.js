// Whom the mesh trusts and who signs, as the replica that answers sees it.

import {get} from './api.js';
import {h} from './dom.js';
import {code, copying, facts, notice, updated, when} from './parts.js';
import {kindOf, subjectTable} from './timeline.js';
import {absolute, clock, isSet} from './time.js';

// Phases of an anchor, in their order.
const phases = [
  ['published', 'Published', 'It is in every answer and namespace; nothing is signed under it yet.'],
  ['distributed', 'Distributed', 'Everybody carries it; an issuer under it may sign.'],
  ['signing', 'Signing', 'Certificates are signed under it.'],
  ['retiring', 'Retiring', 'No source names it any more; it stays until the last leaf under it has ended.'],
];

export async function trust(screen) {
  screen.title('Trust');
  await screen.keep(15, async () => {
    const found = await get(['trust'], {}, screen.signal);
    const late = found.expiring.filter((one) => one.state === 'overdue' || one.state === 'expired');
    screen.show(
      h('h1', {tabindex: -1}, 'Trust'),
      h('p', {class: 'count'}, 'Whom the mesh trusts and who signs. ', updated()),
      late.length > 0 && notice(late.some((one) => one.state === 'expired') ? 'bad' : 'warn', 'Not renewed in time: ', [...new Set(late.map(kindOf))].join(', '), '.'),
      found.anchors.length === 0 && notice('bad', 'There is no trust anchor.', ' Nothing can be signed or verified.'),
      h('h2', null, 'Anchors'), h('div', {class: 'anchors'}, found.anchors.map(anchor)),
      h('div', {class: 'halves'},
        lines('Issuers, the one in force first', found.issuers, 'No issuer is known.'),
        lines('Distribution', found.distribution, 'Nothing is known of it.'),
        lines('Replicas', found.replicas, 'None is known.')),
      h('h2', null, 'What ends, besides leaves'),
      found.expiring.length ? h('div', {class: 'list'}, subjectTable(found.expiring)) : h('p', {class: 'empty'}, 'Nothing that is known.'));
  });
}

const lines = (title, list, none) => h('section', null, h('h2', null, title),
  list.length ? h('ul', {class: 'lines'}, list.map((one) => h('li', null, one))) : h('p', {class: 'empty'}, none));

function anchor(one) {
  const at = phases.findIndex(([name]) => name === one.phase);
  const ended = Date.parse(one.notAfter) <= clock.now();
  return h('article', {class: 'panel', 'aria-label': `Anchor ${one.subject}`},
    h('h3', null, one.subject || 'No subject', one.federated && h('span', {class: 'tag'}, 'federated')),
    at < 0 ? h('p', null, one.phase) : h('ol', {class: 'steps', 'aria-label': 'Rollover'}, phases.map(([, text], step) => h('li', {
      class: step < at ? 'past' : null, 'aria-current': step === at ? 'step' : null,
    }, text))),
    at >= 0 && h('p', null, one.federated ? 'It is another trust domain’s: nothing of ours is signed under it.' : phases[at][2]),
    one.waits && notice('note', 'It waits for: ', one.waits),
    facts([
      ['Since', isSet(one.since) ? h('span', null, absolute(one.since), ', ', when(one.since)) : null],
      ['Until', isSet(one.until) ? h('span', null, absolute(one.until), ', ', when(one.until)) : null],
      [ended ? 'Ended' : 'Ends', h('span', null, absolute(one.notAfter), ', ', when(one.notAfter))],
      ['Sources', one.sources?.length ? one.sources.join(', ') : 'none any more'],
      ['SHA-256', code(one.sha256, `the SHA-256 of ${one.subject}`)],
    ]),
    one.pem && h('details', null, h('summary', {'data-key': `pem ${one.sha256}`}, 'PEM'), copying(one.pem, `the PEM of ${one.subject}`), h('pre', {tabindex: 0, 'aria-label': `PEM of ${one.subject}`}, one.pem)));
}
