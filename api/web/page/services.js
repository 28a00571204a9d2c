// All services: first those that need somebody, then a table to search.

import {get} from './api.js';
import {h, swap} from './dom.js';
import {Finder} from './list.js';
import {accountOf, badge, bar, count, field, identityLink, problemList, problemText, problemTone, serviceLink, table, toneOf, toneOfAll, when, worst} from './parts.js';
import {isSet} from './time.js';

const mostProblems = 500; // that are asked for
const shownProblems = 8; // until more are wanted
const counted = ['fresh', 'due', 'overdue', 'expired', 'missing', 'unattributed', 'noMesh'];
const words = {fresh: 'fresh', due: 'due', overdue: 'overdue', expired: 'expired', missing: 'missing', unattributed: 'unattributed', noMesh: 'not in the mesh'};

export async function services(screen) {
  screen.title('Services');
  const wanted = {
    q: screen.parameters.get('q') ?? '', namespace: screen.parameters.get('namespace') ?? '', problems: screen.parameters.has('problems'),
  };
  const attention = h('section', {class: 'attention', 'aria-labelledby': 'attention'});
  const list = h('div', {class: 'list'});
  const line = h('p', {class: 'count', id: 'count'});
  let all = false; // of the problems
  const heading = h('h2', {tabindex: -1}, 'All services');
  const finder = new Finder(screen, {
    list, line, heading, draw: servicesTable, count: (result) => countText(result, wanted), none: () => emptyText(wanted),
  });
  const begin = () => {
    const {namespace, problems} = wanted;
    const parts = wanted.q.toLowerCase().split(/\s+/).filter(Boolean);
    const fits = parts.length === 0 ? null : (service) => {
      const text = `${service.namespace}/${service.name} ${(service.identities ?? []).join(' ')}`.toLowerCase();
      return parts.every((part) => text.includes(part));
    };
    finder.begin((page, signal) => get(['services'], {...page, namespace, problems}, signal), fits, namespace !== '');
  };
  begin();

  const drawAttention = (found) => swap(attention, summary(found, all, () => { all = true; drawAttention(found); }));
  let timer;
  const change = (patience) => () => {
    wanted.q = text.value.trim();
    wanted.namespace = namespace.value.trim();
    wanted.problems = only.checked;
    screen.remember({q: wanted.q, namespace: wanted.namespace, problems: wanted.problems && '1'});
    begin();
    clearTimeout(timer);
    timer = setTimeout(() => { if (!screen.signal.aborted && namespace.checkValidity()) finder.search(); }, patience);
  };
  const text = h('input', {type: 'search', id: 'search', value: wanted.q, autocomplete: 'off', spellcheck: 'false', on: {input: change(200)}});
  const namespace = h('input', {
    type: 'text', id: 'namespace', value: wanted.namespace, autocomplete: 'off', spellcheck: 'false', autocapitalize: 'off', pattern: '[a-z0-9]([\\-a-z0-9]*[a-z0-9])?',
    maxlength: 63, title: 'The whole name of a namespace', on: {input: change(400)},
  });
  const only = h('input', {type: 'checkbox', id: 'problems', checked: wanted.problems, on: {change: change(0)}});

  let drawn = false;
  await screen.keep(15, async () => {
    const problems = await get(['services'], {problems: true, limit: mostProblems}, screen.signal);
    if (!drawn) {
      drawn = true;
      screen.show(
        h('h1', {tabindex: -1}, 'Services'), attention,
        h('section', null, heading,
          h('form', {class: 'filters', role: 'search', on: {submit: (event) => event.preventDefault()}},
            field('Name or identity has', text), field('In namespace', namespace), h('label', {class: 'check'}, only, 'Only with problems')),
          line, list));
    }
    drawAttention(problems);
    await finder.load();
  });
}

