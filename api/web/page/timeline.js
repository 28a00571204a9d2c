// What ends, and when: leaves in use, and all else that has an end.

import {get} from './api.js';
import {h, say} from './dom.js';
import {certificateTable} from './certificates.js';
import {pageRows} from './list.js';
import {badge, bar, coverage, notice, table, updated, when} from './parts.js';
import {clock, length, ratioLeft} from './time.js';

const spans = [['1h', 3600, '1 hour'], ['6h', 6 * 3600, '6 hours'], ['24h', 86400, '24 hours'], ['7d', 7 * 86400, '7 days'], ['90d', 90 * 86400, '90 days']];
const columns = 48;
const pageItems = 500; // the most that the API gives at once
const mostItems = 5000; // that are drawn; the chart says where it ends
const tones = ['expired', 'overdue', 'due', 'fresh'];

export async function timeline(screen) {
  const [within, seconds, words] = spans.find(([name]) => name === screen.parameters.get('within')) ?? spans[2];
  screen.title('Timeline');
  let first = 0; // row of the table
  let found;

  const draw = () => screen.show(
    h('h1', {tabindex: -1}, 'Timeline'),
    h('p', {class: 'lead'}, 'Certificates in use that end soon. Leaves are renewed at half of their life, so one that is close to its end has not been renewed.'),
    h('nav', {class: 'choices', 'aria-label': 'How far ahead'}, h('ul', null, spans.map(([name, , text]) => h('li', null,
      h('a', {href: `#/timeline?within=${name}`, 'aria-current': name === within ? 'true' : null}, text))))),
    chart(found, seconds, words),
    others(found.subjects, seconds),
    h('section', null, h('h2', {tabindex: -1, id: 'leaves'}, 'Leaves, the earliest end first'),
      found.items.length ? [
        h('p', {class: 'count'}, `${first + 1} to ${Math.min(first + pageRows, found.items.length)} of ${found.items.length}${found.more ? ' that are shown; there are more' : ''}. `, updated()),
        h('div', {class: 'list'}, certificateTable('Leaves that end soon', found.items.slice(first, first + pageRows)), turning()),
      ] : h('p', {class: 'empty'}, `No leaf ends within ${words}.`)),
    coverage(found.list));

  const turning = () => {
    if (found.items.length <= pageRows) return null;
    const to = (by) => () => {
      first += by;
      draw();
      document.getElementById('leaves').focus();
    };
    return h('nav', {class: 'pager', 'aria-label': 'Pages'},
      h('button', {type: 'button', disabled: first === 0, on: {click: to(-pageRows)}, 'data-key': 'page -1'}, 'Previous page'),
      h('button', {type: 'button', disabled: first + pageRows >= found.items.length, on: {click: to(pageRows)}, 'data-key': 'page 1'}, 'Next page'));
  };

  await screen.keep(30, async () => {
    found = await collect(within, screen.signal);
    if (first >= found.items.length) first = 0;
    draw();
    say(`${found.items.length}${found.more ? ' and more' : ''} leaves end within ${words}`);
  });
}

async function collect(within, signal) {
  const items = [];
  let next = '';
  let list;
  do {
    list = await get(['expiring'], {within, limit: pageItems, continue: next}, signal);
    items.push(...list.items);
    next = list.continue ?? '';
  } while (next && items.length < mostItems);
  let subjects = [];
  try {
    subjects = (await get(['trust'], {}, signal)).expiring;
  } catch (error) {
    if (error.status !== 403) throw error; // it is for those only who may see the whole cluster
  }
  return {list, items, more: next !== '', subjects};
}

// chart draws how many leaves end in each part of the time ahead.
function chart({items, more}, seconds, words) {
  const now = clock.now();
  const width = (seconds * 1000) / columns;
  const counts = Array.from({length: columns}, () => ({}));
  let late = 0;
  for (const one of items) {
    const at = Math.min(columns - 1, Math.max(0, Math.floor((Date.parse(one.notAfter) - now) / width)));
    counts[at][one.state] = (counts[at][one.state] ?? 0) + 1;
    if (one.state === 'overdue') late++;
  }
  const sums = counts.map((each) => tones.reduce((sum, state) => sum + (each[state] ?? 0), 0));
  const most = Math.max(1, ...sums);
  const known = more ? Math.floor((Date.parse(items.at(-1).notAfter) - now) / width) : columns;
  const busiest = sums.indexOf(Math.max(...sums));
  const told = items.length === 0 ? `No leaf ends within ${words}.`
    : `${items.length} leaves end within ${words}, ${late} of them overdue. Most of them, ${sums[busiest]}, end ${length((busiest * width) / 1000)} to ${length(((busiest + 1) * width) / 1000)} from now.`;
  return h('section', {class: 'panel', 'aria-label': 'Ends by time'},
    late > 0 && notice('warn', `${late} ${late === 1 ? 'leaf' : 'leaves'} should have been renewed.`, ' ', h('a', {href: '#/certificates?state=overdue'}, 'See which')),
    h('div', {class: 'chart', role: 'img', 'aria-label': told, vars: {'--columns': columns}},
      counts.map((each, at) => h('span', {class: at > known ? 'column beyond' : 'column', title: `${sums[at]} end ${length((at * width) / 1000)} to ${length(((at + 1) * width) / 1000)} from now`},
        tones.filter((state) => each[state]).map((state) => h('span', {class: state, vars: {'--part': each[state] / most}}))))),
    h('div', {class: 'axis', 'aria-hidden': 'true'}, [0, 1, 2, 3, 4].map((quarter) => h('span', null, quarter === 0 ? 'now' : length((seconds * quarter) / 4)))),
    h('div', {class: 'legend'}, h('span', null, `Highest column: ${most === 1 && items.length === 0 ? 0 : most}`), ['fresh', 'due', 'overdue'].map((state) => badge(state))),
    more && h('p', {class: 'quiet'}, `Only the first ${items.length} are counted; the columns behind them are hatched.`));
}

function others(subjects, seconds) {
  const limit = clock.now() + seconds * 1000;
  const near = subjects.filter((one) => one.state !== 'fresh' || Date.parse(one.notAfter) <= limit);
  if (near.length === 0) return null;
  return h('section', null, h('h2', null, 'Besides leaves'), h('div', {class: 'list'}, subjectTable(near)));
}

// kinds of what ends.
const kinds = {
  serving: 'Signet’s serving certificate', istiod: 'istiod’s certificate', intermediate: 'Intermediate', anchor: 'Anchor', fallback_anchor: 'Anchor of a fallback', crl: 'Revocation list',
};

export const kindOf = (subject) => kinds[subject.kind] ?? subject.kind;

export const subjectTable = (subjects) => table('subjects', 'What ends, besides leaves', ['What', 'Name', 'Validity'], subjects.map((one) => [
  kindOf(one), one.text,
  h('div', {class: 'lifeline'}, badge(one.state), bar(ratioLeft(one.notBefore, one.notAfter), one.state), h('span', {class: 'end'}, one.state === 'expired' ? 'ended ' : 'ends ', when(one.notAfter))),
]));
