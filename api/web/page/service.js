// One service: the pods behind it and what each of them holds.

import {get} from './api.js';
import {h} from './dom.js';
import {badge, certificateLink, facts, identityLink, life, notice, problemList, row, sans, toneOfAll} from './parts.js';
import {probing} from './probe.js';
import {pods} from './services.js';

const planes = {
  sidecar: 'Sidecar', ambient: 'Ambient', 'ambient-pending': 'Ambient, not enrolled yet', gateway: 'Gateway', waypoint: 'Waypoint', none: 'Not in the mesh',
};
const columns = ['Pod', 'Data plane', 'Certificate', 'SANs', 'Issuer'];
const mostPods = 200; // that are drawn at once

export async function service(screen, namespace, name) {
  screen.title(`${namespace}/${name}`);
  let shown = mostPods;
  let found;
  const probe = probing(screen, namespace, name);
  const draw = () => screen.show(
    h('p', {class: 'way'}, h('a', {href: '#/services'}, 'Services'), ' / ', h('a', {href: `#/services?namespace=${encodeURIComponent(namespace)}`}, namespace)),
    h('h1', {tabindex: -1}, name, h('span', {class: 'beside'}, ' in ', namespace)),
    found.problems?.length ? notice(toneOfAll(found.problems), null, problemList(found.problems))
      : found.summary.total > found.summary.noMesh && notice('good', null, badge('fresh', 'No problems')),
    facts([
      ['Identities', found.identities?.length ? h('ul', {class: 'names'}, found.identities.map((one) => h('li', {class: 'code'}, identityLink(one, one)))) : h('span', {class: 'quiet'}, 'none')],
      ['Pods', pods(found.summary)],
    ]),
    h('h2', null, 'Pods'), podTable(sorted(found.pods ?? []), shown, () => { shown += mostPods; draw(); }), probe);
  await screen.keep(10, async () => {
    found = await get(['namespaces', namespace, 'services', name], {}, screen.signal);
    draw();
  });
}

// sorted has the pods with problems first.
const sorted = (list) => [...list].sort((a, b) => Number(Boolean(b.problems?.length)) - Number(Boolean(a.problems?.length)));

function podTable(list, most, more) {
  if (list.length === 0) return h('p', {class: 'empty'}, 'No pod is behind this service.');
  return h('div', {class: 'list'},
    h('table', {role: 'table', class: 'podlist'}, h('caption', {class: 'unseen'}, 'Pods behind the service and the certificates that they hold'),
      h('thead', {role: 'rowgroup'}, h('tr', {role: 'row'}, columns.map((name) => h('th', {role: 'columnheader', scope: 'col'}, name)))),
      h('tbody', {role: 'rowgroup'}, list.slice(0, most).flatMap(rowsOf))),
    list.length > most && h('button', {type: 'button', 'data-key': 'more', on: {click: more}}, `Show more of ${list.length} pods`));
}

// rowsOf has a row for each certificate of a pod, and one for a pod without any.
function rowsOf(pod) {
  const who = h('div', null, h('span', {class: 'name'}, pod.name),
    h('div', {class: 'quiet'}, 'account ', pod.serviceAccount, pod.node ? [', node ', pod.node] : null));
  // The state of a certificate is said beside it.
  const wrong = problemList(pod.problems?.filter((one) => pod.certificates.length === 0 || (one.code !== 'overdue' && one.code !== 'expired')));
  const tone = pod.problems?.length ? `wrong ${toneOfAll(pod.problems)}` : null;
  if (pod.certificates.length === 0) {
    const none = wrong ?? h('span', {class: 'quiet'}, pod.dataPlane === 'none' ? 'needs none' : pod.unattributed ? 'not known: istiod asked for it' : 'none yet');
    return [row(columns, [who, plane(pod), none, '–', '–'], {class: tone})];
  }
  return pod.certificates.map((one, at) => row(columns, [
    at === 0 ? who : h('span', {class: 'quiet'}, pod.name, ', also'), plane(pod),
    h('div', null, life(one), h('div', {class: 'quiet'}, 'Serial ', certificateLink(one), one.holder?.impersonated ? ', held by its node' : null), at === 0 && wrong),
    sans(one), h('div', null, one.issuer, h('div', {class: 'quiet'}, one.root?.subject)),
  ], {class: tone}));
}

const plane = (pod) => planes[pod.dataPlane] ?? pod.dataPlane;
