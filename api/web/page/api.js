// Asking the API, which is beside the page: /v1/ where that is /ui/.

import {clock} from './time.js';

const base = new URL('../v1/', document.baseURI);
const tokenKey = 'signet-token';

// The token is kept for this tab only, until it is closed. Behind a proxy that adds credentials there is none.
let token = restore();

function restore() {
  try {
    return sessionStorage.getItem(tokenKey) ?? '';
  } catch {
    return '';
  }
}

export const hasToken = () => token !== '';

// useToken takes a token, or none.
export function useToken(text) {
  token = text;
  try {
    if (text) sessionStorage.setItem(tokenKey, text);
    else sessionStorage.removeItem(tokenKey);
  } catch {
    // It is then kept in memory only.
  }
  dispatchEvent(new Event('signet-token'));
}

// Problem is an answer that is no success, or none at all: then its status is 0.
export class Problem extends Error {
  constructor(status, detail, errors = []) {
    super(detail);
    this.status = status;
    this.errors = errors;
  }

  // badContinue says that a list must be begun anew.
  get badContinue() {
    return this.errors.some((one) => one?.location === 'query.continue');
  }
}

// address is that of a path, whose parts are encoded, and parameters, of which those that say nothing are left out.
function address(path, parameters) {
  const at = new URL(path.map(encodeURIComponent).join('/'), base);
  for (const [name, value] of Object.entries(parameters ?? {})) {
    if (value !== undefined && value !== null && value !== '' && value !== false) at.searchParams.set(name, value);
  }
  return at;
}

async function ask(path, parameters, signal, options = {}) {
  const headers = new Headers(options.headers);
  if (token) headers.set('Authorization', `Bearer ${token}`);
  let answer;
  try {
    answer = await fetch(address(path, parameters), {...options, headers, signal, cache: 'no-store', redirect: 'error'});
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new Problem(0, 'The server cannot be reached.');
  }
  clock.hear(answer.headers.get('Date'));
  if (answer.ok) return answer;
  let problem = {};
  try {
    problem = await answer.json();
  } catch {
    if (signal?.aborted) throw signal.reason;
  }
  throw new Problem(answer.status, problem.detail || `The server answered ${answer.status}.`, problem.errors ?? []);
}

const pause = (milliseconds, signal) => new Promise((resolve, reject) => {
  const timer = setTimeout(resolve, milliseconds);
  signal?.addEventListener('abort', () => { clearTimeout(timer); reject(signal.reason); }, {once: true});
});

// get is an answer's JSON. Where the server has too much to do, it is asked again a few times.
export async function get(path, parameters, signal) {
  for (let attempt = 1; ; attempt++) {
    try {
      const answer = await ask(path, parameters, signal);
      return await answer.json();
    } catch (error) {
      if (signal?.aborted) throw error;
      if (!(error instanceof Problem)) throw new Problem(0, 'The answer did not arrive whole.');
      if ((error.status !== 429 && error.status !== 503) || attempt === 4) throw error;
      await pause(500 * attempt, signal);
    }
  }
}

// post sends a JSON body, once.
export async function post(path, body, signal) {
  const answer = await ask(path, {}, signal, {method: 'POST', body: JSON.stringify(body), headers: {'Content-Type': 'application/json'}});
  return answer.json();
}

// silence is how long a watch may say nothing: the server sends a line at least every 15 s.
const silence = 45_000;
const longestLine = 1 << 20;

// events are the lines of a watch, until it ends.
export async function* events(path, parameters, signal) {
  const cut = new AbortController();
  const both = AbortSignal.any([signal, cut.signal]);
  let timer;
  const heard = () => {
    clearTimeout(timer);
    timer = setTimeout(() => cut.abort(new Problem(0, 'The server has fallen silent.')), silence);
  };
  try {
    heard();
    const answer = await ask(path, {...parameters, watch: true}, both);
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = '';
    for (;;) {
      const {value, done} = await reader.read();
      if (done) return;
      heard();
      const lines = (rest + value).split('\n');
      rest = lines.pop();
      if (rest.length > longestLine) throw new Problem(0, 'A line of the watch is too long.');
      for (const line of lines) if (line) yield JSON.parse(line);
    }
  } catch (error) {
    if (signal.aborted || error instanceof Problem) throw error;
    throw cut.signal.aborted ? cut.signal.reason : new Problem(0, 'The watch broke off.');
  } finally {
    clearTimeout(timer);
    cut.abort();
  }
}

export {pause};