function summary(found, all, more) {
  const items = [...found.items].sort((a, b) => worst(a.problems) - worst(b.problems));
  const shown = all ? items : items.slice(0, shownProblems);
  if (items.length === 0) {
    const whole = (found.coverage?.sources ?? []).every((source) => source.up);
    return h('div', {class: `verdict ${whole ? 'good' : 'note'}`}, h('h2', {id: 'attention'}, badge('fresh', 'Nothing needs attention')),
      h('p', null, whole ? 'Every service that should hold certificates holds them, and they are renewed in time.'
        : 'Nothing that is known does. But not everything is known now; see below.'));
  }
  const title = `${items.length}${found.continue ? ' and more' : ''} ${items.length === 1 ? 'service needs' : 'services need'} attention`;
  const kinds = new Map();
  for (const code of items.flatMap((item) => item.problems.map((one) => one.code))) kinds.set(code, (kinds.get(code) ?? 0) + 1);
  return h('div', {class: `verdict ${toneOfAll(items.flatMap((item) => item.problems))}`},
    h('h2', {id: 'attention'}, title),
    h('ul', {class: 'kinds', 'aria-label': 'By kind'}, [...kinds].sort(([a], [b]) => worst([{code: a}]) - worst([{code: b}]))
      .map(([code, number]) => h('li', {class: `badge ${problemTone(code)}`}, `${problemText(code)} ${number}`))),
    h('ul', {class: 'cases'}, shown.map((item) => h('li', null, h('div', null, serviceLink(item)), problemList(item.problems)))),
    shown.length < items.length && h('button', {type: 'button', 'data-key': 'more', on: {click: more}}, `Show all ${items.length}`));
}

function countText(result, wanted) {
  const number = result.items.length;
  if (result.searching) {
    return `${number} of ${result.looked} services looked through ${number === 1 ? 'matches' : 'match'}${result.next ? '; there are more to look through.' : '.'}`;
  }
  const what = `${wanted.problems ? 'with problems' : ''}${wanted.namespace ? ` in ${wanted.namespace}` : ''}`.trim();
  return `${count(number, 'service')}${what ? ` ${what}` : ''}${result.page > 1 ? ` on page ${result.page}` : ''}${result.next ? '; more follow.' : '.'}`;
}

function emptyText(wanted) {
  if (wanted.q) return 'No service matches. The search looks for parts of names and identities.';
  if (wanted.problems) return 'No service has problems.';
  return wanted.namespace ? 'There is no service in this namespace, or none that you may see.' : 'There is no service, or none that you may see.';
}

const columns = ['Service', 'Identities', 'Pods', 'First end', 'Problems'];

function servicesTable(items) {
  return table('services', 'Services with the certificates that the pods behind them hold', columns, items.map((item) => [
    serviceLink(item), identities(item.identities), pods(item.summary), end(item.summary),
    item.problems?.length ? problemList(item.problems) : h('span', {class: 'quiet'}, item.summary.total > item.summary.noMesh ? 'none' : '–'),
  ]));
}

const mostIdentities = 3;

function identities(list) {
  if (!list?.length) return h('span', {class: 'quiet'}, '–');
  return h('ul', {class: 'names'}, list.slice(0, mostIdentities).map((one) => h('li', null, identityLink(one, accountOf(one)))),
    list.length > mostIdentities && h('li', {class: 'quiet'}, `and ${list.length - mostIdentities} more`));
}

// pods says how many pods are in each state, in a bar and in words.
export function pods(summary) {
  if (!summary.total) return h('span', {class: 'quiet'}, 'no pods');
  const there = counted.filter((state) => summary[state] > 0);
  return h('div', {class: 'pods'},
    h('span', {class: 'stack', 'aria-hidden': 'true'}, there.map((state) => h('span', {class: state === 'noMesh' ? 'none' : toneOf(state), vars: {'--share': summary[state]}}))),
    h('span', null, there.length ? there.map((state) => `${summary[state]} ${words[state]}`).join(', ') : `${summary.total} without a certificate yet`));
}

// end is when the first certificate of a service ends, and how much is left of the one that has least.
function end(summary) {
  if (!isSet(summary.notAfter)) return h('span', {class: 'quiet'}, '–');
  const state = ['expired', 'overdue', 'due'].find((one) => summary[one] > 0) ?? 'fresh';
  return h('div', {class: 'first'}, bar(summary.remainingRatio, state), when(summary.notAfter));
}
