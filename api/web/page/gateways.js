// Gateways of both APIs: what their listeners show, and whether it has a name for each host.

import {get} from './api.js';
import {h} from './dom.js';
import {Finder} from './list.js';
import {badge, count, field, life, problemList, toneOfAll, when, worst} from './parts.js';
import {absolute, isSet} from './time.js';

const apis = {'gateway.networking.k8s.io': 'Gateway API', 'networking.istio.io': 'Istio'};

export async function gateways(screen) {
  screen.title('Gateways');
  const wanted = {namespace: screen.parameters.get('namespace') ?? '', problems: screen.parameters.has('problems')};
  const list = h('div', {class: 'list'});
  const line = h('p', {class: 'count'});
  const heading = h('h1', {tabindex: -1}, 'Gateways');
  const finder = new Finder(screen, {
    list, line, heading, none: () => 'There is no gateway, or none that you may see.',
    draw: (items) => [...items].sort((a, b) => worst(a.problems) - worst(b.problems)).map(gateway),
    count(result) {
      const wrong = result.items.filter((one) => one.problems?.length).length;
      return `${count(result.items.length, 'gateway')}${result.page > 1 ? ` on page ${result.page}` : ''}, ${wrong} of them with problems${result.next ? '; more follow.' : '.'}`;
    },
  });
  const begin = () => {
    const filters = {...wanted};
    finder.begin((page, signal) => get(['gateways'], {...page, ...filters}, signal), null, filters.namespace !== '');
  };
  begin();
  let timer;
  const change = () => {
    wanted.namespace = namespace.value.trim();
    wanted.problems = only.checked;
    screen.remember({namespace: wanted.namespace, problems: wanted.problems && '1'});
    begin();
    clearTimeout(timer);
    timer = setTimeout(() => { if (!screen.signal.aborted && namespace.checkValidity()) finder.search(); }, 300);
  };
  const namespace = h('input', {
    type: 'text', id: 'namespace', value: wanted.namespace, autocomplete: 'off', spellcheck: 'false', autocapitalize: 'off', pattern: '[a-z0-9]([\\-a-z0-9]*[a-z0-9])?',
    maxlength: 63, title: 'The whole name of a namespace', on: {input: change},
  });
  const only = h('input', {type: 'checkbox', id: 'problems', checked: wanted.problems, on: {change}});
  let drawn = false;
  await screen.keep(15, async () => {
    await finder.load();
    if (drawn) return;
    drawn = true;
    screen.show(heading,
      h('form', {class: 'filters', role: 'search', on: {submit: (event) => event.preventDefault()}}, field('In namespace', namespace), h('label', {class: 'check'}, only, 'Only with problems')),
      line, list);
  });
}

function gateway(one) {
  const api = apis[one.api] ?? one.api;
  return h('article', {class: `panel gateway ${one.problems?.length ? toneOfAll(one.problems) : ''}`, 'aria-label': `Gateway ${one.namespace}/${one.name}, ${api}`},
    h('div', {class: 'head'}, h('h2', null, h('span', {class: 'namespace'}, one.namespace, '/'), one.name),
      h('span', {class: 'tag'}, api), one.class && h('span', {class: 'tag'}, one.class), one.state && one.state !== 'fresh' && badge(one.state)),
    problemList(one.problems),
    h('ul', {class: 'listeners'}, one.listeners.map(listener)));
}

function listener(one) {
  return h('li', null,
    h('h3', null, one.name, h('span', {class: 'quiet'}, ` port ${one.port}, ${one.protocol}`, one.tlsMode ? `, TLS ${one.tlsMode}` : null)),
    h('ul', {class: 'hosts', 'aria-label': 'Hosts'}, one.hosts.map((host) => h('li', null, h('span', {class: 'code'}, host.name), covered(host, one)))),
    one.certificates.map(shown));
}

// covered says whether a host has a name in a certificate; where there is no TLS there is nothing to say.
function covered(host, one) {
  if (host.covered === 'yes') return [' ', badge('fresh', 'covered')];
  if (host.covered === 'no') return [' ', badge('expired', 'not covered')];
  return one.certificates.length ? [' ', h('span', {class: 'quiet'}, 'not known whether it is covered')] : null;
}

const named = (object) => object.namespace ? `${object.namespace}/${object.name}` : object.name;

function shown(one) {
  return h('div', {class: 'held'},
    h('div', null, one.secret ? ['Secret ', h('span', {class: 'code'}, named(one.secret))] : one.file ? ['File ', h('span', {class: 'code'}, one.file)] : 'A certificate',
      one.certificate && [', Certificate ', h('span', {class: 'code'}, named(one.certificate))], one.issuer && [', issuer ', one.issuer]),
    one.state ? life(one) : isSet(one.notAfter) ? h('div', null, 'ends ', when(one.notAfter)) : null,
    one.sans?.length ? h('ul', {class: 'names'}, one.sans.map((name) => h('li', {class: 'code'}, name))) : null,
    isSet(one.renewalTime) && h('div', {class: 'quiet'}, `Renewed from ${absolute(one.renewalTime)} on`),
    one.ready === false && h('div', null, badge('overdue', 'Not ready'), ' ', one.reason),
    one.unknown && h('div', {class: 'quiet'}, one.unknown));
}
