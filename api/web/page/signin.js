// What is shown in place of an answer: why there is none, and what helps.

import {hasToken, Problem, useToken} from './api.js';
import {h} from './dom.js';
import {code, sentence} from './parts.js';

// explain says why there is no answer. Again asks anew.
export function explain(error, again) {
  const status = error instanceof Problem ? error.status : -1;
  if (status === 401) return signIn(error.message);
  const retry = h('button', {type: 'button', 'data-key': 'again', on: {click: again}}, 'Try again');
  if (status === 403) {
    return h('section', {class: 'panel', 'aria-labelledby': 'why'},
      h('h1', {id: 'why', tabindex: -1}, 'You may not see this'),
      h('p', null, error.message),
      h('p', null, 'What you may see here is what Kubernetes grants you in API group ', h('code', null, 'signet.dev'),
        ', per namespace. Ask whoever administers the cluster for a role, or show another token.'),
      h('p', {class: 'buttons'}, retry, hasToken() && h('button', {type: 'button', on: {click: () => useToken('')}}, 'Use another token')));
  }
  if (status === 404) {
    return h('section', {class: 'panel', 'aria-labelledby': 'why'},
      h('h1', {id: 'why', tabindex: -1}, 'Not found'), h('p', null, sentence(error.message), '. It may have been deleted, or be too old to be kept.'),
      h('p', {class: 'buttons'}, retry, h('a', {href: '#/services'}, 'All services')));
  }
  return h('section', {class: 'panel', 'aria-labelledby': 'why'},
    h('h1', {id: 'why', tabindex: -1}, 'This could not be shown'), h('p', {role: 'alert'}, sentence(error.message)), h('p', {class: 'buttons'}, retry));
}

function signIn(detail) {
  const input = h('input', {type: 'password', id: 'token', name: 'token', autocomplete: 'off', spellcheck: 'false', autocapitalize: 'off', required: true, 'aria-describedby': 'kept'});
  const form = h('form', {on: {
    submit(event) {
      event.preventDefault();
      const text = input.value.replace(/\s+/g, '');
      input.value = '';
      if (text) useToken(text);
    },
  }},
  h('label', {for: 'token'}, 'Token'), h('div', {class: 'buttons'}, input, h('button', {type: 'submit', class: 'main'}, 'Show')),
  h('p', {class: 'quiet', id: 'kept'}, 'Kept by this tab only, sent to this server only, and forgotten when you close the tab.'));
  return h('section', {class: 'panel signin', 'aria-labelledby': 'why'},
    h('h1', {id: 'why', tabindex: -1}, hasToken() ? 'The token is not accepted' : 'Sign in'),
    h('p', {role: 'alert'}, `${sentence(detail)}.`),
    form,
    h('h2', null, 'How to get one'),
    h('p', null, 'Without a token at all: this opens the page with the credentials of your kubeconfig.'),
    h('p', null, code('signetctl dashboard', 'the command that opens the page')),
    h('p', null, 'Or a token of a service account that may see what you look for:'),
    h('p', null, code('kubectl create token NAME --namespace NAMESPACE --audience signet.dev --duration 1h', 'the command that makes a token')),
    h('p', {class: 'quiet'}, 'Rights are those of Kubernetes, in API group signet.dev: list and get on services, certificates, identities, issuances, gateways and trust.'));
}
