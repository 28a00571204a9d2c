// Asking the pods behind a service what they really serve.

import {post} from './api.js';
import {h, say, swap} from './dom.js';
import {badge, count, facts, notice, sentence, table, when} from './parts.js';

// verdicts with the state whose looks they have.
const verdicts = {
  good: ['fresh', 'Good'], 'not-dialed': ['none', 'Not dialed'], unreachable: ['overdue', 'Unreachable'], unsure: ['due', 'Not sure'], warning: ['overdue', 'Warning'], alarm: ['expired', 'Alarm'],
};
const demands = {required: 'required', requested: 'asked for, but not required', none: 'not asked for', unclear: 'unclear'};
const plain = {answered: 'answered', silent: 'no answer', refused: 'refused', unclear: 'unclear'};

const verdict = (name) => badge(...(verdicts[name] ?? ['none', name]));

// probing is a button, with what was found below it. It is kept while the rest of the view is drawn anew.
export function probing(screen, namespace, service) {
  const found = h('div');
  const button = h('button', {type: 'button', 'data-key': 'probe', on: {
    async click() {
      if (button.getAttribute('aria-disabled') === 'true') return;
      button.setAttribute('aria-disabled', 'true');
      swap(found, h('p', {class: 'count', role: 'status'}, 'Asking the pods. This takes some seconds.'));
      try {
        const probe = await post(['probes'], {namespace, service}, screen.signal);
        swap(found, results(probe));
        say(`The probe ended: ${verdicts[probe.verdict]?.[1] ?? probe.verdict}`);
      } catch (error) {
        if (screen.signal.aborted) return;
        swap(found, notice('bad', 'The probe was not made.', ' ', sentence(error.message)));
        say('The probe was not made.');
      }
      button.removeAttribute('aria-disabled');
    },
  }}, 'Probe now');
  return h('section', {'aria-labelledby': 'probe'}, h('h2', {id: 'probe'}, 'What is really served'),
    h('p', {class: 'count'}, 'A probe connects to some of the pods and reads the certificates that they show.'), h('p', {class: 'buttons'}, button), found);
}

function results(probe) {
  return h('div', null,
    h('p', {class: 'count'}, verdict(probe.verdict), ' ', `${count(probe.results.length, 'answer')} from ${count(probe.pods, 'pod')} behind the service. Asked `, when(probe.time), '.'),
    probe.results.length > 0 && h('div', {class: 'list'}, table('probes', 'What the pods serve', ['Pod', 'Verdict', 'Findings', 'Served'], probe.results.map((one) => [
      h('div', null, h('span', {class: 'name'}, one.pod), h('div', {class: 'quiet'}, [one.address, one.protocol].filter(Boolean).join(', '))),
      verdict(one.verdict),
      one.findings.length ? h('ul', {class: 'problems'}, one.findings.map((finding) => h('li', null, verdict(finding.verdict), h('span', {class: 'detail'}, finding.detail)))) : 'none',
      served(one),
    ]))));
}

function served(one) {
  const leaf = one.chain?.[0];
  return facts([
    ['Certificate', leaf && h('div', null, h('a', {href: `#/certificates/${encodeURIComponent(leaf.sha256)}`, class: 'code'}, leaf.serial), h('div', null, 'ends ', when(leaf.notAfter)))],
    ['SANs', leaf?.sans?.length ? h('ul', {class: 'names'}, leaf.sans.map((name) => h('li', {class: 'code'}, name))) : null],
    ['Known as', one.knownAs],
    ['TLS', [one.tlsVersion, one.cipherSuite, one.alpn].filter(Boolean).join(', ')],
    ['Client certificate', demands[one.clientCertificate] ?? one.clientCertificate],
    ['Plaintext', plain[one.plaintext] ?? one.plaintext],
  ]);
}
