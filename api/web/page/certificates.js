// Certificates: those that fit, one of them, and those of an identity.

import {get} from './api.js';
import {h} from './dom.js';
import {Finder} from './list.js';
import {badge, bar, certificateLink, code, copying, count, coverage, facts, field, identityLink, life, sans, serviceLink, table, when} from './parts.js';
import {absolute, length, ratioLeft} from './time.js';

const standings = {live: 'In use', superseded: 'Superseded by a later one', orphaned: 'Its holder is gone', ended: 'Ended'};

// holderOf says who a certificate was issued to.
export function holderOf(certificate) {
  const {pod, node, address, impersonated} = certificate.holder ?? {};
  if (impersonated) return ['proxy of node ', node];
  return pod ? pod : address || 'unknown';
}

const columns = ['Identity', 'Holder', 'Validity', 'Issued', 'Serial number'];

export const certificateTable = (caption, items) => table('certificates', caption, columns, items.map((one) => [
  identityLink(one.identity), h('div', null, holderOf(one)), life(one), when(one.issuedAt), certificateLink(one),
]));

const choice = (label, name, values, chosen) => field(label, h('select', {id: name, name}, values.map(([value, text]) => h('option', {value, selected: value === chosen}, text))));

export async function certificates(screen) {
  screen.title('Certificates');
  const names = ['namespace', 'identity', 'san', 'serial', 'node', 'state', 'standing'];
  const wanted = Object.fromEntries(names.map((name) => [name, screen.parameters.get(name) ?? '']));
  const list = h('div', {class: 'list'});
  const line = h('p', {class: 'count'});
  const heading = h('h2', {tabindex: -1}, 'Found');
  const finder = new Finder(screen, {
    list, line, heading, none: () => 'No certificate fits that you may see.',
    draw: (items) => certificateTable('Certificates, the latest first', items),
    count: (result) => `${count(result.items.length, 'certificate')}${result.page > 1 ? ` on page ${result.page}` : ''}${result.next ? '; more follow.' : '.'}`,
  });
  const begin = () => {
    const filters = {...wanted};
    finder.begin((page, signal) => get(['certificates'], {...page, ...filters}, signal), null, Object.values(filters).some(Boolean));
  };
  const input = (name, more) => h('input', {type: 'text', id: name, name, value: wanted[name], autocomplete: 'off', spellcheck: 'false', autocapitalize: 'off', ...more});
  const form = h('form', {class: 'filters many', role: 'search', on: {
    submit(event) {
      event.preventDefault();
      for (const name of names) wanted[name] = form.elements[name].value.trim();
      wanted.serial = wanted.serial.replaceAll(':', '').toLowerCase();
      screen.remember(wanted);
      begin();
      finder.search();
    },
  }},
  field('Namespace', input('namespace')), field('Identity', input('identity', {placeholder: 'spiffe://…'})), field('SAN', input('san')),
  field('Serial number', input('serial')), field('Node', input('node')),
  choice('State', 'state', [['', 'any'], ['fresh', 'fresh'], ['due', 'due'], ['overdue', 'overdue'], ['expired', 'expired']], wanted.state),
  choice('Standing', 'standing', [['', 'in use'], ['superseded', 'superseded'], ['orphaned', 'holder gone'], ['ended', 'ended'], ['any', 'any']], wanted.standing),
  h('button', {type: 'submit', class: 'main'}, 'Find'));
  begin();
  let drawn = false;
  await screen.keep(20, async () => {
    await finder.load();
    if (drawn) return;
    drawn = true;
    screen.show(h('h1', {tabindex: -1}, 'Certificates'), form, h('section', null, heading, line, list));
  });
}

export async function certificate(screen, sha256) {
  screen.title('Certificate');
  await screen.keep(30, async () => {
    const one = await get(['certificates', sha256], {}, screen.signal);
    const left = ratioLeft(one.notBefore, one.notAfter);
    screen.show(
      h('p', {class: 'way'}, h('a', {href: '#/certificates'}, 'Certificates'), ' / ', identityLink(one.identity)),
      h('h1', {tabindex: -1}, 'Certificate ', h('span', {class: 'code beside'}, one.serial)),
      h('div', {class: 'panel'},
        h('div', {class: 'lifeline large'}, badge(one.state), bar(left, one.state), h('span', {class: 'end'}, one.state === 'expired' ? 'ended ' : 'ends ', when(one.notAfter))),
        h('p', {class: 'quiet span'}, h('span', null, absolute(one.notBefore)), h('span', null, absolute(one.notAfter)))),
      facts([
        ['Standing', standings[one.standing] ?? one.standing],
        ['Identity', identityLink(one.identity, one.identity)],
        ['SANs', sans(one)],
        ['Holder', h('span', null, holderOf(one), one.holder?.node && !one.holder.impersonated ? [' on node ', one.holder.node] : null, one.holder?.address ? `, at ${one.holder.address}` : null, one.holder?.cluster ? `, cluster ${one.holder.cluster}` : null)],
        ['Issued', h('span', null, absolute(one.issuedAt), ', ', when(one.issuedAt), one.replica ? `, by replica ${one.replica}` : null)],
        ['Lifetime', `${length((Date.parse(one.notAfter) - Date.parse(one.notBefore)) / 1000)}${one.requestedSeconds ? `; ${length(one.requestedSeconds)} asked for` : ''}`],
        ['Key', [one.keyAlgorithm, one.keyBits ? `${one.keyBits} bits` : '', one.signatureAlgorithm ? `signed with ${one.signatureAlgorithm}` : ''].filter(Boolean).join(', ')],
        ['Issuer', one.issuer],
        ['Root', one.root?.subject || one.root?.sha256 ? h('div', null, one.root.subject, h('div', {class: 'code quiet'}, one.root.sha256)) : null],
        ['CertificateRequest', one.request?.name ? [one.request.namespace, one.request.name].filter(Boolean).join('/') : null],
        ['Serial number', code(one.serial, 'the serial number')],
        ['SHA-256', code(one.sha256, 'the SHA-256')],
        ['SHA-256 of the key', one.spkiSHA256 ? h('span', {class: 'code'}, one.spkiSHA256) : null],
      ]),
      one.pem && h('section', null, h('h2', null, 'PEM'), h('div', {class: 'buttons'}, copying(one.pem, 'the PEM')), h('pre', {tabindex: 0, 'aria-label': 'PEM'}, one.pem)));
  });
}

export async function identity(screen, id = '') {
  screen.title(id);
  await screen.keep(20, async () => {
    const found = await get(['identities', id], {}, screen.signal);
    screen.show(
      h('p', {class: 'way'}, h('a', {href: '#/certificates'}, 'Certificates'), ' / identity'),
      h('h1', {tabindex: -1, class: 'long'}, found.spiffeID),
      facts([
        ['Service account', found.serviceAccount ? `${found.namespace}/${found.serviceAccount}` : null],
        ['Services', found.services?.length ? h('ul', {class: 'names'}, found.services.map((one) => h('li', null, serviceLink(one)))) : h('span', {class: 'quiet'}, 'none')],
        ['Before', h('a', {href: `#/certificates?identity=${encodeURIComponent(found.spiffeID)}&standing=any`}, 'all certificates that are known')],
      ]),
      h('h2', null, 'In use'),
      found.live.length ? h('div', {class: 'list'}, certificateTable('Live certificates of the identity', found.live)) : h('p', {class: 'empty'}, 'No certificate of this identity is in use.'),
      coverage({coverage: found.coverage}));
  });
}
