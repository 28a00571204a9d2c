// The page's frame: which view is shown, whether it is kept up to date, and in which colours.

import {hasToken, pause, useToken} from './api.js';
import {h, reading, say, swap} from './dom.js';
import {explain} from './signin.js';
import {certificate, certificates, identity} from './certificates.js';
import {gateways} from './gateways.js';
import {issuances} from './issuances.js';
import {service} from './service.js';
import {services} from './services.js';
import {timeline} from './timeline.js';
import {trust} from './trust.js';

// Views by the parts of the address behind #/, and what the navigation calls those that stand in it. A view is called
// with a Screen and the rest of the parts.
const views = {
  services: (screen, ...rest) => (rest.length === 2 ? service(screen, ...rest) : services(screen)),
  timeline,
  certificates: (screen, ...rest) => (rest.length === 1 ? certificate(screen, ...rest) : certificates(screen)),
  identities: identity,
  gateways,
  issuances,
  trust,
};
const named = {services: 'Services', timeline: 'Timeline', certificates: 'Certificates', gateways: 'Gateways', issuances: 'Issuances', trust: 'Trust'};

const main = document.getElementById('main');
const navigation = document.getElementById('views');
const liveButton = document.getElementById('live');
const themeButton = document.getElementById('theme');
const forgetButton = document.getElementById('forget');

// live says whether what is shown is kept up to date; whoever reads slowly turns it off.
const live = {on: true};

// Screen is what a view draws on until another one is chosen.
class Screen {
  #left = new AbortController();
  #fresh;

  // fresh says that somebody went here, whose focus goes to the heading.
  constructor(parameters, fresh) {
    this.parameters = parameters;
    this.#fresh = fresh;
  }

  get signal() {
    return this.#left.signal;
  }

  leave() {
    this.#left.abort(new DOMException('another view was chosen', 'AbortError'));
  }

  title(text) {
    document.title = `${text} · Signet`;
  }

  // show draws all of the view, in place of what was there.
  show(...nodes) {
    if (this.signal.aborted) return;
    main.removeAttribute('aria-busy');
    swap(main, nodes);
    if (this.#fresh) {
      this.#fresh = false;
      main.querySelector('h1')?.focus();
    }
  }

  // remember puts what is asked for into the address, without going anywhere.
  remember(parameters) {
    const [path] = location.hash.split('?');
    const query = new URLSearchParams(Object.entries(parameters).filter(([, value]) => value)).toString();
    history.replaceState(null, '', query ? `${path}?${query}` : path);
  }

  // begin does work, and shows why where it fails. It says whether it went well.
  async begin(work) {
    try {
      await work();
      return true;
    } catch (error) {
      this.fail(error);
      return false;
    }
  }

  // keep does work now, and again every so many seconds while somebody looks at it.
  async keep(seconds, work) {
    if (!await this.begin(work)) return;
    for (;;) {
      try {
        await this.#rest(seconds);
        if (!live.on || document.hidden || reading(main)) continue;
        await work();
        stale.hidden = true;
      } catch (error) {
        if (this.signal.aborted) return;
        if (error.status === 401 || error.status === 403) {
          this.fail(error);
          return;
        }
        stale.textContent = `Not up to date: ${error.message}`;
        stale.hidden = false;
      }
    }
  }

  // rest waits so long, or until somebody presses Live or looks here again.
  async #rest(seconds) {
    const done = new AbortController();
    const woken = new Promise((resolve) => addEventListener('signet-live', resolve, {once: true, signal: done.signal}));
    try {
      await Promise.race([pause(seconds * 1000, this.signal), woken]);
    } finally {
      done.abort();
    }
  }

  // fail shows why the view can't be.
  fail(error) {
    if (this.signal.aborted) return;
    if (!('status' in error)) console.error(error); // a defect of the page
    stale.hidden = true;
    this.title(error.status === 401 ? 'Sign in' : 'Not shown');
    this.show(explain(error, () => route(false)));
    this.leave(); // what goes on would draw over it
  }

  get live() {
    return live;
  }
}

const stale = h('p', {class: 'stale', role: 'status', hidden: true});
main.before(stale);

let screen = null;

// route shows the view of the address. Fresh says that somebody went there.
function route(fresh = true) {
  screen?.leave();
  stale.hidden = true;
  const [path, query = ''] = location.hash.replace(/^#\/?/, '').split('?');
  let parts;
  try {
    parts = path.split('/').map(decodeURIComponent);
  } catch {
    parts = [''];
  }
  const [name, ...rest] = parts;
  if (!Object.hasOwn(views, name)) {
    history.replaceState(null, '', '#/services');
    route(fresh);
    return;
  }
  const current = name === 'identities' ? 'certificates' : name;
  for (const link of navigation.querySelectorAll('a')) {
    if (link.dataset.view === current) link.setAttribute('aria-current', 'page');
    else link.removeAttribute('aria-current');
  }
  main.setAttribute('aria-busy', 'true');
  screen = new Screen(new URLSearchParams(query), fresh);
  say('');
  views[name](screen, ...rest);
}

swap(navigation, h('ul', null, Object.entries(named).map(([name, text]) => h('li', null, h('a', {href: `#/${name}`, 'data-view': name}, text)))));

liveButton.addEventListener('click', () => {
  live.on = !live.on;
  liveButton.setAttribute('aria-pressed', String(live.on));
  dispatchEvent(new Event('signet-live'));
});

const themes = {'': 'System', light: 'Light', dark: 'Dark'};
const drawTheme = () => {
  const name = themes[document.documentElement.dataset.theme ?? ''];
  themeButton.querySelector('span').textContent = name;
  themeButton.setAttribute('aria-label', `Theme: ${name}`);
};
themeButton.addEventListener('click', () => {
  const names = Object.keys(themes);
  const next = names[(names.indexOf(document.documentElement.dataset.theme ?? '') + 1) % names.length];
  if (next) document.documentElement.dataset.theme = next;
  else delete document.documentElement.dataset.theme;
  try {
    localStorage.setItem('signet-theme', next);
  } catch {
    // It then holds until the page is left.
  }
  drawTheme();
});
drawTheme();

const drawForget = () => { forgetButton.hidden = !hasToken(); };
forgetButton.addEventListener('click', () => useToken(''));
drawForget();

document.addEventListener('visibilitychange', () => { if (!document.hidden) dispatchEvent(new Event('signet-live')); });
addEventListener('signet-token', () => { drawForget(); route(); });
addEventListener('hashchange', () => { scrollTo(0, 0); route(); });

// The link that skips the navigation would change the address, which says what is shown.
document.querySelector('.skip').addEventListener('click', (event) => {
  event.preventDefault();
  main.focus();
});

route(false);
